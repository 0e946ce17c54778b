//! Address space: every VMA where it was, and what the kernel keeps of it
//! (heap, arguments, auxiliary vector, executable).

use super::error::Context;
use super::maps;
use super::objects::Objects;
use super::stub::Family;
use super::vma_flags::{self, bit};
use super::{RestoreError, Syscalls, calls};
use crate::dataset::{Dataset, Fidelity, MappingKind, ObjectId, PageContent, Process, Vma};

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
                map(sys, pid, vma, flags, -1, 0)?;
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
                        let path = path_of(dataset, pid, *file, vma)?;
                        let flags = libc::O_CLOEXEC
                            | libc::O_NOCTTY
                            | if write { libc::O_RDWR } else { libc::O_RDONLY };
                        let fd = calls::open(sys, path, flags)
                            .during(pid, || format!("open {path}, which it had mapped"))?;
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
                map(family.leader(at)?, pid, vma, libc::MAP_SHARED, fd, *offset)?;
            }
            MappingKind::Vdso | MappingKind::Vvar | MappingKind::KvmVcpu { .. } => {}
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

fn path_of<'d>(
    dataset: &'d Dataset,
    pid: i32,
    file: ObjectId,
    vma: &'d Vma,
) -> Result<&'d str, RestoreError> {
    if let MappingKind::Device { path, .. } = &vma.kind {
        return Ok(path);
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
    Ok(&file.path)
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
    for vma in &process.mm.vmas {
        if matches!(vma.kind, MappingKind::Vdso | MappingKind::Vvar) {
            continue;
        }
        if is_filled(vma) && vma.prot() != libc::PROT_READ | libc::PROT_WRITE {
            calls::protect(sys, vma.start, vma.len(), vma.prot())
                .during(pid, || describe("mprotect", vma))?;
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

/// Tells the kernel where code, data, heap, stack, arguments and environment
/// are, and which file the process runs.
///
/// # Errors
/// `prctl(PR_SET_MM_MAP)` refused, or the executable is not there.
pub fn describe_to_kernel(
    process: &Process,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let pid = process.pid;
    let mm = &process.mm;
    let exe_fd = match &mm.exe_path {
        Some(path) => Some(
            calls::open(sys, path, libc::O_RDONLY | libc::O_CLOEXEC)
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
    if mm.auxv.is_empty() {
        notes.push(Fidelity::lost(
            format!("pid {pid}"),
            "/proc/PID/auxv",
            "the dataset has no auxiliary vector; the process's own copy is in its memory",
        ));
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
