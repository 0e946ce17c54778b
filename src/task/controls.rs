//! What a thread had set of itself by prctl(2) and its like, and seldom does.

use super::extract::Extraction;
use crate::dataset::{Controls, Dispatch};
use crate::kernel::{KernelError, Object};

/// `task.flags`. Linux include/linux/sched.h.
const PF_MCE_PROCESS: u64 = 0x80;
const PF_MCE_EARLY: u64 = 0x0800_0000;
const PF_MEMALLOC_NOIO: u64 = 0x0008_0000;
const PF_LOCAL_THROTTLE: u64 = 0x0010_0000;
const IO_FLUSHER: u64 = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
/// Bits of `task.atomic_flags`: store bypass, forced, indirect branches, forced, store bypass until
/// the next execve.
const PFA_SSB_DISABLE: u64 = 3;
const PFA_SSB_FORCE: u64 = 4;
const PFA_IB_DISABLE: u64 = 5;
const PFA_IB_FORCE: u64 = 6;
const PFA_SSB_NOEXEC: u64 = 7;
/// PR_SPEC_*. Linux include/uapi/linux/prctl.h.
const SPEC_DISABLE: u32 = 1 << 2;
const SPEC_FORCE_DISABLE: u32 = 1 << 3;
const SPEC_DISABLE_NOEXEC: u32 = 1 << 4;
/// The bit of `thread_info.syscall_work`, where the enumeration is not in the BTF.
const WORK_USER_DISPATCH: i64 = 6;
/// TIF_IO_BITMAP, in both layouts of the flags.
const TIF_IO_BITMAP: u64 = 1 << 22;

/// Reads them. `need_load`: see [`super::fpu::need_load_bit`].
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    task: &Object<'_>,
    need_load: u64,
    subject: &str,
) -> Result<Controls, KernelError> {
    let flags = task.u("flags")?;
    let thread_flags = task.u("thread_info.flags")?;
    // Right above TIF_NEED_FPU_LOAD in both layouts: TIF_NOCPUID, TIF_NOTSC. Linux
    // arch/x86/include/asm/thread_info.h.
    let (no_cpuid, no_tsc) = (need_load << 1, need_load << 2);
    beyond_reach(x, task, thread_flags, subject);
    let atomic = task.u("atomic_flags")?;
    let is = |bit: u64| atomic >> bit & 1 != 0;
    let store_bypass = match () {
        () if is(PFA_SSB_FORCE) => SPEC_FORCE_DISABLE,
        () if is(PFA_SSB_NOEXEC) => SPEC_DISABLE_NOEXEC,
        () if is(PFA_SSB_DISABLE) => SPEC_DISABLE,
        () => 0,
    };
    let branches = match () {
        () if is(PFA_IB_FORCE) => SPEC_FORCE_DISABLE,
        () if is(PFA_IB_DISABLE) => SPEC_DISABLE,
        () => 0,
    };
    Ok(Controls {
        tsc_faults: thread_flags & no_tsc != 0,
        cpuid_faults: thread_flags & no_cpuid != 0,
        memory_error_early: (flags & PF_MCE_PROCESS != 0).then_some(flags & PF_MCE_EARLY != 0),
        io_flusher: flags & IO_FLUSHER == IO_FLUSHER,
        speculation: [store_bypass, branches],
        dispatch: dispatch(task)?,
    })
}

/// PR_SET_SYSCALL_USER_DISPATCH, where the kernel has it (since v5.11).
fn dispatch(task: &Object<'_>) -> Result<Option<Dispatch>, KernelError> {
    if !task.has("syscall_dispatch.selector") {
        return Ok(None);
    }
    let bit = task
        .kernel()
        .enum_value("syscall_work_bit", "SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH")
        .unwrap_or(WORK_USER_DISPATCH);
    if task.u("thread_info.syscall_work")? >> (bit & 63) & 1 == 0 {
        return Ok(None);
    }
    Ok(Some(Dispatch {
        offset: task.u("syscall_dispatch.offset")?,
        len: task.u("syscall_dispatch.len")?,
        selector: task.u("syscall_dispatch.selector")?,
    }))
}

/// What nothing here makes again: it is said.
fn beyond_reach(x: &mut Extraction<'_, '_>, task: &Object<'_>, thread_flags: u64, subject: &str) {
    let set = |path: &str| task.has(path) && task.u(path).is_ok_and(|value| value != 0);
    let ldt = || {
        let mm = task.follow_opt("mm").ok()??;
        mm.ptr("context.ldt").ok().filter(|at| *at != 0)
    };
    for (is_set, what) in [
        (
            thread_flags & TIF_IO_BITMAP != 0 && set("thread.io_bitmap"),
            "I/O ports (ioperm)",
        ),
        (set("thread.iopl_emul"), "I/O privilege level (iopl)"),
        (set("core_cookie"), "core scheduling group"),
        (ldt().is_some(), "local descriptor table (modify_ldt)"),
    ] {
        if is_set {
            x.lost(subject, what, "it is not set again");
        }
    }
}
