//! What the kernel knows of one page frame: `struct page`.

use crate::dataset::PageContent;
use crate::dump::{Missing, PageState};
use crate::kernel::{Kernel, KernelError};

/// `page->mapping` bit 0: the page is anonymous. Linux include/linux/page-flags.h.
const MAPPING_ANON: u64 = 1;

/// Answers about page frames. Offsets are looked up once.
pub(super) struct Frames<'k> {
    pub kernel: &'k Kernel,
    flags: u64,
    head: u64,
    mapping: u64,
    index: u64,
    private: u64,
    /// Offset of `_mapcount`.
    mapcount: Option<u64>,
    pg_head: u64,
    pg_uptodate: u64,
    pg_dirty: u64,
    pg_writeback: u64,
    /// PFNs of the pages of zeros that anonymous memory shares, with their
    /// number of pages; `None` where the kernel has no such page.
    zero: Option<u64>,
    huge_zero: Option<u64>,
}

impl<'k> Frames<'k> {
    /// Looks up `struct page`.
    pub fn new(kernel: &'k Kernel) -> Result<Self, KernelError> {
        // struct folio overlays struct page since Linux commit 7b230db3b8d3
        // ("mm: Introduce struct folio") (in v5.16).
        let owner = if kernel.has_type("folio") {
            "folio"
        } else {
            "page"
        };
        let bit = |name: &str, usual: i64| {
            let n = kernel.enum_value("pageflags", name).unwrap_or(usual);
            u32::try_from(n)
                .ok()
                .and_then(|n| 1u64.checked_shl(n))
                .unwrap_or(0)
        };
        let head = kernel
            .offset_of("page", "compound_head")
            .or_else(|_| kernel.offset_of("page", "compound_info"))?;
        let zero = kernel
            .symbol("empty_zero_page")
            .and_then(|va| kernel.virt_to_phys(va))
            .map(|phys| phys >> 12)
            .or_else(|_| kernel.read_u64(kernel.symbol("zero_pfn")?))
            .ok();
        let huge_zero = kernel
            .symbol("huge_zero_pfn")
            .and_then(|a| kernel.read_u64(a))
            .ok()
            .filter(|pfn| *pfn != u64::MAX);
        Ok(Self {
            kernel,
            flags: kernel.offset_of("page", "flags")?,
            head,
            mapping: kernel.offset_of(owner, "mapping")?,
            index: kernel.offset_of(owner, "index")?,
            private: kernel.offset_of(owner, "private")?,
            mapcount: kernel.offset_of("page", "_mapcount").ok(),
            pg_head: bit("PG_head", 16),
            pg_uptodate: bit("PG_uptodate", 2),
            pg_dirty: bit("PG_dirty", 4),
            pg_writeback: bit("PG_writeback", 15),
            zero,
            huge_zero,
        })
    }

    /// The page of zeros, or a part of the huge one.
    pub fn is_zero_page(&self, pfn: u64) -> bool {
        self.zero == Some(pfn)
            || self
                .huge_zero
                .is_some_and(|first| pfn >= first && pfn - first < 512)
    }

    /// The page belongs to anonymous memory: it was written to in a private
    /// mapping, and no longer is a file's.
    pub fn is_anonymous(&self, pfn: u64) -> Result<bool, KernelError> {
        let head = self.head_of(self.kernel.pfn_to_page(pfn))?;
        Ok(self.read(head, self.mapping)? & MAPPING_ANON != 0)
    }

    /// Place of a folio's first page in its file. In pages.
    pub fn index_of(&self, head: u64) -> Result<u64, KernelError> {
        self.read(head, self.index)
    }

    /// A folio's private word: in the swap cache, the entry of its first page.
    pub fn private_of(&self, head: u64) -> Result<u64, KernelError> {
        self.read(head, self.private)
    }

    /// Dirty, or being written: its disk may not have it.
    pub fn is_unwritten(&self, page: u64) -> Result<bool, KernelError> {
        let flags = self.read(self.head_of(page)?, self.flags)?;
        Ok(flags & (self.pg_dirty | self.pg_writeback) != 0)
    }

    /// The content of a page frame is valid: it is not being read in.
    pub fn is_uptodate(&self, pfn: u64) -> Result<bool, KernelError> {
        let head = self.head_of(self.kernel.pfn_to_page(pfn))?;
        Ok(self.read(head, self.flags)? & self.pg_uptodate != 0)
    }

    /// A page of its own that is in no page table.
    pub fn is_unmapped_page(&self, page: u64) -> Result<bool, KernelError> {
        let Some(mapcount) = self.mapcount else {
            return Ok(false);
        };
        let alone = self.head_of(page)? == page && self.read(page, self.flags)? & self.pg_head == 0;
        Ok(alone && self.kernel.read_u32(page.wrapping_add(mapcount))? == u32::MAX)
    }

    /// Its content is valid, and was written to the disk if it ever changed.
    pub fn is_clean(&self, page: u64) -> Result<bool, KernelError> {
        let flags = self.read(self.head_of(page)?, self.flags)?;
        let unwritten = self.pg_dirty | self.pg_writeback;
        Ok(flags & (self.pg_uptodate | unwritten) == self.pg_uptodate)
    }

    /// Whether the flags that stand in a copy of a `struct page` are those of the first page of a
    /// folio of several.
    pub fn is_head(&self, copy: &[u8]) -> bool {
        usize::try_from(self.flags)
            .ok()
            .and_then(|at| copy.get(at..)?.first_chunk())
            .is_none_or(|word| u64::from_le_bytes(*word) & self.pg_head != 0)
    }

    /// The first page of the folio that `page` is in.
    pub fn head_of(&self, page: u64) -> Result<u64, KernelError> {
        let word = self.read(page, self.head)?;
        if word & 1 == 0 {
            return Ok(page);
        }
        // A kernel whose struct page is a power of two long may store a mask
        // rather than an address here (mm: compound_info); as an address it
        // would be in the last 4 GiB, where no struct page is.
        if word > 0xffff_ffff_0000_0000 {
            return Ok(page & word & !1);
        }
        Ok(word & !1)
    }

    fn read(&self, page: u64, offset: u64) -> Result<u64, KernelError> {
        self.kernel.read_u64(page.wrapping_add(offset))
    }

    /// Where the content of a frame is.
    pub fn content(&self, pfn: u64) -> PageContent {
        content(pfn, self.kernel.memory().page_state(pfn))
    }

    /// The same, and of how many frames from it on, of `most` at most, it is of the same kind.
    pub fn contents(&self, pfn: u64, most: u64) -> (PageContent, u64) {
        let (state, count) = self.kernel.memory().page_states(pfn, most);
        (content(pfn, state), count.clamp(1, most.max(1)))
    }
}

fn content(pfn: u64, state: PageState) -> PageContent {
    match state {
        PageState::Present => PageContent::Frame(pfn),
        PageState::Missing(Missing::Truncated) => PageContent::Truncated,
        PageState::Missing(Missing::Filtered | Missing::NotRam) => PageContent::Filtered,
        PageState::Missing(Missing::InUse) => PageContent::OutOfReach,
    }
}
