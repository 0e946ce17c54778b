//! Address space: every VMA where it was, and what the kernel keeps of it
//! (heap, arguments, auxiliary vector, executable).

use super::error::Context;
use super::huge_pages;
use super::maps;
use super::objects::Objects;
use super::promises;
use super::same_file;
use super::stub::Family;
use super::vma_flags::{self, bit};
use super::{RestoreError, Syscalls, calls};
use crate::dataset::{
    Dataset, Fidelity, MappingKind, ObjectId, PageContent, PageRun, Process, Vma,
};

/// `PR_SET_MM`, `PR_SET_MM_MAP`. Linux include/uapi/linux/prctl.h.
const SET_MM: i32 = 35;
const SET_MM_MAP: u64 = 14;

/// `PR_SET_VMA`, `PR_SET_VMA_ANON_NAME`.
const SET_VMA: i32 = 0x5356_4d41;

/// The VMA gets bytes of its own, from the dump.
pub fn is_filled(vma: &Vma) -> bool {
    let anonymous = matches!(vma.kind, MappingKind::Anonymous { .. });
    matches!(
        vma.kind,
        MappingKind::Anonymous { .. } | MappingKind::File { .. } | MappingKind::Device { .. }
    ) && !vma.shared()
        && vma
            .pages
            .iter()
            .any(|run| !anonymous || run.content != PageContent::Zero)
}

/// Maps every VMA but the vCPUs', writable where it is to be filled.
///
/// # Errors
/// The mapping that failed.
pub fn map_all(
    dataset: &Dataset,
    family: &mut Family<'_>,
    at: usize,
    objects: &mut Objects,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let Some(process) = family.stubs.get(at).map(|s| s.process) else {
        return Ok(());
    };
    let pid = process.pid;
    // The last file that was mapped: libraries are mapped in several pieces.
    let mut open: Option<(ObjectId, bool, i32)> = None;
    for vma in &process.mm.vmas {
        match &vma.kind {
            MappingKind::Anonymous { name, .. } => {
                let sys = family.leader(at)?;
                let flags = vma_flags::map_flags(vma.flags) | libc::MAP_ANONYMOUS;
                map_anonymous(sys, pid, vma, flags, notes)?;
                if let Some(name) = name {
                    name_vma(sys, vma, name);
                }
            }
            MappingKind::File { file, offset, .. } | MappingKind::Device { file, offset, .. } => {
                let write = vma.shared() && vma.flags & bit::MAYWRITE != 0;
                let sys = family.leader(at)?;
                let fd = match open {
                    Some((id, w, fd)) if id == *file && w == write => fd,
                    _ => {
                        if let Some((_, _, fd)) = open.take() {
                            calls::close(sys, fd).during(pid, || "close".into())?;
                        }
                        let (path, of_host) = path_of(dataset, pid, *file, vma)?;
                        let flags = libc::O_CLOEXEC
                            | libc::O_NOCTTY
                            | if write { libc::O_RDWR } else { libc::O_RDONLY };
                        let fd = match of_host {
                            true => calls::open_of_host(sys, path, flags),
                            false => calls::open(sys, path, flags),
                        }
                        .during(pid, || format!("open {path}, which it had mapped"))?;
                        let tid = sys.tid;
                        still_the_same(dataset, &vma.kind, (pid, tid, fd), notes)?;
                        open = Some((*file, write, fd));
                        fd
                    }
                };
                let kind = if vma.shared() {
                    libc::MAP_SHARED | (vma_flags::map_flags(vma.flags) & !libc::MAP_PRIVATE)
                } else {
                    vma_flags::map_flags(vma.flags)
                };
                map(sys, pid, vma, kind & !libc::MAP_HUGETLB, fd, *offset)?;
            }
            MappingKind::Shared { memory, offset } => {
                let fd = objects.memory_in(dataset, family, at, *memory)?;
                map_shared(family.leader(at)?, pid, vma, fd, *offset)?;
            }
            // Attached when all else is in its place.
            MappingKind::Segment { .. }
            | MappingKind::Vdso
            | MappingKind::Vvar
            | MappingKind::KvmVcpu { .. }
            | MappingKind::AioRing => {}
            MappingKind::Unsupported { why } => {
                return Err(RestoreError::Unsupported {
                    pid,
                    what: format!("its mapping at {:#x}", vma.start),
                    why: why.clone(),
                });
            }
        }
        if vma.flags & (bit::UFFD_MISSING | bit::UFFD_WP) != 0 {
            notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("userfaultfd registration at {:#x}", vma.start),
                "its userfaultfd ended with the host",
            ));
        }
    }
    if let Some((_, _, fd)) = open {
        calls::close(family.leader(at)?, fd).during(pid, || "close".into())?;
    }
    Ok(())
}

/// The file behind a mapping must be the one of then. One that may be written to has a check of its
/// own (disks).
fn still_the_same(
    dataset: &Dataset,
    kind: &MappingKind,
    (pid, tid, fd): (i32, i32, i32),
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let inode = match kind {
        MappingKind::File { inode, .. } => dataset.inode(*inode),
        _ => None,
    };
    match inode.filter(|inode| !inode.writable) {
        Some(inode) => same_file::check(pid, tid, fd, inode, notes),
        None => Ok(()),
    }
}

/// Maps private memory, in huge pages if it was in such and they are there.
fn map_anonymous(
    sys: &mut dyn Syscalls,
    pid: i32,
    vma: &Vma,
    flags: i32,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let in_place = |run: &PageRun| matches!(run.content, PageContent::InPlace(_));
    if vma.pages.iter().any(in_place) {
        // Most of it is mapped over, page by page, and may be larger than all the memory of this
        // kernel. What is not, comes in ordinary pages.
        if flags & libc::MAP_HUGETLB != 0 {
            let what = format!("memory at {:#x}", vma.start);
            notes.push(huge_pages::note_in_place(pid, what));
        }
        let flags = flags & !libc::MAP_HUGETLB | libc::MAP_NORESERVE;
        return map(sys, pid, vma, flags, -1, 0);
    }
    if flags & libc::MAP_HUGETLB == 0 {
        return map(sys, pid, vma, flags, -1, 0);
    }
    // Without reservation a page that is missing later would kill it.
    let ordinary = flags & !libc::MAP_HUGETLB;
    let huge = ordinary & !libc::MAP_NORESERVE | huge_pages::map_flags(vma.huge_page);
    if map(sys, pid, vma, huge, -1, 0).is_ok() {
        return Ok(());
    }
    let what = format!("memory at {:#x}", vma.start);
    notes.push(huge_pages::note(pid, what, vma.huge_page));
    map(sys, pid, vma, ordinary, -1, 0)
}

/// Maps a memory that no path leads to. One that was opened for reading alone
/// cannot be made writable later.
fn map_shared(
    sys: &mut dyn Syscalls,
    pid: i32,
    vma: &Vma,
    fd: i32,
    offset: u64,
) -> Result<(), RestoreError> {
    let read_only = match vma.flags & bit::MAYWRITE {
        // Without /proc it may be made writable.
        0 => calls::open_in_proc(
            sys,
            &format!("self/fd/{fd}"),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
        .ok(),
        _ => None,
    };
    map(
        sys,
        pid,
        vma,
        libc::MAP_SHARED,
        read_only.unwrap_or(fd),
        offset,
    )?;
    match read_only {
        Some(fd) => calls::close(sys, fd).during(pid, || "close".into()),
        None => Ok(()),
    }
}

fn path_of<'d>(
    dataset: &'d Dataset,
    pid: i32,
    file: ObjectId,
    vma: &'d Vma,
) -> Result<(&'d str, bool), RestoreError> {
    if let MappingKind::Device { path, .. } = &vma.kind {
        let of_host = dataset.file(file).is_some_and(|file| file.of_host);
        return Ok((path, of_host));
    }
    let file = dataset.file(file).ok_or_else(|| RestoreError::Malformed {
        pid,
        what: format!("the mapping at {:#x}", vma.start),
        why: format!("its file {file} is not in the dataset"),
    })?;
    if file.deleted {
        return Err(RestoreError::Unsupported {
            pid,
            what: format!("its mapping of {} at {:#x}", file.path, vma.start),
            why: "the file had been deleted (or replaced) before the crash".into(),
        });
    }
    Ok((&file.path, file.of_host))
}

fn map(
    sys: &mut dyn Syscalls,
    pid: i32,
    vma: &Vma,
    flags: i32,
    fd: i32,
    offset: u64,
) -> Result<(), RestoreError> {
    let prot = if is_filled(vma) {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        vma.prot()
    };
    calls::map(sys, vma.start, vma.len(), prot, flags, fd, offset)
        .during(pid, || describe("mmap", vma))?;
    for advice in vma_flags::advice_before(vma.flags) {
        // Refused where the kernel has no THP: a matter of speed alone.
        let _ = calls::advise(sys, vma.start, vma.len(), advice);
    }
    Ok(())
}

fn describe(call: &str, vma: &Vma) -> String {
    format!("{call} of {:#x}-{:#x} ({:?})", vma.start, vma.end, vma.kind)
}

/// A name is for people; kernels before 5.17 have none.
fn name_vma(sys: &mut dyn Syscalls, vma: &Vma, name: &str) {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    if let Ok(at) = calls::put(sys, &bytes) {
        let _ = calls::prctl(sys, SET_VMA, [0, vma.start, vma.len(), at]);
    }
}

/// What may only be said of memory when its content is there: final
/// protection, advice, locks.
///
/// # Errors
/// The VMA that refused.
pub fn seal(process: &Process, sys: &mut dyn Syscalls) -> Result<(), RestoreError> {
    let pid = process.pid;
    allocate_keys(process.mm.protection_keys, sys)
        .during(pid, || "pkey_alloc (has this CPU protection keys?)".into())?;
    for vma in &process.mm.vmas {
        if matches!(vma.kind, MappingKind::Vdso | MappingKind::Vvar) {
            continue;
        }
        if is_filled(vma) && vma.prot() != libc::PROT_READ | libc::PROT_WRITE {
            calls::protect(sys, vma.start, vma.len(), vma.prot())
                .during(pid, || describe("mprotect", vma))?;
        }
        if vma.protection_key() != 0 {
            let prot = i64::from(vma.prot()).cast_unsigned();
            let call = [vma.start, vma.len(), prot, vma.protection_key()];
            calls::plain(sys, libc::SYS_pkey_mprotect, call)
                .during(pid, || describe("pkey_mprotect", vma))?;
        }
        for advice in vma_flags::advice_after(vma.flags) {
            match calls::advise(sys, vma.start, vma.len(), advice) {
                // KSM may not be built in; it saves memory and does nothing else.
                Err(e) if advice == libc::MADV_MERGEABLE && e.0 == libc::EINVAL => {}
                other => other.during(pid, || describe(&format!("madvise {advice}"), vma))?,
            }
        }
        if vma.flags & bit::LOCKED != 0 {
            let on_fault = u64::from(vma.flags & bit::LOCKONFAULT != 0);
            calls::plain(sys, libc::SYS_mlock2, [vma.start, vma.len(), on_fault])
                .during(pid, || describe("mlock2", vma))?;
        }
    }
    if process.mm.def_flags & bit::LOCKED != 0 {
        let mut flags = libc::MCL_FUTURE;
        if process.mm.def_flags & bit::LOCKONFAULT != 0 {
            flags |= libc::MCL_ONFAULT;
        }
        calls::plain(sys, libc::SYS_mlockall, [flags.cast_unsigned().into()])
            .during(pid, || "mlockall(MCL_FUTURE)".into())?;
    }
    Ok(())
}

/// Allocates protection keys: the kernel gives the lowest that is free, so those
/// that are not wanted are given back.
fn allocate_keys(wanted: u16, sys: &mut dyn Syscalls) -> Result<(), super::Errno> {
    let Some(highest) = wanted.checked_ilog2() else {
        return Ok(());
    };
    for _ in 1..=highest {
        calls::plain(sys, libc::SYS_pkey_alloc, [0, 0])?;
    }
    for key in (1..highest).filter(|key| wanted >> key & 1 == 0) {
        calls::plain(sys, libc::SYS_pkey_free, [key.into()])?;
    }
    Ok(())
}

/// Tells the kernel where code, data, heap, stack, arguments and environment
/// are, and which file the process runs.
///
/// # Errors
/// `prctl(PR_SET_MM_MAP)` refused, or the executable is not there.
pub fn describe_to_kernel(
    dataset: &Dataset,
    process: &Process,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let pid = process.pid;
    let mm = &process.mm;
    let exe = mm.exe.and_then(|id| dataset.file(id));
    let exe_of_host = exe.is_some_and(|file| file.of_host);
    let exe_fd = match &mm.exe_path {
        Some(path) => Some(
            match exe_of_host {
                true => calls::open_of_host(sys, path, libc::O_RDONLY | libc::O_CLOEXEC),
                false => calls::open(sys, path, libc::O_RDONLY | libc::O_CLOEXEC),
            }
            .during(pid, || format!("open its executable {path}"))?,
        ),
        None => None,
    };
    let result = set_mm_map(sys, mm, exe_fd.unwrap_or(-1));
    let result = match (result, exe_fd) {
        // The stub's own executable is the same file, and is "still mapped".
        (Err(e), Some(_)) if e.0 == libc::EBUSY => set_mm_map(sys, mm, -1),
        (result, _) => result,
    };
    if let Some(fd) = exe_fd {
        calls::close(sys, fd).during(pid, || "close".into())?;
    }
    result.during(pid, || {
        "prctl(PR_SET_MM_MAP) (needs CONFIG_CHECKPOINT_RESTORE)".into()
    })?;
    if mm.thp_disabled {
        calls::prctl(sys, libc::PR_SET_THP_DISABLE, [1, 0, 0, 0])
            .during(pid, || "prctl(PR_SET_THP_DISABLE)".into())?;
    }
    promises::merge_all(process, sys, notes);
    register_membarriers(pid, mm.membarrier, sys)?;
    if mm.auxv.is_empty() {
        notes.push(Fidelity::lost(
            format!("pid {pid}"),
            "/proc/PID/auxv",
            "the dataset has no auxiliary vector; the process's own copy is in its memory",
        ));
    }
    Ok(())
}

/// Without its registration, `membarrier` would refuse a process (EPERM) whose other threads count
/// on the barrier.
fn register_membarriers(pid: i32, state: u32, sys: &mut dyn Syscalls) -> Result<(), RestoreError> {
    /// (MEMBARRIER_STATE_*, MEMBARRIER_CMD_REGISTER_*).
    const REGISTERED: [(u32, u64, &str); 4] = [
        (1 << 1, 1 << 4, "PRIVATE_EXPEDITED"),
        (1 << 3, 1 << 2, "GLOBAL_EXPEDITED"),
        (1 << 5, 1 << 6, "PRIVATE_EXPEDITED_SYNC_CORE"),
        (1 << 7, 1 << 8, "PRIVATE_EXPEDITED_RSEQ"),
    ];
    for (bit, command, name) in REGISTERED {
        if state & bit != 0 {
            calls::plain(sys, libc::SYS_membarrier, [command, 0])
                .during(pid, || format!("membarrier(REGISTER_{name})"))?;
        }
    }
    Ok(())
}

fn set_mm_map(
    sys: &mut dyn Syscalls,
    mm: &crate::dataset::Mm,
    exe_fd: i32,
) -> Result<(), super::Errno> {
    /// `struct prctl_mm_map`: eleven addresses, the auxv's, its size, exe_fd.
    const SIZE: u64 = 11 * 8 + 8 + 4 + 4;
    let (at, _) = sys.scratch();
    let mut bytes: Vec<u8> = [
        mm.start_code,
        mm.end_code,
        mm.start_data,
        mm.end_data,
        mm.start_brk,
        mm.brk,
        mm.start_stack,
        mm.arg_start,
        mm.arg_end,
        mm.env_start,
        mm.env_end,
    ]
    .iter()
    .flat_map(|v| v.to_ne_bytes())
    .collect();
    let auxv: Vec<u8> = mm.auxv.iter().flat_map(|v| v.to_ne_bytes()).collect();
    let auxv_at = if auxv.is_empty() { 0 } else { at + SIZE };
    bytes.extend(auxv_at.to_ne_bytes());
    bytes.extend(u32::try_from(auxv.len()).unwrap_or(0).to_ne_bytes());
    bytes.extend(exe_fd.to_ne_bytes());
    bytes.extend(auxv);
    let at = calls::put(sys, &bytes)?;
    calls::prctl(sys, SET_MM, [SET_MM_MAP, at, SIZE, 0]).map(drop)
}

/// Address of a `syscall` instruction in the finished process, by which the
/// scratch mapping can be taken away.
pub fn syscall_instruction(process: &Process, memory: &std::fs::File) -> Option<u64> {
    let vmas = &process.mm.vmas;
    vmas.iter()
        .filter(|v| v.kind == MappingKind::Vdso)
        .chain(vmas.iter().filter(|v| v.prot() & libc::PROT_EXEC != 0))
        .filter(|v| v.prot() & libc::PROT_EXEC != 0)
        .find_map(|v| maps::find_syscall(memory, v.start, v.end))
}
