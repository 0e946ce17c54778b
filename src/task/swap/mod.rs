//! Pages that are not in a process's page tables: swapped out, or on the move.
//!
//! A swap entry names an area and a slot of it. What was there is looked for where the dead kernel
//! would have: in the swap cache, among the pages that it remembers to be zeros, in zswap's
//! compressed memory, and only then on the area's device, which may be zram's compressed memory
//! again (`zswap`, `zram`, `zsmalloc`, `z3fold`). What is left is on a disk: `area` says which, and where.

mod area;
mod z3fold;
mod zram;
mod zsmalloc;
mod zswap;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::mapped::unreadable;
use super::page_frame::Frames;
use crate::dataset::{Packing, PageContent, SwapArea};
use crate::dump::{Missing, PageState};
use crate::kernel::{KernelError, Object, SwapEntry, containers};
use area::Area;
use zswap::Zswap;

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

/// What is on the backing device of a zram has the number of the area on that zram, and this: no area has so
/// many before it (MAX_SWAPFILES).
const BACKING: u32 = 1 << 16;

/// Why compressed memory gives no page.
enum Trouble {
    /// It cannot be read, or contradicts itself.
    Kernel(KernelError),
    /// It is kept in a way that is not known here.
    Unknown(String),
}

impl From<KernelError> for Trouble {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

/// Resolves entries that lead to no page frame.
pub(super) struct SwapReader<'a, 'k> {
    frames: &'a Frames<'k>,
    /// Areas that `swapon` ever made; other kinds of entry are special.
    areas: u32,
    /// What of the swap cache was looked at: by area and space, the first page
    /// of each folio by index.
    cache: RefCell<HashMap<(u32, u64), HashMap<u64, u64>>>,
    /// Areas by number.
    known: RefCell<HashMap<u32, Option<Rc<Area<'k>>>>>,
    zswap: Zswap<'k>,
    /// Pages out of reach, by the reason.
    troubles: RefCell<BTreeMap<String, u64>>,
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
            known: RefCell::default(),
            zswap: Zswap::new(kernel),
            troubles: RefCell::default(),
        }
    }

    /// Why pages are [`PageContent::OutOfReach`], and how many are for each reason.
    pub fn troubles(&self) -> Vec<(String, u64)> {
        let troubles = self.troubles.borrow();
        troubles.iter().map(|(why, n)| (why.clone(), *n)).collect()
    }

    /// The areas with these numbers, so far as they can be told.
    pub fn areas(&self, numbers: &BTreeSet<u32>) -> Vec<SwapArea> {
        numbers
            .iter()
            .map(|number| match self.area(*number % BACKING) {
                Some(area) => {
                    let witnesses = self.witnesses(*number, &area);
                    match *number < BACKING {
                        true => area.describe(*number, self.frames, witnesses),
                        false => area.describe_backing(*number, witnesses),
                    }
                }
                None => SwapArea {
                    number: *number,
                    trouble: Some("the dead kernel's swap_info_struct of it cannot be read".into()),
                    ..SwapArea::default()
                },
            })
            .collect()
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
    /// the kernel remembers just that, in compressed memory, else on the device.
    pub fn slot(&self, number: u32, offset: u64) -> PageContent {
        let on_device = PageContent::Swap {
            area: number,
            offset,
        };
        let Some(area) = self.area(number) else {
            return on_device;
        };
        let word = self.table_word(&area.info, offset).unwrap_or(None);
        let cached = match word {
            Some(word) => self.in_table(number, offset, word),
            None => self.in_space(number, offset),
        };
        if let Some(pfn) = cached
            // One that is being read in is not there yet.
            && self.frames.is_uptodate(pfn).unwrap_or(true)
        {
            return self.frames.content(pfn);
        }
        if self.is_zero(&area, offset, word) {
            return PageContent::Zero;
        }
        match self.compressed(number, &area, offset) {
            Ok(Some(content)) => content,
            Ok(None) => on_device,
            Err(trouble) => self.out_of_reach(trouble),
        }
    }

    fn is_zero(&self, area: &Area<'k>, offset: u64, word: Option<u64>) -> bool {
        word.is_some_and(|w| w & 1 != 0 && w & TABLE_ZERO != 0 && !area.info.has("zeromap"))
            || self.in_zero_map(&area.info, offset).unwrap_or(false)
    }

    /// What zswap or zram has of it.
    fn compressed(
        &self,
        number: u32,
        area: &Area<'k>,
        offset: u64,
    ) -> Result<Option<PageContent>, Trouble> {
        let found = match self.zswap.slot(number, offset)? {
            Some(found) => found,
            None => match area.zram_page(offset) {
                Some((disk, page)) => match zram::page(disk, page)? {
                    zram::Place::Memory(content) => content,
                    zram::Place::Backing(page) => PageContent::Swap {
                        area: BACKING + number,
                        offset: page,
                    },
                },
                None => return Ok(None),
            },
        };
        Ok(Some(self.present(found)))
    }

    /// The content, if the dump has the memory that it is in.
    fn present(&self, content: PageContent) -> PageContent {
        let PageContent::Packed { at, rest, .. } = content else {
            return content;
        };
        let frames = [at, rest].map(|address| address >> 12);
        for pfn in frames.into_iter().filter(|pfn| *pfn != 0) {
            match self.frames.kernel.memory().page_state(pfn) {
                PageState::Present => {}
                PageState::Missing(Missing::Truncated) => return PageContent::Truncated,
                PageState::Missing(_) => return PageContent::Filtered,
            }
        }
        content
    }

    fn out_of_reach(&self, trouble: Trouble) -> PageContent {
        let why = match trouble {
            Trouble::Kernel(error) => {
                let content = unreadable(&error);
                if content != PageContent::Corrupt {
                    return content;
                }
                error.to_string()
            }
            Trouble::Unknown(why) => why,
        };
        let mut troubles = self.troubles.borrow_mut();
        // Damaged structures differ in their addresses: a few tell enough.
        const MOST: usize = 16;
        let why = match troubles.len() < MOST || troubles.contains_key(&why) {
            true => why,
            false => "for further reasons".into(),
        };
        *troubles.entry(why).or_default() += 1;
        PageContent::OutOfReach
    }

    fn area(&self, number: u32) -> Option<Rc<Area<'k>>> {
        let mut known = self.known.borrow_mut();
        known
            .entry(number)
            .or_insert_with(|| Area::read(self.frames.kernel, number).ok().map(Rc::new))
            .clone()
    }

    /// Slots whose page is in the swap cache, unchanged since it was written: nobody has it mapped,
    /// so no page table knows of a change that `struct page` does not. Where each is on the area's device, or on
    /// its zram's backing device.
    fn witnesses(&self, wanted: u32, area: &Area<'k>) -> Vec<(u64, u64)> {
        /// More would not tell more.
        const MOST: usize = 512;
        let number = wanted % BACKING;
        let mut found = Vec::new();
        for chunk in 0..area.slots.div_ceil(1 << SPACE_SHIFT) {
            let Ok(space) = self.space((number, chunk)) else {
                continue;
            };
            let mut heads: Vec<u64> = space.into_values().collect();
            heads.sort_unstable();
            heads.dedup();
            for head in heads {
                let slot = self
                    .frames
                    .private_of(head)
                    .map(|entry| entry & ((1 << TYPE_SHIFT) - 1))
                    .ok();
                let pfn = self.frames.kernel.page_to_pfn(head).ok();
                if let (Some(slot), Some(pfn)) = (slot, pfn)
                    && self.within(head, number, slot) == Some(pfn)
                    && self.frames.is_unmapped_page(head).unwrap_or(false)
                    && self.frames.is_clean(head).unwrap_or(false)
                    && !self.is_zero(area, slot, None)
                    && matches!(self.frames.content(pfn), PageContent::Frame(_))
                {
                    match self.compressed(number, area, slot) {
                        Ok(None) if wanted == number => found.push((slot, pfn)),
                        Ok(Some(PageContent::Swap { area, offset })) if area == wanted => {
                            found.push((offset, pfn));
                        }
                        _ => {}
                    }
                }
                if found.len() >= MOST {
                    return found;
                }
            }
        }
        found
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

/// How a compressor of the kernel's writes; by the name that crypto and zram have for it.
fn packing(compressor: &str) -> Result<Packing, Trouble> {
    match compressor {
        "lzo" | "lzo-rle" => Ok(Packing::Lzo),
        "lz4" | "lz4hc" => Ok(Packing::Lz4),
        "zstd" => Ok(Packing::Zstd),
        "deflate" => Ok(Packing::Deflate),
        other => Err(Trouble::Unknown(format!(
            "compressed by {other:?}, which is not known here"
        ))),
    }
}

/// Bytes of a page as they are in `len` compressed ones.
fn packed(by: Packing, len: u64, at: u64, rest: u64) -> Result<PageContent, Trouble> {
    match u16::try_from(len) {
        Ok(len) if len <= 4096 => Ok(PageContent::Packed { by, len, at, rest }),
        _ => Err(Trouble::Unknown(format!("{len} bytes to one page"))),
    }
}

/// A page of the same word everywhere.
fn filled(word: u64) -> PageContent {
    match word {
        0 => PageContent::Zero,
        word => PageContent::Filled(word),
    }
}
