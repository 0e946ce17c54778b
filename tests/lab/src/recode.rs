//! A real dump's pages stored anew with another codec. No makedumpfile of
//! Debian's writes snappy, and none writes more than one codec into a file; so
//! this takes what makedumpfile wrote with zlib (`-c`) and replaces nothing but
//! the stored pages, their descriptors and the two words that name the codec.
//! Written from makedumpfile's `diskdump_mod.h`; shares nothing with
//! vmrestore's reader.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

/// How pages are to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Codec {
    /// Google's snappy, raw blocks.
    Snappy,
    /// Each page by one of: zlib, snappy, zstd, as it is.
    Mixed,
}

const PAGE: usize = 4096;
/// `DUMP_DH_COMPRESSED_*`: in `page_desc.flags` and in the header's `status`.
const ZLIB: u32 = 1;
const SNAPPY: u32 = 4;
const ZSTD: u32 = 0x20;
/// Offsets in `struct disk_dump_header` and `struct kdump_sub_header`.
const STATUS: usize = 424;
const SUB_HEADER_BLOCKS: usize = 432;
const BITMAP_BLOCKS: usize = 436;
const ERASEINFO_SIZE: usize = PAGE + 72;
/// `struct page_desc`: offset u64, size u32, flags u32, page_flags u64.
const DESCRIPTOR: usize = 24;

/// Writes `to`, which says the same as `from`.
pub fn recode(from: &Path, to: &Path, codec: Codec) -> Result<()> {
    let input = File::open(from).with_context(|| from.display().to_string())?;
    let mut headers = vec![0; 2 * PAGE];
    input.read_exact_at(&mut headers, 0)?;
    ensure!(
        headers.starts_with(b"KDUMP   "),
        "{}: no kdump-compressed dump (makedumpfile -c)",
        from.display()
    );
    ensure!(
        word64(&headers, ERASEINFO_SIZE) == 0,
        "{}: eraseinfo behind the pages",
        from.display()
    );
    let bitmap_at = (1 + u64::from(word(&headers, SUB_HEADER_BLOCKS))) * PAGE as u64;
    let bitmap_bytes = u64::from(word(&headers, BITMAP_BLOCKS)) * PAGE as u64;
    let mut second = vec![0; usize::try_from(bitmap_bytes / 2)?];
    input.read_exact_at(&mut second, bitmap_at + bitmap_bytes / 2)?;
    let pages: u64 = second.iter().map(|b| u64::from(b.count_ones())).sum();
    let descriptors_at = bitmap_at + bitmap_bytes;
    let data_at = descriptors_at + pages * DESCRIPTOR as u64;

    let output = File::create(to).with_context(|| to.display().to_string())?;
    let mut front = (&input).take(descriptors_at);
    (&input).seek(SeekFrom::Start(0))?;
    std::io::copy(&mut front, &mut &output)?;
    let flag = if codec == Codec::Snappy { SNAPPY } else { 0 };
    let status = word(&headers, STATUS) & !(ZLIB | 2 | SNAPPY | ZSTD) | flag;
    output.write_all_at(&status.to_le_bytes(), STATUS as u64)?;

    (&input).seek(SeekFrom::Start(descriptors_at))?;
    let mut old = BufReader::with_capacity(1 << 20, &input);
    (&output).seek(SeekFrom::Start(data_at))?;
    let mut data = BufWriter::with_capacity(1 << 20, &output);
    let mut descriptors = Vec::with_capacity(usize::try_from(pages)? * DESCRIPTOR);
    let mut packer = Packer::new(codec);
    // Stored pages that several descriptors share (the page of zeros).
    let mut done: HashMap<u64, (u64, u32, u32)> = HashMap::new();
    let mut end = data_at;
    for index in 0..pages {
        let mut descriptor = [0; DESCRIPTOR];
        old.read_exact(&mut descriptor)?;
        let at = word64(&descriptor, 0);
        let (size, flags) = (word(&descriptor, 8), word(&descriptor, 12));
        let stored = match done.get(&at) {
            Some(stored) => *stored,
            None => {
                let page = stored_page(&input, at, size, flags)
                    .with_context(|| format!("{}: stored page {index}", from.display()))?;
                let (bytes, flags) = packer.pack(index, &page)?;
                data.write_all(bytes)?;
                let stored = (end, u32::try_from(bytes.len())?, flags);
                end += bytes.len() as u64;
                done.insert(at, stored);
                stored
            }
        };
        descriptors.extend_from_slice(&stored.0.to_le_bytes());
        descriptors.extend_from_slice(&stored.1.to_le_bytes());
        descriptors.extend_from_slice(&stored.2.to_le_bytes());
        descriptors.extend_from_slice(&descriptor[16..]);
    }
    data.flush()?;
    output.write_all_at(&descriptors, descriptors_at)?;
    Ok(())
}

fn stored_page(input: &File, at: u64, size: u32, flags: u32) -> Result<Vec<u8>> {
    ensure!(size as usize <= PAGE, "{size} bytes");
    let mut bytes = vec![0; size as usize];
    input.read_exact_at(&mut bytes, at)?;
    if flags & ZLIB != 0 {
        let mut page = Vec::with_capacity(PAGE);
        flate2::read::ZlibDecoder::new(bytes.as_slice()).read_to_end(&mut page)?;
        bytes = page;
    } else {
        ensure!(flags == 0, "neither zlib nor uncompressed: {flags:#x}");
    }
    ensure!(bytes.len() == PAGE, "{} bytes unpacked", bytes.len());
    Ok(bytes)
}

struct Packer {
    codec: Codec,
    snappy: snap::raw::Encoder,
    bytes: Vec<u8>,
}

impl Packer {
    fn new(codec: Codec) -> Self {
        Self {
            codec,
            snappy: snap::raw::Encoder::new(),
            bytes: Vec::new(),
        }
    }

    /// What to store, and `page_desc.flags`. Like makedumpfile: what does not
    /// get smaller is stored as it is.
    fn pack<'a>(&'a mut self, index: u64, page: &'a [u8]) -> Result<(&'a [u8], u32)> {
        let flags = match self.codec {
            Codec::Snappy => SNAPPY,
            Codec::Mixed => [ZLIB, SNAPPY, ZSTD, 0][(index % 4) as usize],
        };
        match flags {
            SNAPPY => self.bytes = self.snappy.compress_vec(page)?,
            ZSTD => {
                self.bytes.resize(zstd_safe::compress_bound(PAGE), 0);
                let length = zstd_safe::compress(self.bytes.as_mut_slice(), page, 1)
                    .map_err(|code| anyhow!("zstd: {}", zstd_safe::get_error_name(code)))?;
                self.bytes.truncate(length);
            }
            ZLIB => {
                let mut encoder =
                    flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(page)?;
                self.bytes = encoder.finish()?;
            }
            _ => return Ok((page, 0)),
        }
        if self.bytes.len() < PAGE {
            Ok((&self.bytes, flags))
        } else {
            Ok((page, 0))
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
