//! Pages that are not in a process's page tables: swapped out, or on the move.

use std::cell::RefCell;
use std::collections::HashMap;

use super::page_cache::{self, CachePlace, Wanted};
use super::page_frame::Frames;
use crate::dataset::PageContent;
use crate::kernel::{KernelError, SwapEntry};

/// Pages in one `address_space` of the swap cache (SWAP_ADDRESS_SPACE_SHIFT).
const SPACE_SHIFT: u32 = 14;
/// Low bits of a migration entry's offset that are the PFN, at most.
const PFN_BITS: u32 = 40;

/// Resolves entries that lead to no page frame.
pub(super) struct SwapReader<'a, 'k> {
    frames: &'a Frames<'k>,
    /// Areas that `swapon` ever made; other kinds of entry are special.
    areas: u32,
    /// What of the swap cache was looked at: by area and space, PFN by index.
    cache: RefCell<HashMap<(u32, u64), HashMap<u64, u64>>>,
}

impl<'a, 'k> SwapReader<'a, 'k> {
    pub fn new(frames: &'a Frames<'k>) -> Self {
        let kernel = frames.kernel;
        let areas = kernel
            .symbol("nr_swapfiles")
            .and_then(|a| kernel.read_u32(a))
            .unwrap_or(32);
        Self {
            frames,
            areas,
            cache: RefCell::default(),
        }
    }

    /// The content behind a page table entry that is not present; `None` when
    /// it holds none (a marker).
    pub fn entry(&self, raw: u64) -> Option<PageContent> {
        let entry = SwapEntry::decode(raw);
        let area = u32::from(entry.kind);
        if area < self.areas {
            return Some(self.slot(area, entry.offset));
        }
        // The last kind is the marker's (SWP_PTE_MARKER): no page. Below it are
        // device and migration entries; the latter's offset is a PFN, and its
        // page is locked by who moves it.
        let pfn = entry.offset & ((1 << PFN_BITS) - 1);
        if pfn != 0
            && pfn < self.frames.kernel.memory().max_pfn()
            && self.frames.is_anonymous(pfn).unwrap_or(false)
        {
            return Some(self.frames.content(pfn));
        }
        (area != 31).then_some(PageContent::Corrupt)
    }

    /// The content of a slot of a swap area: in the swap cache when it is
    /// there still (it may not have been written yet), else on the device.
    pub fn slot(&self, area: u32, offset: u64) -> PageContent {
        let key = (area, offset >> SPACE_SHIFT);
        let mut cache = self.cache.borrow_mut();
        let space = cache
            .entry(key)
            .or_insert_with(|| self.space(key).unwrap_or_default());
        // The index within a space since Linux 6.11, the whole offset before.
        let inner = offset & ((1 << SPACE_SHIFT) - 1);
        match space.get(&offset).or_else(|| space.get(&inner)) {
            Some(pfn) => self.frames.content(*pfn),
            None => PageContent::Swap { area, offset },
        }
    }

    /// PFNs of one space of the swap cache.
    fn space(&self, (area, chunk): (u32, u64)) -> Result<HashMap<u64, u64>, KernelError> {
        let kernel = self.frames.kernel;
        let table = kernel.symbol("swapper_spaces")?;
        let spaces = kernel.read_u64(table.wrapping_add(u64::from(area) * 8))?;
        if spaces == 0 {
            return Ok(HashMap::new());
        }
        let size = kernel.size_of("address_space")?;
        let mapping = kernel.object(
            "address_space",
            spaces.wrapping_add(chunk.wrapping_mul(size)),
        )?;
        let pages = page_cache::pages(self.frames, &mapping, Wanted::All, 0)?;
        Ok(pages
            .iter()
            .flat_map(|p| {
                let CachePlace::Frame(pfn) = p.place else {
                    return Vec::new();
                };
                (0..p.count.min(512))
                    .map(|i| (p.index.wrapping_add(i), pfn.wrapping_add(i)))
                    .collect()
            })
            .collect())
    }
}
