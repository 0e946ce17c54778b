//! What of a process's memory may arrive later, and what must be there from the start.

use super::board::PAGE;
use crate::dataset::{
    Dataset, FileKind, MappingKind, ObjectId, PageContent, PageRun, Process, SharedMemory, Vma,
};
use crate::restore::vma_flags::bit;

/// Less than this is filled at once: it costs less than to have it arrive. Bytes.
const LEAST: u64 = 1 << 20;

/// Ranges without content as long as this are left alone: what is touched there is zeros, at no cost. Bytes.
const GAP: u64 = 2 << 20;

/// Ranges of one VMA that are registered apart from each other, at most: each makes VMAs of its own.
const RANGES: usize = 64;

/// A larger area is filled at once: of one that arrives later each page has a bit, whether it has
/// content or not. Bytes.
const MOST: u64 = 4 << 40;

/// The one size of huge pages that arrives later. Bytes.
pub const HUGE: u64 = 2 << 20;

/// Arrives later.
pub fn arrives(run: &PageRun) -> bool {
    matches!(
        run.content,
        PageContent::Frame(_)
            | PageContent::Stored(_)
            | PageContent::Filled(_)
            | PageContent::Packed { .. }
    )
}

/// There is no content in it of which this does not know what to do.
fn is_known(runs: &[PageRun]) -> bool {
    // Swap areas may be written to before it would come: that is brought at once.
    runs.iter().all(|run| {
        arrives(run) || matches!(run.content, PageContent::Zero | PageContent::Swap { .. })
    })
}

/// Bytes that would arrive later.
pub fn bytes(runs: &[PageRun]) -> u64 {
    let runs = runs.iter().filter(|run| arrives(run));
    runs.map(|run| run.count.saturating_mul(PAGE)).sum()
}

fn size_is_known(huge_page: u64) -> bool {
    huge_page == 0 || huge_page == HUGE
}

/// Private memory that arrives later.
pub fn is_lazy(vma: &Vma) -> bool {
    let MappingKind::Anonymous { stack: false, .. } = vma.kind else {
        return false;
    };
    let locked = vma.flags & bit::LOCKED != 0 && vma.flags & bit::LOCKONFAULT == 0;
    !vma.shared()
        && !locked
        && vma.flags & (bit::GROWSDOWN | bit::UFFD_MISSING | bit::UFFD_WP) == 0
        // What it runs is looked at while it is restored.
        && vma.prot() & libc::PROT_EXEC == 0
        && size_is_known(vma.huge_page)
        && vma.len() <= MOST
        && vma.len().is_multiple_of(vma.huge_page.max(PAGE))
        && bytes(&vma.pages) >= LEAST
        && is_known(&vma.pages)
}

/// Shared memory that arrives later: what nobody can reach but through the mappings that are here.
/// Who holds a descriptor can read it past all faults; a VMM does no such thing with its guest's memory.
/// It may give pages back by it: of ordinary ones that shows (`discard`), of huge ones nothing does.
pub fn is_lazy_memory(dataset: &Dataset, memory: &SharedMemory) -> bool {
    const F_SEAL_WRITE: u32 = 8;
    const F_SEAL_FUTURE_WRITE: u32 = 16;
    let is_held = dataset.files.iter().any(|file| {
        let of = match file.kind {
            FileKind::Memfd { memory, .. } => Some(memory),
            _ => file.inode,
        };
        of == Some(memory.id)
    });
    let mappings = || {
        let vmas = dataset.processes.iter().flat_map(|p| &p.mm.vmas);
        vmas.filter(|vma| of(vma).is_some_and(|(id, _)| id == memory.id))
    };
    memory.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) == 0
        && size_is_known(memory.huge_page)
        && memory.size <= MOST
        && memory.size.is_multiple_of(memory.huge_page.max(PAGE))
        && bytes(&memory.pages) >= LEAST
        && is_known(&memory.pages)
        && (!is_held || memory.huge_page == 0 && is_guest_memory(dataset, memory.id))
        // What no mapping leads to would never arrive.
        && mappings().any(|vma| of(vma) == Some((memory.id, 0)) && vma.len() >= memory.size)
        && mappings().all(|vma| {
            vma.flags & bit::MAYWRITE != 0
                && vma.flags & bit::LOCKED == 0
                && vma.prot() & libc::PROT_EXEC == 0
        })
}

/// The shared memory that a VMA maps, and from which offset on.
pub fn of(vma: &Vma) -> Option<(ObjectId, u64)> {
    match vma.kind {
        MappingKind::Shared { memory, offset } => Some((memory, offset)),
        _ => None,
    }
}

fn is_guest_memory(dataset: &Dataset, memory: ObjectId) -> bool {
    dataset.vms.iter().any(|vm| {
        let process = dataset.process(vm.pid);
        let vmas = process.map_or(&[][..], |process| &process.mm.vmas);
        vm.memslots.iter().any(|slot| {
            let vma = vmas
                .iter()
                .find(|v| v.start <= slot.user_address && slot.user_address < v.end);
            vma.and_then(of).is_some_and(|(id, _)| id == memory)
        })
    })
}

/// Ranges of a VMA to be registered: those with content that arrives later, whole pages of the huge
/// kind, without long stretches of nothing. `first` is the address, or the offset, that `runs` call
/// the VMA's start by.
pub fn ranges(vma: &Vma, runs: &[PageRun], first: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let behind = first.saturating_add(vma.len());
    for run in runs.iter().filter(|run| arrives(run)) {
        let end = run.start.saturating_add(run.count.saturating_mul(PAGE));
        let (start, end) = (run.start.max(first), end.min(behind));
        if start >= end {
            continue;
        }
        let address = |place: u64| vma.start + (place - first);
        let (start, end) = (address(start), address(end));
        let start = (start / HUGE * HUGE).max(vma.start);
        let end = end
            .checked_next_multiple_of(HUGE)
            .unwrap_or(end)
            .min(vma.end);
        match ranges.last_mut() {
            Some((_, last)) if start <= last.saturating_add(GAP) => *last = end.max(*last),
            _ => ranges.push((start, end)),
        }
    }
    // Only the longest gaps stay when there are too many.
    let mut gaps: Vec<u64> = ranges
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].1)
        .collect();
    if ranges.len() > RANGES {
        gaps.sort_unstable_by(|a, b| b.cmp(a));
        let least = gaps.get(RANGES - 1).copied().unwrap_or(0);
        let all = std::mem::take(&mut ranges);
        for (start, end) in all {
            match ranges.last_mut() {
                Some((_, last)) if start - *last <= least => *last = end,
                _ => ranges.push((start, end)),
            }
        }
    }
    ranges
}

/// Pages of a process that the kernel touches where it cannot wait for a fault, or that restoring
/// touches past it: addresses.
pub fn touched(process: &Process) -> Vec<u64> {
    use crate::dataset::SyscallResume;
    let mut addresses = Vec::new();
    for thread in &process.threads {
        if let Some(rseq) = &thread.rseq {
            addresses.extend([rseq.address, rseq.address.saturating_add(31)]);
        }
        // Cleared, or walked, by a thread that ends, with faults forbidden.
        addresses.push(thread.clear_child_tid);
        addresses.extend(thread.robust_list.as_ref().map(|list| list.head));
        addresses.push(thread.regs.rsp);
        if let SyscallResume::ReissueLeft { at, .. } = thread.resume {
            addresses.extend([at, at.saturating_add(15)]);
        }
    }
    addresses.retain(|address| *address != 0);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(pages: Vec<PageRun>) -> Vma {
        Vma {
            start: 0x1000_0000,
            end: 0x9000_0000,
            flags: 0x73,
            kind: MappingKind::Anonymous {
                name: None,
                stack: false,
                heap: false,
            },
            pages,
            huge_page: 0,
        }
    }

    fn run(start: u64, count: u64) -> PageRun {
        PageRun {
            start,
            count,
            content: PageContent::Frame(7),
        }
    }

    #[test]
    fn long_stretches_of_nothing_are_left_alone() {
        let mut vma = vma(vec![
            run(0x1000_1000, 1),
            run(0x1020_0000, 300),
            run(0x2000_0000, 512),
        ]);
        let end = std::mem::replace(&mut vma.end, vma.start + MOST + PAGE);
        assert!(!is_lazy(&vma), "its bits alone would be 128 MiB");
        vma.end = end;
        assert!(is_lazy(&vma));
        assert_eq!(
            ranges(&vma, &vma.pages, vma.start),
            [(0x1000_0000, 0x1040_0000), (0x2000_0000, 0x2020_0000)]
        );
    }

    /// A mapping that begins in the middle of a memory, and of a run.
    #[test]
    fn runs_are_cut_to_what_is_mapped() {
        let mut vma = vma(Vec::new());
        vma.end = vma.start + (8 << 20);
        let runs = [run(0, 4096), run(0x400_0000, 1)];
        assert_eq!(
            ranges(&vma, &runs, 12 << 20),
            [(vma.start, vma.start + (4 << 20))]
        );
        assert_eq!(ranges(&vma, &runs, 16 << 20), []);
    }

    #[test]
    fn there_are_not_too_many_ranges() {
        let runs: Vec<PageRun> = (0..200)
            .map(|n| run(0x1000_0000 + n * (10 << 20), 300))
            .collect();
        let vma = vma(runs);
        let found = ranges(&vma, &vma.pages, vma.start);
        assert!(found.len() <= RANGES);
        for run in &vma.pages {
            assert!(found.iter().any(|(a, b)| *a <= run.start && run.start < *b));
        }
    }
}
