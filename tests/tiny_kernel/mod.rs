//! A kernel small enough to be written by hand: physical memory with page tables, kallsyms, BTF and
//! whatever a test puts in it.
//!
//! It is written byte by byte, and shares no layout with the reader. Its structures are laid out
//! unlike Linux's on purpose (`prev` before `next`, an 80-byte `struct page`), so that a reader that
//! knew an offset by heart would fail.

#![allow(dead_code)]

pub mod btf;
pub mod world;

use std::sync::Arc;

use vmrestore::dump::{Missing, PageState, PhysicalMemory, ReadError};
use vmrestore::kernel::{Kernel, KernelError};

/// Bytes of physical memory.
pub const MEMORY: usize = 4 << 20;
/// Virtual address of the image's first byte, and its physical one.
pub const IMAGE: u64 = 0xffff_ffff_8100_0000;
pub const IMAGE_PHYS: u64 = 0x10_0000;
/// Where `page_offset_base` says that the direct map is.
pub const DIRECT: u64 = 0xffff_9a40_0000_0000;
/// Where `vmemmap_base` says that the array of `struct page` is.
pub const VMEMMAP: u64 = 0xffff_d900_0000_0000;
/// Reachable by page tables alone.
pub const VMALLOC: u64 = 0xffff_b000_1234_0000;

#[derive(Clone)]
pub struct Memory {
    pub bytes: Vec<u8>,
    /// Page frames that are not in the dump.
    pub missing: Vec<u64>,
}

impl PhysicalMemory for Memory {
    fn read_physical(&self, addr: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let missing = |addr, why| Err(ReadError::Missing { addr, why });
        let Some(end) = addr.checked_add(buf.len() as u64) else {
            return missing(addr, Missing::NotRam);
        };
        if let Some(pfn) = self
            .missing
            .iter()
            .find(|pfn| **pfn * 4096 < end && (**pfn + 1) * 4096 > addr)
        {
            return missing(pfn * 4096, Missing::Filtered);
        }
        match self.bytes.get(addr as usize..end as usize) {
            Some(found) => {
                buf.copy_from_slice(found);
                Ok(())
            }
            None => missing(addr, Missing::NotRam),
        }
    }

    fn page_state(&self, pfn: u64) -> PageState {
        if self.missing.contains(&pfn) {
            PageState::Missing(Missing::Filtered)
        } else {
            PageState::Present
        }
    }

    fn max_pfn(&self) -> u64 {
        self.bytes.len() as u64 / 4096
    }
}

/// How kallsyms stores addresses; see `scripts/kallsyms.c` of different ages.
#[derive(Clone, Copy, PartialEq)]
pub enum Encoding {
    AbsolutePercpu,
    Relative,
    OwnPlace,
    /// As `AbsolutePercpu`, and the note does not say where the tables are.
    Unannounced,
}

pub struct TinyKernel {
    pub memory: Memory,
    pub info: Vec<String>,
    pub five_levels: bool,
    /// Next free physical byte, in the image and behind it.
    pub image_end: u64,
    heap_end: u64,
    symbols: Vec<(u8, String, u64)>,
    top: u64,
}

impl TinyKernel {
    pub fn new(five_levels: bool) -> TinyKernel {
        let mut tiny = TinyKernel {
            memory: Memory {
                bytes: vec![0; MEMORY],
                missing: Vec::new(),
            },
            info: vec![
                "OSRELEASE=0.0.1-tiny".into(),
                "PAGESIZE=4096".into(),
                format!("NUMBER(pgtable_l5_enabled)={}", u8::from(five_levels)),
                // Loaded below where it is linked for: phys_base is negative.
                format!("NUMBER(phys_base)={}", IMAGE_PHYS as i64 - 0x100_0000),
                "NUMBER(KERNEL_IMAGE_SIZE)=1073741824".into(),
                format!("SYMBOL(_stext)={IMAGE:x}"),
            ],
            five_levels,
            image_end: IMAGE_PHYS,
            heap_end: 0x20_0000,
            symbols: Vec::new(),
            top: 0,
        };
        tiny.symbol(b'T', "_stext", IMAGE);
        tiny.symbol(b'T', "_text", IMAGE);
        tiny.image(&[0x90; 4096], 4096);
        let top = tiny.image(&[0; 4096], 4096);
        tiny.top = top - IMAGE + IMAGE_PHYS;
        tiny.info.push(format!("SYMBOL(init_top_pgt)={top:x}"));
        tiny.variable("page_offset_base", &DIRECT.to_le_bytes());
        tiny.variable("vmemmap_base", &VMEMMAP.to_le_bytes());
        tiny
    }

    /// Puts bytes in the kernel's image; their virtual address.
    pub fn image(&mut self, bytes: &[u8], align: u64) -> u64 {
        let at = self.image_end.next_multiple_of(align);
        self.put(at, bytes);
        self.image_end = at + bytes.len() as u64;
        assert!(self.image_end < 0x20_0000, "the image is full");
        at - IMAGE_PHYS + IMAGE
    }

    /// Puts bytes in memory behind the image; their physical address.
    pub fn heap(&mut self, bytes: &[u8], align: u64) -> u64 {
        let at = self.heap_end.next_multiple_of(align);
        self.put(at, bytes);
        self.heap_end = at + bytes.len() as u64;
        at
    }

    /// The same, as an address of the direct map.
    pub fn object(&mut self, bytes: &[u8], align: u64) -> u64 {
        DIRECT + self.heap(bytes, align)
    }

    pub fn put(&mut self, phys: u64, bytes: &[u8]) {
        self.memory.bytes[phys as usize..phys as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// Overwrites a word at an address of the direct map.
    pub fn poke(&mut self, addr: u64, value: u64) {
        self.put(addr - DIRECT, &value.to_le_bytes());
    }

    /// A variable of the image with a symbol; its virtual address.
    pub fn variable(&mut self, name: &str, bytes: &[u8]) -> u64 {
        let addr = self.image(bytes, 64);
        self.symbol(b'D', name, addr);
        addr
    }

    pub fn symbol(&mut self, kind: u8, name: &str, addr: u64) {
        self.symbols.push((kind, name.to_owned(), addr));
    }

    /// Enters a page, large as `shift` says, in page tables that begin at physical `top`.
    pub fn map(&mut self, top: u64, va: u64, shift: u32, entry: u64) {
        let mut table = top;
        let mut level = if self.five_levels { 48 } else { 39 };
        while level > shift {
            let at = table + (va >> level & 0x1ff) * 8;
            let bytes: [u8; 8] = self.memory.bytes[at as usize..at as usize + 8]
                .try_into()
                .unwrap();
            let mut next = u64::from_le_bytes(bytes);
            if next == 0 {
                next = self.heap(&[0; 4096], 4096) | 0x67;
                self.put(at, &next.to_le_bytes());
            }
            table = next & !0xfff;
            level -= 9;
        }
        self.put(table + (va >> shift & 0x1ff) * 8, &entry.to_le_bytes());
    }

    /// Enters a page in the kernel's own page tables.
    pub fn map_kernel(&mut self, va: u64, shift: u32, entry: u64) {
        self.map(self.top, va, shift, entry);
    }

    /// Writes vmlinux's BTF and kallsyms, and gives the note's text.
    pub fn finish(&mut self, btf: &btf::Types, encoding: Encoding) -> String {
        self.finish_with(&btf.blob(), encoding)
    }

    /// The same, with vmlinux's BTF as bytes.
    pub fn finish_with(&mut self, blob: &[u8], encoding: Encoding) -> String {
        let start = self.variable("__start_BTF", blob);
        self.symbol(b'D', "__stop_BTF", start + blob.len() as u64);
        self.write_kallsyms(encoding);
        self.info.join("\n")
    }

    pub fn open(&self, info: &str) -> Result<Kernel, KernelError> {
        Kernel::open(Arc::new(self.memory.clone()), info)
    }

    fn write_kallsyms(&mut self, encoding: Encoding) {
        self.symbol(b'B', "_end", IMAGE + 0xf_0000);
        let mut symbols = self.symbols.clone();
        symbols.sort_by_key(|symbol| symbol.2);
        // A token for each character, and three for what comes often.
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        tokens[0] = b"_base".to_vec();
        tokens[1] = b"page".to_vec();
        tokens[2] = b"D__".to_vec();
        let (mut table, mut index) = (Vec::new(), Vec::new());
        for token in &tokens {
            index.extend_from_slice(&(table.len() as u16).to_le_bytes());
            table.extend_from_slice(token);
            table.push(0);
        }
        let mut names = Vec::new();
        let mut markers = Vec::new();
        for (number, (kind, name, _)) in symbols.iter().enumerate() {
            if number % 256 == 0 {
                markers.extend_from_slice(&(names.len() as u32).to_le_bytes());
            }
            let mut rest: Vec<u8> = [&[*kind], name.as_bytes()].concat();
            let mut coded = Vec::new();
            while !rest.is_empty() {
                // Beside those three, each token is one character.
                let best = [0, 1, 2, usize::from(rest[0])]
                    .into_iter()
                    .filter(|&i| rest.starts_with(&tokens[i]))
                    .max_by_key(|&i| tokens[i].len())
                    .unwrap();
                coded.push(best as u8);
                rest.drain(..tokens[best].len());
            }
            if coded.len() < 128 {
                names.push(coded.len() as u8);
            } else {
                names.push(coded.len() as u8 | 0x80);
                names.push((coded.len() >> 7) as u8);
            }
            names.extend_from_slice(&coded);
        }
        let count = symbols.len() as u32;
        let place = |tiny: &mut TinyKernel, name: &str, bytes: &[u8]| {
            let addr = tiny.image(bytes, 8);
            if encoding != Encoding::Unannounced {
                tiny.info.push(format!("SYMBOL({name})={addr:x}"));
            }
            addr
        };
        let offsets_at = place(self, "kallsyms_offsets", &vec![0; symbols.len() * 4]);
        let mut offsets = Vec::new();
        for (i, (_, _, addr)) in (0u64..).zip(&symbols) {
            let offset = match encoding {
                Encoding::AbsolutePercpu | Encoding::Unannounced if *addr < 0x10_0000 => {
                    *addr as i32
                }
                Encoding::AbsolutePercpu | Encoding::Unannounced => -((*addr - IMAGE) as i32) - 1,
                Encoding::Relative => addr.wrapping_sub(IMAGE) as i32,
                Encoding::OwnPlace => addr.wrapping_sub(offsets_at + i * 4) as i32,
            };
            offsets.extend_from_slice(&offset.to_le_bytes());
        }
        self.put(offsets_at - IMAGE + IMAGE_PHYS, &offsets);
        if encoding != Encoding::OwnPlace {
            place(self, "kallsyms_relative_base", &IMAGE.to_le_bytes());
        }
        place(self, "kallsyms_num_syms", &count.to_le_bytes());
        place(self, "kallsyms_names", &names);
        place(self, "kallsyms_markers", &markers);
        place(self, "kallsyms_token_table", &table);
        place(self, "kallsyms_token_index", &index);
        // The first variable behind what is read-only.
        let behind = self.image(&[0; 8], 64);
        self.info.push(format!("SYMBOL(init_uts_ns)={behind:x}"));
    }
}

/// The bytes of consecutive little-endian words.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A small generator of numbers, the same at each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}
