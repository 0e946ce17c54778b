//! A larger dump out of a real one: the same crash, and behind its memory as much text as a large
//! guest would hold. The kernel in it knows nothing of that memory; for every reader it is memory
//! like any other.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::pages_mix::{Noise, PAGE, Text};

const PHDR: usize = 56;

/// Writes to `to` the ELF dump `from` with `mib` MiB more, and returns the first new page frame.
pub fn grow(from: &Path, to: &Path, mib: u64) -> Result<u64> {
    let old = File::open(from)?;
    let mut header = [0u8; 64];
    old.read_exact_at(&mut header, 0)?;
    ensure!(header.starts_with(b"\x7fELF\x02\x01"), "no ELF64 dump");
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    ensure!(count < 0xfffe, "too many segments");
    let mut table = vec![0u8; count * PHDR];
    old.read_exact_at(&mut table, u64_at(&header, 32))?;

    let shift = (64 + (count + 1) * PHDR).next_multiple_of(PAGE) as u64;
    let old_len = old.metadata()?.len();
    let data_at = (shift + old_len).next_multiple_of(PAGE as u64);
    let mut end = 0;
    // Where the direct map is, which all but the kernel's own segment are in.
    let mut bases: HashMap<u64, usize> = HashMap::new();
    for segment in table.chunks_exact_mut(PHDR) {
        let offset = u64_at(segment, 8) + shift;
        segment[8..16].copy_from_slice(&offset.to_le_bytes());
        if segment[0] == 1 {
            let (virt, phys) = (u64_at(segment, 16), u64_at(segment, 24));
            end = end.max(phys + u64_at(segment, 40));
            *bases.entry(virt.wrapping_sub(phys)).or_default() += 1;
        }
    }
    let base = bases
        .into_iter()
        .max_by_key(|&(_, n)| n)
        .context("no memory")?
        .0;
    let start = end.next_multiple_of(1 << 32);
    let size = mib << 20;

    let mut out = BufWriter::with_capacity(1 << 20, File::create(to)?);
    header[32..40].copy_from_slice(&64u64.to_le_bytes());
    header[56..58].copy_from_slice(&((count + 1) as u16).to_le_bytes());
    out.write_all(&header)?;
    out.write_all(&table)?;
    out.write_all(&1u32.to_le_bytes())?;
    out.write_all(&7u32.to_le_bytes())?;
    for word in [data_at, base.wrapping_add(start), start, size, size, 0] {
        out.write_all(&word.to_le_bytes())?;
    }
    out.seek(SeekFrom::Start(shift))?;
    std::io::copy(&mut &old, &mut out)?;
    out.seek(SeekFrom::Start(data_at))?;
    let text = Text::of_this_project();
    let mut noise = Noise(1);
    for _ in 0..size / PAGE as u64 {
        out.write_all(&text.page(&mut noise))?;
    }
    out.flush()?;
    Ok(start / PAGE as u64)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| bytes[at + i]))
}
