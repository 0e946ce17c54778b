//! Brings to the disk what the dead kernel had not brought there.

use super::{DiskError, PAGE, block_device, is_block_device, key, newborn, state};
use crate::dataset::{Inode, PageSource};
use crate::restore::journal::Journal;
use std::fs::{File, FileTimes, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// Pages that are read and written in one step.
const BATCH: u64 = 256;
/// The same in bytes.
const STEP: usize = (BATCH * PAGE) as usize;

/// Writes one file's dirty and uncommitted pages, and before them what was
/// `rescued` (offset, bytes), to the file or device at `path`. Gives the number of bytes written.
///
/// Of a file that the process cannot write to, as of the base of a snapshot,
/// only what differs is written: it may be on a disk that takes no writes.
pub(super) fn one(
    inode: &Inode,
    path: &Path,
    pages: &dyn PageSource,
    journal: &Journal,
    rescued: &[(u64, Vec<u8>)],
) -> Result<u64, DiskError> {
    let mut target = Target {
        inode,
        path,
        journal,
        disk: File::open(path).map_err(|e| io(inode, "open", e))?,
        open: None,
    };
    let device = is_block_device(inode);
    if !device && target.size()? > inode.size {
        target.set_len()?;
    }
    if device && journal.written_sectors(&key(inode), 1)? == 0 {
        block_device::holds(inode, &target.disk, pages)?;
    }
    let mut written = 0;
    for (at, bytes) in rescued {
        // By steps, between which the journal is told.
        for (part, at) in bytes.chunks(STEP).zip((*at..).step_by(STEP)) {
            let file = target.file()?;
            file.write_all_at(part, at)
                .map_err(|e| io(inode, "write to", e))?;
            written += part.len() as u64;
        }
    }
    let mut buffer = vec![0; (BATCH * PAGE) as usize];
    let mut disk = Vec::new();
    let kept = inode.uncommitted.iter();
    let kept = kept.filter(|r| !device && !r.content.is_missing());
    if inode.newborn {
        target.file()?;
    }
    let compared = !inode.writable || inode.newborn;
    let runs = inode.dirty.iter().map(|run| (run, compared));
    for (run, compare) in runs.chain(kept.map(|run| (run, true))) {
        let mut first = 0;
        while first < run.count {
            let count = (run.count - first).min(BATCH);
            let out = &mut buffer[..(count * PAGE) as usize];
            pages
                .read_pages(run, first, count, out)
                .map_err(|source| DiskError::Page {
                    path: inode.path.clone(),
                    source,
                })?;
            let at = run.start.saturating_add(first * PAGE);
            // The last page reaches beyond the end of the file; its tail is no data.
            let end = if device { u64::MAX } else { inode.size };
            let len = end.saturating_sub(at).min(count * PAGE) as usize;
            first += count;
            if compare {
                disk.resize(len, 0);
                match target.disk.read_exact_at(&mut disk, at) {
                    Ok(()) if disk == out[..len] => continue,
                    Err(e) if e.kind() != ErrorKind::UnexpectedEof => {
                        return Err(io(inode, "read", e));
                    }
                    _ => {}
                }
            }
            let file = target.file()?;
            file.write_all_at(&out[..len], at)
                .map_err(|e| io(inode, "write to", e))?;
            written += len as u64;
        }
    }
    // It has grown by what was written: whoever follows it sees no zeros that are to become data.
    if !device && target.size()? != inode.size {
        target.set_len()?;
    }
    target.finish()?;
    Ok(written)
}

/// A file or device that is opened for writing, and noted in the journal, when
/// the first change comes.
struct Target<'a> {
    inode: &'a Inode,
    path: &'a Path,
    journal: &'a Journal,
    /// For reading.
    disk: File,
    /// For writing, and the journal's key of it.
    open: Option<(File, String)>,
}

impl Target<'_> {
    /// The file to change; the journal knows that a change is to come.
    fn file(&mut self) -> Result<&File, DiskError> {
        if let Some((_, key)) = &self.open {
            self.journal.alive(key)?;
        } else {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).open(self.path);
            let file = file.map_err(|e| io(self.inode, "open for writing", e))?;
            let before = state(self.inode, &file)?;
            let key = key(self.inode);
            self.journal.touching(&key, &self.inode.path, before)?;
            self.open = Some((file, key));
        }
        Ok(self.open.as_ref().map_or(&self.disk, |(file, _)| file))
    }

    fn size(&self) -> Result<u64, DiskError> {
        let meta = self
            .disk
            .metadata()
            .map_err(|e| io(self.inode, "stat", e))?;
        Ok(meta.size())
    }

    fn set_len(&mut self) -> Result<(), DiskError> {
        let (inode, file) = (self.inode, self.file()?);
        file.set_len(inode.size)
            .map_err(|e| io(inode, "set the length of", e))
    }

    /// Times as they were, everything on the disk, and the journal told so.
    fn finish(&self) -> Result<(), DiskError> {
        let (inode, Some((file, key))) = (self.inode, &self.open) else {
            return Ok(());
        };
        self.journal.alive(key)?;
        if !is_block_device(inode) {
            newborn::settle(inode, file).map_err(|e| io(inode, "remove the mark of", e))?;
            let then = UNIX_EPOCH + Duration::from_nanos(inode.mtime_ns.max(0).cast_unsigned());
            file.set_times(FileTimes::new().set_modified(then))
                .map_err(|e| io(inode, "set the times of", e))?;
        }
        file.sync_all().map_err(|e| io(inode, "sync", e))?;
        let after = state(inode, file)?;
        Ok(self.journal.touched(key, &inode.path, after)?)
    }
}

fn io(inode: &Inode, what: &'static str, source: std::io::Error) -> DiskError {
    DiskError::Io {
        what,
        path: inode.path.clone(),
        source,
    }
}
