//! Swap areas: where pages lay that were not in memory, and by what an area is
//! known again on the next boot.

use super::hex::Blob;
use super::{BlockDevice, Dataset, PageContent, PageRun};
use serde::{Deserialize, Serialize};

/// A swap area of the dead host (`struct swap_info_struct`) that pages of the
/// dataset are in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SwapArea {
    /// Its number: `PageContent::Swap::area`.
    pub number: u32,
    /// The device or file, as `/proc/swaps` named it.
    pub path: String,
    /// Pages, with the first, which is its header. `swap_info_struct.max`.
    pub slots: u64,
    /// The device that it is on; `None`: it could not be read, and `trouble`
    /// says why.
    pub device: Option<BlockDevice>,
    /// The file that it is in; `None` of a whole device.
    pub file: Option<SwapFile>,
    /// Where on the device its slots are, in the order of the slots.
    pub extents: Vec<SwapExtent>,
    /// The first page, if the dead kernel's page cache still had it: UUID and
    /// label are in it.
    pub header: Option<Blob>,
    /// Slots whose content is in the dump as well, in the swap cache and
    /// unchanged since it was written: the area must have the same. `start` is
    /// the slot's number times 4096.
    pub witnesses: Vec<PageRun>,
    /// The zram device whose pages are here: its backing device, which has no header of its own. A slot is a
    /// page of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zram: Option<String>,
    /// Why it cannot be read on any host.
    pub trouble: Option<String>,
}

/// The file of a swap area that is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapFile {
    /// Its inode's number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// `i_generation`.
    pub generation: Option<u32>,
}

/// Slots that are next to each other on the device (`struct swap_extent`).
/// Pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapExtent {
    /// The first slot.
    pub slot: u64,
    /// How many.
    pub count: u64,
    /// The page of the device that the first is in.
    pub place: u64,
}

impl SwapArea {
    /// The page of the device that a slot is in.
    #[must_use]
    pub fn place(&self, slot: u64) -> Option<u64> {
        let behind = self.extents.partition_point(|e| e.slot <= slot);
        let extent = self.extents.get(behind.checked_sub(1)?)?;
        let into = slot - extent.slot;
        (into < extent.count).then(|| extent.place.saturating_add(into))
    }
}

impl Dataset {
    /// Takes the pages in swap areas for out of reach: for a look at what is in the dump.
    pub fn forget_swapped(&mut self) {
        let private = self.processes.iter_mut().flat_map(|p| &mut p.mm.vmas);
        let runs = private
            .flat_map(|vma| &mut vma.pages)
            .chain(self.shared_memory.iter_mut().flat_map(|m| &mut m.pages))
            .chain(self.inodes.iter_mut().flat_map(|i| &mut i.dirty));
        for run in runs {
            if matches!(run.content, PageContent::Swap { .. }) {
                run.content = PageContent::OutOfReach;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_found_in_its_extent() {
        let extent = |slot, count, place| SwapExtent { slot, count, place };
        let area = SwapArea {
            extents: vec![extent(0, 4, 100), extent(4, 2, 50), extent(8, 1, 7)],
            ..SwapArea::default()
        };
        let places: Vec<_> = (0..10).map(|slot| area.place(slot)).collect();
        let some = |n| (n > 0).then_some(n);
        assert_eq!(places, [100, 101, 102, 103, 50, 51, 0, 0, 7, 0].map(some));
        assert_eq!(SwapArea::default().place(0), None);
    }
}
