//! Are the files still what they were at the crash? And: what the dead kernel
//! had not written yet, or had not committed, is written.
//!
//! A file on the disk after a crash is *older* than the dead kernel's view of
//! it, never newer: its times on the disk are at most those in the dead inode.
//! A later time means that somebody has used the file since, and a guest must
//! not wake up on a disk that moved on.

use super::journal::{Journal, JournalError};
use crate::dataset::{Dataset, Inode, InodeKind, PageSource, PageSourceError};
use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PAGE: u64 = 4096;

/// Why the files are not fit for a restore.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file is not there.
    #[error("{path} (inode {inode} on {device}) cannot be opened")]
    Missing {
        /// Its path.
        path: String,
        /// Inode number in the dead host.
        inode: u64,
        /// Device it was on.
        device: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file is not the one of the crash any more.
    #[error("{path} is not what it was at the crash: {what} was {then} and is {now}")]
    Changed {
        /// Its path.
        path: String,
        /// Which property.
        what: &'static str,
        /// At the crash.
        then: String,
        /// Now.
        now: String,
    },
    /// Unwritten pages that the dump has not got.
    #[error(
        "{path}: {pages} pages that the dead host had not written to the disk are not in the dump"
    )]
    LostPages {
        /// Its path.
        path: String,
        /// How many 4 KiB pages.
        pages: u64,
    },
    /// Unwritten pages of a block device, which nothing tells from another.
    #[error(
        "{path}: {pages} pages were not written yet to this block device, and nothing proves that its name still means the same device"
    )]
    BlockDevice {
        /// Its path.
        path: String,
        /// How many 4 KiB pages.
        pages: u64,
    },
    /// No room for the unwritten pages.
    #[error("{path}: {needed} bytes of unwritten data need room, its file system has {free}")]
    NoSpace {
        /// Its path.
        path: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// Writing failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On which path.
        path: String,
        /// Its error.
        source: std::io::Error,
    },
    /// A page could not be read from the dump.
    #[error("unwritten data of {path}")]
    Page {
        /// Its path.
        path: String,
        /// Why.
        source: PageSourceError,
    },
    /// The journal cannot be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What the write-back did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenBack {
    /// Files that were given pages or a size.
    pub files: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// Checks every file that the dataset's processes may write to, and changes
/// nothing. `journal` knows of our own earlier write-back.
///
/// # Errors
/// Every file that is not fit, not just the first.
pub fn check(
    dataset: &Dataset,
    journal: Option<&Journal>,
    force: bool,
) -> Result<(), Vec<DiskError>> {
    let wrong: Vec<DiskError> = on_disk(dataset)
        .filter_map(|inode| check_one(inode, journal, force).err())
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Writes to the disk what the dead kernel had not: dirty pages of the page
/// cache, and the size that goes with them. Times are set to what they were.
/// Doing it twice does no harm.
///
/// # Errors
/// The first that failed. What was written by then was right and stays.
pub fn write_back(
    dataset: &Dataset,
    pages: &dyn PageSource,
    journal: &Journal,
) -> Result<WrittenBack, DiskError> {
    let mut done = WrittenBack::default();
    for inode in on_disk(dataset).filter(|i| i.writable) {
        let bytes = write_back_one(inode, pages, journal)?;
        done.files += u64::from(bytes > 0);
        done.bytes += bytes;
    }
    Ok(done)
}

/// Inodes that a file system keeps over a reboot and that have a name.
fn on_disk(dataset: &Dataset) -> impl Iterator<Item = &Inode> {
    dataset.inodes.iter().filter(|i| {
        i.links > 0
            && (i.writable || !i.dirty.is_empty())
            && match i.kind {
                InodeKind::Regular => !is_volatile(&i.fs_type),
                _ => is_unwritten_device(i),
            }
    })
}

/// A block device with pages that never reached it.
fn is_unwritten_device(inode: &Inode) -> bool {
    const TYPE: u32 = 0o170_000;
    const BLOCK: u32 = 0o060_000;
    inode.mode & TYPE == BLOCK && !inode.dirty.is_empty()
}

/// File systems whose files do not outlive the host.
pub fn is_volatile(fs_type: &str) -> bool {
    const VOLATILE: [&str; 16] = [
        "tmpfs",
        "ramfs",
        "rootfs",
        "devtmpfs",
        "proc",
        "sysfs",
        "cgroup",
        "cgroup2",
        "debugfs",
        "tracefs",
        "securityfs",
        "hugetlbfs",
        "devpts",
        "mqueue",
        "bpf",
        "configfs",
    ];
    VOLATILE.contains(&fs_type)
}

fn check_one(inode: &Inode, journal: Option<&Journal>, force: bool) -> Result<(), DiskError> {
    let path = Path::new(&inode.path);
    let missing = |source| DiskError::Missing {
        path: inode.path.clone(),
        inode: inode.number,
        device: inode.device.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(inode.writable)
        .open(path)
        .map_err(missing)?;
    let now = file.metadata().map_err(missing)?;
    let lost = inode
        .dirty
        .iter()
        .filter(|run| run.content.is_missing())
        .fold(0u64, |sum, run| sum.saturating_add(run.count));
    if lost > 0 {
        return Err(DiskError::LostPages {
            path: inode.path.clone(),
            pages: lost,
        });
    }
    if is_unwritten_device(inode) {
        // A device has no times of its own, and names of devices are dealt out
        // anew at each boot: only the operator can know.
        let counts = inode.dirty.iter().map(|run| run.count);
        let pages = counts.fold(0, u64::saturating_add);
        return if force {
            Ok(())
        } else {
            Err(DiskError::BlockDevice {
                path: inode.path.clone(),
                pages,
            })
        };
    }
    let ours = match journal {
        Some(journal) => journal.written_back(inode.number)? == Some(ctime(&now)),
        None => false,
    };
    if !force && !ours {
        unchanged(inode, &now)?;
    }
    enough_room(inode, &now, &file)
}

/// The file's identity and times against the dead inode's.
fn unchanged(inode: &Inode, now: &std::fs::Metadata) -> Result<(), DiskError> {
    let changed = |what, then: String, now: String| {
        Err(DiskError::Changed {
            path: inode.path.clone(),
            what,
            then,
            now,
        })
    };
    if now.ino() != inode.number {
        return changed(
            "its inode number",
            inode.number.to_string(),
            now.ino().to_string(),
        );
    }
    if mtime(now) > inode.mtime_ns {
        return changed(
            "its modification time",
            seconds(inode.mtime_ns),
            seconds(mtime(now)),
        );
    }
    if ctime(now) > inode.ctime_ns {
        return changed(
            "its change time",
            seconds(inode.ctime_ns),
            seconds(ctime(now)),
        );
    }
    // Equal times and another size cannot be a write that was lost: without
    // dirty pages to explain it, the size must be the same.
    if mtime(now) == inode.mtime_ns
        && inode.dirty.is_empty()
        && inode.uncommitted.is_empty()
        && now.size() != inode.size
    {
        return changed("its size", inode.size.to_string(), now.size().to_string());
    }
    Ok(())
}

/// Bytes that the write-back may have to allocate, against what is free.
fn enough_room(inode: &Inode, now: &std::fs::Metadata, file: &File) -> Result<(), DiskError> {
    let dirty: u64 = inode
        .dirty
        .iter()
        .chain(&inode.uncommitted)
        .fold(0, |sum, r| sum.saturating_add(r.count.saturating_mul(PAGE)));
    let allocated = now.blocks().saturating_mul(512);
    let needed = dirty.min(inode.size.next_multiple_of(PAGE).saturating_sub(allocated));
    let stat = nix::sys::statvfs::fstatvfs(file).map_err(|e| DiskError::Io {
        what: "ask the file system of",
        path: inode.path.clone(),
        source: e.into(),
    })?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if needed > free {
        return Err(DiskError::NoSpace {
            path: inode.path.clone(),
            needed,
            free,
        });
    }
    Ok(())
}

/// Pages that are read and written in one step.
const BATCH: u64 = 256;

fn write_back_one(
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
    let device = is_unwritten_device(inode);
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

fn mtime(m: &std::fs::Metadata) -> i64 {
    m.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(m.mtime_nsec())
}

fn ctime(m: &std::fs::Metadata) -> i64 {
    m.ctime()
        .saturating_mul(1_000_000_000)
        .saturating_add(m.ctime_nsec())
}

/// A time as the error texts show it: seconds since 1970, UTC.
fn seconds(ns: i64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(ns.max(0).cast_unsigned());
    let whole = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format!("{whole}.{:09} (Unix time)", ns.rem_euclid(1_000_000_000))
}

impl DiskError {
    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing { .. } => {
                "mount the file system that holds it where it was mounted, then run the same command again"
            }
            Self::Changed { .. } => {
                "somebody has used the file since the crash; bring back its old state, or say --force if you know that the guest can go on with it as it is"
            }
            Self::LostPages { .. } => {
                "makedumpfile left out page cache: set its level to 17 (docs/kdump.md), so that the next crash loses nothing"
            }
            Self::BlockDevice { .. } => {
                "see that the path names the guest's device, then say --force: its pages are written to it first"
            }
            Self::NoSpace { .. } => {
                "make room on that file system, then run the same command again"
            }
            Self::Io { .. } | Self::Page { .. } | Self::Journal(_) => {
                "nothing was resumed; mend the cause and run the same command again"
            }
        }
    }
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
