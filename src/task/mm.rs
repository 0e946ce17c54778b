//! An address space as a whole: `mm_struct`.

use super::extract::Extraction;
use super::list::int;
use super::page_cache::words;
use super::path::{self, Place};
use super::vma;
use crate::dataset::{Mm, ObjectId};
use crate::kernel::{KernelError, Object};

/// `mm.flags`. Linux include/linux/sched/coredump.h.
const MMF_DUMPABLE: u64 = 3;
const MMF_DISABLE_THP: u64 = 1 << 24;
/// MMF_DUMP_FILTER_SHIFT and its nine bits.
const MMF_DUMP_FILTER: u32 = 2;
const DUMP_FILTER: u64 = 0x1ff;
/// Since Linux commit b507808ebce2 ("mm: implement memory-deny-write-execute as a prctl") (in v6.3).
const MMF_HAS_MDWE: u64 = 1 << 28;
/// Since Linux commit 24e41bf8a6b4 ("mm: add a NO_INHERIT flag to the PR_SET_MDWE prctl") (in v6.7),
/// which moved MMF_VM_MERGE_ANY, of d7597f59d1d3 ("mm: add new api to enable ksm per process") (in
/// v6.4), to the next bit.
const MMF_HAS_MDWE_NO_INHERIT: u64 = 1 << 29;
const OLDER_MERGE_ANY: u64 = 1 << 29;
const MMF_VM_MERGE_ANY: u64 = 1 << 30;
/// `vm_flags`.
const VM_MERGEABLE: u64 = 1 << 31;

/// What a process has promised not to do with its memory (PR_MDWE_*), and whether all of it is to be
/// merged with equal pages (PR_SET_MEMORY_MERGE). `known`: this kernel has these bits; `merged`: some
/// of its areas are to be.
fn promises(flags: u64, known: bool, merged: bool) -> (u32, bool) {
    const REFUSE_EXEC_GAIN: u32 = 1;
    const NO_INHERIT: u32 = 2;
    if !known {
        return (0, false);
    }
    let newer = flags & MMF_VM_MERGE_ANY != 0;
    if flags & MMF_HAS_MDWE == 0 {
        // Without it there is nothing to inherit: it is the older bit.
        return (0, newer || flags & OLDER_MERGE_ANY != 0);
    }
    match flags & MMF_HAS_MDWE_NO_INHERIT != 0 {
        false => (REFUSE_EXEC_GAIN, newer),
        // One bit of two meanings: who merges everything has areas that say so.
        true if merged && !newer => (REFUSE_EXEC_GAIN, true),
        true => (REFUSE_EXEC_GAIN | NO_INHERIT, newer),
    }
}

/// Reads the address space of a process.
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    task: &Object<'_>,
    mm: &Object<'_>,
    subject: &str,
    root: Option<Place>,
) -> Result<Mm, KernelError> {
    let exe = executable(x, mm, root)?;
    // A bitmap in a struct of its own since v6.18, one word before.
    let flags = words(&mm.get("flags")?.bytes()?)
        .first()
        .copied()
        .unwrap_or(0);
    let (exe, exe_path) = exe.unzip();
    let vmas = vma::read(x, mm, subject, root)?;
    // Of the same release as PR_SET_MDWE: Linux commit bc292ab00f6c ("mm: introduce vma->vm_flags
    // wrapper functions") (in v6.3). Bit 28 was another before.
    let known = x.kernel.offset_of("vm_area_struct", "__vm_flags").is_ok();
    let merged = vmas.iter().any(|vma| vma.flags & VM_MERGEABLE != 0);
    let (mdwe, memory_merge) = promises(flags, known, merged);
    Ok(Mm {
        vmas,
        start_code: mm.u("start_code")?,
        end_code: mm.u("end_code")?,
        start_data: mm.u("start_data")?,
        end_data: mm.u("end_data")?,
        start_brk: mm.u("start_brk")?,
        brk: mm.u("brk")?,
        start_stack: mm.u("start_stack")?,
        arg_start: mm.u("arg_start")?,
        arg_end: mm.u("arg_end")?,
        env_start: mm.u("env_start")?,
        env_end: mm.u("env_end")?,
        auxv: auxiliary_vector(mm)?,
        exe,
        exe_path,
        vdso: mm.ptr("context.vdso").unwrap_or(0),
        def_flags: mm.u("def_flags")?,
        dumpable: u32::try_from(flags & MMF_DUMPABLE).unwrap_or(0),
        thp_disabled: flags & MMF_DISABLE_THP != 0,
        mdwe,
        memory_merge,
        oom_score_adj: task
            .follow("signal")
            .and_then(|s| int(&s, "oom_score_adj"))?,
        core_filter: u32::try_from(flags >> MMF_DUMP_FILTER & DUMP_FILTER).ok(),
        // Key 0 is everybody's. No such member without CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS.
        protection_keys: mm
            .u("context.pkey_allocation_map")
            .map_or(0, |keys| (keys & 0xfffe) as u16),
        // No such member without CONFIG_MEMBARRIER.
        membarrier: mm
            .u("membarrier_state.counter")
            .map_or(0, |state| (state & 0xff) as u32),
        // Read when the threads and descriptors are known.
        aio: Vec::new(),
    })
}

/// `saved_auxv` up to and with AT_NULL.
fn auxiliary_vector(mm: &Object<'_>) -> Result<Vec<u64>, KernelError> {
    const AT_NULL: u64 = 0;
    let all = words(&mm.get("saved_auxv")?.bytes()?);
    let mut out = Vec::new();
    for pair in all.chunks_exact(2) {
        out.extend_from_slice(pair);
        if pair.first() == Some(&AT_NULL) {
            break;
        }
    }
    Ok(out)
}

/// The identity of the file that a mapping or `exe` refers to.
fn executable(
    x: &mut Extraction<'_, '_>,
    mm: &Object<'_>,
    root: Option<Place>,
) -> Result<Option<(ObjectId, String)>, KernelError> {
    let file = mm.ptr("exe_file")?;
    if file == 0 {
        return Ok(None);
    }
    let object = x.kernel.object("file", file)?;
    let name = path::name(x.kernel, Place::of(&object.get("f_path")?)?, root)?;
    Ok(Some((x.file(file, root), name.path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_moved_between_kernels() {
        let bits = |set: &[u32]| set.iter().fold(0, |all, bit| all | 1u64 << bit);
        let read = |set: &[u32], merged| promises(bits(set), true, merged);
        assert_eq!(read(&[], false), (0, false));
        assert_eq!(read(&[28], false), (1, false));
        // v6.4 to v6.6.
        assert_eq!(read(&[29], true), (0, true));
        assert_eq!(read(&[28, 29], true), (1, true));
        // Since v6.7.
        assert_eq!(read(&[28, 29], false), (3, false));
        assert_eq!(read(&[30], true), (0, true));
        assert_eq!(read(&[28, 30], true), (1, true));
        assert_eq!(read(&[28, 29, 30], true), (3, true));
        // Before v6.3 it was MMF_HAS_PINNED.
        assert_eq!(promises(bits(&[28]), false, false), (0, false));
    }
}
