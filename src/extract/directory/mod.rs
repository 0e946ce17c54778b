//! A dataset as files: `dataset.json`, `memory.img` with its pages, and
//! `memory.sum` with their checksums.
//!
//! `memory.img` starts with a page of header (magic, version, crash), then the
//! pages follow; the file is sparse where memory was zero. A page run's
//! `Stored` is a byte offset in it. All of what was in the dump, in page caches
//! and in swap areas is in these files: a restore from them needs none of those.
//! Nobody but their owner may read them.

mod sanity;
mod sums;

use crate::dataset::{Dataset, PageContent, PageRun, PageSource, PageSourceError, SCHEMA_VERSION};
use serde::Deserialize;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use sums::Sums;

const PAGE: u64 = 4096;
const MAGIC: &[u8; 16] = b"vmrestore-memory";
const INDEX: &str = "dataset.json";
const MEMORY: &str = "memory.img";
/// Pages that are read and written in one step.
const BATCH: u64 = 512;

/// Why a dataset could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory to write to holds something already.
    #[error("{path} exists and is not empty")]
    NotEmpty {
        /// The directory.
        path: String,
    },
    /// An operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On which path.
        path: String,
        /// Its error.
        source: std::io::Error,
    },
    /// The index is not a dataset.
    #[error("{path} is not a dataset: {why}")]
    NotADataset {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: String,
        /// How it shows.
        why: String,
    },
    /// Written by another version.
    #[error("{path} has schema version {found}; this vmrestore reads {SCHEMA_VERSION}")]
    Version {
        /// The file.
        path: String,
        /// Its version.
        found: u64,
    },
    /// A page of it is not to be had.
    #[error("{whose}")]
    Page {
        /// Which mapping or file.
        whose: String,
        /// Why.
        source: PageSourceError,
    },
}

/// Writes `dataset` to the new directory `dir`, its pages from `pages`. On an
/// error the directory is removed again.
///
/// # Errors
/// See [`DirectoryError`]; a page that the dump has not got is one.
pub fn write(dataset: &Dataset, pages: &dyn PageSource, dir: &Path) -> Result<u64, DirectoryError> {
    let occupied = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        return Err(DirectoryError::NotEmpty {
            path: dir.display().to_string(),
        });
    }
    let made = !dir.exists();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| io("create", dir, e))?;
    let result = write_files(dataset.clone(), pages, dir);
    if result.is_err() {
        for name in [INDEX, MEMORY, sums::NAME] {
            let _ = fs::remove_file(dir.join(name));
        }
        if made {
            let _ = fs::remove_dir(dir);
        }
    }
    result
}

fn write_files(
    mut dataset: Dataset,
    pages: &dyn PageSource,
    dir: &Path,
) -> Result<u64, DirectoryError> {
    let path = dir.join(MEMORY);
    let file = create(&path)?;
    let mut header = vec![0; PAGE as usize];
    header[..16].copy_from_slice(MAGIC);
    header[16..20].copy_from_slice(&SCHEMA_VERSION.to_le_bytes());
    let crash = dataset.crash_id.as_bytes();
    let len = crash.len().min(128);
    header[32..32 + len].copy_from_slice(&crash[..len]);
    file.write_all_at(&header, 0)
        .map_err(|e| io("write", &path, e))?;
    let mut sums = sums::Writer::create(dir)?;
    sums.add(&header)?;

    let mut memory = MemoryWriter {
        file,
        path,
        sums,
        next: PAGE,
        pages,
        buffer: vec![0; (BATCH * PAGE) as usize],
    };
    for process in &mut dataset.processes {
        for vma in &mut process.mm.vmas {
            let whose = format!("memory of pid {} at {:#x}", process.pid, vma.start);
            memory.store(&mut vma.pages, &whose)?;
        }
    }
    for object in &mut dataset.shared_memory {
        memory.store(
            &mut object.pages,
            &format!("shared memory {:?}", object.name),
        )?;
    }
    for inode in &mut dataset.inodes {
        let whose = format!("unwritten pages of {}", inode.path);
        memory.store(&mut inode.dirty, &whose)?;
        // Pages that the dump left out are taken for what the disk has.
        inode.uncommitted.retain(|run| !run.content.is_missing());
        memory.store(&mut inode.uncommitted, &whose)?;
    }
    // What was in swap areas is in the memory file now.
    dataset.swap.clear();
    let index = dir.join(INDEX);
    let bytes = serde_json::to_vec(&dataset).map_err(|e| io("write", &index, e.into()))?;
    let total = memory.finish(&bytes)?;
    // The last of the files: without it there is no dataset.
    let mut file = create(&index)?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(|e| io("write", &index, e))?;
    Ok(total)
}

/// A new file that holds what a process's memory did.
fn create(path: &Path) -> Result<File, DirectoryError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| io("create", path, e))
}

/// Copies page runs into the memory file and lets them point there.
struct MemoryWriter<'a> {
    file: File,
    path: PathBuf,
    next: u64,
    sums: sums::Writer,
    pages: &'a dyn PageSource,
    buffer: Vec<u8>,
}

impl MemoryWriter<'_> {
    fn store(&mut self, runs: &mut [PageRun], whose: &str) -> Result<(), DirectoryError> {
        for run in runs.iter_mut().filter(|r| r.content != PageContent::Zero) {
            let at = self.next;
            let mut first = 0;
            while first < run.count {
                let count = (run.count - first).min(BATCH);
                let out = &mut self.buffer[..(count * PAGE) as usize];
                self.pages
                    .read_pages(run, first, count, out)
                    .map_err(|source| DirectoryError::Page {
                        whose: whose.to_owned(),
                        source,
                    })?;
                write_sparse(&self.file, out, self.next).map_err(|e| io("write", &self.path, e))?;
                self.sums.add(out)?;
                self.next += count * PAGE;
                first += count;
            }
            run.content = PageContent::Stored(at);
        }
        Ok(())
    }

    fn finish(self, index: &[u8]) -> Result<u64, DirectoryError> {
        self.file
            .set_len(self.next)
            .and_then(|()| self.file.sync_all())
            .map_err(|e| io("write", &self.path, e))?;
        self.sums.finish(index)?;
        Ok(self.next)
    }
}

/// Writes the pages that are not zero, neighbours in one call.
fn write_sparse(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let page = PAGE as usize;
    let zero = |i: usize| bytes[i * page..(i + 1) * page].iter().all(|b| *b == 0);
    let pages = bytes.len() / page;
    let mut i = 0;
    while i < pages {
        if zero(i) {
            i += 1;
            continue;
        }
        let start = i;
        while i < pages && !zero(i) {
            i += 1;
        }
        file.write_all_at(&bytes[start * page..i * page], at + (start * page) as u64)?;
    }
    Ok(())
}

/// Whether a path is what `extract` wrote, or a directory of such and of nothing else: beside a
/// dump it is the dump that is meant.
#[must_use]
pub fn is_one(path: &Path) -> bool {
    if path.join(INDEX).exists() {
        return true;
    }
    let Ok(entries) = fs::read_dir(path) else {
        return false;
    };
    entries.flatten().all(|entry| entry.path().is_dir()) && find(path).is_ok()
}

/// A [`PageSource`] whose pages are in a dataset's memory file.
#[derive(Debug)]
pub struct StoredPages {
    file: File,
    sums: Sums,
}

/// Reads a dataset from its directory.
///
/// # Errors
/// See [`DirectoryError`].
pub fn read(dir: &Path) -> Result<(Dataset, StoredPages), DirectoryError> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: u64,
    }
    let path = dir.join(INDEX);
    let bytes = fs::read(&path).map_err(|e| io("read", &path, e))?;
    let not_a_dataset = |e: serde_json::Error| DirectoryError::NotADataset {
        path: path.display().to_string(),
        why: e.to_string(),
    };
    let version: Version = serde_json::from_slice(&bytes).map_err(not_a_dataset)?;
    if version.schema_version != u64::from(SCHEMA_VERSION) {
        return Err(DirectoryError::Version {
            path: path.display().to_string(),
            found: version.schema_version,
        });
    }
    let sums = Sums::open(dir, &bytes)?;
    let dataset: Dataset = serde_json::from_slice(&bytes).map_err(not_a_dataset)?;
    let damaged = |path: &Path, why: String| DirectoryError::Damaged {
        path: path.display().to_string(),
        why,
    };
    sanity::check(&dataset, sums.pages()).map_err(|why| damaged(&path, why))?;

    let path = dir.join(MEMORY);
    let file = File::open(&path).map_err(|e| io("open", &path, e))?;
    let mut header = vec![0; PAGE as usize];
    file.read_exact_at(&mut header, 0)
        .map_err(|e| io("read", &path, e))?;
    if header.get(..16) != Some(&MAGIC[..]) {
        return Err(DirectoryError::NotADataset {
            path: path.display().to_string(),
            why: "its first 16 bytes are not those of a memory file".into(),
        });
    }
    // Another crash's memory file, say, copied to here.
    sums.verify(0, &header).map_err(|why| damaged(&path, why))?;
    let length = file.metadata().map_err(|e| io("read", &path, e))?.len();
    if length < sums.pages().saturating_mul(PAGE) {
        return Err(damaged(&path, "it was cut short".into()));
    }
    Ok((dataset, StoredPages { file, sums }))
}

/// The datasets below `dir`: itself, or each of its subdirectories.
///
/// # Errors
/// `Io` when it cannot be listed, `NotADataset` when there is none.
pub fn find(dir: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    if dir.join(INDEX).exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let mut found: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(|e| io("list", dir, e))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.join(INDEX).exists())
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(DirectoryError::NotADataset {
            path: dir.display().to_string(),
            why: format!("there is no {INDEX} in it or in its subdirectories"),
        });
    }
    Ok(found)
}

impl PageSource for StoredPages {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        let fail = |why: String| PageSourceError {
            at: run.start.saturating_add(first.saturating_mul(PAGE)),
            content: run.content,
            why,
        };
        match run.content {
            PageContent::Zero => {
                out.fill(0);
                Ok(())
            }
            PageContent::Stored(at) => {
                let at = at.saturating_add(first.saturating_mul(PAGE));
                let want = usize::try_from(count.saturating_mul(PAGE)).unwrap_or(usize::MAX);
                if out.len() != want {
                    return Err(fail(format!("{} bytes asked for {count} pages", out.len())));
                }
                self.file
                    .read_exact_at(out, at)
                    .map_err(|e| fail(e.to_string()))?;
                self.sums.verify(at / PAGE, out).map_err(fail)
            }
            _ => Err(fail("the dataset did not keep it".into())),
        }
    }
}

fn io(what: &'static str, path: &Path, source: std::io::Error) -> DirectoryError {
    DirectoryError::Io {
        what,
        path: path.display().to_string(),
        source,
    }
}
