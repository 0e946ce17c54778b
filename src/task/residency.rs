//! Where each page of a process's memory was at the crash: in a page frame, in swap, in a file, or
//! nowhere, as it was never touched.
//!
//! It is what an extraction sees too, page by page, but nothing is kept: a guest of a terabyte takes
//! no more memory than one of a megabyte (only of tmpfs and hugetlbfs files the runs of cached pages
//! are, while the process is walked).

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use super::access;
use super::area::areas;
use super::inode::{self, lives_in_memory};
use super::mapped::{self, clip};
use super::page_cache::Wanted;
use super::page_frame::Frames;
use super::swap::SwapReader;
use crate::dataset::{PageContent, PageRun};
use crate::dump::{Missing, PageState};
use crate::kernel::{Entry, Kernel, KernelError, Object};

const PAGE: u64 = 4096;
/// `vm_flags`. Linux include/linux/mm.h.
const VM_SHARED: u64 = 0x8;
const VM_PFNMAP: u64 = 0x400;
const VM_IO: u64 = 0x4000;

/// Where a run of pages was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In memory, from this page frame on.
    Frames(u64),
    /// Zeros that no page frame of its own holds.
    Zero,
    /// On a swap device.
    Swapped,
    /// Swapped out, and compressed in memory (zram, zswap).
    Packed,
    /// In a file on a disk: never read, or not changed since and not in the dump.
    OnFile,
    /// Never touched: it will be zeros.
    Untouched,
    /// A device's memory.
    Device,
    /// The page table that says it is not in the dump, for this reason; none: it is damaged.
    Unknown(Option<Missing>),
}

/// Tells `visit` of all mapped memory of the process whose `task_struct` is at `task`: the number of
/// pages, whether they are within `inside` (ranges of addresses, in order), and where they were.
///
/// # Errors
/// When its `mm_struct`, its list of areas or their files cannot be read.
pub fn residency(
    kernel: &Kernel,
    task: u64,
    inside: &[(u64, u64)],
    mut visit: impl FnMut(u64, bool, Whereabouts),
) -> Result<(), KernelError> {
    let Some(mm) = kernel.object("task_struct", task)?.follow_opt("mm")? else {
        return Ok(());
    };
    let frames = Frames::new(kernel)?;
    let swap = SwapReader::new(&frames);
    let mut walk = Walk {
        frames: &frames,
        swap: &swap,
        space: access::space(&mm)?,
        caches: HashMap::new(),
    };
    // Page tables that lead in circles map the same memory without end.
    let mut left = frames_at_most(kernel);
    let mut too_many = false;
    for area in areas(&mm)? {
        let (start, end) = (area.u("vm_start")?, area.u("vm_end")?);
        if start >= end || end > 1 << 56 {
            return Err(KernelError::Damaged {
                what: "vm_area_struct",
                addr: area.addr(),
                detail: format!("it spans {start:#x} to {end:#x}"),
            });
        }
        let backing = walk.backing(&area)?;
        for (from, to, within) in pieces(start, end, inside) {
            walk.piece(&backing, start, from, to, &mut |pages, at| {
                if let Whereabouts::Frames(_) = at {
                    too_many |= pages > left;
                    left = left.saturating_sub(pages);
                }
                if !too_many {
                    visit(pages, within, at);
                }
            })?;
            if too_many {
                return Err(KernelError::Damaged {
                    what: "page tables of an mm_struct",
                    addr: mm.addr(),
                    detail: "they map more memory than a process can have (in circles?)".into(),
                });
            }
        }
    }
    Ok(())
}

/// Page frames that a process maps at most, each as often as it is mapped: all of the machine's, 64
/// times over.
pub fn frames_at_most(kernel: &Kernel) -> u64 {
    let all = kernel.memory().max_pfn();
    all.saturating_mul(64).saturating_add(1 << 20)
}

/// `start..end`, cut where it enters and leaves the ranges.
fn pieces(start: u64, end: u64, ranges: &[(u64, u64)]) -> Vec<(u64, u64, bool)> {
    let mut out = Vec::new();
    let mut at = start;
    let first = ranges.partition_point(|(_, range_end)| *range_end <= start);
    for (from, to) in ranges.get(first..).unwrap_or(&[]) {
        if *from >= end {
            break;
        }
        let (from, to) = ((*from).max(at), (*to).min(end));
        if at < from {
            out.push((at, from, false));
        }
        if from < to {
            out.push((from, to, true));
            at = to;
        }
    }
    if at < end {
        out.push((at, end, false));
    }
    out
}

/// What stands behind an area where its page tables are empty.
enum Backing {
    Anonymous,
    /// A device's memory, or the kernel's own.
    Device,
    /// A file on a disk.
    Disk,
    /// A file whose pages are in memory alone: its cached pages by byte offset, and the offset of
    /// the area's begin.
    Memory {
        cached: Rc<Vec<PageRun>>,
        offset: u64,
        shared: bool,
    },
}

struct Walk<'a, 'k> {
    frames: &'a Frames<'k>,
    swap: &'a SwapReader<'a, 'k>,
    space: crate::kernel::AddressSpace<'k>,
    /// Cached pages of files in memory, by their `address_space`.
    caches: HashMap<u64, Rc<Vec<PageRun>>>,
}

type Tell<'t> = dyn FnMut(u64, Whereabouts) + 't;

impl Walk<'_, '_> {
    fn backing(&mut self, area: &Object<'_>) -> Result<Backing, KernelError> {
        let flags = area.u("vm_flags")?;
        if flags & (VM_PFNMAP | VM_IO) != 0 {
            return Ok(Backing::Device);
        }
        let Some(file) = area.follow_opt("vm_file")? else {
            return Ok(Backing::Anonymous);
        };
        let object = file.follow("f_inode")?;
        let is_regular = inode::mode(&object)? & 0o170_000 == 0o100_000;
        if !is_regular {
            // /dev/zero is anonymous memory; a vCPU's page and the like are always mapped.
            return Ok(Backing::Anonymous);
        }
        if !lives_in_memory(&inode::fs_type(&object)?) {
            return Ok(Backing::Disk);
        }
        let mapping = file.follow("f_mapping")?;
        let cached = match self.caches.get(&mapping.addr()) {
            Some(cached) => Rc::clone(cached),
            None => {
                let order = inode::huge_order(&object);
                let size = object.u("i_size")?;
                let (frames, swap) = (self.frames, self.swap);
                let runs = inode::cached_runs(frames, swap, &mapping, Wanted::All, order, size)?;
                let runs = Rc::new(runs);
                self.caches.insert(mapping.addr(), Rc::clone(&runs));
                runs
            }
        };
        Ok(Backing::Memory {
            cached,
            offset: area.u("vm_pgoff")?.wrapping_mul(PAGE),
            shared: flags & VM_SHARED != 0,
        })
    }

    /// The part `from..to` of an area that begins at `start`.
    fn piece(
        &self,
        backing: &Backing,
        start: u64,
        from: u64,
        to: u64,
        tell: &mut Tell<'_>,
    ) -> Result<(), KernelError> {
        if let Backing::Memory { shared: true, .. } = backing {
            // The cache has them all, whoever touched them.
            absent(backing, start, from, to, tell);
            return Ok(());
        }
        let mut at = from;
        self.space.walk(from, to, |mapping| {
            let Some((va, pages, skipped)) = clip(&mapping, from, to) else {
                return ControlFlow::Continue(());
            };
            absent(backing, start, at, va, tell);
            at = va.saturating_add(pages.saturating_mul(PAGE));
            match mapping.entry {
                Entry::Present(present) => {
                    let first = present.pfn.wrapping_add(skipped);
                    if matches!(backing, Backing::Device) {
                        tell(pages, Whereabouts::Device);
                    } else if self.frames.is_zero_page(first) {
                        tell(pages, Whereabouts::Zero);
                    } else if matches!(backing, Backing::Disk) {
                        self.of_file(first, pages, tell);
                    } else {
                        tell(pages, Whereabouts::Frames(first));
                    }
                }
                Entry::NonPresent { raw } => match self.swap.entry(raw) {
                    Some(content) => tell(pages, of_content(content)),
                    // A marker: as if it were empty.
                    None => absent(backing, start, va, at, tell),
                },
                Entry::Unreadable(error) => {
                    tell(pages, of_content(mapped::unreadable(&error)));
                }
            }
            ControlFlow::Continue(())
        })?;
        absent(backing, start, at, to, tell);
        Ok(())
    }

    /// Pages of a file on a disk: those that nobody wrote to need not be in the dump.
    fn of_file(&self, first: u64, pages: u64, tell: &mut Tell<'_>) {
        let memory = self.frames.kernel.memory();
        for pfn in first..first.saturating_add(pages) {
            let missing = memory.page_state(pfn) != PageState::Present;
            let page = self.frames.kernel.pfn_to_page(pfn);
            let on_disk = missing
                && !self.frames.is_anonymous(pfn).unwrap_or(true)
                && !self.frames.is_unwritten(page).unwrap_or(true);
            let at = match on_disk {
                true => Whereabouts::OnFile,
                false => Whereabouts::Frames(pfn),
            };
            tell(1, at);
        }
    }
}

/// Addresses for which there is no page table entry.
fn absent(backing: &Backing, start: u64, from: u64, to: u64, tell: &mut Tell<'_>) {
    if from >= to {
        return;
    }
    let pages = |from: u64, to: u64| (to - from).div_ceil(PAGE);
    match backing {
        Backing::Anonymous => tell(pages(from, to), Whereabouts::Untouched),
        Backing::Device => {}
        Backing::Disk => tell(pages(from, to), Whereabouts::OnFile),
        Backing::Memory { cached, offset, .. } => {
            let place = |va: u64| offset.wrapping_add(va - start);
            let (mut at, end) = (place(from), place(to));
            let first = cached.partition_point(|run| run_end(run) <= at);
            for run in cached.get(first..).unwrap_or(&[]) {
                if run.start >= end {
                    break;
                }
                if at < run.start {
                    tell(pages(at, run.start), Whereabouts::Untouched);
                    at = run.start;
                }
                let until = run_end(run).min(end);
                let skipped = (at - run.start) / PAGE;
                let here = match run.content {
                    PageContent::Frame(pfn) => Whereabouts::Frames(pfn.wrapping_add(skipped)),
                    other => of_content(other),
                };
                tell(pages(at, until), here);
                at = until;
            }
            if at < end {
                tell(pages(at, end), Whereabouts::Untouched);
            }
        }
    }
}

fn run_end(run: &PageRun) -> u64 {
    run.start.saturating_add(run.count.saturating_mul(PAGE))
}

fn of_content(content: PageContent) -> Whereabouts {
    match content {
        PageContent::Frame(pfn) | PageContent::InPlace(pfn) => Whereabouts::Frames(pfn),
        PageContent::Zero => Whereabouts::Zero,
        PageContent::Swap { .. } | PageContent::Stored(_) => Whereabouts::Swapped,
        PageContent::Filled(_) | PageContent::Packed { .. } => Whereabouts::Packed,
        PageContent::Filtered => Whereabouts::Unknown(Some(Missing::Filtered)),
        PageContent::Truncated => Whereabouts::Unknown(Some(Missing::Truncated)),
        PageContent::Corrupt | PageContent::OutOfReach => Whereabouts::Unknown(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_cut_where_it_enters_and_leaves_the_ranges() {
        let ranges = [(0x2000, 0x4000), (0x4000, 0x5000), (0x8000, 0x9000)];
        assert_eq!(
            pieces(0x1000, 0x8800, &ranges),
            [
                (0x1000, 0x2000, false),
                (0x2000, 0x4000, true),
                (0x4000, 0x5000, true),
                (0x5000, 0x8000, false),
                (0x8000, 0x8800, true),
            ]
        );
        assert_eq!(pieces(0x3000, 0x3800, &ranges), [(0x3000, 0x3800, true)]);
        assert_eq!(pieces(0x6000, 0x7000, &ranges), [(0x6000, 0x7000, false)]);
        assert_eq!(pieces(0x9000, 0xa000, &[]), [(0x9000, 0xa000, false)]);
    }

    #[test]
    fn holes_of_a_file_in_memory_were_never_touched() {
        let run = |start, count, content| PageRun {
            start,
            count,
            content,
        };
        let cached = Rc::new(vec![
            run(0x1000, 2, PageContent::Frame(70)),
            run(0x5000, 1, PageContent::Swap { area: 0, offset: 3 }),
        ]);
        let backing = Backing::Memory {
            cached,
            offset: 0x1000,
            shared: true,
        };
        let mut told = Vec::new();
        // The area begins at 0x10000, which is 0x1000 of the file; from its second page on.
        absent(&backing, 0x10000, 0x11000, 0x16000, &mut |pages, at| {
            told.push((pages, at))
        });
        assert_eq!(
            told,
            [
                (1, Whereabouts::Frames(71)),
                (2, Whereabouts::Untouched),
                (1, Whereabouts::Swapped),
                (1, Whereabouts::Untouched),
            ]
        );
    }
}
