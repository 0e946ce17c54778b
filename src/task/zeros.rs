//! Pages that an ELF dump left out: zeros, or dropped by its filter level?
//!
//! `makedumpfile -E -d 1` leaves out pages of zeros in the very way in which
//! `-d 8` leaves out a process's memory. But the filter drops *all* pages of a
//! kind: where a page that cannot be all zeros is in the dump, others of its
//! kind that are not can only have been zeros.

use super::extract::Extraction;
use crate::dataset::{MappingKind, Mm, PageContent, PageRun, Thread, Vma};

/// Bytes in a page.
const PAGE: u64 = 4096;

/// Settles it for a process's anonymous memory, by the pages that its threads'
/// stack pointers point to: those are anonymous, and in use.
pub(super) fn settle(x: &mut Extraction<'_, '_>, mm: &mut Mm, threads: &[Thread], subject: &str) {
    if !x.kernel.memory().filters_zero_pages() {
        return;
    }
    let kept = !threads.is_empty() && threads.iter().all(|t| holds(&mm.vmas, t.regs.rsp));
    if !kept {
        return;
    }
    let orphans = &x.orphans;
    let settled: u64 = mm
        .vmas
        .iter_mut()
        .filter(|v| !orphans.contains(&v.start))
        .filter(|v| {
            matches!(
                v.kind,
                MappingKind::Anonymous { .. } | MappingKind::File { .. }
            )
        })
        .map(|v| to_zeros(&mut v.pages))
        .sum();
    if settled > 0 {
        x.reconstructed(subject, "memory", how(settled));
    }
}

/// Settles it for shared memory, each by its own pages: they are all of one
/// kind.
pub(super) fn settle_shared(x: &mut Extraction<'_, '_>) {
    if !x.kernel.memory().filters_zero_pages() {
        return;
    }
    let mut lines = Vec::new();
    for memory in &mut x.out.shared_memory {
        if x.orphans.contains(&memory.id.0) {
            continue;
        }
        let kept = memory
            .pages
            .iter()
            .any(|r| matches!(r.content, PageContent::Frame(_)));
        if kept {
            let settled = to_zeros(&mut memory.pages);
            if settled > 0 {
                lines.push((memory.name.clone(), settled));
            }
        }
    }
    for (name, settled) in lines {
        x.reconstructed(&name, "memory", how(settled));
    }
}

fn how(pages: u64) -> String {
    format!("{pages} pages that this ELF dump left out are zeros: it holds others of their kind")
}

/// The page at `address` is in the dump.
fn holds(vmas: &[Vma], address: u64) -> bool {
    vmas.iter()
        .filter(|v| v.start <= address && address < v.end)
        .flat_map(|v| &v.pages)
        .any(|r| {
            matches!(r.content, PageContent::Frame(_))
                && r.start <= address
                && (address - r.start) / PAGE < r.count
        })
}

fn to_zeros(runs: &mut [PageRun]) -> u64 {
    let mut settled = 0;
    for run in runs {
        if run.content == PageContent::Filtered {
            run.content = PageContent::Zero;
            settled += run.count;
        }
    }
    settled
}
