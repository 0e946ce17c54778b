//! The stored bytes of a kdump-compressed dump's pages, in memory, for the codec alone to decode.
//!
//! Reads the file without the library, and trusts it.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use crate::codec::{Codec, Decoder};

/// More stored bytes than this are not kept; the figure is then of the first of them.
const MOST: usize = 256 << 20;

pub struct Stored {
    bytes: Vec<u8>,
    /// Where each page's begin and end, and how they are stored.
    pages: Vec<(usize, usize, Codec)>,
    /// Pages asked for, for each that is kept.
    share: f64,
}

impl Stored {
    /// Those pages, in ascending order. `None` if the file is no kdump-compressed one.
    pub fn read(path: &Path, pfns: &[u64]) -> Result<Option<Stored>> {
        let file = File::open(path)?;
        let mut header = [0; 4096];
        file.read_exact_at(&mut header, 0)?;
        if !header.starts_with(b"KDUMP   ") {
            return Ok(None);
        }
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let half = u64::from(word(436)) / 2 * 4096;
        let bitmap = (1 + u64::from(word(432))) * 4096 + half;
        let descriptors = bitmap + half;
        let mut bits = vec![0; half as usize];
        file.read_exact_at(&mut bits, bitmap)?;
        let is_stored = |pfn: u64| bits[(pfn / 8) as usize] >> (pfn % 8) & 1 == 1;
        let (mut rank, mut counted) = (0, 0);
        let mut stored = Stored {
            bytes: Vec::new(),
            pages: Vec::new(),
            share: 1.0,
        };
        for &pfn in pfns {
            rank += (counted..pfn).filter(|&pfn| is_stored(pfn)).count() as u64;
            counted = pfn;
            let mut desc = [0; 24];
            file.read_exact_at(&mut desc, descriptors + rank * 24)?;
            let [offset, size_and_flags, _] = [0, 8, 16]
                .map(|at| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| desc[at + i])));
            let size = (size_and_flags & 0xffff_ffff) as usize;
            let codec = Codec::from_flags((size_and_flags >> 32) as u32).context("flags")?;
            let start = stored.bytes.len();
            if start + size > MOST {
                break;
            }
            stored.bytes.resize(start + size, 0);
            file.read_exact_at(&mut stored.bytes[start..], offset)?;
            stored.pages.push((start, start + size, codec));
        }
        stored.share = pfns.len() as f64 / stored.pages.len() as f64;
        Ok(Some(stored))
    }

    /// Seconds that one core takes for as many pages as were asked for.
    pub fn decode_all(&self) -> Result<f64> {
        let mut decoder = Decoder::new();
        let mut page = [0; 4096];
        let start = Instant::now();
        for &(from, to, codec) in &self.pages {
            decoder
                .decode(codec, &self.bytes[from..to], &mut page)
                .map_err(|what| anyhow!(what))?;
            black_box(&mut page);
        }
        Ok(start.elapsed().as_secs_f64() * self.share)
    }
}
