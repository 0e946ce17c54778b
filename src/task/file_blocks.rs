//! Where on the disk the dead kernel had a file's data.
//!
//! What was written past the page cache (O_DIRECT) is nowhere but on the disk.
//! A block that was given to the file for it is the file's only once the
//! journal has committed that; a crash before takes it away again, and with it
//! data that the writer had been told was written. So where a journal had not
//! committed all, the dead kernel's own map of the file is carried along.

use crate::dataset::BlockRun;
use crate::kernel::{KernelError, Object, containers};

/// Most extents of a file: XFS_MAX_EXTCNT_DATA_FORK_SMALL is half of this.
const MAX_EXTENTS: u64 = 1 << 24;

/// The blocks of an ext4 or xfs file that held written data. `None`: the file
/// system is not one that is understood.
pub(super) fn read(
    inode: &Object<'_>,
    fs_type: &str,
) -> Result<Option<Vec<BlockRun>>, KernelError> {
    match fs_type {
        "ext4" => ext4(inode).map(Some),
        "xfs" => xfs(inode),
        _ => Ok(None),
    }
}

/// The extent status tree, which has every extent that was used lately. Linux
/// fs/ext4/extents_status.h.
fn ext4(inode: &Object<'_>) -> Result<Vec<BlockRun>, KernelError> {
    const WRITTEN: u64 = 1;
    let kernel = inode.kernel();
    let block = inode.follow("i_sb")?.u("s_blocksize")?;
    let info = inode.container_of("ext4_inode_info", "vfs_inode")?;
    let flags = kernel.enum_value("", "ES_FLAGS").unwrap_or(5);
    let shift = 64 - u32::try_from(flags).unwrap_or(5).clamp(1, 16);
    let tree = info.get("i_es_tree.root")?;
    let mut out = Vec::new();
    for extent in containers::rbtree(&tree, "extent_status", "rb_node")? {
        let place = extent.u("es_pblk")?;
        if place >> shift & WRITTEN == 0 {
            continue;
        }
        out.push(BlockRun {
            start: extent.u("es_lblk")?.saturating_mul(block),
            len: extent.u("es_len")?.saturating_mul(block),
            place: (place & ((1 << shift) - 1)).saturating_mul(block),
        });
    }
    out.sort_by_key(|run| run.start);
    Ok(out)
}

/// The extents of the data fork, a B+tree in memory. Linux
/// fs/xfs/libxfs/xfs_iext_tree.c.
fn xfs(inode: &Object<'_>) -> Result<Option<Vec<BlockRun>>, KernelError> {
    const REALTIME: u64 = 1;
    const LEAF_RECORDS: u64 = 15;
    let file = inode.container_of("xfs_inode", "i_vnode")?;
    let kernel = inode.kernel();
    if file.u("i_diflags")? & REALTIME != 0 {
        return Ok(None);
    }
    let map = BlockMap::of(&file.follow("i_mount")?.get("m_sb")?)?;
    let fork = file.get("i_df")?;
    let height = fork.u("if_height")?;
    // A union until Linux commit 6e145f943bd8 ("xfs: make if_data a void
    // pointer") (in v6.8).
    let mut node = match fork.has("if_u1.if_root") {
        true => fork.ptr("if_u1.if_root")?,
        false => fork.ptr("if_data")?,
    };
    let damaged = |detail: String| KernelError::Damaged {
        what: "xfs_ifork",
        addr: fork.addr(),
        detail,
    };
    if height > 16 {
        return Err(damaged(format!("its tree is {height} high")));
    }
    if height == 0 || node == 0 {
        return Ok(Some(Vec::new()));
    }
    for _ in 1..height {
        node = kernel.object("xfs_iext_node", node)?.ptr("ptrs[0]")?;
    }
    // A tree of one node is only as long as its records.
    let single = fork.u("if_bytes")? / 16;
    let mut out = Vec::new();
    // Each leaf has a record at least.
    let mut leaves = fork.u("if_nextents")?.min(MAX_EXTENTS);
    while node != 0 {
        leaves = leaves
            .checked_sub(1)
            .ok_or_else(|| damaged("it has more leaves than extents".into()))?;
        let records = if height == 1 {
            single.min(LEAF_RECORDS)
        } else {
            LEAF_RECORDS
        };
        for index in 0..records {
            let at = node.wrapping_add(index * 16);
            let (lo, hi) = (kernel.read_u64(at)?, kernel.read_u64(at.wrapping_add(8))?);
            if hi == 0 {
                break;
            }
            out.extend(map.run(lo, hi));
        }
        if height == 1 {
            break;
        }
        let next = kernel.object("xfs_iext_leaf", node)?;
        let (next, back) = (next.ptr("next")?, node);
        if next != 0 && kernel.object("xfs_iext_leaf", next)?.ptr("prev")? != back {
            return Err(damaged(format!(
                "the leaf {next:#x} is not behind {back:#x}"
            )));
        }
        node = next;
    }
    out.sort_by_key(|run| run.start);
    Ok(Some(out))
}

/// How xfs numbers blocks: by allocation group.
struct BlockMap {
    block: u64,
    group_bits: u32,
    group_blocks: u64,
}

impl BlockMap {
    fn of(superblock: &Object<'_>) -> Result<Self, KernelError> {
        let bits = superblock.u("sb_agblklog")?;
        Ok(Self {
            block: superblock.u("sb_blocksize")?,
            group_bits: u32::try_from(bits).unwrap_or(0).min(63),
            group_blocks: superblock.u("sb_agblocks")?,
        })
    }

    /// A record: 54 bits of offset, 21 of length, one for "unwritten", and the
    /// first block in what is left of both words.
    fn run(&self, lo: u64, hi: u64) -> Option<BlockRun> {
        let offset = lo & ((1 << 54) - 1);
        let len = hi & ((1 << 21) - 1);
        let unwritten = hi >> 21 & 1 != 0;
        let first = lo >> 54 | (hi >> 22) << 10;
        // Reserved and not allocated: `isnullstartblock`.
        let delayed = first >> 17 & ((1 << 35) - 1) == (1 << 35) - 1;
        if unwritten || delayed || len == 0 {
            return None;
        }
        let group = first >> self.group_bits;
        let within = first & ((1 << self.group_bits) - 1);
        let block = group
            .saturating_mul(self.group_blocks)
            .saturating_add(within);
        Some(BlockRun {
            start: offset.saturating_mul(self.block),
            len: len.saturating_mul(self.block),
            place: block.saturating_mul(self.block),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_xfs() {
        let map = BlockMap {
            block: 4096,
            group_bits: 15,
            group_blocks: 20_000,
        };
        // Offset 7, block 5 of group 1, three blocks.
        let first: u64 = 1 << 15 | 5;
        let (lo, hi) = (7 | first << 54, 3 | (first >> 10) << 22);
        let run = map.run(lo, hi).expect("written");
        assert_eq!(
            (run.start, run.len, run.place),
            (7 * 4096, 3 * 4096, 20_005 * 4096)
        );
        assert!(map.run(lo, hi | 1 << 21).is_none(), "unwritten");
    }
}
