//! Whether a page frame belongs to one process alone: what it writes there, nobody else sees.

use super::error::TaskError;
use super::page_frame::Frames;
use crate::kernel::{Kernel, KernelError};

/// `page->mapping`: anonymous, and not one of KSM's (both bits). Linux include/linux/page-flags.h.
const MAPPING_FLAGS: u64 = 3;
const MAPPING_ANON: u64 = 1;
/// Of every kernel it has 64 bytes, or 56. Bytes.
const LARGEST: u64 = 256;
/// `struct page`s that are read at once.
const BATCH: u64 = 512;

/// Answers about page frames in anonymous memory. Offsets are looked up once.
pub struct SoleOwner<'k> {
    frames: Frames<'k>,
    /// Bytes of a `struct page`.
    size: u64,
    head: u64,
    mapping: u64,
    mapcount: u64,
    /// Offset, from a folio's first `struct page`, of the number of mappings of all of it, less one.
    entire: Option<u64>,
}

impl<'k> SoleOwner<'k> {
    /// Looks up `struct page`.
    ///
    /// # Errors
    /// It has not got what tells (`_mapcount`).
    pub fn new(kernel: &'k Kernel) -> Result<Self, TaskError> {
        Self::look_up(kernel).map_err(|source| TaskError::Kernel {
            what: "struct page",
            source,
        })
    }

    fn look_up(kernel: &'k Kernel) -> Result<Self, KernelError> {
        let size = kernel.size_of("page")?;
        if !(8..=LARGEST).contains(&size) {
            return Err(KernelError::Damaged {
                what: "struct page",
                addr: 0,
                detail: format!("{size} bytes by its types"),
            });
        }
        // In the folio since Linux commit 46f27228 ("mm: Remove compound_mapcount from struct page",
        // v6.3); in the first tail page before.
        let entire = kernel
            .offset_of("folio", "_entire_mapcount")
            .or_else(|_| {
                Ok::<_, KernelError>(size + kernel.offset_of("page", "compound_mapcount")?)
            })
            .ok();
        Ok(Self {
            frames: Frames::new(kernel)?,
            size,
            head: kernel
                .offset_of("page", "compound_head")
                .or_else(|_| kernel.offset_of("page", "compound_info"))?,
            mapping: kernel
                .offset_of("page", "mapping")
                .or_else(|_| kernel.offset_of("folio", "mapping"))?,
            mapcount: kernel.offset_of("page", "_mapcount")?,
            entire,
        })
    }

    /// For each of `count` page frames from `first` on: it is anonymous memory that is mapped once.
    /// `false` where that is not known: its `struct page` cannot be read, or says otherwise.
    pub fn alone(&self, first: u64, count: u64) -> Vec<bool> {
        let mut found = Vec::new();
        let mut at = first;
        let end = first.saturating_add(count);
        // The folio of the page before, and what is so of it.
        let mut last = (0, None);
        let mut bytes = vec![0; usize::try_from(BATCH * self.size).unwrap_or(0)];
        while at < end {
            let pages = (BATCH - at % BATCH).min(end - at);
            let base = self.frames.kernel.pfn_to_page(at);
            let part = usize::try_from(pages * self.size)
                .ok()
                .and_then(|len| bytes.get_mut(..len));
            let read = part.and_then(|part| {
                let read = self.frames.kernel.read(base, part);
                read.is_ok().then_some(part)
            });
            match read {
                None => found.extend((0..pages).map(|_| false)),
                Some(part) => {
                    let pages = part.chunks_exact(usize::try_from(self.size).unwrap_or(64));
                    for (page, at) in pages.zip((base..).step_by(self.size as usize)) {
                        let alone = self.is_alone(page, at, &mut last);
                        found.push(alone.unwrap_or(false));
                    }
                }
            }
            at += pages;
        }
        found
    }

    /// `last`: a folio's first page, and how often all of it is mapped, where it is anonymous.
    fn is_alone(&self, page: &[u8], at: u64, last: &mut (u64, Option<u64>)) -> Option<bool> {
        let own = u64::from(half(page, self.mapcount)?.wrapping_add(1));
        let is_tail = word(page, self.head)? & 1 != 0;
        if !is_tail && !self.frames.is_head(page) {
            // A page of its own.
            return Some(word(page, self.mapping)? & MAPPING_FLAGS == MAPPING_ANON && own == 1);
        }
        let head = if is_tail {
            self.frames.head_of(at).ok()?
        } else {
            at
        };
        if last.0 != head {
            *last = (head, self.whole_folio(head));
        }
        // Mapped as a whole, or page by page; never both, and never twice.
        Some(last.1? + own == 1)
    }

    /// How often all of an anonymous folio is mapped at once.
    fn whole_folio(&self, head: u64) -> Option<u64> {
        let kernel = self.frames.kernel;
        let mapping = kernel.read_u64(head.wrapping_add(self.mapping)).ok()?;
        if mapping & MAPPING_FLAGS != MAPPING_ANON {
            return None;
        }
        let count = kernel.read_u32(head.wrapping_add(self.entire?)).ok()?;
        Some(u64::from(count.wrapping_add(1)))
    }
}

fn word(page: &[u8], offset: u64) -> Option<u64> {
    let bytes = page.get(usize::try_from(offset).ok()?..)?;
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

fn half(page: &[u8], offset: u64) -> Option<u32> {
    let bytes = page.get(usize::try_from(offset).ok()?..)?;
    Some(u32::from_le_bytes(*bytes.first_chunk()?))
}
