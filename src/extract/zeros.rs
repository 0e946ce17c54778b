//! Zero or left out? The one format in which the two look alike.
//!
//! makedumpfile's ELF output (`-E`) has one way to leave a page out, and uses it
//! for pages of zeros (bit 1 of its level) and for filtered ones alike; the
//! level itself is not in the file. kdump-compressed keeps zeros as pages.
//!
//! But its filters work on whole classes: bit 8 drops *every* anonymous page,
//! bits 2 and 4 every page of the page cache. So one page of a class that is
//! there proves that the class was not filtered, and that its missing pages
//! were zeros.

use crate::dataset::{Dataset, Fidelity, PageContent, PageRun};
use crate::dump::{Dump, PageState};
use crate::kernel::{AddressSpace, Entry, Kernel, KernelError};
use crate::task::ProcessSummary;
use std::ops::ControlFlow;

/// `PAGE_MAPPING_ANON`, the low bit of `struct page.mapping`. Linux
/// include/linux/page-flags.h.
const MAPPING_ANON: u64 = 1;

/// Pages looked at before giving up the search for an anonymous one.
const SEARCH_PAGES: u64 = 1 << 16;

/// A page left out of this dump may have been zeros.
pub fn ambiguous(dump: &Dump) -> bool {
    dump.dump_level().is_none() && dump.page_counts().filtered > 0
}

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

/// Turns pages that were left out into zeros where the dump proves it, and says so.
pub fn resolve(dataset: &mut Dataset) {
    let private: Vec<&mut PageRun> = dataset
        .processes
        .iter_mut()
        .flat_map(|p| &mut p.mm.vmas)
        .flat_map(|v| &mut v.pages)
        .collect();
    let mut zeros = resolve_class(private);
    let cached: Vec<&mut PageRun> = dataset
        .inodes
        .iter_mut()
        .flat_map(|i| &mut i.dirty)
        .chain(dataset.shared_memory.iter_mut().flat_map(|m| &mut m.pages))
        .collect();
    zeros += resolve_class(cached);
    if zeros > 0 {
        let subject = dataset.processes.first().map_or(0, |p| p.pid);
        dataset.fidelity.push(Fidelity::reconstructed(
            format!("pid {subject}"),
            "pages of zeros",
            format!(
                "{zeros} pages that this ELF dump left out were zeros: others of their class are in it, so the class was not filtered"
            ),
        ));
    }
}

fn resolve_class(mut runs: Vec<&mut PageRun>) -> u64 {
    let kept = runs
        .iter()
        .any(|r| matches!(r.content, PageContent::Frame(_)));
    if !kept {
        return 0;
    }
    let mut zeros = 0u64;
    for run in runs
        .iter_mut()
        .filter(|r| r.content == PageContent::Filtered)
    {
        run.content = PageContent::Zero;
        zeros = zeros.saturating_add(run.count);
    }
    zeros
}
