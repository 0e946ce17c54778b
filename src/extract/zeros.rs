//! Zero or left out? What `list` says of dumps in which the two look alike.
//!
//! makedumpfile's ELF output (`-E`) leaves pages of zeros out in the way in which
//! it leaves filtered ones out ([`crate::dump::PhysicalMemory::filters_zero_pages`]).
//! But bit 8 of its level drops *every* anonymous page: one that is there proves
//! that those which are not were zeros. `task/` settles it page by page when a
//! process is read as a whole; here one answer for the dump will do.

use crate::dump::PageState;
use crate::kernel::{AddressSpace, Entry, Kernel, KernelError};
use crate::task::ProcessSummary;
use std::ops::ControlFlow;

/// `PAGE_MAPPING_ANON`, the low bit of `struct page.mapping`. Linux
/// include/linux/page-flags.h.
const MAPPING_ANON: u64 = 1;

/// Pages looked at before giving up the search for an anonymous one.
const SEARCH_PAGES: u64 = 1 << 16;

/// Some anonymous page of some process is in the dump: they were not filtered.
pub fn anonymous_pages_kept(kernel: &Kernel, processes: &[ProcessSummary]) -> bool {
    let mut budget = SEARCH_PAGES;
    processes
        .iter()
        .filter(|p| !p.kernel_thread)
        .any(|p| has_anonymous_page(kernel, p.task, &mut budget).unwrap_or(false))
}

fn has_anonymous_page(kernel: &Kernel, task: u64, budget: &mut u64) -> Result<bool, KernelError> {
    let Some(mm) = kernel.object("task_struct", task)?.follow_opt("mm")? else {
        return Ok(false);
    };
    let mut found = false;
    AddressSpace::new(kernel, mm.ptr("pgd")?)?.walk(0, 1 << 56, |mapping| {
        if let Entry::Present(present) = mapping.entry
            && kernel.memory().page_state(present.pfn) == PageState::Present
        {
            let page = kernel.object("page", kernel.pfn_to_page(present.pfn));
            found = page
                .and_then(|p| p.u("mapping"))
                .is_ok_and(|m| m & MAPPING_ANON != 0);
        }
        *budget = budget.saturating_sub(1);
        if found || *budget == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(found)
}
