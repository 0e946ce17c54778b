//! Brings to the disk what the dead kernel had not brought there.

use super::{DiskError, PAGE, ctime, is_block_device};
use crate::dataset::{Inode, PageSource};
use crate::restore::journal::Journal;
use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, UNIX_EPOCH};

/// Pages that are read and written in one step.
const BATCH: u64 = 256;

/// Writes one file's dirty and uncommitted pages. Gives the number of bytes written.
pub(super) fn one(
    inode: &Inode,
    pages: &dyn PageSource,
    journal: &Journal,
) -> Result<u64, DiskError> {
    let io = |what| {
        move |source| DiskError::Io {
            what,
            path: inode.path.clone(),
            source,
        }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&inode.path)
        .map_err(io("open"))?;
    let stat = |file: &File| file.metadata().map_err(io("stat"));
    let device = is_block_device(inode);
    let resized = !device && stat(&file)?.size() != inode.size;
    if resized {
        file.set_len(inode.size).map_err(io("set the length of"))?;
    }
    let mut written = 0;
    let mut buffer = vec![0; (BATCH * PAGE) as usize];
    let mut disk = Vec::new();
    let kept = inode.uncommitted.iter().filter(|r| !r.content.is_missing());
    let runs = inode.dirty.iter().map(|run| (run, false));
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
                file.read_exact_at(&mut disk, at).map_err(io("read"))?;
                if disk == out[..len] {
                    continue;
                }
            }
            file.write_all_at(&out[..len], at).map_err(io("write to"))?;
            written += len as u64;
        }
    }
    if written == 0 && !resized {
        return Ok(0);
    }
    if !device {
        let then = UNIX_EPOCH + Duration::from_nanos(inode.mtime_ns.max(0).cast_unsigned());
        file.set_times(FileTimes::new().set_modified(then))
            .map_err(io("set the times of"))?;
    }
    file.sync_all().map_err(io("sync"))?;
    journal.record_written(inode.number, &inode.path, ctime(&stat(&file)?))?;
    Ok(written)
}
