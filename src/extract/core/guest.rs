//! A guest's memory and registers as an ELF core: what `crash`, `drgn`, gdb and
//! `vmrestore` itself open.
//!
//! The form is that of QEMU's dump-guest-memory without paging: a PT_LOAD for
//! each range of guest-physical memory, virtual addresses zero; CORE notes with
//! the registers of each vCPU, then QEMU's notes, which have system registers
//! too; then the guest kernel's own VMCOREINFO note, where its memory has one.
//! QEMU dump/dump.c, target/i386/arch_dump.c.
//!
//! Pages of zeros are holes in the file. Pages that are missing from the host's
//! dump have no bytes in the core either (`p_filesz` is 0), so readers say that
//! they are missing.

use super::contents::Contents;
use super::elf::{Segment, head};
use super::guest_notes;
use super::guest_view::GuestView;
use super::unfinished::Unfinished;
use super::{CoreError, PAGE};
use crate::dataset::{Dataset, GuestMemory, PageSource, StretchContent, Vm};
use crate::kernel::{Kernel, VmcoreInfo};
use crate::sys::interrupt;
use std::path::Path;
use std::sync::Arc;

/// Readers of machines' cores know the 16 bits of e_phnum and nothing else.
const MOST_SEGMENTS: usize = 0xfffe;

/// What was written.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Written {
    /// Of the guest's memory. Bytes.
    pub memory_bytes: u64,
    /// Of these, zeros, which take no space.
    pub zero_bytes: u64,
    /// Missing from the dump, by reason.
    pub missing: Vec<(String, u64)>,
    /// The release of the guest's kernel, where it was found: then the core has
    /// its VMCOREINFO note.
    pub kernel: Option<String>,
    /// vCPUs whose registers are in it.
    pub vcpus: usize,
}

/// A range of guest-physical memory that is one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub address: u64,
    pub len: u64,
    pub area: usize,
    pub offset: u64,
    pub present: bool,
}

impl Range {
    fn segment(&self) -> Segment {
        Segment {
            virtual_address: 0,
            physical_address: self.address,
            flags: 0,
            in_file: if self.present { self.len } else { 0 },
            len: self.len,
            align: 0,
        }
    }
}

/// Writes the core. Into a file beside `path` first, which takes its name when
/// it is whole and on the disk. `replace`: a file of that name goes.
///
/// # Errors
/// See [`CoreError`]. Nothing is left of what was not finished.
pub fn write<P: PageSource + Clone + 'static>(
    dataset: &Dataset,
    vm: &Vm,
    pages: &P,
    path: &Path,
    replace: bool,
    guard: &interrupt::Guard,
) -> Result<Written, CoreError> {
    if !replace && path.symlink_metadata().is_ok() {
        return Err(CoreError::Exists { path: path.into() });
    }
    let memory = GuestMemory::of(dataset, vm).ok_or(CoreError::NoOwner)?;
    let ranges = ranges(&memory);
    if ranges.len() >= MOST_SEGMENTS {
        let count = ranges.len();
        return Err(CoreError::Pieces { count });
    }
    let view = Arc::new(GuestView::new(&memory, &ranges, pages.clone()));
    let note = Kernel::note_in(view);
    let segments: Vec<Segment> = ranges.iter().map(Range::segment).collect();
    let head = head(&segments, &guest_notes::notes(vm, note.as_deref()));

    let unfinished = Unfinished::create(path)?;
    let memory_bytes = ranges.iter().map(|r| r.len).fold(0, u64::saturating_add);
    let zero_bytes = fill(&unfinished, &head, &ranges, &memory, pages, guard)?;
    unfinished.finish(replace)?;
    let mut missing = Vec::new();
    for (why, bytes) in memory.missing() {
        missing.push((why.to_owned(), bytes));
    }
    Ok(Written {
        memory_bytes,
        zero_bytes,
        missing,
        kernel: note.map(|text| {
            let release = VmcoreInfo::parse(&text).get("OSRELEASE").map(str::to_owned);
            release.unwrap_or_default()
        }),
        vcpus: vm.vcpus.len(),
    })
}

/// Memory of the processors' own address space by guest-physical address;
/// neighbours of one kind together.
fn ranges(memory: &GuestMemory<'_>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut slots: Vec<_> = memory
        .slots
        .iter()
        .filter(|s| s.slot.address_space == 0)
        .collect();
    slots.sort_unstable_by_key(|s| s.slot.guest_address);
    let mut cursor = 0;
    for placed in slots {
        let Some(area) = memory.areas.get(placed.area) else {
            continue;
        };
        for stretch in area.part(placed.offset, placed.slot.size) {
            let within = stretch.at - placed.offset;
            let Some(address) = placed.slot.guest_address.checked_add(within) else {
                break;
            };
            // KVM has no overlapping slots; a damaged dump might.
            if address < cursor || address.checked_add(stretch.len).is_none() {
                continue;
            }
            cursor = address + stretch.len;
            let present = !matches!(stretch.content, StretchContent::Missing(_));
            match ranges.last_mut() {
                Some(last)
                    if last.address + last.len == address
                        && last.present == present
                        && last.area == placed.area
                        && last.offset + last.len == stretch.at =>
                {
                    last.len += stretch.len;
                }
                _ => ranges.push(Range {
                    address,
                    len: stretch.len,
                    area: placed.area,
                    offset: stretch.at,
                    present,
                }),
            }
        }
    }
    ranges
}

/// Writes everything; how many bytes were zeros.
fn fill(
    file: &Unfinished<'_>,
    head: &[u8],
    ranges: &[Range],
    memory: &GuestMemory<'_>,
    pages: &dyn PageSource,
    guard: &interrupt::Guard,
) -> Result<u64, CoreError> {
    file.write(head, 0)?;
    let (mut at, mut zeros) = (head.len() as u64, 0);
    let mut contents = Contents::new(file, pages, guard);
    for range in ranges.iter().filter(|r| r.present) {
        let Some(area) = memory.areas.get(range.area) else {
            continue;
        };
        for stretch in area.part(range.offset, range.len) {
            let StretchContent::Pages { run, first } = stretch.content else {
                zeros = u64::saturating_add(zeros, stretch.len);
                continue;
            };
            let from = at.saturating_add(stretch.at - range.offset);
            zeros += contents.copy(run, first, stretch.len / PAGE, from)?;
        }
        at = at.saturating_add(range.len);
    }
    file.set_len(at)?;
    Ok(zeros)
}
