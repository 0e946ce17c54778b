//! A guest's memory as a dump's: its physical addresses lead to pages of the
//! host's dump. What reads a dead host can so read the guest in it.

use super::guest::Range;
use crate::dataset::{GuestMemory, PageRun, PageSource, StretchContent};
use crate::dump::{Missing, PAGE_SIZE, PageFailure, PageState, PhysicalMemory, ReadError};

/// Guest-physical memory.
pub(super) struct GuestView<P> {
    /// By address, without overlap.
    pieces: Vec<Piece>,
    pages: P,
}

/// Pages next to each other, of one kind. In pages.
#[derive(Clone, Copy)]
struct Piece {
    pfn: u64,
    count: u64,
    content: Content,
}

#[derive(Clone, Copy)]
enum Content {
    Zero,
    Pages { run: PageRun, first: u64 },
    Missing,
}

impl<P: PageSource> GuestView<P> {
    /// The memory that `ranges` make of `memory`.
    pub fn new(memory: &GuestMemory<'_>, ranges: &[Range], pages: P) -> Self {
        let mut pieces = Vec::new();
        for range in ranges {
            let Some(area) = memory.areas.get(range.area) else {
                continue;
            };
            pieces.extend(area.part(range.offset, range.len).map(|stretch| Piece {
                pfn: (range.address + (stretch.at - range.offset)) / PAGE_SIZE,
                count: stretch.len / PAGE_SIZE,
                content: match stretch.content {
                    StretchContent::Zero => Content::Zero,
                    StretchContent::Pages { run, first } => Content::Pages { run: *run, first },
                    StretchContent::Missing(_) => Content::Missing,
                },
            }));
        }
        Self { pieces, pages }
    }

    /// The piece that a page frame is in, and its place there.
    fn find(&self, pfn: u64) -> Option<(&Piece, u64)> {
        let next = self.pieces.partition_point(|p| p.pfn + p.count <= pfn);
        let piece = self.pieces.get(next)?;
        Some((piece, pfn.checked_sub(piece.pfn)?))
    }

    fn read_page(&self, pfn: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let addr = pfn.saturating_mul(PAGE_SIZE);
        let missing = |why| Err(ReadError::Missing { addr, why });
        match self.find(pfn) {
            None => missing(Missing::NotRam),
            Some((piece, at)) => match piece.content {
                Content::Missing => missing(Missing::Filtered),
                Content::Zero => {
                    out.fill(0);
                    Ok(())
                }
                Content::Pages { run, first } => self
                    .pages
                    .read_pages(&run, first + at, 1, out)
                    .or(missing(Missing::Filtered)),
            },
        }
    }
}

impl<P: PageSource> PhysicalMemory for GuestView<P> {
    fn read_physical(&self, addr: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut page = [0; PAGE_SIZE as usize];
        let (mut addr, mut rest) = (addr, buf);
        while !rest.is_empty() {
            self.read_page(addr / PAGE_SIZE, &mut page)?;
            let inside = (addr % PAGE_SIZE) as usize;
            let len = rest.len().min(page.len() - inside);
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(&page[inside..inside + len]);
            addr = addr.saturating_add(len as u64);
            rest = tail;
        }
        Ok(())
    }

    fn page_state(&self, pfn: u64) -> PageState {
        match self.find(pfn) {
            None => PageState::Missing(Missing::NotRam),
            Some((piece, _)) => match piece.content {
                Content::Missing => PageState::Missing(Missing::Filtered),
                // Where nothing is to be found, nothing needs to be looked for.
                Content::Zero | Content::Pages { .. } => PageState::Present,
            },
        }
    }

    /// Neighbours are read together.
    fn read_pages(&self, pfns: &[u64], out: &mut [u8]) -> Vec<PageFailure> {
        let page = PAGE_SIZE as usize;
        assert_eq!(out.len(), pfns.len() * page);
        let mut failures = Vec::new();
        let mut from = 0;
        while let Some(&first) = pfns.get(from) {
            let found = self.find(first);
            let room = found.map_or(1, |(piece, at)| piece.count - at);
            let count = (first..)
                .zip(&pfns[from..])
                .take_while(|&(wanted, &pfn)| wanted == pfn && pfn - first < room)
                .count()
                .max(1);
            let bytes = &mut out[from * page..(from + count) * page];
            let together = found.is_some_and(|(piece, at)| match piece.content {
                Content::Pages { run, first } => self
                    .pages
                    .read_pages(&run, first + at, count as u64, bytes)
                    .is_ok(),
                _ => false,
            });
            for (n, bytes) in bytes.chunks_exact_mut(page).enumerate() {
                if together {
                    break;
                }
                if let Err(error) = self.read_page(first.saturating_add(n as u64), bytes) {
                    bytes.fill(0);
                    failures.push(PageFailure {
                        index: from + n,
                        error,
                    });
                }
            }
            from += count;
        }
        failures
    }

    fn max_pfn(&self) -> u64 {
        self.pieces.last().map_or(0, |p| p.pfn + p.count)
    }
}
