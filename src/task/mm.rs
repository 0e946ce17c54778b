//! An address space as a whole: `mm_struct`.

use super::extract::Extraction;
use super::list::int;
use super::page_cache::words;
use super::path::Place;
use super::vma;
use crate::dataset::Mm;
use crate::kernel::{KernelError, Object};

/// `mm.flags`. Linux include/linux/sched/coredump.h.
const MMF_DUMPABLE: u64 = 3;
const MMF_DISABLE_THP: u64 = 1 << 24;

/// Reads the address space of a process.
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    task: &Object<'_>,
    mm: &Object<'_>,
    subject: &str,
    root: Option<Place>,
) -> Result<Mm, KernelError> {
    let exe = vma::executable(x, mm, root)?;
    // A bitmap in a struct of its own since v6.18, one word before.
    let flags = words(&mm.get("flags")?.bytes()?)
        .first()
        .copied()
        .unwrap_or(0);
    let (exe, exe_path) = exe.unzip();
    Ok(Mm {
        vmas: vma::read(x, mm, subject, root)?,
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
        oom_score_adj: task
            .follow("signal")
            .and_then(|s| int(&s, "oom_score_adj"))?,
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
