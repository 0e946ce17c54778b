//! A guest's memory by guest-physical address, put together from its memslots
//! and what the VMM had mapped behind them.

use super::{
    Dataset, MappingKind, Memslot, ObjectId, PageContent, PageRun, Process, SharedMemory, Vm, Vma,
};

const PAGE: u64 = 4096;

/// A guest's memory: areas of the VMM's, and which memslot shows which part of
/// them. Memslots that show the same memory refer to the same part of an area.
#[derive(Debug)]
pub struct GuestMemory<'d> {
    /// Without overlap.
    pub areas: Vec<Area<'d>>,
    /// In the order of `Vm::memslots`.
    pub slots: Vec<PlacedSlot>,
}

/// Memory that is one piece for the guest's memslots.
#[derive(Debug)]
pub struct Area<'d> {
    /// Bytes.
    pub len: u64,
    /// Its content from offset 0 to `len`, without gaps.
    pub stretches: Vec<Stretch<'d>>,
}

/// A memslot, and where its memory is.
#[derive(Clone, Copy, Debug)]
pub struct PlacedSlot {
    pub slot: Memslot,
    /// Index in [`GuestMemory::areas`].
    pub area: usize,
    /// Offset of the slot's first byte in it.
    pub offset: u64,
}

/// Pages next to each other, of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'d> {
    /// Offset in the area. Bytes.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    pub content: StretchContent<'d>,
}

/// What is in a stretch.
#[derive(Clone, Copy, Debug)]
pub enum StretchContent<'d> {
    /// Never touched, or zeros.
    Zero,
    /// Pages `first…` of a run.
    Pages { run: &'d PageRun, first: u64 },
    /// It cannot be had; why.
    Missing(&'static str),
}

/// Where a part of the VMM's memory comes from: what makes two mappings one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Backing {
    /// By address in the VMM.
    Address,
    /// By offset in a shared memory.
    Shared(ObjectId),
}

impl<'d> GuestMemory<'d> {
    /// The memory of one of the dataset's VMs. `None`: the process that owns it
    /// is not in the dataset.
    pub fn of(dataset: &'d Dataset, vm: &Vm) -> Option<Self> {
        let process = dataset
            .process(vm.pid)
            .or_else(|| dataset.processes.first())?;
        let ranges: Vec<(Backing, u64, u64)> = vm
            .memslots
            .iter()
            .map(|slot| {
                let (backing, start) = backing(process, slot);
                (backing, start, start.saturating_add(slot.size))
            })
            .collect();
        let joined = join(ranges.clone());
        let slots = vm
            .memslots
            .iter()
            .zip(&ranges)
            .filter_map(|(slot, &(backing, start, end))| {
                let area = joined
                    .iter()
                    .position(|&(b, s, e)| b == backing && s <= start && end <= e)?;
                Some(PlacedSlot {
                    slot: *slot,
                    area,
                    offset: start - joined[area].1,
                })
            })
            .collect();
        let areas = joined
            .into_iter()
            .map(|(backing, start, end)| {
                let mut stretches = Stretches::new(start, end);
                match backing {
                    Backing::Address => private(dataset, process, &mut stretches),
                    Backing::Shared(id) => {
                        if let Some(memory) = shared_memory(dataset, id) {
                            stretches.runs(&memory.pages, 0, start, end, StretchContent::Zero);
                        }
                    }
                }
                Area {
                    len: end - start,
                    stretches: stretches.finish(),
                }
            })
            .collect();
        Some(Self { areas, slots })
    }

    /// Bytes that cannot be had, and why: each reason once.
    pub fn missing(&self) -> Vec<(&'static str, u64)> {
        let mut found: Vec<(&'static str, u64)> = Vec::new();
        for stretch in self.areas.iter().flat_map(|a| &a.stretches) {
            if let StretchContent::Missing(why) = stretch.content {
                match found.iter_mut().find(|(w, _)| *w == why) {
                    Some((_, bytes)) => *bytes = bytes.saturating_add(stretch.len),
                    None => found.push((why, stretch.len)),
                }
            }
        }
        found
    }
}

impl Area<'_> {
    /// The stretches of a part of it, cut to fit.
    pub fn part(&self, offset: u64, len: u64) -> impl Iterator<Item = Stretch<'_>> {
        let end = offset.saturating_add(len);
        let first = self.stretches.partition_point(|s| s.at + s.len <= offset);
        self.stretches[first..]
            .iter()
            .take_while(move |s| s.at < end)
            .map(move |s| {
                let from = s.at.max(offset);
                let to = (s.at + s.len).min(end);
                let content = match s.content {
                    StretchContent::Pages { run, first } => StretchContent::Pages {
                        run,
                        first: first + (from - s.at) / PAGE,
                    },
                    other => other,
                };
                Stretch {
                    at: from,
                    len: to - from,
                    content,
                }
            })
    }
}

/// Ranges that touch or overlap become one.
fn join(mut ranges: Vec<(Backing, u64, u64)>) -> Vec<(Backing, u64, u64)> {
    ranges.retain(|(_, start, end)| start < end);
    ranges.sort_unstable();
    let mut joined: Vec<(Backing, u64, u64)> = Vec::new();
    for (backing, start, end) in ranges {
        match joined.last_mut() {
            Some((b, _, e)) if *b == backing && start <= *e => *e = end.max(*e),
            _ => joined.push((backing, start, end)),
        }
    }
    joined
}

/// What a memslot's memory is known by, and where in it the slot starts.
fn backing(process: &Process, slot: &Memslot) -> (Backing, u64) {
    let by_address = (Backing::Address, slot.user_address);
    let end = slot.user_address.saturating_add(slot.size);
    let mut whole: Option<(ObjectId, u64)> = None;
    let mut at = slot.user_address;
    for vma in vmas_within(process, slot.user_address, end) {
        let MappingKind::Shared { memory, offset } = vma.kind else {
            return by_address;
        };
        let Some(here) = vma.start.checked_sub(offset) else {
            return by_address;
        };
        if vma.start > at || whole.is_some_and(|other| other != (memory, here)) {
            return by_address;
        }
        whole = Some((memory, here));
        at = vma.end;
    }
    match whole {
        Some((memory, base)) if at >= end && base <= slot.user_address => {
            (Backing::Shared(memory), slot.user_address - base)
        }
        _ => by_address,
    }
}

fn vmas_within(process: &Process, start: u64, end: u64) -> impl Iterator<Item = &Vma> {
    let vmas = &process.mm.vmas;
    let first = vmas.partition_point(|v| v.end <= start);
    vmas[first..].iter().take_while(move |v| v.start < end)
}

fn shared_memory(dataset: &Dataset, id: ObjectId) -> Option<&SharedMemory> {
    dataset.shared_memory.iter().find(|m| m.id == id)
}

/// The content of memory that is known by its address.
fn private<'d>(dataset: &'d Dataset, process: &'d Process, out: &mut Stretches<'d>) {
    let (start, end) = (out.start, out.end);
    for vma in vmas_within(process, start, end) {
        let (from, to) = (vma.start.max(start), vma.end.min(end));
        out.gap(from, StretchContent::Missing("not mapped by the VMM"));
        match &vma.kind {
            MappingKind::Anonymous { .. } => {
                out.runs(&vma.pages, 0, from, to, StretchContent::Zero);
            }
            MappingKind::Shared { memory, offset }
            | MappingKind::Segment { memory, offset, .. } => {
                if let Some(memory) = shared_memory(dataset, *memory) {
                    let base = vma.start.wrapping_sub(*offset);
                    out.runs(&memory.pages, base, from, to, StretchContent::Zero);
                }
            }
            MappingKind::File { .. } => {
                let rest = StretchContent::Missing("in a file of the VMM's");
                out.runs(&vma.pages, 0, from, to, rest);
            }
            _ => {
                let rest = StretchContent::Missing("memory of a device");
                out.runs(&vma.pages, 0, from, to, rest);
            }
        }
    }
    out.gap(end, StretchContent::Missing("not mapped by the VMM"));
}

/// Stretches as they are put together, from `start` to `end` of the backing.
struct Stretches<'d> {
    start: u64,
    end: u64,
    /// How far it has come.
    cursor: u64,
    found: Vec<Stretch<'d>>,
}

impl<'d> Stretches<'d> {
    fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            cursor: start,
            found: Vec::new(),
        }
    }

    /// Fills up to `to`, where nothing else is known.
    fn gap(&mut self, to: u64, content: StretchContent<'d>) {
        let to = to.min(self.end);
        if to > self.cursor {
            self.found.push(Stretch {
                at: self.cursor - self.start,
                len: to - self.cursor,
                content,
            });
            self.cursor = to;
        }
    }

    /// The runs within `from..to`, where a run's address is `base` less than
    /// the backing's; `rest` is what stands between them.
    fn runs(
        &mut self,
        runs: &'d [PageRun],
        base: u64,
        from: u64,
        to: u64,
        rest: StretchContent<'d>,
    ) {
        self.gap(from, rest);
        let place = |run: &PageRun| {
            let begin = base.wrapping_add(run.start);
            (begin, begin.saturating_add(run.count.saturating_mul(PAGE)))
        };
        // They are in the order of their addresses.
        let first = runs.partition_point(|run| place(run).1 <= self.cursor);
        for run in &runs[first..] {
            let (begin, end) = place(run);
            if begin >= to {
                break;
            }
            if end <= self.cursor {
                continue;
            }
            self.gap(begin.min(to), rest);
            let content = match run.content {
                PageContent::Zero => StretchContent::Zero,
                PageContent::Filtered => StretchContent::Missing("left out of the dump"),
                PageContent::Truncated => StretchContent::Missing("behind the dump's end"),
                PageContent::Corrupt => StretchContent::Missing("damaged in the dump"),
                PageContent::OutOfReach => StretchContent::Missing("swapped out, out of reach"),
                PageContent::Swap { .. } => StretchContent::Missing("swapped out"),
                PageContent::InPlace(_) => StretchContent::Missing("used where it lies"),
                PageContent::Frame(_)
                | PageContent::Stored(_)
                | PageContent::Filled(_)
                | PageContent::Packed { .. } => StretchContent::Pages {
                    run,
                    first: self.cursor.saturating_sub(begin) / PAGE,
                },
            };
            self.gap(end.min(to), content);
        }
        self.gap(to, rest);
    }

    fn finish(mut self) -> Vec<Stretch<'d>> {
        self.gap(self.end, StretchContent::Zero);
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let address = Backing::Address;
        let joined = join(vec![(address, 8, 12), (address, 0, 4), (address, 4, 9)]);
        assert_eq!(joined, [(address, 0, 12)]);
    }

    #[test]
    fn runs_are_cut_and_the_rest_is_filled() {
        let run = PageRun {
            start: 0x1000,
            count: 4,
            content: PageContent::Frame(7),
        };
        let runs = [run];
        let mut out = Stretches::new(0x2000, 0x7000);
        out.runs(&runs, 0, 0x2000, 0x7000, StretchContent::Zero);
        let found = out.finish();
        let [pages, zero] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert!(matches!(
            pages.content,
            StretchContent::Pages { first: 1, .. }
        ));
        assert_eq!((pages.at, pages.len), (0, 0x3000));
        assert!(matches!(zero.content, StretchContent::Zero));
        assert_eq!((zero.at, zero.len), (0x3000, 0x2000));
        // The base moves the runs.
        let mut out = Stretches::new(0x2000, 0x7000);
        out.runs(&runs, 0x4000, 0x2000, 0x7000, StretchContent::Missing("x"));
        let found = out.finish();
        assert!(matches!(found[0].content, StretchContent::Missing("x")));
        assert_eq!((found[1].at, found[1].len), (0x3000, 0x2000));
    }
}
