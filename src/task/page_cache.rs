//! The page cache of one file: `address_space.i_pages`.

use super::page_frame::Frames;
use crate::kernel::{KernelError, Object};

/// Which pages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All that are there.
    All,
    /// Those that the disk may not have: dirty, or under write-back.
    Unwritten,
    /// The others, whose content is valid.
    Clean,
}

/// Pages of a file, next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CachedPages {
    /// First page's place in the file. In pages.
    pub index: u64,
    /// Number of pages.
    pub count: u64,
    pub place: CachePlace,
}

/// Where a cached page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CachePlace {
    /// From this page frame on.
    Frame(u64),
    /// In swap (shmem): the raw swap entry.
    Swap { area: u32, offset: u64 },
}

/// Pages of a file, in memory and in swap, are at most this many times those of memory; and what a
/// small machine may have.
const MAX_SWAPPED: u64 = 16;
const MIN_PAGES: u64 = 1 << 22;
/// The largest entry is that of a page of 1 GiB, of shift 18: a node's below may have sixteen slots.
const MAX_SHIFT: u64 = 18;
/// Slots of an `xa_node`.
const SLOTS: u64 = 64;
/// PAGECACHE_TAG_DIRTY and PAGECACHE_TAG_WRITEBACK: marks 0 and 1.
const UNWRITTEN_MARKS: usize = 2;
/// Bits of a swap entry's offset in an XArray value: 63 bits less
/// MAX_SWAPFILES_SHIFT. Linux include/linux/swapops.h.
const SWAP_TYPE_SHIFT: u32 = 58;

/// The cached pages of `mapping` (a `struct address_space`), by index.
///
/// `huge_order` is the order of the pages of a hugetlbfs, 0 elsewhere.
pub(super) fn pages(
    frames: &Frames<'_>,
    mapping: &Object<'_>,
    wanted: Wanted,
    huge_order: u32,
) -> Result<Vec<CachedPages>, KernelError> {
    // Values in other caches are shadows: what is left of pages that were
    // evicted.
    let holds_swap = frames
        .kernel
        .symbol_at(mapping.ptr("a_ops")?)
        .is_some_and(|(name, _)| name.starts_with("shmem_aops"));
    let mut walk = Walk {
        frames,
        wanted,
        huge_order,
        holds_swap,
        multi_index: frames.kernel.has_type("folio_batch"),
        // Every page needs a slot, and every node holds at least one page; the
        // factor is for the tree's depth and for swapped pages, which nrpages
        // does not count.
        nodes_left: 64 << 20,
        pages_left: frames
            .kernel
            .memory()
            .max_pfn()
            .saturating_mul(MAX_SWAPPED)
            .max(MIN_PAGES),
        out: Vec::new(),
    };
    let head = mapping.ptr("i_pages.xa_head")?;
    if head == 0 {
        return Ok(walk.out);
    }
    match inner_node(head) {
        Some(node) => walk.node(node, 0, None)?,
        None => walk.leaf(head, 0, 1)?,
    }
    Ok(walk.out)
}

/// The `xa_node` that an entry points to.
fn inner_node(entry: u64) -> Option<u64> {
    (entry & 3 == 2 && entry > 4096).then_some(entry & !3)
}

struct Walk<'a, 'k> {
    frames: &'a Frames<'k>,
    wanted: Wanted,
    huge_order: u32,
    /// Values are swap entries.
    holds_swap: bool,
    /// A large folio has one entry. Since Linux commit 6b24ca4a1a8d ("mm: Use
    /// multi-index entries in the page cache") (in v5.17), which brought
    /// folio_batch as well.
    multi_index: bool,
    nodes_left: u64,
    /// A large entry stands for many pages, so these are counted too.
    pages_left: u64,
    out: Vec<CachedPages>,
}

/// The node that refers to another, its shift, and in which slot it does.
struct Above {
    node: u64,
    shift: u64,
    slot: u64,
}

impl Walk<'_, '_> {
    fn node(&mut self, at: u64, first: u64, above: Option<Above>) -> Result<(), KernelError> {
        let damaged = |detail: String| KernelError::Damaged {
            what: "xa_node of a page cache",
            addr: at,
            detail,
        };
        self.nodes_left = self
            .nodes_left
            .checked_sub(1)
            .ok_or_else(|| damaged("the tree has no end".into()))?;
        let node = self.frames.kernel.object("xa_node", at)?;
        let shift = node.u("shift")?;
        if shift > 60 || shift % 6 != 0 {
            return Err(damaged(format!("its shift is {shift}")));
        }
        // Each node must know its place, so that none is met twice.
        let parent = node.ptr("parent")?;
        if above.is_none() && parent != 0 {
            return Err(damaged(format!(
                "it is the first, and its parent is {parent:#x}"
            )));
        }
        if let Some(above) = above {
            let offset = node.u("offset")?;
            if parent != above.node || offset != above.slot || shift + 6 != above.shift {
                return Err(damaged(format!(
                    "parent {parent:#x} slot {offset} shift {shift}, reached from {:#x} slot {} shift {}",
                    above.node, above.slot, above.shift
                )));
            }
        }
        let slots = words(&node.get("slots")?.bytes()?);
        let marks = words(&node.get("marks")?.bytes()?);
        let marked = marks.iter().take(UNWRITTEN_MARKS).fold(0, |a, m| a | m);
        let mut slot = 0;
        while slot < SLOTS {
            let entry = usize::try_from(slot).ok().and_then(|i| slots.get(i));
            let entry = entry.copied().unwrap_or(0);
            // Sibling entries say that a multi-page entry goes on.
            let mut span = 1;
            while let Some(next) = usize::try_from(slot + span).ok().and_then(|i| slots.get(i)) {
                if next & 3 == 2 && *next < 4096 && *next >> 2 == slot {
                    span += 1;
                } else {
                    break;
                }
            }
            let is_marked = marked >> slot & 1 != 0;
            if entry != 0 && (self.wanted != Wanted::Unwritten || is_marked) {
                let index = first.wrapping_add(slot << shift);
                match inner_node(entry) {
                    Some(child) if shift > 0 => {
                        let above = Above {
                            node: at,
                            shift,
                            slot,
                        };
                        self.node(child, index, Some(above))?;
                    }
                    Some(_) => return Err(damaged(format!("slot {slot} of a leaf is a node"))),
                    None if shift > MAX_SHIFT => {
                        return Err(damaged(format!(
                            "slot {slot} of a node of shift {shift} is a page"
                        )));
                    }
                    None => self.leaf(entry, index, span << shift)?,
                }
            }
            slot += span;
        }
        Ok(())
    }

    fn leaf(&mut self, entry: u64, index: u64, span: u64) -> Result<(), KernelError> {
        let pages = match self.huge_order {
            0 => span,
            order => 1 << order.min(18),
        };
        self.pages_left =
            self.pages_left
                .checked_sub(pages)
                .ok_or_else(|| KernelError::Damaged {
                    what: "address_space.i_pages",
                    addr: entry,
                    detail: format!(
                        "up to index {index:#x} it has more pages than memory and swap hold"
                    ),
                })?;
        if entry & 1 != 0 {
            let value = entry >> 1;
            if self.wanted == Wanted::All && self.holds_swap {
                self.out.push(CachedPages {
                    index,
                    count: span,
                    place: CachePlace::Swap {
                        area: u32::try_from(value >> SWAP_TYPE_SHIFT).unwrap_or(u32::MAX),
                        offset: value & ((1 << SWAP_TYPE_SHIFT) - 1),
                    },
                });
            }
            return Ok(());
        }
        if entry & 3 != 0 {
            // Zero and retry entries hold no page.
            return Ok(());
        }
        let mut page = entry;
        if self.wanted == Wanted::Unwritten && !self.frames.is_unwritten(page)? {
            return Ok(());
        }
        if self.wanted == Wanted::Clean && !self.frames.is_clean(page)? {
            return Ok(());
        }
        let (mut index, mut count) = (index, span);
        if self.huge_order > 0 {
            if span == 1 {
                // Indices of a hugetlbfs counted huge pages until Linux commit
                // a08c7193e4f1 ("mm/filemap: remove hugetlb special casing in
                // filemap.c") (in v6.7).
                index = index.checked_shl(self.huge_order).unwrap_or(u64::MAX);
            }
            count = 1 << self.huge_order.min(18);
        } else if span == 1 && !self.multi_index {
            // An entry for each page, all leading to the first: how large
            // pages were kept.
            let folio_index = self.frames.index_of(page)?;
            let into = index.wrapping_sub(folio_index);
            if into != 0 && into < 512 {
                page = page.wrapping_add(into * self.frames.kernel.size_of("page")?);
            }
        }
        let first = self.frames.kernel.page_to_pfn(page)?;
        // Most files lie in memory in long pieces.
        if let Some(last) = self.out.last_mut()
            && last.index.checked_add(last.count) == Some(index)
            && let CachePlace::Frame(start) = last.place
            && start.checked_add(last.count) == Some(first)
        {
            last.count = last.count.saturating_add(count);
            return Ok(());
        }
        self.out.push(CachedPages {
            index,
            count,
            place: CachePlace::Frame(first),
        });
        Ok(())
    }
}

/// Little-endian words.
pub(super) fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks_exact(8)
        .map(|c| c.iter().rev().fold(0, |a, b| a << 8 | u64::from(*b)))
        .collect()
}
