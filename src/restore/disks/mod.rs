//! Are the files still what they were at the crash? And: what the dead kernel
//! had not written yet, or had not committed, is written.
//!
//! A file on the disk after a crash is *older* than the dead kernel's view of
//! it, never newer: its times on the disk are at most those in the dead inode.
//! A later time means that somebody has used the file since, and a guest must
//! not wake up on a disk that moved on (`identity`), that somebody else has in
//! hand (`in_use`), or that a restore has let run on already (`marker`).

mod block_device;
mod error;
mod identity;
mod in_use;
mod lost_blocks;
mod marker;
mod newborn;
mod partition_table;
mod write_back;

use super::journal::{Journal, Rescued, Touched};
use crate::dataset::{Dataset, Inode, InodeKind, ObjectId, PageSource};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use block_device::find_device;
pub use error::DiskError;
pub(super) use identity::is_on_same_file_system;
pub use marker::Markers;
pub(super) use newborn::{directory, in_proc, is_to_be_made, make as make_newborn};

const PAGE: u64 = 4096;

/// What the write-back did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenBack {
    /// Files that were given pages or a size.
    pub files: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Of these, bytes that were taken from blocks that the crash had freed.
    pub rescued: u64,
}

/// Gives block devices the names that they have on this host.
pub fn rename_devices(dataset: &mut Dataset) {
    block_device::rename(dataset);
}

/// What the operator answers for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// A disk that has changed, is in use, or was restored onto before.
    pub force: bool,
    /// Data whose blocks the crash took from its file, taken from where it lay.
    pub rescue_blocks: bool,
}

/// Checks every file that the dataset's processes may write to, and changes
/// nothing. `journal` knows of our own earlier write-back. Gives what was
/// overridden, for the report.
///
/// # Errors
/// Every file that is not fit, not just the first.
pub fn check(
    dataset: &Dataset,
    journal: Option<&Journal>,
    overrides: Overrides,
) -> Result<Vec<DiskError>, Vec<DiskError>> {
    let ours = journal.map(Journal::running).unwrap_or_default();
    let mut scene = Scene {
        dataset,
        journal,
        ours,
        held: lost_blocks::Held::default(),
    };
    let mut wrong = Vec::new();
    for inode in on_disk(dataset) {
        if let Err(e) = scene.check(inode, &mut wrong) {
            wrong.push(e);
        }
    }
    let may_go_on = wrong.iter().all(|e| e.is_overridden(overrides));
    if may_go_on { Ok(wrong) } else { Err(wrong) }
}

/// Writes to the disk what the dead kernel had not: dirty pages of the page
/// cache, and the size that goes with them. Times are set to what they were.
/// Doing it twice does no harm: what an attempt that was cut off had found in
/// blocks that the crash took is in the journal.
///
/// # Errors
/// The first that failed. What was written by then was right and stays.
pub fn write_back(
    dataset: &Dataset,
    pages: &dyn PageSource,
    journal: &Journal,
    overrides: Overrides,
) -> Result<WrittenBack, DiskError> {
    let mut done = WrittenBack::default();
    let mut rescued = rescue(dataset, journal, overrides)?;
    for inode in on_disk(dataset) {
        let rescued = rescued.remove(&inode.id).unwrap_or_default();
        done.rescued += rescued.freed;
        let bytes = write_back::one(
            inode,
            Path::new(&inode.path),
            pages,
            journal,
            &rescued.parts,
        )?;
        done.files += u64::from(bytes > 0);
        done.bytes += bytes;
    }
    Ok(done)
}

/// Data of files that is in no block of theirs any more, by inode. All of it is
/// read before anything is written, then kept in the journal.
fn rescue(
    dataset: &Dataset,
    journal: &Journal,
    overrides: Overrides,
) -> Result<HashMap<ObjectId, Rescued>, DiskError> {
    let mut held = lost_blocks::Held::default();
    let mut found = Vec::new();
    let mut rescued = HashMap::new();
    for inode in on_disk(dataset).filter(|i| !i.blocks.is_empty() && !i.newborn) {
        if let Some(kept) = journal.rescued(&key(inode))? {
            rescued.insert(inode.id, kept);
            continue;
        }
        let file = File::open(&inode.path).map_err(|source| DiskError::Io {
            what: "open",
            path: inode.path.clone(),
            source,
        })?;
        if !is_finished(inode, &file, Some(journal))? {
            let freed_too = overrides.rescue_blocks;
            let lost = lost_blocks::rescue(inode, &file, freed_too, &mut held)?;
            if !lost.parts.is_empty() {
                found.push((inode, lost));
            }
        }
    }
    for (inode, lost) in found {
        journal.keep_rescued(&key(inode), &lost)?;
        rescued.insert(inode.id, lost);
    }
    Ok(rescued)
}

/// To be called when all that is left is to let the processes run. Requests
/// that were under way are submitted again in that moment, and should it come
/// to nothing after that, the change to the files was ours.
///
/// # Errors
/// The journal cannot be kept: then they must not run.
pub fn about_to_run(dataset: &Dataset, journal: &Journal) -> Result<(), DiskError> {
    let mut contexts = dataset.processes.iter().flat_map(|p| &p.mm.aio);
    if contexts.all(|context| context.under_way.is_empty()) {
        return Ok(());
    }
    for inode in on_disk(dataset).filter(|i| i.writable) {
        let file = File::open(&inode.path).map_err(|source| DiskError::Io {
            what: "open",
            path: inode.path.clone(),
            source,
        })?;
        journal.touching(&key(inode), &inode.path, state(inode, &file)?)?;
    }
    Ok(())
}

/// Inodes that a file system keeps over a reboot and that have a name.
fn on_disk(dataset: &Dataset) -> impl Iterator<Item = &Inode> {
    dataset.inodes.iter().filter(|i| {
        i.links > 0
            && (i.writable
                || i.newborn
                || !i.dirty.is_empty()
                || !i.uncommitted.is_empty() && i.kind == InodeKind::Regular)
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

/// File systems that hold people's files, in memory alone.
pub fn lives_in_memory(fs_type: &str) -> bool {
    matches!(fs_type, "tmpfs" | "ramfs" | "rootfs" | "hugetlbfs")
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
    held: lost_blocks::Held,
}

impl Scene<'_> {
    /// What cannot be forced is the error; what can be is added to `wrong`.
    fn check(&mut self, inode: &Inode, wrong: &mut Vec<DiskError>) -> Result<(), DiskError> {
        let missing = |source| DiskError::Missing {
            path: inode.path.clone(),
            inode: inode.number,
            device: inode.device.clone(),
            source,
        };
        if inode.newborn && is_to_be_made(inode) {
            let pids: Vec<i32> = self.dataset.processes.iter().map(|p| p.pid).collect();
            return newborn::check(inode, &pids, self.journal);
        }
        let file = File::open(&inode.path).map_err(missing)?;
        let now = file.metadata().map_err(missing)?;
        if inode.writable {
            let writable = OpenOptions::new().write(true).open(&inode.path);
            drop(writable.map_err(missing)?);
        }
        lost_pages(inode)?;
        if is_block_device(inode) {
            wrong.extend(block_device::refuse(
                inode,
                self.dataset,
                self.journal,
                &self.ours,
            )?);
            return Ok(());
        }
        enough_room(inode, &now, &file)?;
        if self.is_a_guests_disk(inode) {
            wrong.extend(marker::refuse(inode, &file, self.dataset, self.journal).err());
            wrong.extend(in_use::refuse(inode, &file, &self.ours).err());
        }
        let our_work = match self.journal {
            Some(journal) => {
                let stamp = ctime(&now);
                journal.explains_file(&key(inode), Touched { stamp })?
            }
            None => false,
        };
        let our_work = our_work || newborn::is_ours(inode, &file, self.dataset);
        if !our_work {
            wrong.extend(identity::unchanged(inode, &now, &file).err());
        }
        let kept = match self.journal {
            Some(journal) => journal.rescued(&key(inode))?.is_some(),
            None => false,
        };
        if !kept && !inode.newborn && !is_finished(inode, &file, self.journal)? {
            match lost_blocks::refuse(inode, &file, &mut self.held) {
                Err(lost @ DiskError::LostBlocks { .. }) => wrong.push(lost),
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether a guest may lose its disk to a second writer. What an ordinary
    /// process writes to, such as a log, others may write to as well.
    fn is_a_guests_disk(&self, inode: &Inode) -> bool {
        inode.writable && !self.dataset.vms.is_empty()
    }
}

/// An earlier write-back to the file came to its end, and nobody has touched it
/// since.
fn is_finished(inode: &Inode, file: &File, journal: Option<&Journal>) -> Result<bool, DiskError> {
    let Some(journal) = journal else {
        return Ok(false);
    };
    Ok(journal.is_as_left(&key(inode), state(inode, file)?)?)
}

/// The journal's name of a file or device.
fn key(inode: &Inode) -> String {
    let disk = inode.fs_uuid.as_ref().unwrap_or(&inode.device);
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '_'
        }
    };
    let disk: String = disk.chars().map(plain).take(64).collect();
    format!("{disk}-{}", inode.number)
}

/// What tells whether a file or device was changed.
fn state(inode: &Inode, file: &File) -> Result<Touched, DiskError> {
    if is_block_device(inode) {
        let sectors = block_device::sectors_of(Path::new(&inode.path));
        return Ok(Touched {
            stamp: sectors.unwrap_or(0),
        });
    }
    let meta = file.metadata().map_err(|source| DiskError::Io {
        what: "stat",
        path: inode.path.clone(),
        source,
    })?;
    Ok(Touched {
        stamp: ctime(&meta),
    })
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
    has_room(inode, needed, file)
}

/// Bytes that are needed on the file system of `file`.
fn has_room(inode: &Inode, needed: u64, file: &File) -> Result<(), DiskError> {
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

#[cfg(test)]
mod tests;
