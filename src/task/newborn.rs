//! Files that were made right before the crash.
//!
//! That a file is there at all is metadata, which a journaling file system
//! commits some seconds later. A log that was opened, or a temporary file that was
//! made, right before the crash is gone after the reboot. The dead kernel has it
//! whole, as long as nothing of it was written back and dropped from memory.

use super::file_blocks;
use super::uncommitted::{self, Commit};
use crate::dataset::{Inode, PageRun};
use crate::kernel::{KernelError, Object};

const PAGE: u64 = 4096;
/// Journals commit each 5 s (ext4) or 30 s (xfs); a busy disk takes longer. Nanoseconds.
const YOUNG: i64 = 120_000_000_000;
/// Blocks of a file that are no data of it: extended attributes, the tree of its extents. Bytes.
const OTHER_BLOCKS: u64 = 16 * PAGE;

/// Whether the disk may not have the file at all, and all that it held is in the dirty and
/// uncommitted pages of `known`. `crash` is the time of the crash, in nanoseconds since 1970.
pub(super) fn is_whole(inode: &Object<'_>, known: &Inode, crash: i64) -> Result<bool, KernelError> {
    if known.links == 0 || uncommitted::commit(inode) != Commit::Pending {
        return Ok(false);
    }
    if crash.saturating_sub(born(inode, &known.fs_type)?) > YOUNG {
        return Ok(false);
    }
    let runs = || known.dirty.iter().chain(&known.uncommitted);
    if runs().any(|run| run.content.is_missing()) {
        return Ok(false);
    }
    let Some(blocks) = file_blocks::read(inode, &known.fs_type)? else {
        return Ok(false);
    };
    let mut cached: Vec<(u64, u64)> = runs().filter_map(range).collect();
    cached.sort_unstable();
    let written = blocks
        .iter()
        .fold(0, |sum: u64, b| sum.saturating_add(b.len));
    let in_memory = cached
        .iter()
        .fold(0, |sum: u64, (start, end)| sum.saturating_add(end - start));
    // Extents that the kernel has forgotten again are in no list; xfs forgets none.
    let taken = match known.fs_type.as_str() {
        "ext4" => inode.u("i_blocks")?.saturating_mul(512),
        _ => 0,
    };
    if taken > written.max(in_memory).saturating_add(OTHER_BLOCKS) {
        return Ok(false);
    }
    let held = |start, end| is_covered(&cached, start, end);
    Ok(blocks
        .iter()
        .all(|b| held(b.start, b.start.saturating_add(b.len).min(known.size))))
}

/// When the file was made. Nanoseconds since 1970.
fn born(inode: &Object<'_>, fs_type: &str) -> Result<i64, KernelError> {
    let own = match fs_type {
        "ext4" => inode.container_of("ext4_inode_info", "vfs_inode")?,
        _ => inode.container_of("xfs_inode", "i_vnode")?,
    };
    let time = own.get("i_crtime")?;
    let nanoseconds = i64::try_from(time.u("tv_nsec")?).unwrap_or(0);
    let seconds = time.i("tv_sec")?;
    Ok(seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds))
}

/// First byte, and the one behind the last.
fn range(run: &PageRun) -> Option<(u64, u64)> {
    let end = run.start.checked_add(run.count.checked_mul(PAGE)?)?;
    Some((run.start, end))
}

/// Whether all of `start` to `end` lies in `ranges`, which are in order.
fn is_covered(ranges: &[(u64, u64)], start: u64, end: u64) -> bool {
    let mut at = start;
    for (from, to) in ranges {
        if at >= end || *from > at {
            break;
        }
        at = at.max(*to);
    }
    at >= end
}

#[cfg(test)]
mod tests {
    use super::is_covered;

    #[test]
    fn what_lies_in_several_ranges_is_covered() {
        let ranges = [(0, 0x2000), (0x1000, 0x3000), (0x5000, 0x6000)];
        assert!(is_covered(&ranges, 0x1000, 0x3000));
        assert!(is_covered(&ranges, 0x5000, 0x5800));
        assert!(is_covered(&ranges, 0x9000, 0x9000), "nothing");
        assert!(!is_covered(&ranges, 0x2000, 0x5800));
        assert!(!is_covered(&ranges, 0x5800, 0x6800));
    }
}
