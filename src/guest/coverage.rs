//! How much of a guest's memory the dump has.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::GuestError;
use super::field::kvm_object;
use super::memslot::{memslots, user_ranges};
use crate::dump::{Missing, PageState};
use crate::kernel::{AddressSpace, Entry, Kernel};

const PAGE: u64 = 4096;

/// How many pages (of 4096 bytes) of a guest's memory are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryCoverage {
    /// In the dump.
    pub present: u64,
    /// In the dead machine's memory, but the dump's filter left them out.
    pub filtered: u64,
    /// In the dead machine's memory, but beyond the end of a truncated dump.
    pub truncated: u64,
    /// At an address that the dump does not regard as memory.
    pub not_ram: u64,
    /// Swapped out, or being moved: the page table has an entry, but no page.
    pub swapped: u64,
    /// Never touched by the VMM or the guest through this mapping: zeros, or the content of the
    /// file that is mapped there.
    pub untouched: u64,
    /// Where they are cannot be said: the page table is not in the dump.
    pub unreadable: u64,
}

impl MemoryCoverage {
    /// Every page there is.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.present
            + self.filtered
            + self.truncated
            + self.not_ram
            + self.swapped
            + self.untouched
            + self.unreadable
    }

    /// Nothing that the guest had in memory is missing from the dump.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.filtered + self.truncated + self.not_ram + self.unreadable == 0
    }
}

/// How much of the memory of the guest at `vm` (a [`super::GuestSummary::vm`]) the dump has. Reads
/// page tables and the dump's index, but no page of the guest's.
pub fn memory_coverage(kernel: &Kernel, vm: u64) -> Result<MemoryCoverage, GuestError> {
    let vm = kvm_object(kernel, "kvm", vm)?;
    let mut coverage = MemoryCoverage::default();
    let ranges = user_ranges(&memslots(&vm)?);
    let Some(mm) = vm.follow_opt("mm")? else {
        coverage.unreadable = ranges.iter().map(|(start, end)| (end - start) / PAGE).sum();
        return Ok(coverage);
    };
    let space = AddressSpace::new(kernel, mm.ptr("pgd")?)?;
    for (start, end) in ranges {
        let mut seen = 0;
        space.walk(start, end, |mapping| {
            let pages = overlap(mapping.va, mapping.len, start, end) / PAGE;
            seen += pages;
            match mapping.entry {
                Entry::Present(entry) => {
                    // A walk that starts within a huge page may report the page's own start.
                    let skip = start.saturating_sub(mapping.va) / PAGE;
                    coverage.count_present(kernel, entry.pfn.saturating_add(skip), pages);
                }
                Entry::NonPresent { .. } => coverage.swapped += pages,
                Entry::Unreadable(_) => coverage.unreadable += pages,
            }
            ControlFlow::Continue(())
        })?;
        coverage.untouched += ((end - start) / PAGE).saturating_sub(seen);
    }
    Ok(coverage)
}

impl MemoryCoverage {
    fn count_present(&mut self, kernel: &Kernel, first: u64, pages: u64) {
        for pfn in first..first.saturating_add(pages) {
            *match kernel.memory().page_state(pfn) {
                PageState::Present => &mut self.present,
                PageState::Missing(Missing::Filtered) => &mut self.filtered,
                PageState::Missing(Missing::Truncated) => &mut self.truncated,
                PageState::Missing(Missing::NotRam) => &mut self.not_ram,
            } += 1;
        }
    }
}

/// Bytes that `va..va+len` and `start..end` share.
fn overlap(va: u64, len: u64, start: u64, end: u64) -> u64 {
    va.saturating_add(len)
        .min(end)
        .saturating_sub(va.max(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_page_counts_only_where_it_is_asked_for() {
        assert_eq!(
            overlap(0x20_0000, 0x20_0000, 0x30_0000, 0x90_0000),
            0x10_0000
        );
        assert_eq!(overlap(0x20_0000, 0x1000, 0x30_0000, 0x90_0000), 0);
    }
}
