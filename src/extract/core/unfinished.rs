//! A core that is being written: it takes its name when it is whole and on the
//! disk, and goes when it is not.

use super::{CoreError, PAGE};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that goes unless it is finished.
pub(super) struct Unfinished<'p> {
    file: File,
    temporary: PathBuf,
    path: &'p Path,
    finished: bool,
}

impl<'p> Unfinished<'p> {
    pub fn create(path: &'p Path) -> Result<Self, CoreError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|source| CoreError::Io {
                path: temporary.clone(),
                what: "it cannot be made",
                source,
            })?;
        Ok(Self {
            file,
            temporary,
            path,
            finished: false,
        })
    }

    fn failed(&self, what: &'static str, source: io::Error) -> CoreError {
        CoreError::Io {
            path: self.path.into(),
            what,
            source,
        }
    }

    pub fn write(&self, bytes: &[u8], at: u64) -> Result<(), CoreError> {
        self.file
            .write_all_at(bytes, at)
            .map_err(|e| self.failed("it cannot be written", e))
    }

    /// Writes what is not zero of whole pages; how much was zero.
    pub fn write_sparse(&self, bytes: &[u8], at: u64) -> Result<u64, CoreError> {
        let mut zeros = 0;
        // A stretch of pages to be written: where it starts in `bytes`.
        let mut start = None;
        let page = PAGE as usize;
        for from in (0..=bytes.len()).step_by(page) {
            let zero = bytes
                .get(from..from + page)
                .map(|page| page.iter().all(|byte| *byte == 0));
            zeros += if zero == Some(true) { PAGE } else { 0 };
            match (start, zero) {
                (None, Some(false)) => start = Some(from),
                (Some(first), None | Some(true)) => {
                    self.write(&bytes[first..from], at + first as u64)?;
                    start = None;
                }
                _ => {}
            }
        }
        Ok(zeros)
    }

    pub fn set_len(&self, len: u64) -> Result<(), CoreError> {
        self.file
            .set_len(len)
            .map_err(|e| self.failed("it cannot be as long as the memory", e))
    }

    /// Gives it its name.
    pub fn finish(mut self, replace: bool) -> Result<(), CoreError> {
        self.file
            .sync_all()
            .map_err(|e| self.failed("it does not reach the disk", e))?;
        let renamed = if replace {
            std::fs::rename(&self.temporary, self.path)
        } else {
            rename_to_new(&self.temporary, self.path)
        };
        match renamed {
            Ok(()) => {
                self.finished = true;
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(CoreError::Exists {
                path: self.path.into(),
            }),
            Err(e) => Err(self.failed("it cannot be given its name", e)),
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Renames, but not onto a file that somebody has made meanwhile.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        Ok(()) => std::fs::remove_file(from),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        // A file system without links.
        Err(_) if to.symlink_metadata().is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => std::fs::rename(from, to),
    }
}
