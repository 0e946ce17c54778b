//! Physical memory as the rooms to the right see it, and the states of its pages.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ReadError;

/// Bytes in a page. Dumps with another block size are refused.
pub const PAGE_SIZE: u64 = 4096;

/// Physical memory of a dead machine.
pub trait PhysicalMemory: Send + Sync {
    /// Reads `buf.len()` bytes at physical address `addr`; may cross pages. On an error the content
    /// of `buf` is unspecified.
    fn read_physical(&self, addr: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// Whether the page frame `pfn` (physical address ÷ 4096) is in the dump, whole.
    fn page_state(&self, pfn: u64) -> PageState;

    /// The state of page frame `pfn`, and of how many from it on, of `most` at most, it is known at
    /// once to be the same; at least 1.
    fn page_states(&self, pfn: u64, most: u64) -> (PageState, u64) {
        let _ = most;
        (self.page_state(pfn), 1)
    }

    /// One past the last page frame that the dump speaks of.
    fn max_pfn(&self) -> u64;

    /// Whether pages of zeros may be left out in the way of filtered ones, so that a page that is
    /// [`Missing::Filtered`] may as well have been zeros. Only in ELF dumps: makedumpfile -E at an
    /// odd level leaves both out alike, and the file does not say its level. A kdump-compressed dump
    /// stores a page of zeros that all others share.
    fn filters_zero_pages(&self) -> bool {
        false
    }

    /// What the dump's index says of a page: its state, and whether it stands there on its own.
    fn page_kind(&self, pfn: u64) -> PageKind {
        match self.page_state(pfn) {
            PageState::Present => PageKind::Stored,
            PageState::Missing(why) => PageKind::Missing(why),
        }
    }

    /// Reads many whole pages: page frame `pfns[i]` into `out[i * 4096..]`. Pages that cannot be
    /// read are filled with zeros and reported; an empty result says that all were read.
    ///
    /// # Panics
    /// If `out.len() != pfns.len() * 4096`.
    fn read_pages(&self, pfns: &[u64], out: &mut [u8]) -> Vec<PageFailure> {
        assert_eq!(out.len(), pfns.len() * PAGE_SIZE as usize);
        let mut failures = Vec::new();
        for (index, (pfn, page)) in pfns
            .iter()
            .zip(out.chunks_exact_mut(PAGE_SIZE as usize))
            .enumerate()
        {
            let read = match pfn.checked_mul(PAGE_SIZE) {
                Some(addr) => self.read_physical(addr, page),
                None => Err(ReadError::Missing {
                    addr: u64::MAX,
                    why: Missing::NotRam,
                }),
            };
            if let Err(error) = read {
                page.fill(0);
                failures.push(PageFailure { index, error });
            }
        }
        failures
    }
}

/// One page that [`PhysicalMemory::read_pages`] could not read.
#[derive(Clone, Debug)]
pub struct PageFailure {
    /// Its place in the list of page frames asked for.
    pub index: usize,
    /// Why.
    pub error: ReadError,
}

/// Whether the dump holds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// The whole page is there (though it may prove corrupt when read).
    Present,
    /// It is not.
    Missing(Missing),
}

/// What the index says of a page. It costs as much to ask as [`PhysicalMemory::page_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// It is there (though it may prove corrupt when read).
    Stored,
    /// It is zeros: the writer stored one such page that all share.
    Zero,
    /// It is not there.
    Missing(Missing),
    /// It should be there, and what says where is damaged.
    Damaged,
}

/// Why a page is not in the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The dump's writer left it out on purpose (makedumpfile's `-d` level).
    Filtered,
    /// The machine had no memory there, or the writer did not regard it as memory.
    NotRam,
    /// It would stand beyond the end of the file, or was never written.
    Truncated,
    /// A guest that was resumed in place runs in it: it is not as the crash left it.
    InUse,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Filtered => "left out by the dump's filter level",
            Missing::NotRam => "no memory there",
            Missing::Truncated => "beyond the end of the truncated dump",
            Missing::InUse => "a guest that was resumed in place runs in it",
        })
    }
}

/// How many pages of the dead machine are in which state. Counted in page frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// In the dump.
    pub present: u64,
    /// Left out by the filter.
    pub filtered: u64,
    /// Below [`PhysicalMemory::max_pfn`], but not memory.
    pub not_ram: u64,
    /// Beyond the end of a truncated file, or never written.
    pub truncated: u64,
}

impl PageCounts {
    /// Counts `pages` more in `state`; what is no memory is counted by its absence.
    pub(super) fn add(&mut self, state: PageState, pages: u64) {
        match state {
            PageState::Present => self.present += pages,
            PageState::Missing(Missing::Filtered) => self.filtered += pages,
            PageState::Missing(Missing::NotRam | Missing::InUse) => {}
            PageState::Missing(Missing::Truncated) => self.truncated += pages,
        }
    }
}
