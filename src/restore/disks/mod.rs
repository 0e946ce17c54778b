//! Are the files still what they were at the crash? And: what the dead kernel
//! had not written yet, or had not committed, is written.
//!
//! A file on the disk after a crash is *older* than the dead kernel's view of
//! it, never newer: its times on the disk are at most those in the dead inode.
//! A later time means that somebody has used the file since, and a guest must
//! not wake up on a disk that moved on (`identity`), that somebody else has in
//! hand (`in_use`), or that a restore has let run on already (`marker`).

mod identity;
mod in_use;
mod marker;
mod write_back;

use super::journal::{Journal, JournalError};
use crate::dataset::{Dataset, Inode, InodeKind, PageSource, PageSourceError};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use marker::Markers;

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
    /// A block device, which nothing tells from another.
    #[error(
        "{path} is a block device ({pages} pages were not written to it yet): nothing proves that its name still means the same device, or that it was not used since"
    )]
    BlockDevice {
        /// Its path.
        path: String,
        /// How many 4 KiB pages.
        pages: u64,
    },
    /// Somebody else has a guest's disk in hand.
    #[error("{path} is in use: {how}")]
    InUse {
        /// Its path.
        path: String,
        /// By whom, and how.
        how: String,
    },
    /// A marker on a guest's disk says that it was let run on already.
    #[error(
        "{path} was resumed already: a guest of crash {crash} was restored onto it on host {host}, at {when} (Unix time)"
    )]
    Marked {
        /// Its path.
        path: String,
        /// Identity of the crash that it was restored from.
        crash: String,
        /// Name of the host that did it.
        host: String,
        /// Seconds since 1970.
        when: u64,
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
/// nothing. `journal` knows of our own earlier write-back. Gives what `force`
/// has overridden, for the report.
///
/// # Errors
/// Every file that is not fit, not just the first.
pub fn check(
    dataset: &Dataset,
    journal: Option<&Journal>,
    force: bool,
) -> Result<Vec<DiskError>, Vec<DiskError>> {
    let ours = journal.map(Journal::running).unwrap_or_default();
    let scene = Scene {
        dataset,
        journal,
        ours,
    };
    let mut wrong = Vec::new();
    for inode in on_disk(dataset) {
        if let Err(e) = scene.check(inode, &mut wrong) {
            wrong.push(e);
        }
    }
    let may_go_on = wrong.iter().all(|e| force && e.can_be_forced());
    if may_go_on { Ok(wrong) } else { Err(wrong) }
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
        let bytes = write_back::one(inode, pages, journal)?;
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
                _ => is_block_device(i),
            }
    })
}

fn is_block_device(inode: &Inode) -> bool {
    const TYPE: u32 = 0o170_000;
    const BLOCK: u32 = 0o060_000;
    inode.mode & TYPE == BLOCK
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

/// What a file is checked against.
struct Scene<'a> {
    dataset: &'a Dataset,
    journal: Option<&'a Journal>,
    /// PIDs here of what was restored from this crash already, and runs.
    ours: Vec<i32>,
}

impl Scene<'_> {
    /// What cannot be forced is the error; what can be is added to `wrong`.
    fn check(&self, inode: &Inode, wrong: &mut Vec<DiskError>) -> Result<(), DiskError> {
        let missing = |source| DiskError::Missing {
            path: inode.path.clone(),
            inode: inode.number,
            device: inode.device.clone(),
            source,
        };
        let file = File::open(&inode.path).map_err(missing)?;
        let now = file.metadata().map_err(missing)?;
        if inode.writable {
            let writable = OpenOptions::new().write(true).open(&inode.path);
            drop(writable.map_err(missing)?);
        }
        lost_pages(inode)?;
        if is_block_device(inode) {
            // A device has no times of its own, and names of devices are dealt
            // out anew at each boot: only the operator can know.
            let counts = inode.dirty.iter().map(|run| run.count);
            wrong.push(DiskError::BlockDevice {
                path: inode.path.clone(),
                pages: counts.fold(0, u64::saturating_add),
            });
            return Ok(());
        }
        enough_room(inode, &now, &file)?;
        if self.is_a_guests_disk(inode) {
            wrong.extend(marker::refuse(inode, &file, self.dataset, self.journal).err());
            wrong.extend(in_use::refuse(inode, &file, &self.ours).err());
        }
        let our_work = match self.journal {
            Some(journal) => journal.written_back(inode.number)? == Some(ctime(&now)),
            None => false,
        };
        if !our_work {
            wrong.extend(identity::unchanged(inode, &now, &file).err());
        }
        Ok(())
    }

    /// Whether a guest may lose its disk to a second writer. What an ordinary
    /// process writes to, such as a log, others may write to as well.
    fn is_a_guests_disk(&self, inode: &Inode) -> bool {
        inode.writable && !self.dataset.vms.is_empty()
    }
}

fn lost_pages(inode: &Inode) -> Result<(), DiskError> {
    let lost = inode
        .dirty
        .iter()
        .filter(|run| run.content.is_missing())
        .fold(0u64, |sum, run| sum.saturating_add(run.count));
    if lost == 0 {
        return Ok(());
    }
    Err(DiskError::LostPages {
        path: inode.path.clone(),
        pages: lost,
    })
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
    /// Whether `--force` may override it.
    fn can_be_forced(&self) -> bool {
        matches!(
            self,
            Self::Changed { .. }
                | Self::BlockDevice { .. }
                | Self::InUse { .. }
                | Self::Marked { .. }
        )
    }

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
                "see that the path names the guest's device, then say --force: what was not written is written to it first"
            }
            Self::InUse { .. } => {
                "stop whoever uses it first: two writers destroy a disk; --force only if you know that they do not"
            }
            Self::Marked { .. } => {
                "the guest, or what has become of it, is newer than this dump; --force only if the disk was brought back to its state at the crash"
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
mod tests;
