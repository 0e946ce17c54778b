//! What a dump has to say, read without vmrestore: the pages of an ELF core that holds all of a
//! machine's memory (`/proc/vmcore` saved with `cp`, or QEMU's own). Written from the ELF
//! specification.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

pub const PAGE: usize = 4096;
const PT_LOAD: u32 = 1;

/// All memory of a dead machine.
pub struct Truth {
    file: File,
    /// (first byte's physical address, length, offset in the file), by address.
    pieces: Vec<(u64, u64, u64)>,
}

impl Truth {
    pub fn open(path: &Path) -> Result<Truth> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0)?;
        ensure!(
            header.starts_with(b"\x7fELF\x02\x01"),
            "{}: no ELF64 file",
            path.display()
        );
        let phoff = word64(&header, 32);
        let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
        let mut pieces = Vec::new();
        for index in 0..count {
            let mut segment = [0; 56];
            file.read_exact_at(&mut segment, phoff + index * 56)?;
            if word64(&segment, 0) as u32 != PT_LOAD {
                continue;
            }
            let (offset, paddr) = (word64(&segment, 8), word64(&segment, 24));
            let (in_file, in_memory) = (word64(&segment, 32), word64(&segment, 40));
            ensure!(in_file == in_memory, "segment {index} is not whole");
            pieces.push((paddr, in_file, offset));
        }
        // The kernel's text is there twice, inside a larger piece.
        pieces.sort_unstable_by_key(|&(start, length, _)| (start, u64::MAX - length));
        pieces.dedup_by(|later, earlier| later.0 + later.1 <= earlier.0 + earlier.1);
        Ok(Truth { file, pieces })
    }

    /// One past the last page frame.
    pub fn max_pfn(&self) -> u64 {
        let end = self.pieces.iter().map(|(start, length, _)| start + length);
        end.max().unwrap_or(0).div_ceil(PAGE as u64)
    }

    /// Where the whole page stands in the file.
    fn offset(&self, pfn: u64) -> Option<u64> {
        let at = pfn * PAGE as u64;
        let index = self.pieces.partition_point(|piece| piece.0 <= at);
        let (start, length, offset) = *self.pieces.get(index.checked_sub(1)?)?;
        (at + PAGE as u64 <= start + length).then(|| offset + (at - start))
    }

    /// Whether the machine had this page, whole.
    pub fn has(&self, pfn: u64) -> bool {
        self.offset(pfn).is_some()
    }

    /// Pages `first..first + out.len() / 4096`, all of which there must be.
    pub fn read(&self, first: u64, out: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < out.len() {
            let pfn = first + (at / PAGE) as u64;
            let offset = self
                .offset(pfn)
                .with_context(|| format!("page frame {pfn:#x} was never there"))?;
            let mut end = at + PAGE;
            while end < out.len()
                && self.offset(first + (end / PAGE) as u64) == Some(offset + (end - at) as u64)
            {
                end += PAGE;
            }
            self.file.read_exact_at(&mut out[at..end], offset)?;
            at = end;
        }
        Ok(())
    }
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
