//! Which pages of a guest's memory stay where they lie, in the capture kernel of the host that died.
//!
//! Only memory that the guest itself sees as its own (its memslots), and of that only frames that
//! belong to its VMM alone: anonymous pages that are mapped once, and pages of shared memory that has
//! no name in a file system, which is the guest's own. All else is copied.
//!
//! A run of frames is one mapping in the process, so scattered pages are dear: longest first, as
//! many as the process may have mappings.

use super::DeadHost;
use crate::dataset::{Dataset, MappingKind, ObjectId, PageContent, PageRun, Process, Vm};
use crate::task::{SoleOwner, TaskError};
use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: u64 = 4096;

/// Page frames that are asked about at once: 1 GiB.
const ASKED: usize = 1 << 18;

/// What to leave in place.
#[derive(Clone, Debug)]
pub struct Policy {
    /// A shorter run of frames is copied. Pages, at least 1.
    pub shortest: u64,
    /// Runs in one process at most.
    pub most: usize,
    /// Page frames that are copied, in order and without overlap: this kernel has a use for them, or
    /// does not show them.
    pub taken: Vec<Range<u64>>,
}

impl Default for Policy {
    /// 64 KiB in one piece: below that a copy is quicker than a mapping. Of the 65530 mappings that
    /// a process may have, the VMM has hundreds itself.
    fn default() -> Self {
        Self {
            shortest: 16,
            most: 60_000,
            taken: Vec::new(),
        }
    }
}

/// What became of a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Chosen {
    /// Runs of frames.
    pub pieces: usize,
    /// Pages that stay where they lie.
    pub in_place: u64,
    /// Pages that are copied, as their frames lie scattered.
    pub scattered: u64,
    /// Pages that are copied, as others have them too (KSM, a forked VMM), or that is not known.
    pub shared: u64,
    /// Pages that are copied, as this kernel does not give their frames away.
    pub taken: u64,
    /// Pages of the guest that were never touched: where it touches them, the capture kernel gives
    /// them.
    pub untouched: u64,
}

/// Runs of pages of one list of runs, by its process's PID and its VMA, or by its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Private(i32, u64),
    Shared(ObjectId),
}

/// A run of frames that could stay, in the terms of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    place: Place,
    start: u64,
    count: u64,
    pfn: u64,
}

impl Candidate {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.count.saturating_mul(PAGE))
    }
}

/// Turns runs of a dataset's guests' memory into [`PageContent::InPlace`].
///
/// # Errors
/// When the dead kernel does not say which frames belong to one process alone.
pub fn choose(
    dead: &DeadHost,
    dataset: &mut Dataset,
    policy: &Policy,
) -> Result<Chosen, TaskError> {
    let owner = SoleOwner::new(dead.kernel())?;
    let mut chosen = Chosen::default();
    let mut candidates = Vec::new();
    for vm in &dataset.vms {
        if let Some(process) = dataset.process(vm.pid) {
            of_guest(dataset, process, vm, &owner, &mut candidates, &mut chosen);
        }
    }
    // Mapped twice, or seen by two VMs: once is enough.
    candidates.sort_unstable_by_key(|c| (c.place, c.start));
    candidates.dedup_by(|next, last| next.place == last.place && next.start < last.end());
    let before: u64 = candidates.iter().map(|c| c.count).sum();
    candidates = candidates
        .into_iter()
        .flat_map(|candidate| free(candidate, &policy.taken))
        .collect();
    chosen.taken = before - candidates.iter().map(|c| c.count).sum::<u64>();
    candidates.sort_by_key(|c| std::cmp::Reverse(c.count));
    let kept = candidates
        .iter()
        .take(policy.most)
        .take_while(|c| c.count >= policy.shortest.max(1))
        .count();
    let scattered = candidates.split_off(kept);
    chosen.pieces = candidates.len();
    chosen.in_place = candidates.iter().map(|c| c.count).sum();
    chosen.scattered = scattered.iter().map(|c| c.count).sum();
    let mut by_place: BTreeMap<Place, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        by_place.entry(candidate.place).or_default().push(candidate);
    }
    for (place, mut kept) in by_place {
        kept.sort_unstable_by_key(|c| c.start);
        if let Some(runs) = runs_of(dataset, place) {
            *runs = leave(runs, &kept);
        }
    }
    Ok(chosen)
}

/// The parts of a candidate that are not in `taken`.
fn free(candidate: Candidate, taken: &[Range<u64>]) -> Vec<Candidate> {
    let end = candidate.pfn.saturating_add(candidate.count);
    let next = taken.partition_point(|range| range.end <= candidate.pfn);
    let mut parts = Vec::new();
    let mut at = candidate.pfn;
    let beyond = std::iter::once(end..end);
    let within = taken.get(next..).unwrap_or_default().iter();
    for range in within
        .take_while(|range| range.start < end)
        .cloned()
        .chain(beyond)
    {
        if at < range.start {
            parts.push(Candidate {
                start: candidate.start + (at - candidate.pfn) * PAGE,
                count: range.start - at,
                pfn: at,
                ..candidate
            });
        }
        at = at.max(range.end);
    }
    parts
}

fn runs_of(dataset: &mut Dataset, place: Place) -> Option<&mut Vec<PageRun>> {
    match place {
        Place::Private(pid, start) => {
            let process = dataset.processes.iter_mut().find(|p| p.pid == pid)?;
            let vma = process.mm.vmas.iter_mut().find(|v| v.start == start)?;
            Some(&mut vma.pages)
        }
        Place::Shared(id) => {
            let memory = dataset.shared_memory.iter_mut().find(|m| m.id == id)?;
            Some(&mut memory.pages)
        }
    }
}

/// All that could stay of one guest's memory.
fn of_guest(
    dataset: &Dataset,
    process: &Process,
    vm: &Vm,
    owner: &SoleOwner<'_>,
    out: &mut Vec<Candidate>,
    chosen: &mut Chosen,
) {
    for (start, end) in ranges(vm) {
        let mut pages = (end - start) / PAGE;
        for vma in &process.mm.vmas {
            let (from, to) = (vma.start.max(start), vma.end.min(end));
            if from >= to {
                continue;
            }
            let (place, runs, from, to) = match &vma.kind {
                MappingKind::Anonymous { .. } if !vma.shared() => {
                    (Place::Private(process.pid, vma.start), &vma.pages, from, to)
                }
                MappingKind::Shared { memory, offset } => {
                    let Some(memory) = dataset.shared_memory.iter().find(|m| m.id == *memory)
                    else {
                        continue;
                    };
                    let offset = |at: u64| offset.saturating_add(at - vma.start);
                    (
                        Place::Shared(memory.id),
                        &memory.pages,
                        offset(from),
                        offset(to),
                    )
                }
                _ => {
                    pages = pages.saturating_sub((to - from) / PAGE);
                    continue;
                }
            };
            for run in within(runs, from, to) {
                pages = pages.saturating_sub(run.count);
                let PageContent::Frame(pfn) = run.content else {
                    continue;
                };
                match place {
                    Place::Shared(_) => out.push(Candidate {
                        place,
                        start: run.start,
                        count: run.count,
                        pfn,
                    }),
                    Place::Private(..) => {
                        // One after the other: the answers take a byte for each page.
                        for skipped in (0..run.count).step_by(ASKED) {
                            let asked = (run.count - skipped).min(ASKED as u64);
                            let alone = owner.alone(pfn + skipped, asked);
                            chosen.shared += alone.iter().filter(|alone| !**alone).count() as u64;
                            for (first, count) in stretches(&alone) {
                                let first = skipped + first;
                                out.push(Candidate {
                                    place,
                                    start: run.start + first * PAGE,
                                    count,
                                    pfn: pfn + first,
                                });
                            }
                        }
                    }
                }
            }
        }
        chosen.untouched += pages;
    }
}

/// Addresses in the VMM that the guest sees as its memory: in order, without overlap.
fn ranges(vm: &Vm) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = vm
        .memslots
        .iter()
        .map(|slot| {
            (
                slot.user_address,
                slot.user_address.saturating_add(slot.size),
            )
        })
        .filter(|(start, end)| start < end)
        .collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let joined = next.0 <= last.1;
        if joined {
            last.1 = last.1.max(next.1);
        }
        joined
    });
    ranges
}

/// The parts of runs between two addresses (or offsets).
fn within(runs: &[PageRun], from: u64, to: u64) -> Vec<PageRun> {
    let first = runs.partition_point(|run| run_end(run) <= from);
    let rest = runs.get(first..).unwrap_or_default().iter();
    rest.take_while(|run| run.start < to)
        .filter_map(|run| cut(run, from, to))
        .collect()
}

/// A part of a run of frames.
fn cut(run: &PageRun, from: u64, to: u64) -> Option<PageRun> {
    let (start, end) = (run.start.max(from), run_end(run).min(to));
    let skipped = start.checked_sub(run.start)? / PAGE;
    let count = end.checked_sub(start)? / PAGE;
    let content = match run.content {
        PageContent::Frame(pfn) => PageContent::Frame(pfn.checked_add(skipped)?),
        PageContent::Swap { area, offset } => PageContent::Swap {
            area,
            offset: offset.checked_add(skipped)?,
        },
        other => other,
    };
    (count > 0).then_some(PageRun {
        start,
        count,
        content,
    })
}

fn run_end(run: &PageRun) -> u64 {
    run.start.saturating_add(run.count.saturating_mul(PAGE))
}

/// Where `true` stands: first and count.
fn stretches(flags: &[bool]) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (at, _) in (0u64..).zip(flags).filter(|(_, flag)| **flag) {
        match found.last_mut() {
            Some((first, count)) if *first + *count == at => *count += 1,
            _ => found.push((at, 1)),
        }
    }
    found
}

/// The runs again, those of `kept` (in order) in place.
fn leave(runs: &[PageRun], kept: &[Candidate]) -> Vec<PageRun> {
    let mut out = Vec::with_capacity(runs.len() + kept.len());
    let mut kept = kept.iter().peekable();
    for run in runs {
        let mut at = run.start;
        while let Some(piece) = kept.next_if(|piece| piece.start < run_end(run)) {
            out.extend(cut(run, at, piece.start));
            out.push(PageRun {
                start: piece.start,
                count: piece.count,
                content: PageContent::InPlace(piece.pfn),
            });
            at = piece.start + piece.count * PAGE;
        }
        out.extend(cut(run, at, run_end(run)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u64, content: PageContent) -> PageRun {
        PageRun {
            start,
            count,
            content,
        }
    }

    #[test]
    fn runs_are_cut_where_frames_stay() {
        use PageContent::{Frame, InPlace, Zero};
        let runs = [
            run(0x1000, 8, Frame(100)),
            run(0xa000, 2, Zero),
            run(0xc000, 4, Frame(200)),
        ];
        let piece = |start, count, pfn| Candidate {
            place: Place::Private(1, 0),
            start,
            count,
            pfn,
        };
        let kept = [
            piece(0x1000, 2, 100),
            piece(0x5000, 3, 104),
            piece(0xc000, 4, 200),
        ];
        assert_eq!(
            leave(&runs, &kept),
            [
                run(0x1000, 2, InPlace(100)),
                run(0x3000, 2, Frame(102)),
                run(0x5000, 3, InPlace(104)),
                run(0x8000, 1, Frame(107)),
                run(0xa000, 2, Zero),
                run(0xc000, 4, InPlace(200)),
            ]
        );
        assert_eq!(leave(&runs, &[]), runs);
    }

    #[test]
    fn frames_that_this_kernel_keeps_are_left_out() {
        let candidate = Candidate {
            place: Place::Private(1, 0),
            start: 0x10000,
            count: 16,
            pfn: 100,
        };
        let parts = |taken: &[Range<u64>]| -> Vec<(u64, u64, u64)> {
            let parts = free(candidate, taken).into_iter();
            parts.map(|c| (c.start, c.count, c.pfn)).collect()
        };
        assert_eq!(parts(&[]), [(0x10000, 16, 100)]);
        assert_eq!(parts(&[0..100, 116..200]), [(0x10000, 16, 100)]);
        assert_eq!(
            parts(&[90..101, 104..106, 106..107, 115..300]),
            [(0x11000, 3, 101), (0x17000, 8, 107)]
        );
        assert_eq!(parts(&[0..50, 50..u64::MAX]), []);
    }

    #[test]
    fn parts_of_runs() {
        let runs = [
            run(0x1000, 8, PageContent::Frame(100)),
            run(0x9000, 2, PageContent::Zero),
        ];
        assert_eq!(
            within(&runs, 0x3000, 0xa000),
            [
                run(0x3000, 6, PageContent::Frame(102)),
                run(0x9000, 1, PageContent::Zero),
            ]
        );
        assert_eq!(within(&runs, 0xb000, 0xf000), []);
        assert_eq!(stretches(&[true, false, true, true]), [(0, 1), (2, 2)]);
    }
}
