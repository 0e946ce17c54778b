//! Clean pages of the page cache that a crash may take from the disk all the same.
//!
//! A page is clean once its bytes have reached the disk. But whether a file
//! *has* those blocks is metadata: an extent that was allocated, or turned from
//! unwritten to written, when the page was written back. A journaling file
//! system commits that some seconds later, and what was not committed at the
//! crash is undone when the journal is replayed. The file then reads old bytes,
//! or zeros, where the dead kernel had a clean page. Seen on ext4: a block of a
//! guest's disk that the guest had read back before the crash was zeros after it.

use super::inode;
use super::page_cache::Wanted;
use super::page_frame::Frames;
use super::swap::SwapReader;
use crate::dataset::PageRun;
use crate::kernel::{KernelError, Object};

/// Whether the disk may lack what the dead kernel thought it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commit {
    /// A journal has committed all that concerns the inode.
    Done,
    /// Not all of it.
    Pending,
    /// The file system is not one that is understood.
    Unknown,
}

/// How far the file system's journal has come with the inode.
pub(super) fn commit(inode: &Object<'_>) -> Commit {
    let known = match inode::fs_type(inode).as_deref() {
        Ok("ext4") => ext4_committed(inode),
        Ok("xfs") => xfs_committed(inode).map(Some),
        _ => return Commit::Unknown,
    };
    match known {
        Ok(Some(true)) => Commit::Done,
        Ok(Some(false)) => Commit::Pending,
        Ok(None) | Err(_) => Commit::Unknown,
    }
}

/// Clean pages of the inode, by byte offset: those that count where
/// [`commit`] does not say that all is done.
pub(super) fn runs(
    frames: &Frames<'_>,
    swap: &SwapReader<'_, '_>,
    inode: &Object<'_>,
    size: u64,
) -> Result<Vec<PageRun>, KernelError> {
    let mapping = inode.follow("i_mapping")?;
    inode::cached_runs(frames, swap, &mapping, Wanted::Clean, 0, size)
}

/// ext4 (with jbd2): the transactions that last touched the inode and its data
/// are committed. These are the ones that its fsync would wait for:
/// `ext4_inode_info.i_sync_tid` and `i_datasync_tid` against
/// `journal_s.j_commit_sequence`. Linux fs/ext4/fsync.c.
/// `None` without a journal.
fn ext4_committed(inode: &Object<'_>) -> Result<Option<bool>, KernelError> {
    let superblock = inode.follow("i_sb")?;
    let ext4 = inode.container_of("ext4_inode_info", "vfs_inode")?;
    let info = superblock.follow("s_fs_info")?.cast("ext4_sb_info")?;
    let Some(journal) = info.follow_opt("s_journal")? else {
        return Ok(None);
    };
    let committed = journal.u("j_commit_sequence")?;
    let newest = [ext4.u("i_sync_tid")?, ext4.u("i_datasync_tid")?];
    let committed = newest.iter().all(|tid| is_at_least(committed, *tid));
    Ok(Some(committed))
}

/// xfs: an inode is pinned from the transaction that changed it until the log
/// with it is on the disk (`xfs_inode.i_pincount`). Linux fs/xfs/xfs_file.c,
/// `xfs_fsync_seq`.
fn xfs_committed(inode: &Object<'_>) -> Result<bool, KernelError> {
    let xfs = inode.container_of("xfs_inode", "i_vnode")?;
    Ok(xfs.u("i_pincount.counter")? == 0)
}

/// `tid_geq`: transaction numbers wrap around.
fn is_at_least(a: u64, b: u64) -> bool {
    (a.wrapping_sub(b) & 0xffff_ffff) < 0x8000_0000
}

#[cfg(test)]
mod tests {
    #[test]
    fn transaction_numbers_wrap_around() {
        assert!(super::is_at_least(5, 5));
        assert!(super::is_at_least(6, 5));
        assert!(!super::is_at_least(5, 6));
        assert!(super::is_at_least(2, 0xffff_fffe));
        assert!(!super::is_at_least(0xffff_fffe, 2));
    }
}
