//! Dumps of machines that nobody has: a real dump, with its kernel and its
//! processes, and above its memory as much more as is wanted. All pages that
//! are added hold the same: the file is small where it can be, and sparse
//! where not. Written from the formats' descriptions; shares nothing with
//! vmrestore's reader.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::run;

const PAGE: u64 = 4096;
/// Added pages come in runs of so many: 2 MiB.
pub const RUN: u64 = 512;
/// Where the added memory begins: above that of the lab's host.
const ABOVE: u64 = (4 << 30) / PAGE;
const DESCRIPTOR: usize = 24;

/// A kdump-compressed dump of `bytes` of address space out of `from`, which is
/// one without eraseinfo, with `pages` more, in runs of [`RUN`] spread evenly.
/// Their descriptors all refer to one page of `from`. Returns how many it got.
pub fn kdump(from: &Path, to: &Path, bytes: u64, pages: u64) -> Result<u64> {
    let input = File::open(from).with_context(|| from.display().to_string())?;
    let mut headers = vec![0; 2 * PAGE as usize];
    input.read_exact_at(&mut headers, 0)?;
    ensure!(headers.starts_with(b"KDUMP   "), "{}", from.display());
    let frames = bytes / PAGE;
    let old_frames = word64(&headers, 4096 + 96);
    ensure!(old_frames <= ABOVE, "{}: too much memory", from.display());
    let bitmap_at = (1 + u64::from(word(&headers, 432))) * PAGE;
    let old_bitmap = u64::from(word(&headers, 436)) * PAGE / 2;
    let new_bitmap = frames.div_ceil(8).next_multiple_of(PAGE).max(old_bitmap);

    // Headers, notes; then both bitmaps with the added runs.
    let mut front = vec![0; usize::try_from(bitmap_at)?];
    input.read_exact_at(&mut front, 0)?;
    let wide = u32::try_from(2 * new_bitmap / PAGE)?;
    front[436..440].copy_from_slice(&wide.to_le_bytes());
    let narrow = u32::try_from(frames).unwrap_or(u32::MAX);
    front[440..444].copy_from_slice(&narrow.to_le_bytes());
    front[4096 + 96..4096 + 104].copy_from_slice(&frames.max(old_frames).to_le_bytes());
    let runs = if frames > ABOVE {
        (pages / RUN).min((frames - ABOVE) / RUN)
    } else {
        0
    };
    let step = (frames.saturating_sub(ABOVE) / RUN)
        .checked_div(runs)
        .unwrap_or(0)
        * RUN;
    let output = File::create(to).with_context(|| to.display().to_string())?;
    output.write_all_at(&front, 0)?;
    let mut old_pages = 0;
    for which in 0..2 {
        let mut bitmap = vec![0; usize::try_from(new_bitmap)?];
        let old = &mut bitmap[..usize::try_from(old_bitmap)?];
        input.read_exact_at(old, bitmap_at + which * old_bitmap)?;
        old_pages = old.iter().map(|byte| u64::from(byte.count_ones())).sum();
        for run in 0..runs {
            let at = usize::try_from((ABOVE + run * step) / 8)?;
            bitmap[at..at + RUN as usize / 8].fill(0xff);
        }
        output.write_all_at(&bitmap, bitmap_at + which * new_bitmap)?;
    }

    // Descriptors: the old ones moved, the added ones all alike.
    let old_descriptors = bitmap_at + 2 * old_bitmap;
    let old_data = old_descriptors + old_pages * DESCRIPTOR as u64;
    let descriptors = bitmap_at + 2 * new_bitmap;
    let data = descriptors + (old_pages + runs * RUN) * DESCRIPTOR as u64;
    let mut reader = BufReader::new(&input);
    reader.seek(SeekFrom::Start(old_descriptors))?;
    let mut writer = BufWriter::with_capacity(1 << 20, &output);
    writer.seek(SeekFrom::Start(descriptors))?;
    let mut added = [0; DESCRIPTOR];
    for _ in 0..old_pages {
        let mut descriptor = [0; DESCRIPTOR];
        reader.read_exact(&mut descriptor)?;
        let offset = word64(&descriptor, 0) - old_data + data;
        descriptor[..8].copy_from_slice(&offset.to_le_bytes());
        writer.write_all(&descriptor)?;
        // One that is compressed, and is not the page of zeros.
        if word(&descriptor, 12) != 0 && word(&descriptor, 8) > 1000 {
            added = descriptor;
        }
    }
    ensure!(added != [0; DESCRIPTOR], "no page is compressed");
    let chunk = added.repeat(RUN as usize);
    for _ in 0..runs {
        writer.write_all(&chunk)?;
    }
    reader.seek(SeekFrom::Start(old_data))?;
    std::io::copy(&mut reader, &mut writer)?;
    writer.flush()?;
    Ok(runs * RUN)
}

/// An ELF dump of `bytes` of address space out of `from`, a `/proc/vmcore`
/// that was saved whole. The added memory fills all of it in `segments`
/// segments: one has its own (sparse) place in the file, more than one share
/// [`RUN`] pages and leave as much out between them. Returns the pages added.
pub fn elf(from: &Path, to: &Path, bytes: u64, segments: u64) -> Result<u64> {
    run(Command::new("cp").arg("--sparse=always").args([from, to]))?;
    let file = File::options().read(true).write(true).open(to)?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    ensure!(header.starts_with(b"\x7fELF\x02\x01"), "{}", from.display());
    let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
    let mut table = vec![0; usize::try_from(count * 56)?];
    file.read_exact_at(&mut table, word64(&header, 32))?;
    let end = file.metadata()?.len().next_multiple_of(PAGE);
    let shared = table
        .chunks_exact(56)
        .find(|s| word(s, 0) == 1 && word64(s, 32) >= RUN * PAGE)
        .map(|s| word64(s, 8))
        .context("no large segment")?;
    let room = (bytes / PAGE).saturating_sub(ABOVE);
    let (length, step, offset) = if segments <= 1 {
        (room * PAGE, 0, end)
    } else {
        (RUN * PAGE, 2 * RUN * PAGE, shared)
    };
    let segments = segments.max(1).min((room / (2 * RUN)).max(1));
    let added = if room == 0 { 0 } else { segments };
    for index in 0..added {
        let address = ABOVE * PAGE + index * step;
        let words = [
            // PT_LOAD, readable and writable.
            1 | 6 << 32,
            offset,
            // The direct map, wherever it may be: nobody asks.
            0xffff_8880_0000_0000_u64.wrapping_add(address),
            address,
            length,
            length,
            0,
        ];
        for word in words {
            table.extend_from_slice(&word.to_le_bytes());
        }
    }
    let table_at = if segments <= 1 { end + length } else { end };
    file.write_all_at(&table, table_at)?;
    let count = table.len() as u64 / 56;
    header[32..40].copy_from_slice(&table_at.to_le_bytes());
    if let Ok(count) = u16::try_from(count)
        && count < 0xffff
    {
        header[56..58].copy_from_slice(&count.to_le_bytes());
    } else {
        // PN_XNUM: the count is `sh_info` of section 0.
        let section_at = table_at + table.len() as u64;
        let mut section = [0; 64];
        section[44..48].copy_from_slice(&u32::try_from(count)?.to_le_bytes());
        file.write_all_at(&section, section_at)?;
        header[40..48].copy_from_slice(&section_at.to_le_bytes());
        header[56..58].copy_from_slice(&0xffff_u16.to_le_bytes());
        header[58..60].copy_from_slice(&64_u16.to_le_bytes());
        header[60..62].copy_from_slice(&1_u16.to_le_bytes());
    }
    file.write_all_at(&header, 0)?;
    Ok(added * length / PAGE)
}

/// A flattened dump of the file `from`, in blocks of 1 MiB, as `makedumpfile
/// -F` would have written it.
pub fn flattened(from: &Path, to: &Path) -> Result<()> {
    let mut input = File::open(from).with_context(|| from.display().to_string())?;
    let output = File::create(to).with_context(|| to.display().to_string())?;
    let mut output = BufWriter::with_capacity(1 << 20, output);
    let mut header = [0; 4096];
    header[..12].copy_from_slice(b"makedumpfile");
    header[16..24].copy_from_slice(&1_i64.to_be_bytes());
    header[24..32].copy_from_slice(&1_i64.to_be_bytes());
    output.write_all(&header)?;
    let mut block = vec![0; 1 << 20];
    let mut offset = 0_i64;
    loop {
        let mut length = 0;
        while length < block.len() {
            match input.read(&mut block[length..])? {
                0 => break,
                more => length += more,
            }
        }
        if length == 0 {
            break;
        }
        output.write_all(&offset.to_be_bytes())?;
        output.write_all(&i64::try_from(length)?.to_be_bytes())?;
        output.write_all(&block[..length])?;
        offset += i64::try_from(length)?;
    }
    output.write_all(&(-1_i64).to_be_bytes())?;
    output.write_all(&(-1_i64).to_be_bytes())?;
    output.flush()?;
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
