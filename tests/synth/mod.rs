//! A writer of synthetic dumps, for tests.
//!
//! It shares no layout, constant or code with the reader: every offset below was put down again
//! from the sources that the comments name, so a wrong offset in the reader cannot agree with
//! itself.
#![allow(dead_code)]

pub mod exercise;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub const PAGE: usize = 4096;

/// A page frame of the machine that is to be dumped.
#[derive(Clone)]
pub enum Slot {
    Data(Box<[u8; PAGE]>),
    Filtered,
    NotRam,
}

/// A CPU's registers, in the order of `struct user_regs_struct`.
#[derive(Clone, Copy)]
pub struct Cpu {
    pub pid: i32,
    pub regs: [u64; 27],
}

#[derive(Clone)]
pub struct Machine {
    pub slots: Vec<Slot>,
    pub vmcoreinfo: Option<String>,
    pub cpus: Vec<Cpu>,
    /// Whether QEMU wrote the notes.
    pub qemu: bool,
}

/// Deterministic noise (splitmix64).
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Zeros, text, a sparse page or noise.
    pub fn page(&mut self) -> Box<[u8; PAGE]> {
        let mut page = Box::new([0u8; PAGE]);
        match self.below(4) {
            0 => {}
            1 => {
                for (i, byte) in page.iter_mut().enumerate() {
                    *byte = b"the quick brown fox "[i % 20];
                }
                page[self.below(4096) as usize] = self.next() as u8;
            }
            2 => {
                for _ in 0..40 {
                    page[self.below(4096) as usize] = self.next() as u8;
                }
            }
            _ => {
                for word in page.chunks_exact_mut(8) {
                    word.copy_from_slice(&self.next().to_ne_bytes());
                }
            }
        }
        page
    }
}

impl Machine {
    /// Runs of pages of each kind; the last frame is memory, so that all formats end alike.
    pub fn random(noise: &mut Noise, frames: usize) -> Machine {
        let mut slots = Vec::new();
        while slots.len() < frames {
            let kind = noise.below(4);
            for _ in 0..=noise.below(9) {
                slots.push(match kind {
                    0 => Slot::Filtered,
                    1 => Slot::NotRam,
                    _ => Slot::Data(noise.page()),
                });
            }
        }
        slots.truncate(frames - 1);
        slots.push(Slot::Data(noise.page()));
        let cpus = (0..3)
            .map(|i| Cpu {
                pid: 100 + i,
                regs: std::array::from_fn(|_| noise.next()),
            })
            .collect();
        let vmcoreinfo = Some(format!(
            "OSRELEASE=6.1.0\nPAGESIZE=4096\nCRASHTIME={}\n",
            noise.below(1 << 30)
        ));
        Machine {
            slots,
            vmcoreinfo,
            cpus,
            qemu: false,
        }
    }

    /// Numbers of present, filtered and other frames.
    pub fn counts(&self) -> (u64, u64, u64) {
        let mut counts = (0, 0, 0);
        for slot in &self.slots {
            match slot {
                Slot::Data(_) => counts.0 += 1,
                Slot::Filtered => counts.1 += 1,
                Slot::NotRam => counts.2 += 1,
            }
        }
        counts
    }

    /// Linux include/linux/elfcore.h; QEMU target/i386/arch_dump.c.
    fn notes(&self, with_vmcoreinfo: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for cpu in &self.cpus {
            let mut prstatus = vec![0u8; 336];
            put(&mut prstatus, 32, &cpu.pid.to_le_bytes());
            for (i, reg) in cpu.regs.iter().enumerate() {
                put(&mut prstatus, 112 + i * 8, &reg.to_le_bytes());
            }
            note(&mut out, b"CORE\0", 1, &prstatus);
        }
        if self.qemu {
            for (i, cpu) in self.cpus.iter().enumerate() {
                let mut state = vec![0u8; 440];
                put(&mut state, 0, &1u32.to_le_bytes());
                put(&mut state, 4, &440u32.to_le_bytes());
                put(&mut state, 8, &cpu.regs[10].to_le_bytes()); // rax
                put(&mut state, 136, &cpu.regs[16].to_le_bytes()); // rip
                put(&mut state, 152 + 4 * 24 + 16, &0x1111u64.to_le_bytes()); // gs.base
                put(&mut state, 152 + 9 * 24, &0x77u32.to_le_bytes()); // idt.selector
                put(
                    &mut state,
                    392 + 3 * 8,
                    &(0xc3_0000 + i as u64).to_le_bytes(),
                ); // cr3
                put(&mut state, 432, &0x2222u64.to_le_bytes()); // kernel_gs_base
                note(&mut out, b"QEMU\0", 0, &state);
            }
        }
        if let (Some(text), true) = (&self.vmcoreinfo, with_vmcoreinfo) {
            note(&mut out, b"VMCOREINFO\0", 0, text.as_bytes());
        }
        out
    }

    /// An ELF vmcore: notes, then segments whose data begin at an offset that is no multiple of
    /// 4096. Each run of present pages with the filtered ones behind it is one segment, as
    /// makedumpfile -E writes it.
    pub fn elf(&self) -> Vec<u8> {
        self.elf_with(|_| {})
    }

    /// As [`Machine::elf`]; `change` may edit the segments, (paddr, filesz, memsz, data).
    pub fn elf_with(&self, change: impl FnOnce(&mut Vec<Segment>)) -> Vec<u8> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut last = 2; // 0 data, 1 filtered, 2 not memory
        for (pfn, slot) in self.slots.iter().enumerate() {
            let addr = (pfn * PAGE) as u64;
            match slot {
                Slot::NotRam => last = 2,
                Slot::Data(page) => {
                    if last != 0 {
                        segments.push(Segment {
                            addr,
                            memory: 0,
                            data: Vec::new(),
                        });
                    }
                    let segment = segments.last_mut().unwrap();
                    segment.data.extend_from_slice(&page[..]);
                    segment.memory += PAGE as u64;
                    last = 0;
                }
                Slot::Filtered => {
                    if last == 2 {
                        segments.push(Segment {
                            addr,
                            memory: 0,
                            data: Vec::new(),
                        });
                    }
                    segments.last_mut().unwrap().memory += PAGE as u64;
                    last = 1;
                }
            }
        }
        change(&mut segments);
        elf_file(&self.notes(true), &segments)
    }

    /// makedumpfile's kdump-compressed format. diskdump_mod.h, IMPLEMENTATION.
    pub fn kdump(&self, options: Kdump, noise: &mut Noise) -> Vec<u8> {
        let frames = self.slots.len();
        let bitmap_blocks = frames.div_ceil(8 * PAGE) * 2;
        let (mut ram, mut dumped) = (
            vec![0u8; bitmap_blocks / 2 * PAGE],
            vec![0u8; bitmap_blocks / 2 * PAGE],
        );
        for (pfn, slot) in self.slots.iter().enumerate() {
            let bit = 1 << (pfn % 8);
            match slot {
                Slot::NotRam => {}
                Slot::Filtered => ram[pfn / 8] |= bit,
                Slot::Data(_) => {
                    ram[pfn / 8] |= bit;
                    dumped[pfn / 8] |= bit;
                }
            }
        }
        let vmcoreinfo = self.vmcoreinfo.clone().unwrap_or_default();
        let notes = self.notes(false);
        let sub_blocks = (PAGE + 104 + vmcoreinfo.len() + notes.len()).div_ceil(PAGE) - 1;

        let mut out = vec![0u8; PAGE * (1 + sub_blocks)];
        put(&mut out, 0, b"KDUMP   ");
        put(&mut out, 8, &options.version.to_le_bytes());
        put(&mut out, 12, b"Linux");
        put(&mut out, 12 + 4 * 65, options.machine.as_bytes());
        put(&mut out, 424, &options.status.to_le_bytes());
        put(&mut out, 428, &options.block_size.to_le_bytes());
        put(&mut out, 432, &(sub_blocks as u32).to_le_bytes());
        put(&mut out, 436, &(bitmap_blocks as u32).to_le_bytes());
        // From version 6 on the 32-bit field is obsolete; a reader must not take it.
        let max_mapnr = if options.version >= 6 {
            7
        } else {
            frames as u32
        };
        put(&mut out, 440, &max_mapnr.to_le_bytes());
        put(&mut out, 460, &(self.cpus.len() as i32).to_le_bytes());

        let sub = PAGE;
        put(&mut out, sub + 8, &options.level.to_le_bytes());
        let split = u32::from(options.part.is_some());
        put(&mut out, sub + 12, &split.to_le_bytes());
        let area = sub + 104;
        // Fields that a version does not have are noise, which a reader must not take either.
        for at in (16..104).step_by(8) {
            put(&mut out, sub + at, &(noise.next() | 1).to_le_bytes());
        }
        let (first, end) = options.part.unwrap_or((0, frames));
        if options.version >= 2 {
            let at = if options.version >= 6 { 80 } else { 16 };
            put(&mut out, sub + at, &(first as u64).to_le_bytes());
            put(&mut out, sub + at + 8, &(end as u64).to_le_bytes());
        }
        if options.version >= 3 {
            put(&mut out, sub + 32, &(area as u64).to_le_bytes());
            put(&mut out, sub + 40, &(vmcoreinfo.len() as u64).to_le_bytes());
            put(&mut out, area, vmcoreinfo.as_bytes());
        }
        if options.version >= 4 {
            put(
                &mut out,
                sub + 48,
                &((area + vmcoreinfo.len()) as u64).to_le_bytes(),
            );
            put(&mut out, sub + 56, &(notes.len() as u64).to_le_bytes());
            put(&mut out, area + vmcoreinfo.len(), &notes);
        }
        if options.version >= 6 {
            put(&mut out, sub + 96, &(frames as u64).to_le_bytes());
        }
        out.extend_from_slice(&ram);
        out.extend_from_slice(&dumped);

        let pages: Vec<&[u8; PAGE]> = self.slots[first..end]
            .iter()
            .filter_map(|slot| match slot {
                Slot::Data(page) => Some(&**page),
                _ => None,
            })
            .collect();
        let mut descriptors = Vec::new();
        let mut data = Vec::new();
        let data_at = out.len() + pages.len() * 24;
        // All zero pages share the first stored one.
        let mut zero: Option<(u64, u32, u32)> = None;
        for page in pages {
            let is_zero = page.iter().all(|&b| b == 0);
            let shared = if is_zero { zero } else { None };
            let desc = shared.unwrap_or_else(|| {
                let (bytes, flags) = (options.store)(page, noise);
                let at = (data_at + data.len()) as u64;
                data.extend_from_slice(&bytes);
                (at, bytes.len() as u32, flags)
            });
            if is_zero {
                zero = Some(desc);
            }
            descriptors.extend_from_slice(&desc.0.to_le_bytes());
            descriptors.extend_from_slice(&desc.1.to_le_bytes());
            descriptors.extend_from_slice(&desc.2.to_le_bytes());
            descriptors.extend_from_slice(&noise.next().to_le_bytes());
        }
        out.extend_from_slice(&descriptors);
        out.extend_from_slice(&data);
        out
    }
}

pub struct Segment {
    pub addr: u64,
    pub memory: u64,
    pub data: Vec<u8>,
}

/// System V ABI, "Object Files"; all numbers by hand.
pub fn elf_file(notes: &[u8], segments: &[Segment]) -> Vec<u8> {
    let count = segments.len() + 1;
    let mut out = vec![0u8; 64];
    put(&mut out, 0, b"\x7fELF\x02\x01\x01");
    put(&mut out, 16, &4u16.to_le_bytes()); // ET_CORE
    put(&mut out, 18, &62u16.to_le_bytes()); // EM_X86_64
    put(&mut out, 20, &1u32.to_le_bytes());
    put(&mut out, 52, &64u16.to_le_bytes());
    put(&mut out, 54, &56u16.to_le_bytes());
    let table = if count >= 0xffff {
        // The count does not fit: it goes to sh_info of section 0, 44 bytes in.
        put(&mut out, 40, &64u64.to_le_bytes());
        put(&mut out, 56, &0xffffu16.to_le_bytes());
        put(&mut out, 58, &64u16.to_le_bytes());
        put(&mut out, 60, &1u16.to_le_bytes());
        out.resize(128, 0);
        put(&mut out, 64 + 44, &(count as u32).to_le_bytes());
        128
    } else {
        put(&mut out, 56, &(count as u16).to_le_bytes());
        64
    };
    put(&mut out, 32, &(table as u64).to_le_bytes());
    let notes_at = table + count * 56;
    let mut headers = Vec::new();
    let mut data = notes.to_vec();
    segment_header(
        &mut headers,
        4,
        notes_at as u64,
        0,
        notes.len() as u64,
        notes.len() as u64,
    );
    for segment in segments {
        data.extend_from_slice(&[0xee; 3]); // no alignment
        let at = (notes_at + data.len()) as u64;
        segment_header(
            &mut headers,
            1,
            at,
            segment.addr,
            segment.data.len() as u64,
            segment.memory,
        );
        data.extend_from_slice(&segment.data);
    }
    out.extend_from_slice(&headers);
    out.extend_from_slice(&data);
    out
}

fn segment_header(out: &mut Vec<u8>, kind: u32, offset: u64, addr: u64, file: u64, memory: u64) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&7u32.to_le_bytes());
    for word in [
        offset,
        0xffff_8880_0000_0000u64.wrapping_add(addr),
        addr,
        file,
        memory,
        0,
    ] {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// How to write a kdump-compressed dump.
pub struct Kdump {
    pub version: i32,
    pub status: u32,
    pub level: u32,
    /// One part of a split dump: the page frames that it holds.
    pub part: Option<(usize, usize)>,
    pub block_size: u32,
    pub machine: &'static str,
    /// A page's stored bytes and `page_desc.flags`.
    pub store: fn(&[u8; PAGE], &mut Noise) -> (Vec<u8>, u32),
}

impl Default for Kdump {
    fn default() -> Self {
        Kdump {
            version: 6,
            status: 1,
            level: 17,
            part: None,
            block_size: 4096,
            machine: "x86_64",
            store: store_zlib,
        }
    }
}

pub fn store_raw(page: &[u8; PAGE], _: &mut Noise) -> (Vec<u8>, u32) {
    (page.to_vec(), 0)
}

/// As makedumpfile does: what does not shrink stays as it is.
pub fn store_zlib(page: &[u8; PAGE], noise: &mut Noise) -> (Vec<u8>, u32) {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(page).unwrap();
    let bytes = encoder.finish().unwrap();
    if bytes.len() < PAGE {
        (bytes, 1)
    } else {
        store_raw(page, noise)
    }
}

pub fn store_lzo(page: &[u8; PAGE], noise: &mut Noise) -> (Vec<u8>, u32) {
    let bytes = lzo_literal_runs(page);
    if bytes.len() < PAGE {
        (bytes, 2)
    } else {
        store_raw(page, noise)
    }
}

pub fn store_snappy(page: &[u8; PAGE], noise: &mut Noise) -> (Vec<u8>, u32) {
    let bytes = snap::raw::Encoder::new().compress_vec(page).unwrap();
    if bytes.len() < PAGE {
        (bytes, 4)
    } else {
        store_raw(page, noise)
    }
}

pub fn store_zstd(page: &[u8; PAGE], noise: &mut Noise) -> (Vec<u8>, u32) {
    let bytes = zstd(page);
    if bytes.len() < PAGE {
        (bytes, 0x20)
    } else {
        store_raw(page, noise)
    }
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; data.len() + 1024];
    let size = zstd_safe::compress(&mut bytes[..], data, 1).unwrap();
    bytes.truncate(size);
    bytes
}

/// Each page by another codec.
pub fn store_mixed(page: &[u8; PAGE], noise: &mut Noise) -> (Vec<u8>, u32) {
    match noise.below(5) {
        0 => store_raw(page, noise),
        1 => store_zlib(page, noise),
        2 => store_snappy(page, noise),
        3 => store_zstd(page, noise),
        _ => store_lzo(page, noise),
    }
}

/// A plain LZO1X encoder: runs of equal bytes as one literal and an overlapping match, the rest as
/// literals. Linux Documentation/staging/lzo.rst.
pub fn lzo_literal_runs(page: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut literals: Vec<u8> = Vec::new();
    let mut at = 0;
    let mut first = true;
    while at < page.len() {
        let run = page[at..].iter().take_while(|&&b| b == page[at]).count();
        if run >= 40 {
            // The match needs one byte before it, and at least four literals can stand anywhere.
            let head = run.min(4);
            literals.extend_from_slice(&page[at..at + head]);
            lzo_literals(&mut out, &literals, first);
            (literals, first) = (Vec::new(), false);
            // 0 0 1 L L L L L with L = 0: length 33 + 255 × zeros + byte; then distance 1.
            let mut length = run - head - 33;
            out.push(0x20);
            while length >= 256 {
                out.push(0);
                length -= 255;
            }
            // A zero byte would be taken for another 255.
            if length == 0 {
                // One byte less here, one more literal behind.
                out.pop();
                out.push(0x20 | 30); // length 32
                out.extend_from_slice(&[0, 0]);
                at += head + 32;
            } else {
                out.push(length as u8);
                out.extend_from_slice(&[0, 0]);
                at += run;
            }
        } else {
            literals.push(page[at]);
            at += 1;
        }
    }
    if !literals.is_empty() {
        if literals.len() < 4 && !first {
            // After a match without literals, one to three literals cannot stand alone: let the
            // caller store the page raw.
            return vec![0; page.len()];
        }
        lzo_literals(&mut out, &literals, first);
    }
    out.extend_from_slice(&[0x11, 0, 0]);
    out
}

/// A run of at least four literals: 0 0 0 0 L L L L, length 3 + L; longer in bytes of 255.
fn lzo_literals(out: &mut Vec<u8>, literals: &[u8], first: bool) {
    assert!(literals.len() >= 4);
    if first && literals.len() <= 238 {
        out.push(literals.len() as u8 + 17);
    } else if literals.len() <= 18 {
        out.push(literals.len() as u8 - 3);
    } else {
        let mut rest = literals.len() - 18;
        out.push(0);
        while rest > 255 {
            out.push(0);
            rest -= 255;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(literals);
}

/// makedumpfile -F: `image` cut into blocks of `block` bytes; with `shuffle`, the first block is
/// written empty of sense first and rightly at the end, as makedumpfile rewrites its header.
pub fn flatten(image: &[u8], block: usize, shuffle: bool) -> Vec<u8> {
    let mut out = vec![0u8; PAGE];
    put(&mut out, 0, b"makedumpfile");
    put(&mut out, 16, &1u64.to_be_bytes());
    put(&mut out, 24, &1u64.to_be_bytes());
    let mut blocks: Vec<(usize, Vec<u8>)> = image
        .chunks(block)
        .enumerate()
        .map(|(i, bytes)| (i * block, bytes.to_vec()))
        .collect();
    if shuffle {
        let first = blocks[0].clone();
        blocks[0].1.fill(0xaa);
        // Two blocks change places, so order in the file is not order in the image.
        let n = blocks.len();
        if n > 3 {
            blocks.swap(1, n - 1);
        }
        blocks.push(first);
    }
    for (offset, bytes) in blocks {
        out.extend_from_slice(&(offset as u64).to_be_bytes());
        out.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        out.extend_from_slice(&bytes);
    }
    out.extend_from_slice(&[0xff; 16]);
    out
}

/// makedumpfile -F of a kdump-compressed `image`, as 1.7.2 really writes it: the bitmaps end with
/// their last byte that is used, and nothing fills their blocks.
pub fn flatten_without_padding(image: &[u8], pages: usize) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    // sub_hdr_size and bitmap_blocks of struct disk_dump_header.
    let (bitmap, blocks) = ((1 + word(432)) * PAGE, word(436));
    let half = blocks / 2 * PAGE;
    let used = pages.div_ceil(8);
    let (second, data) = (bitmap + half, bitmap + 2 * half);
    let mut out = flatten(&image[..bitmap], 65536, false);
    for (from, to) in [
        (bitmap, bitmap + used),
        (second, second + used),
        (data, image.len()),
    ] {
        // In place of the end mark.
        out.truncate(out.len() - 16);
        out.extend_from_slice(&(from as u64).to_be_bytes());
        out.extend_from_slice(&((to - from) as u64).to_be_bytes());
        out.extend_from_slice(&image[from..to]);
        out.extend_from_slice(&[0xff; 16]);
    }
    out
}

/// Puts bytes at an offset, growing what is too short.
pub fn put(out: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if out.len() < at + bytes.len() {
        out.resize(at + bytes.len(), 0);
    }
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

pub fn note(out: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    out.extend_from_slice(&(name.len() as u32).to_le_bytes());
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(&kind.to_le_bytes());
    for part in [name, content] {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// A file that goes when it is dropped.
pub struct TempFile(PathBuf);

impl TempFile {
    pub fn new(bytes: &[u8]) -> TempFile {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "vmrestore-dump-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        TempFile(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
