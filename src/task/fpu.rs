//! FPU, SSE and AVX registers of a thread: `task.thread.fpu`.

use crate::dataset::Blob;
use crate::kernel::{Kernel, KernelError, Object, XsaveLayout};

/// `thread_info.flags`: the registers are in memory, not in the CPU. Bit 14,
/// and 19 since x86 uses the flags of all architectures (v6.18). Linux
/// arch/x86/include/asm/thread_info.h.
const TIF_NEED_FPU_LOAD: [u64; 2] = [1 << 14, 1 << 19];
/// Most bytes of an XSAVE area; AMX has 11 KiB.
const MAX_AREA: u64 = 64 << 10;
/// Features whose state the kernel keeps in XSAVE areas of threads.
const LEGACY_FEATURES: u64 = 3;

/// The FPU state of a thread.
#[derive(Clone, Debug)]
pub(super) struct FpuState {
    /// In the standard format.
    pub xsave: Blob,
    /// The true registers were in the CPU.
    pub stale: bool,
}

/// Which bit TIF_NEED_FPU_LOAD is in this kernel, from a user's thread that
/// was not on a CPU: switching away from it set the bit.
pub(crate) fn need_load_bit<'k>(switched_out: impl Iterator<Item = &'k Object<'k>>) -> u64 {
    let mut votes = [0usize; 2];
    for task in switched_out {
        let flags = task.u("thread_info.flags").unwrap_or(0);
        for (vote, bit) in votes.iter_mut().zip(TIF_NEED_FPU_LOAD) {
            *vote += usize::from(flags & bit != 0);
        }
    }
    let [older, newer] = TIF_NEED_FPU_LOAD;
    if votes[1] > votes[0] { newer } else { older }
}

/// Reads it. `on_cpu`: the thread was on a CPU when the host died.
/// `need_load` is what [`need_load_bit`] found.
pub(super) fn read(
    task: &Object<'_>,
    layout: &XsaveLayout,
    need_load: u64,
    on_cpu: bool,
) -> Result<FpuState, KernelError> {
    let kernel = task.kernel();
    let fpu = fpu(task)?;
    let (state, swapped_out) = own_state(&fpu)?;
    let (features, len) = match &state {
        State::Fpstate(fpstate) => (fpstate.u("user_xfeatures")?, fpstate.u("size")?),
        State::Bare(_) => (features_of_cpu(kernel), kernel.size_of("fpregs_state")?),
    };
    let regs = match &state {
        State::Fpstate(fpstate) => fpstate.get("regs")?,
        State::Bare(regs) => regs.clone(),
    };
    if !(512..=MAX_AREA).contains(&len) {
        return Err(KernelError::Damaged {
            what: "fpstate",
            addr: regs.addr(),
            detail: format!("its size is {len}"),
        });
    }
    let mut area = vec![0; usize::try_from(len).unwrap_or(0)];
    kernel.read(regs.addr(), &mut area)?;
    let mut standard = layout.to_standard(&area, features | LEGACY_FEATURES);
    if task.has("thread.pkru") {
        // Kept apart since Linux commit 954436989cc5 ("x86/fpu: Remove PKRU
        // handling from switch_fpu_finish()") (in v5.14).
        let pkru = u32::try_from(task.u("thread.pkru")?).unwrap_or(0);
        layout.set_pkru(&mut standard, pkru);
    }
    let in_memory = swapped_out || task.u("thread_info.flags")? & need_load != 0;
    Ok(FpuState {
        xsave: Blob(standard),
        stale: on_cpu && !in_memory,
    })
}

/// `struct fpu`.
pub(crate) fn fpu<'k>(task: &Object<'k>) -> Result<Object<'k>, KernelError> {
    if task.has("thread.fpu.last_cpu") {
        return task.get("thread.fpu");
    }
    // Behind the task_struct since Linux commit cb7ca40a3882 ("x86/fpu: Make
    // task_struct::thread constant size") (in v6.16).
    let kernel = task.kernel();
    let behind = kernel.size_of("task_struct")?;
    kernel.object("fpu", task.addr().wrapping_add(behind))
}

enum State<'k> {
    Fpstate(Object<'k>),
    /// `union fpregs_state` alone, before Linux 5.16.
    Bare(Object<'k>),
}

/// The thread's own registers, and whether they are out of the CPU because a
/// guest's took their place (KVM_RUN).
fn own_state<'k>(fpu: &Object<'k>) -> Result<(State<'k>, bool), KernelError> {
    if !fpu.has("fpstate") {
        return Ok((State::Bare(fpu.get("state")?), false));
    }
    if fpu.has("__task_fpstate")
        && let Some(own) = fpu.follow_opt("__task_fpstate")?
    {
        return Ok((State::Fpstate(own), true));
    }
    Ok((State::Fpstate(fpu.follow("fpstate")?), false))
}

/// Features of user state, where the state itself does not say.
fn features_of_cpu(kernel: &Kernel) -> u64 {
    let mask = |symbol: &str| kernel.symbol(symbol).and_then(|a| kernel.read_u64(a)).ok();
    mask("xfeatures_mask_all").unwrap_or(LEGACY_FEATURES)
}
