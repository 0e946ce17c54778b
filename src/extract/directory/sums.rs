//! `memory.sum`: a checksum (CRC-32) of each page of `memory.img`, so that a
//! page that was damaged on its way is not taken for what the process had.
//!
//! 32 bytes of header: magic, version (u32), the checksum of `dataset.json`
//! (u32), the number of pages (u64); then a u32 for each page, that of
//! `memory.img`'s own header first. Little-endian.

use super::{DirectoryError, PAGE, create, io};
use crate::dataset::SCHEMA_VERSION;
use libdeflater::crc32;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(super) const NAME: &str = "memory.sum";
const MAGIC: &[u8; 16] = b"vmrestore-sums\0\0";
const HEADER: u64 = 32;

/// Being written.
pub(super) struct Writer {
    out: BufWriter<File>,
    path: PathBuf,
    pages: u64,
}

impl Writer {
    pub fn create(dir: &Path) -> Result<Self, DirectoryError> {
        let path = dir.join(NAME);
        let mut out = BufWriter::new(create(&path)?);
        out.write_all(&[0; HEADER as usize])
            .map_err(|e| io("write", &path, e))?;
        Ok(Self {
            out,
            path,
            pages: 0,
        })
    }

    /// The next pages of the memory file.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), DirectoryError> {
        for page in bytes.chunks(PAGE as usize) {
            self.pages += 1;
            self.out
                .write_all(&crc32(page).to_le_bytes())
                .map_err(|e| io("write", &self.path, e))?;
        }
        Ok(())
    }

    pub fn finish(mut self, index: &[u8]) -> Result<(), DirectoryError> {
        let mut header = [0; HEADER as usize];
        header[..16].copy_from_slice(MAGIC);
        header[16..20].copy_from_slice(&SCHEMA_VERSION.to_le_bytes());
        header[20..24].copy_from_slice(&crc32(index).to_le_bytes());
        header[24..32].copy_from_slice(&self.pages.to_le_bytes());
        self.out
            .flush()
            .and_then(|()| self.out.get_ref().write_all_at(&header, 0))
            .and_then(|()| self.out.get_ref().sync_all())
            .map_err(|e| io("write", &self.path, e))
    }
}

/// Of a directory that is there.
#[derive(Debug)]
pub(super) struct Sums {
    file: File,
    pages: u64,
}

impl Sums {
    /// Opens it, and sees that `index` is the one that was written with it.
    pub fn open(dir: &Path, index: &[u8]) -> Result<Self, DirectoryError> {
        let path = dir.join(NAME);
        let damaged = |why: &str| DirectoryError::Damaged {
            path: path.display().to_string(),
            why: why.into(),
        };
        let file = File::open(&path).map_err(|e| io("open", &path, e))?;
        let mut header = [0; HEADER as usize];
        file.read_exact_at(&mut header, 0)
            .map_err(|e| io("read", &path, e))?;
        if &header[..16] != MAGIC {
            return Err(damaged("its first 16 bytes are not those of checksums"));
        }
        if header[20..24] != crc32(index).to_le_bytes() {
            return Err(DirectoryError::Damaged {
                path: dir.join(super::INDEX).display().to_string(),
                why: "its checksum is not that of when it was written".into(),
            });
        }
        let pages = header[24..].try_into().map_or(0, u64::from_le_bytes);
        let length = file.metadata().map_err(|e| io("read", &path, e))?.len();
        if pages.checked_mul(4).and_then(|n| n.checked_add(HEADER)) != Some(length) {
            return Err(damaged("it was cut short"));
        }
        Ok(Self { file, pages })
    }

    /// Pages of the memory file, its header among them.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether pages that were read are what was written; the number of the first that is not.
    pub fn verify(&self, first: u64, bytes: &[u8]) -> Result<(), String> {
        let count = bytes.len() / PAGE as usize;
        let mut sums = vec![0; count * 4];
        let at = first.saturating_mul(4).saturating_add(HEADER);
        self.file
            .read_exact_at(&mut sums, at)
            .map_err(|e| format!("its checksum cannot be read: {e}"))?;
        let wrong = bytes
            .chunks_exact(PAGE as usize)
            .zip(sums.chunks_exact(4))
            .position(|(page, sum)| crc32(page).to_le_bytes() != sum);
        match wrong {
            None => Ok(()),
            Some(n) => Err(format!(
                "it is damaged: page {} of the memory file is not what was written",
                first.saturating_add(n as u64)
            )),
        }
    }
}
