//! Segments: made empty, filled through a file, and attached where they were.

use super::create::{self, arg, control};
use super::{Made, Segment};
use crate::dataset::{
    Dataset, Fidelity, MappingKind, ObjectId, Process, SharedMemory, SysvKind, SysvObject, Vma,
};
use crate::restore::error::Context;
use crate::restore::inject::{Scratch, Tracee};
use crate::restore::maps::free_gap;
use crate::restore::stub::Family;
use crate::restore::vma_flags::bit;
use crate::restore::{Errno, RestoreError, Syscalls, calls, huge_pages};
use crate::sys::sysv::Kind;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};

const PAGE: u64 = 4096;
/// Flags of shmget.
const SHM_HUGETLB: u64 = 0o4000;
const SHM_NORESERVE: u64 = 0o10000;
/// Flags of shmat.
const SHM_RDONLY: u64 = 0o10000;
const SHM_EXEC: u64 = 0o100_000;
/// Commands of shmctl.
const SHM_LOCK: u64 = 11;
/// `MREMAP_MAYMOVE | MREMAP_FIXED`.
const MOVE: u64 = 1 | 2;
/// Below this no segment is attached for a moment: `vm.mmap_min_addr`.
const LOWEST: u64 = 1 << 20;

/// Makes a segment, without content.
pub(super) fn make(
    dataset: &Dataset,
    family: &mut Family<'_>,
    stub: usize,
    object: &SysvObject,
    made: &mut Made,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let SysvKind::Segment {
        memory,
        size,
        no_reserve,
        ..
    } = object.kind
    else {
        return Ok(());
    };
    let process = family.process(stub)?;
    let pid = process.pid;
    let content = dataset
        .shared_memory
        .iter()
        .find(|m| m.id == memory)
        .ok_or_else(|| RestoreError::Malformed {
            pid,
            what: object.name(),
            why: format!("its memory {memory} is not in the dataset"),
        })?;
    let sys = family.leader(stub)?;
    let key = arg(object.key);
    let reserve = if no_reserve { SHM_NORESERVE } else { 0 };
    let mut ordinary = |sys: &mut dyn Syscalls, flags: u64| {
        calls::plain(sys, libc::SYS_shmget, [key, size, flags | reserve])
    };
    let id = if content.huge_page == 0 {
        create::create(sys, pid, Kind::Segment, object, &mut ordinary)?
    } else {
        let size_bits = u64::from(huge_pages::size_bits(content.huge_page));
        let huge = SHM_HUGETLB | size_bits;
        let mut in_huge = |sys: &mut dyn Syscalls, flags: u64| {
            calls::plain(sys, libc::SYS_shmget, [key, size, flags | reserve | huge])
        };
        match create::create(sys, pid, Kind::Segment, object, &mut in_huge) {
            Err(RestoreError::Call { .. }) => {
                notes.push(huge_pages::note(pid, object.name(), content.huge_page));
                create::create(sys, pid, Kind::Segment, object, &mut ordinary)?
            }
            other => other?,
        }
    };
    made.remember(Kind::Segment, object, id);
    let at = gap(process, sys, span(content))?;
    let file = open(sys, id, at, content)
        .during(pid, || format!("open the memory of {}", object.name()))?;
    made.segments.insert(memory, Segment { id, file });
    Ok(())
}

/// A part of an attachment: its offset in the segment, and where it is mapped.
type Part<'v> = (u64, &'v Vma);

/// What an attachment of the whole segment spans. Bytes.
fn span(memory: &SharedMemory) -> u64 {
    let page = memory.huge_page.max(PAGE);
    memory.size.checked_next_multiple_of(page).unwrap_or(0)
}

/// Addresses that the process will have nothing at.
fn gap(process: &Process, sys: &Tracee, len: u64) -> Result<u64, RestoreError> {
    let scratch: Scratch = sys.scratch_mapping();
    let taken = process.mm.vmas.iter().map(|v| (v.start, v.end));
    let taken = taken.chain([(scratch.start, scratch.end())]);
    // Huge pages lie at multiples of their size, of which the largest is 1 GiB.
    const ALIGN: u64 = 1 << 30;
    let wanted = len.saturating_add(ALIGN);
    let found = free_gap(taken, LOWEST, wanted).map(|at| at.next_multiple_of(ALIGN));
    found.ok_or_else(|| RestoreError::Unsupported {
        pid: process.pid,
        what: "an address space without a gap".into(),
        why: format!("{wanted} bytes of free addresses are needed for a System V segment"),
    })
}

/// The file behind a segment: a process that has attached it shows it.
fn open(sys: &mut Tracee, id: i32, at: u64, memory: &SharedMemory) -> Result<File, std::io::Error> {
    let failed = |errno: Errno| std::io::Error::from_raw_os_error(errno.0);
    calls::plain(sys, libc::SYS_shmat, [arg(id), at, 0]).map_err(failed)?;
    let end = at + span(memory);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/map_files/{at:x}-{end:x}", sys.tid));
    calls::plain(sys, libc::SYS_shmdt, [at]).map_err(failed)?;
    file
}

/// Attaches all that a process had attached.
///
/// # Errors
/// shmat, or what makes a part of a segment out of a whole one, was refused.
pub fn attach(
    dataset: &Dataset,
    family: &mut Family<'_>,
    at: usize,
    made: &Made,
) -> Result<(), RestoreError> {
    let process = family.process(at)?;
    let sys = family.leader(at)?;
    let mut attachments: BTreeMap<ObjectId, (ObjectId, Vec<Part<'_>>)> = BTreeMap::new();
    for vma in &process.mm.vmas {
        if let MappingKind::Segment {
            memory,
            attachment,
            offset,
        } = vma.kind
        {
            let (_, parts) = attachments
                .entry(attachment)
                .or_insert_with(|| (memory, Vec::new()));
            parts.push((offset, vma));
        }
    }
    for (memory, parts) in attachments.values() {
        let content = dataset.shared_memory.iter().find(|m| m.id == *memory);
        let (Some(segment), Some(content)) = (made.segments.get(memory), content) else {
            return Err(RestoreError::Malformed {
                pid: process.pid,
                what: format!("the System V segment {memory}"),
                why: "it is mapped, and not in the dataset".into(),
            });
        };
        attach_one(process, sys, segment.id, span(content), parts)?;
    }
    Ok(())
}

/// Attaches a segment once, and puts its parts to their places.
fn attach_one(
    process: &Process,
    sys: &mut Tracee,
    id: i32,
    span: u64,
    parts: &[Part<'_>],
) -> Result<(), RestoreError> {
    let pid = process.pid;
    let any = |is: &dyn Fn(&Vma) -> bool| parts.iter().any(|(_, vma)| is(vma));
    let writable = any(&|vma| vma.flags & bit::MAYWRITE != 0);
    let read_only = if writable { 0 } else { SHM_RDONLY };
    let executable = match any(&|vma| vma.prot() & libc::PROT_EXEC != 0) {
        true => SHM_EXEC,
        false => 0,
    };
    let flags = read_only | executable;
    let what = || format!("attach System V segment {id}");
    let shmat = |sys: &mut Tracee, at: u64| -> Result<(), Errno> {
        match calls::plain(sys, libc::SYS_shmat, [arg(id), at, flags])? {
            got if got == at => Ok(()),
            _ => Err(Errno(libc::EEXIST)),
        }
    };
    match parts {
        [(0, vma)] if vma.len() == span => shmat(sys, vma.start).during(pid, what)?,
        _ => {
            let whole = gap(process, sys, span)?;
            shmat(sys, whole).during(pid, what)?;
            let mut left = vec![(0, span)];
            for (offset, vma) in parts {
                let (from, to) = (*offset, offset.saturating_add(vma.len()));
                let call = [whole + from, vma.len(), vma.len(), MOVE, vma.start];
                calls::plain(sys, libc::SYS_mremap, call).during(pid, || {
                    format!("put a part of System V segment {id} to {:#x}", vma.start)
                })?;
                left = left
                    .iter()
                    .flat_map(|(a, b)| [(*a, from.min(*b)), (to.max(*a), *b)])
                    .filter(|(a, b)| a < b)
                    .collect();
            }
            for (from, to) in left {
                calls::unmap(sys, whole + from, to - from).during(pid, what)?;
            }
        }
    }
    let first = libc::PROT_READ
        | if read_only == 0 { libc::PROT_WRITE } else { 0 }
        | if executable == 0 { 0 } else { libc::PROT_EXEC };
    for (_, vma) in parts.iter().filter(|(_, vma)| vma.prot() != first) {
        calls::protect(sys, vma.start, vma.len(), vma.prot())
            .during(pid, || format!("mprotect at {:#x}", vma.start))?;
    }
    Ok(())
}

/// Locks it, or marks it to be gone with its last attachment.
pub(super) fn finish(
    sys: &mut dyn Syscalls,
    object: &SysvObject,
    id: i32,
    locked: bool,
    removed: bool,
) -> Result<(), RestoreError> {
    let what = || format!("shmctl of {}", object.name());
    if locked {
        control(sys, Kind::Segment, id, SHM_LOCK, 0).during(0, what)?;
    }
    if removed {
        control(sys, Kind::Segment, id, create::RMID, 0).during(0, what)?;
    }
    Ok(())
}
