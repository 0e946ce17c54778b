//! Pages that are not in a process's page tables: swapped out, or on the move.

use std::cell::RefCell;
use std::collections::HashMap;

use super::page_frame::Frames;
use crate::dataset::PageContent;
use crate::kernel::{KernelError, Object, SwapEntry, containers};

/// Pages in one `address_space` of the swap cache (SWAP_ADDRESS_SPACE_SHIFT).
const SPACE_SHIFT: u32 = 14;
/// Low bits of a migration entry's offset that are the PFN, at most.
const PFN_BITS: u32 = 40;
/// A `swp_entry_t` is the area above its offset: 63 bits less
/// MAX_SWAPFILES_SHIFT. Linux include/linux/swapops.h.
const TYPE_SHIFT: u32 = 58;
/// Most pages in a folio of the swap cache.
const MAX_FOLIO: u64 = 512;
/// Entries of a swap table (since v6.18): the flags are in the top five bits
/// (since v7.0), the lowest of them says that the page was all zeros and is
/// on no device (since v7.1). Linux mm/swap_table.h.
const TABLE_FLAGS: u64 = 0x1f << 59;
const TABLE_ZERO: u64 = 1 << 59;

/// Resolves entries that lead to no page frame.
pub(super) struct SwapReader<'a, 'k> {
    frames: &'a Frames<'k>,
    /// Areas that `swapon` ever made; other kinds of entry are special.
    areas: u32,
    /// What of the swap cache was looked at: by area and space, the first page
    /// of each folio by index.
    cache: RefCell<HashMap<(u32, u64), HashMap<u64, u64>>>,
    /// `swap_info_struct` by area.
    info: RefCell<HashMap<u32, Option<Object<'k>>>>,
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
            info: RefCell::default(),
        }
    }

    /// Pages that zswap keeps compressed in memory: their slots on the device
    /// hold something else.
    pub fn compressed_in_memory(&self) -> u64 {
        let kernel = self.frames.kernel;
        kernel
            .symbol("zswap_stored_pages")
            .and_then(|a| kernel.read_u32(a))
            .map(u64::from)
            .unwrap_or(0)
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
    /// there still (it may not have been written yet), nothing but zeros when
    /// the kernel remembers just that, else on the device.
    pub fn slot(&self, area: u32, offset: u64) -> PageContent {
        let on_device = PageContent::Swap { area, offset };
        let Some(info) = self.info(area) else {
            return on_device;
        };
        let word = self.table_word(&info, offset).unwrap_or(None);
        let cached = match word {
            Some(word) => self.in_table(area, offset, word),
            None => self.in_space(area, offset),
        };
        if let Some(pfn) = cached {
            return self.frames.content(pfn);
        }
        let zero = word.is_some_and(|w| w & 1 != 0 && w & TABLE_ZERO != 0 && !info.has("zeromap"))
            || self.in_zero_map(&info, offset).unwrap_or(false);
        if zero { PageContent::Zero } else { on_device }
    }

    fn info(&self, area: u32) -> Option<Object<'k>> {
        let kernel = self.frames.kernel;
        self.info
            .borrow_mut()
            .entry(area)
            .or_insert_with(|| {
                let table = kernel.symbol("swap_info").ok()?;
                let at = kernel
                    .read_u64(table.wrapping_add(u64::from(area) * 8))
                    .ok()?;
                kernel.object("swap_info_struct", at).ok()
            })
            .clone()
    }

    /// The slot's word in its cluster's swap table; `None` on kernels without.
    fn table_word(&self, info: &Object<'k>, offset: u64) -> Result<Option<u64>, KernelError> {
        let kernel = self.frames.kernel;
        if !kernel.has_type("swap_table") || offset >= info.u("max")? {
            return Ok(None);
        }
        let slots = (kernel.size_of("swap_table")? / 8).max(1);
        let at = info
            .ptr("cluster_info")?
            .wrapping_add((offset / slots).wrapping_mul(kernel.size_of("swap_cluster_info")?));
        let table = kernel.object("swap_cluster_info", at)?.ptr("table")?;
        if table == 0 {
            return Ok(None);
        }
        kernel
            .read_u64(table.wrapping_add(offset % slots * 8))
            .map(Some)
    }

    /// The page frame that a word of a swap table leads to.
    fn in_table(&self, area: u32, offset: u64, word: u64) -> Option<u64> {
        let kernel = self.frames.kernel;
        match word & 7 {
            // A folio's PFN (since v7.0).
            2 | 6 => {
                let pfn = (word & !TABLE_FLAGS) >> 2;
                self.within(kernel.pfn_to_page(pfn), area, offset)
            }
            // A folio's address.
            0 if word != 0 && word >> 63 != 0 => self.within(word, area, offset),
            _ => None,
        }
    }

    /// The page frame of a slot in the swap cache's address spaces, which were
    /// before the swap tables.
    fn in_space(&self, area: u32, offset: u64) -> Option<u64> {
        let key = (area, offset >> SPACE_SHIFT);
        let mut cache = self.cache.borrow_mut();
        let space = cache
            .entry(key)
            .or_insert_with(|| self.space(key).unwrap_or_default());
        // The index within a space since v6.11, the whole offset before.
        let inner = offset & ((1 << SPACE_SHIFT) - 1);
        // A folio stands at each of its slots, or at its first alone.
        (0..=MAX_FOLIO.ilog2())
            .flat_map(|order| [offset, inner].map(|i| i >> order << order))
            .filter_map(|index| space.get(&index))
            .find_map(|head| self.within(*head, area, offset))
    }

    /// The page frame of slot `offset` in the folio whose first page is `head`:
    /// the folio knows its own first slot.
    fn within(&self, head: u64, area: u32, offset: u64) -> Option<u64> {
        let entry = self.frames.private_of(head).ok()?;
        let first = entry & ((1 << TYPE_SHIFT) - 1);
        let into = offset.checked_sub(first).filter(|i| *i < MAX_FOLIO)?;
        if entry >> TYPE_SHIFT != u64::from(area) {
            return None;
        }
        let pfn = self
            .frames
            .kernel
            .page_to_pfn(head)
            .ok()?
            .checked_add(into)?;
        let page = self.frames.kernel.pfn_to_page(pfn);
        (self.frames.head_of(page).ok()? == head).then_some(pfn)
    }

    /// First pages of the folios in one space of the swap cache.
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
        // Values are shadows of what is no longer cached.
        Ok(containers::xarray(&mapping.get("i_pages")?)?
            .into_iter()
            .filter(|(_, entry)| entry & 3 == 0)
            .collect())
    }

    /// The page was all zeros, and was not written (v6.12 to v7.0).
    fn in_zero_map(&self, info: &Object<'k>, offset: u64) -> Result<bool, KernelError> {
        if !info.has("zeromap") || offset >= info.u("max")? {
            return Ok(false);
        }
        let map = info.ptr("zeromap")?;
        if map == 0 {
            return Ok(false);
        }
        let word = self
            .frames
            .kernel
            .read_u64(map.wrapping_add(offset / 64 * 8))?;
        Ok(word >> (offset % 64) & 1 != 0)
    }
}
