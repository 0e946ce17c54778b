//! What an extraction says of a file's data: pages that the disk may not have.

use super::extract::Extraction;
use super::page_cache::Wanted;
use super::uncommitted::Commit;
use super::{block_device, file_blocks, inode, newborn, uncommitted};
use crate::dataset::{Inode, InodeKind};
use crate::kernel::Object;

impl<'k> Extraction<'_, 'k> {
    /// Fills in which device it is, and clean pages that it must hold.
    pub fn block_device(&mut self, inode: &mut Inode, cache: &Object<'k>) {
        match block_device::read(cache) {
            Ok(device) => {
                let clean = inode::cached_runs(
                    self.frames,
                    self.swap,
                    cache,
                    Wanted::Clean,
                    0,
                    device.size,
                );
                inode.uncommitted = clean.unwrap_or_default();
                inode.block = Some(device);
            }
            Err(error) => self.lost(
                &inode.path,
                "block device",
                format!("which one it was cannot be read: {error}"),
            ),
        }
    }

    /// Fills in the pages that the disk may not have.
    pub fn unwritten(
        &mut self,
        inode: &mut Inode,
        object: &Object<'k>,
        cache: Option<&Object<'k>>,
    ) {
        let is_block = inode.mode & 0o170_000 == 0o060_000;
        if inode.kind != InodeKind::Regular && !is_block {
            return;
        }
        let volatile = inode::lives_in_memory(&inode.fs_type) && !is_block;
        let wanted = if volatile {
            Wanted::All
        } else {
            Wanted::Unwritten
        };
        let size = if is_block {
            // The size of a block device is that of its own inode in bdevfs,
            // whose page cache this is.
            cache
                .and_then(|c| c.follow("host").and_then(|h| h.u("i_size")).ok())
                .unwrap_or(u64::MAX)
        } else {
            inode.size
        };
        let mapping = match cache {
            Some(cache) => Ok(cache.clone()),
            None => object.follow("i_mapping"),
        };
        let runs = mapping.and_then(|mapping| {
            inode::cached_runs(
                self.frames,
                self.swap,
                &mapping,
                wanted,
                inode::huge_order(object),
                size,
            )
        });
        match runs {
            Ok(runs) => {
                if volatile && !runs.is_empty() {
                    self.reconstructed(
                        &inode.path,
                        "content",
                        "its file system lived in memory: the whole file is carried over",
                    );
                }
                inode.dirty = runs;
            }
            Err(error) => self.lost(
                &inode.path,
                "unwritten pages",
                format!("its page cache cannot be walked: {error}"),
            ),
        }
    }

    /// Fills in the clean pages that a journal's replay may undo. Where nothing
    /// is known of a journal, that is every page of what may be written to.
    pub fn uncommitted(&mut self, slot: usize, object: &Object<'k>, writable: bool) {
        let Some(inode) = self.out.inodes.get_mut(slot) else {
            return;
        };
        if inode.kind != InodeKind::Regular
            || inode::lives_in_memory(&inode.fs_type)
            || !inode.uncommitted.is_empty()
        {
            return;
        }
        match uncommitted::commit(object) {
            Commit::Done => return,
            Commit::Unknown if !writable => return,
            Commit::Pending | Commit::Unknown => {}
        }
        if writable {
            match file_blocks::read(object, &inode.fs_type) {
                Ok(blocks) => inode.blocks = blocks.unwrap_or_default(),
                Err(error) => {
                    let path = inode.path.clone();
                    self.lost(
                        &path,
                        "blocks written past the page cache",
                        error.to_string(),
                    );
                }
            }
        }
        let Some(inode) = self.out.inodes.get_mut(slot) else {
            return;
        };
        match uncommitted::runs(self.frames, self.swap, object, inode.size) {
            Ok(runs) => {
                inode.uncommitted = runs;
                // What is not understood of it is not made again.
                inode.newborn =
                    newborn::is_whole(object, inode, self.clocks.realtime).unwrap_or(false);
            }
            Err(error) => {
                let path = inode.path.clone();
                self.lost(
                    &path,
                    "pages written right before the crash",
                    format!("its page cache cannot be walked: {error}"),
                );
            }
        }
    }
}
