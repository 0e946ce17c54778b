//! A fuller dump out of a real one: text in place of the free pages, as a large guest would have it.
//!
//! makedumpfile -E -d 1 leaves out runs of 256 pages of zeros and more; those, but for the kernel's
//! image, are filled. What the dump held it still holds, so makedumpfile takes it for what it is and
//! writes it in its formats. The kernel in it will not like its zeroed pages full of text: such a
//! dump is for reading pages, not for looking at the kernel.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::pages_mix::{Noise, PAGE, Text};

const PHDR: usize = 56;
/// The kernel's image is mapped above this.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Shorter runs stay as they are.
const SHORTEST: u64 = 256 * PAGE as u64;

#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    virt: u64,
    phys: u64,
    in_file: u64,
    in_memory: u64,
}

/// Writes to `to` the ELF dump `from` with text in its holes; returns lines of the first page frame
/// and the number of pages, for each hole.
pub fn fill(from: &Path, to: &Path) -> Result<String> {
    let old = File::open(from)?;
    let mut header = [0u8; 64];
    old.read_exact_at(&mut header, 0)?;
    ensure!(header.starts_with(b"\x7fELF\x02\x01"), "no ELF64 dump");
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    let mut table = vec![0u8; count * PHDR];
    old.read_exact_at(&mut table, u64_at(&header, 32))?;
    let segments: Vec<Segment> = table.chunks_exact(PHDR).map(Segment::read).collect();
    // The image stands in a segment of its own, and in the direct map's.
    let is_image = |s: &Segment| s.virt >= IMAGE;
    let image: Vec<Segment> = segments.iter().copied().filter(is_image).collect();

    let mut holes = Vec::new();
    for s in segments.iter().filter(|s| s.kind == 1 && !is_image(s)) {
        let start = (s.phys + s.in_file).next_multiple_of(PAGE as u64);
        let end = (s.phys + s.in_memory) / PAGE as u64 * PAGE as u64;
        let apart = |s: &Segment| end <= s.phys || start >= s.phys + s.in_memory;
        if start + SHORTEST <= end && image.iter().all(apart) {
            holes.push((start, end, s.virt.wrapping_sub(s.phys)));
        }
    }
    ensure!(count + holes.len() < 0xffff, "too many segments");

    let shift = (64 + (count + holes.len()) * PHDR).next_multiple_of(PAGE) as u64;
    let mut at = (shift + old.metadata()?.len()).next_multiple_of(PAGE as u64);
    let data_at = at;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to)?);
    header[32..40].copy_from_slice(&64u64.to_le_bytes());
    header[56..58].copy_from_slice(&((count + holes.len()) as u16).to_le_bytes());
    out.write_all(&header)?;
    for mut s in segments {
        s.offset += shift;
        let hole = |&(start, ..): &(u64, u64, u64)| {
            s.kind == 1 && !is_image(&s) && (s.phys..s.phys + s.in_memory).contains(&start)
        };
        if holes.iter().any(hole) {
            s.in_memory = s.in_file.next_multiple_of(PAGE as u64);
        }
        s.write(&mut out)?;
    }
    let mut list = String::new();
    for &(start, end, base) in &holes {
        let size = end - start;
        let segment = Segment {
            kind: 1,
            offset: at,
            virt: base.wrapping_add(start),
            phys: start,
            in_file: size,
            in_memory: size,
        };
        segment.write(&mut out)?;
        at += size;
        writeln!(list, "{} {}", start / PAGE as u64, size / PAGE as u64)?;
    }
    out.seek(SeekFrom::Start(shift))?;
    std::io::copy(&mut &old, &mut out)?;
    out.seek(SeekFrom::Start(data_at))?;
    let text = Text::of_this_project();
    let mut noise = Noise(1);
    for _ in 0..(at - data_at) / PAGE as u64 {
        out.write_all(&text.page(&mut noise))?;
    }
    out.flush()?;
    Ok(list)
}

impl Segment {
    fn read(raw: &[u8]) -> Segment {
        Segment {
            kind: u64_at(raw, 0) as u32,
            offset: u64_at(raw, 8),
            virt: u64_at(raw, 16),
            phys: u64_at(raw, 24),
            in_file: u64_at(raw, 32),
            in_memory: u64_at(raw, 40),
        }
    }

    fn write(&self, out: &mut impl Write) -> Result<()> {
        out.write_all(&self.kind.to_le_bytes())?;
        out.write_all(&7u32.to_le_bytes())?;
        let words = [
            self.offset,
            self.virt,
            self.phys,
            self.in_file,
            self.in_memory,
            0,
        ];
        for word in words {
            out.write_all(&word.to_le_bytes())?;
        }
        Ok(())
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[at + i]))
}
