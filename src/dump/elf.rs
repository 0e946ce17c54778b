//! ELF dumps: /proc/vmcore, makedumpfile -E, QEMU's dump-guest-memory, virsh dump --memory-only.

use std::ops::Range;

use goblin::elf::header::header64;
use goblin::elf::program_header::{PT_LOAD, PT_NOTE, ProgramHeader};

use super::elf_headers::{PHDR, count_segments, for_each_segment, read_header};
use super::extents::{BuildError, Builder, ExtentMap, Target};
use super::image::{Image, ImageError};
use super::notes::{MAX_NOTES_SIZE, Notes};
use super::refusal::Refusal;
use super::{Missing, PAGE_SIZE, PageCounts, PageState, ReadError};

/// x86-64 addresses at most this many bits of physical memory.
const MAX_PHYSICAL: u64 = 1 << 52;

/// What stands behind a range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    /// Bytes of the file from this offset on.
    Data(u64),
    /// In `p_memsz` but not in `p_filesz`: makedumpfile -E left it out. Not zeros.
    Filtered,
    /// In `p_filesz`, but beyond the end of the file.
    Truncated,
}

impl Target for Backing {
    fn advance(self, by: u64) -> Self {
        match self {
            Backing::Data(offset) => Backing::Data(offset + by),
            other => other,
        }
    }

    fn continues(self, len: u64, next: Self) -> bool {
        self.advance(len) == next
    }
}

/// The memory of an ELF dump, by byte ranges: segments need not begin or end at pages.
#[derive(Debug)]
pub(super) struct ElfMemory {
    ranges: ExtentMap<Backing>,
    /// /proc/kcore: the memory of the kernel that runs.
    live: bool,
}

impl ElfMemory {
    pub fn open(image: &Image) -> Result<(ElfMemory, Notes), Refusal> {
        let header = read_header(image)?;
        let count = count_segments(image, &header)?;
        let mut notes = Vec::new();
        let (mut memory, mut at_zero) = (0u64, 0u64);
        for_each_segment(image, header.e_phoff, count, |segment, _| {
            match segment.p_type {
                PT_LOAD if segment.p_memsz > 0 || segment.p_filesz > 0 => {
                    memory += 1;
                    at_zero += u64::from(segment.p_paddr == 0);
                }
                PT_NOTE => read_notes(image, &segment, &mut notes)?,
                _ => {}
            }
            Ok(())
        })?;
        let notes = Notes::parse(&notes);
        refuse_other_cores(&header, &notes, memory)?;
        let live = notes.kcore;
        // Before Linux commit 464920104bf7 ("/proc/kcore: update physical address for kcore ram and
        // text") (in v4.11) all segments had 0.
        if live && at_zero > 1 {
            return Err(Refusal::unsupported(
                "the memory of a live kernel older than 4.11, whose /proc/kcore has no physical addresses",
                "move its guests with their own VMM",
            ));
        }
        let ranges = map_loads(image, &header, count, live)?;
        Ok((ElfMemory { ranges, live }, notes))
    }

    /// The memory is of the kernel that runs, and changes while it is read.
    pub fn is_live(&self) -> bool {
        self.live
    }

    pub fn max_pfn(&self) -> u64 {
        self.ranges.end().div_ceil(PAGE_SIZE)
    }

    /// Where the pages from `addr` on stand in the image, and how many whole ones.
    pub fn plain(&self, addr: u64) -> Option<(u64, u64)> {
        let range = self.ranges.find(addr).filter(|_| !self.live)?;
        match range.target {
            Backing::Data(offset) => Some((offset, range.len / PAGE_SIZE)),
            Backing::Filtered | Backing::Truncated => None,
        }
    }

    /// Reads bytes straight from the file.
    pub fn read(&self, image: &Image, mut addr: u64, mut buf: &mut [u8]) -> Result<(), ReadError> {
        while !buf.is_empty() {
            let missing = |why| Err(ReadError::Missing { addr, why });
            let Some(range) = self.ranges.find(addr) else {
                return missing(Missing::NotRam);
            };
            let offset = match range.target {
                Backing::Data(offset) => offset,
                Backing::Filtered => return missing(Missing::Filtered),
                Backing::Truncated => return missing(Missing::Truncated),
            };
            let n = range.len.min(buf.len() as u64);
            let (head, rest) = buf.split_at_mut(n as usize);
            image.read_at(offset, head).map_err(|e| match e {
                ImageError::Absent(_) => ReadError::Missing {
                    addr,
                    why: Missing::Truncated,
                },
                ImageError::Io(e) => ReadError::Io {
                    addr,
                    offset,
                    source: e.into(),
                },
            })?;
            addr += n;
            buf = rest;
        }
        Ok(())
    }

    /// A page of which a part is missing is missing.
    pub fn page_state(&self, pfn: u64) -> PageState {
        let Some(start) = pfn
            .checked_mul(PAGE_SIZE)
            .filter(|&start| start < self.ranges.end())
        else {
            return PageState::Missing(Missing::NotRam);
        };
        let mut at = start;
        let mut state = PageState::Present;
        for range in self.ranges.within(start, start + PAGE_SIZE) {
            if range.start != at {
                break;
            }
            at = range.end();
            match range.target {
                Backing::Data(_) => {}
                Backing::Filtered => state = PageState::Missing(Missing::Filtered),
                Backing::Truncated => state = PageState::Missing(Missing::Truncated),
            }
        }
        match at == start + PAGE_SIZE {
            true => state,
            // makedumpfile does not regard such a page as memory either.
            false => PageState::Missing(Missing::NotRam),
        }
    }

    /// The state of a page, and of how many from it on it is the same at least.
    pub fn page_states(&self, pfn: u64) -> (PageState, u64) {
        let state = self.page_state(pfn);
        let range = pfn
            .checked_mul(PAGE_SIZE)
            .and_then(|start| self.ranges.find(start));
        (
            state,
            range.map_or(1, |range| (range.len / PAGE_SIZE).max(1)),
        )
    }

    pub fn page_counts(&self) -> PageCounts {
        let mut counts = PageCounts::default();
        let mut next = 0;
        for range in self.ranges.iter() {
            let (first, last) = (range.start.div_ceil(PAGE_SIZE), range.end() / PAGE_SIZE);
            let state = match range.target {
                Backing::Data(_) => PageState::Present,
                Backing::Filtered => PageState::Missing(Missing::Filtered),
                Backing::Truncated => PageState::Missing(Missing::Truncated),
            };
            // A page that this range shares with others, at its begin or its end.
            if range.start % PAGE_SIZE != 0 && first > next {
                counts.add(self.page_state(first - 1), 1);
                next = first;
            }
            counts.add(state, last.saturating_sub(first.max(next)));
            next = next.max(last);
            if range.end() % PAGE_SIZE != 0 && last >= next {
                counts.add(self.page_state(last), 1);
                next = last + 1;
            }
        }
        let known = counts.present + counts.filtered + counts.truncated;
        counts.not_ram = self.max_pfn() - known;
        counts
    }

    /// The next page frames from `from` on that have bytes in the file, though perhaps not all.
    pub fn next_data(&self, from: u64) -> Option<Range<u64>> {
        let start = from.checked_mul(PAGE_SIZE)?;
        let mut ranges = self.ranges.within(start, u64::MAX);
        let range = ranges.find(|range| matches!(range.target, Backing::Data(_)))?;
        let first = (range.start / PAGE_SIZE).max(from);
        Some(first..range.end().div_ceil(PAGE_SIZE).max(first + 1))
    }

    pub fn is_truncated(&self) -> bool {
        self.ranges
            .iter()
            .any(|range| range.target == Backing::Truncated)
    }
}

/// A `PT_LOAD` segment whose numbers do not overflow.
#[derive(Clone, Copy)]
struct Load {
    addr: u64,
    file_size: u64,
    mem_size: u64,
    offset: u64,
    /// Where its header stands.
    at: u64,
}

impl Load {
    fn new(segment: &ProgramHeader, at: u64) -> Result<Load, Refusal> {
        let mem_size = segment.p_memsz.max(segment.p_filesz);
        if segment
            .p_paddr
            .checked_add(mem_size)
            .is_none_or(|end| end > MAX_PHYSICAL)
        {
            return Err(Refusal::damaged(
                PHDR,
                "p_paddr",
                at,
                format!(
                    "is {:#x} with {mem_size:#x} bytes, beyond the 52 bits of physical addresses",
                    segment.p_paddr
                ),
            ));
        }
        if segment.p_offset.checked_add(segment.p_filesz).is_none() {
            return Err(Refusal::damaged(
                PHDR,
                "p_offset",
                at,
                "wraps around with p_filesz",
            ));
        }
        Ok(Load {
            addr: segment.p_paddr,
            file_size: segment.p_filesz,
            mem_size,
            offset: segment.p_offset,
            at,
        })
    }
}

fn read_notes(image: &Image, segment: &ProgramHeader, notes: &mut Vec<u8>) -> Result<(), Refusal> {
    if segment.p_filesz > MAX_NOTES_SIZE - notes.len() as u64 {
        let problem = format!(
            "is {} for notes, more than any machine leaves",
            segment.p_filesz
        );
        return Err(Refusal::damaged(
            PHDR,
            "p_filesz",
            segment.p_offset,
            problem,
        ));
    }
    // What a cut file still has of its notes is read.
    for (offset, len) in image
        .readable(segment.p_offset, segment.p_filesz)
        .into_iter()
        .take(1)
    {
        if offset == segment.p_offset {
            let start = notes.len();
            notes.resize(start + len as usize, 0);
            image
                .read_at(offset, &mut notes[start..])
                .map_err(|e| Refusal::unreadable("PT_NOTE", offset, e))?;
        }
    }
    Ok(())
}

/// ELF cores for x86-64 that are not the memory of a dead Linux machine.
fn refuse_other_cores(header: &header64::Header, notes: &Notes, loads: u64) -> Result<(), Refusal> {
    if notes.xen {
        return Err(Refusal::unsupported(
            "a dump of a machine under Xen",
            "dumps of Linux on real hardware or under KVM are read",
        ));
    }
    if notes.virtualbox {
        return Err(Refusal::unsupported(
            "the core of a VirtualBox guest",
            "dumps of Linux on real hardware or under KVM are read",
        ));
    }
    if notes.process {
        return Err(Refusal::not_a_dump(
            "it is the core of one process, not of a machine",
            "name the dump that kdump saved, often under /var/crash",
        ));
    }
    if loads == 0 {
        return Err(Refusal::damaged(
            PHDR,
            "p_type",
            header.e_phoff,
            "is PT_LOAD nowhere: there is no memory in this dump",
        ));
    }
    Ok(())
}

/// Data over truncated over filtered: /proc/vmcore lists the kernel's text twice, and makedumpfile
/// -E may leave a page out of the one and keep it in the other.
///
/// The table of segments is gone over once for each, so that a million of them cost no memory twice.
fn map_loads(
    image: &Image,
    header: &header64::Header,
    count: u64,
    live: bool,
) -> Result<ExtentMap<Backing>, Refusal> {
    let mut ranges = Builder::new();
    let mut push = |load: &Load, start, len, backing| {
        ranges.push(start, len, backing).map_err(|e| match e {
            BuildError::Wraps => Refusal::damaged(PHDR, "p_paddr", load.at, "wraps around"),
            BuildError::TooMany => too_many(load.at),
        })
    };
    let each = |each: &mut dyn FnMut(&Load) -> Result<(), Refusal>| {
        for_each_segment(image, header.e_phoff, count, |segment, at| {
            let is_memory = segment.p_type == PT_LOAD
                && (segment.p_memsz > 0 || segment.p_filesz > 0)
                && !(live && is_virtual_alone(&segment));
            if is_memory {
                each(&Load::new(&segment, at)?)?;
            }
            Ok(())
        })
    };
    if live {
        // Its length means nothing, and it leaves nothing out.
        each(&mut |load| push(load, load.addr, load.file_size, Backing::Data(load.offset)))?;
        return ranges.finish().map_err(|_| too_many(0));
    }
    each(&mut |load| {
        let end = load.addr + load.file_size;
        push(load, end, load.mem_size - load.file_size, Backing::Filtered)
    })?;
    each(&mut |load| match image.has(load.offset, load.file_size) {
        true => Ok(()),
        false => push(load, load.addr, load.file_size, Backing::Truncated),
    })?;
    each(&mut |load| {
        for (offset, len) in image.readable(load.offset, load.file_size) {
            let addr = load.addr + (offset - load.offset);
            push(load, addr, len, Backing::Data(offset))?;
        }
        Ok(())
    })?;
    ranges.finish().map_err(|_| too_many(0))
}

/// A range of /proc/kcore that no physical address belongs to: vmalloc, modules, the array of
/// `struct page`. Linux fs/proc/kcore.c.
fn is_virtual_alone(segment: &ProgramHeader) -> bool {
    segment.p_paddr.saturating_add(segment.p_memsz) > MAX_PHYSICAL
}

fn too_many(at: u64) -> Refusal {
    Refusal::damaged(
        PHDR,
        "p_paddr",
        at,
        "cuts memory into more ranges than any dump has",
    )
}
