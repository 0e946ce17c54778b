//! Memory of the dead host, and which of its pages are still to be delivered.

use super::PAGE;
use crate::dataset::PageRun;

/// A set of pages.
#[derive(Clone, Debug, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn new(pages: u64) -> Self {
        Self(vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(0)])
    }

    fn place(page: u64) -> (usize, u64) {
        let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
        (word, 1 << (page % 64))
    }

    /// Puts the pages `first..end` in.
    pub(super) fn set(&mut self, first: u64, end: u64) {
        let mut page = first;
        while page < end {
            let (word, _) = Self::place(page);
            let count = (64 - page % 64).min(end - page);
            let mask = u64::MAX >> (64 - count) << (page % 64);
            match self.0.get_mut(word) {
                Some(w) => *w |= mask,
                None => return,
            }
            page += count;
        }
    }

    /// Takes a page out; whether it was in.
    pub(super) fn clear(&mut self, page: u64) -> bool {
        let (word, bit) = Self::place(page);
        match self.0.get_mut(word) {
            Some(w) if *w & bit != 0 => {
                *w &= !bit;
                true
            }
            _ => false,
        }
    }

    /// The first page of `from..to` that is in.
    pub(super) fn next(&self, from: u64, to: u64) -> Option<u64> {
        let mut page = from;
        while page < to {
            let (word, _) = Self::place(page);
            let rest = self.0.get(word)? >> (page % 64);
            if rest != 0 {
                let found = page + u64::from(rest.trailing_zeros());
                return (found < to).then_some(found);
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }
}

/// Memory of the dead host that arrives later.
#[derive(Clone, Debug)]
pub struct Store<'d> {
    /// Where its pages are, by address or offset, in order.
    pub runs: &'d [PageRun],
    /// Address or offset of its page 0.
    pub start: u64,
    /// Pages that are delivered in one piece: 1, or those of a huge page.
    pub granule: u64,
    /// Processes share it.
    pub shared: bool,
    /// A forked child has zeros in its place (`MADV_WIPEONFORK`).
    pub wiped_on_fork: bool,
    pub(super) pending: Bits,
}

impl<'d> Store<'d> {
    /// Of `pages` pages, those of `runs` that `wanted` says are to be delivered.
    pub fn new(
        runs: &'d [PageRun],
        start: u64,
        pages: u64,
        wanted: impl Fn(&PageRun) -> bool,
    ) -> Self {
        let mut pending = Bits::new(pages);
        for run in runs.iter().filter(|run| wanted(run)) {
            let first = run.start.saturating_sub(start) / PAGE;
            pending.set(first, first.saturating_add(run.count).min(pages));
        }
        Self {
            runs,
            start,
            granule: 1,
            shared: false,
            wiped_on_fork: false,
            pending,
        }
    }

    /// Pages to be delivered.
    pub fn left(&self) -> u64 {
        self.pending
            .0
            .iter()
            .map(|w| u64::from(w.count_ones()))
            .sum()
    }

    /// The granule of a page.
    pub(super) fn granule_of(&self, page: u64) -> (u64, u64) {
        let first = page / self.granule * self.granule;
        (first, first + self.granule)
    }

    pub(super) fn is_pending(&self, page: u64) -> bool {
        let (first, end) = self.granule_of(page);
        self.pending.next(first, end).is_some()
    }

    /// Marks a granule's pages as there (or as zeros for good). How many were pending.
    pub(super) fn settle(&mut self, page: u64) -> u64 {
        let (first, end) = self.granule_of(page);
        (first..end)
            .filter(|page| self.pending.clear(*page))
            .count() as u64
    }
}
