//! FPU, SSE and AVX registers of a thread: `task.thread.fpu`.

use crate::dataset::Blob;
use crate::kernel::{CpuState, Kernel, KernelError, Object, StoppedAt, XsaveLayout};

/// `thread_info.flags`: the registers are in memory, not in the CPU. Bit 14,
/// and 19 since x86 uses the flags of all architectures (v6.18). Linux
/// arch/x86/include/asm/thread_info.h.
const TIF_NEED_FPU_LOAD: [u64; 2] = [1 << 14, 1 << 19];
/// Most bytes of an XSAVE area; AMX has 11 KiB.
const MAX_AREA: u64 = 64 << 10;
/// Features whose state the kernel keeps in XSAVE areas of threads.
const LEGACY_FEATURES: u64 = 3;

/// Bytes of an XSAVE area that are the software's: features that it may have.
const XCR0: std::ops::Range<usize> = 464..472;

/// The FPU state of a thread.
#[derive(Clone, Debug)]
pub(super) struct FpuState {
    /// In the standard format.
    pub xsave: Blob,
    /// Where it is from.
    pub found: Found,
}

/// Where the FPU registers of a thread, or of the guest that it ran, were when the host died.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// In memory, where the kernel saves them.
    InMemory,
    /// In the CPU, and somebody wrote them down.
    Kept(Box<CpuState>),
    /// In the CPU, and what is in memory is older. Why nobody has them.
    Lost(String),
}

/// Where they were. `in_memory` is what the thread's flags say: `TIF_NEED_FPU_LOAD`.
pub(crate) fn find(task: &Object<'_>, on_cpu: Option<u32>, in_memory: bool) -> Found {
    let Some(cpu) = on_cpu else {
        return Found::InMemory;
    };
    let kernel = task.kernel();
    let state = match kernel.cpu_state(cpu) {
        Ok(state) => state,
        Err(_) if in_memory => None,
        Err(error) => return Found::Lost(error.to_string()),
    };
    if let Some(mover) = in_transit(kernel, cpu) {
        // The flag and the registers are changed one after the other.
        return Found::Lost(format!(
            "its CPU was stopped in {mover}, in the middle of moving them"
        ));
    }
    let Some(state) = state else {
        if in_memory {
            return Found::InMemory;
        }
        return Found::Lost(if kernel.has_keeper() {
            format!("CPU {cpu} did not answer the stop, so the keeper has not saved them")
        } else {
            "they were in the CPU, where a dying kernel leaves them (docs/keeper.md says how to \
             keep them)"
                .into()
        });
    };
    match state.thread {
        // Of another thread: this one was being switched to or from.
        Some(thread) if thread.task != task.addr() => Found::Lost(format!(
            "what {} saved of CPU {cpu} is of the thread {}",
            state.source, thread.pid
        )),
        Some(thread) if thread.fpu_in_memory => Found::InMemory,
        None if in_memory => Found::InMemory,
        _ if state.fpu.is_none() => {
            Found::Lost(format!("{} do not say what they were", state.source))
        }
        _ => Found::Kept(Box::new(state)),
    }
}

/// The function that moves FPU registers between a CPU and memory, if the CPU was stopped in one:
/// then neither place can be trusted.
fn in_transit(kernel: &Kernel, cpu: u32) -> Option<String> {
    let stopped = kernel.stopped_anyhow(cpu)?;
    if stopped.user {
        return None;
    }
    let mover = |addr: u64| {
        let (name, _) = kernel.symbol_at(addr)?;
        moves_fpu_registers(&name).then_some(name)
    };
    if let Some(name) = mover(stopped.rip) {
        return Some(name);
    }
    // Of the panicking CPU the registers are those of its way down: where it came from is on its
    // stack.
    let panicking = kernel
        .symbol("panic_cpu")
        .and_then(|at| kernel.read_u32(at))
        .is_ok_and(|n| n == cpu);
    panicking
        .then(|| stack_words(kernel, &stopped).into_iter().find_map(mover))
        .flatten()
}

/// What stands on the stack up to the end of its page.
fn stack_words(kernel: &Kernel, stopped: &StoppedAt) -> Vec<u64> {
    const PAGE: u64 = 4096;
    let at = stopped.rsp & !7;
    let len = PAGE - at % PAGE;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    match kernel.read(at, &mut bytes) {
        Ok(()) => super::page_cache::words(&bytes),
        Err(_) => Vec::new(),
    }
}

/// Linux arch/x86/kernel/fpu/, arch/x86/kernel/process_64.c: functions within which
/// `TIF_NEED_FPU_LOAD`, `fpu.fpstate` and the registers may disagree.
fn moves_fpu_registers(name: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "__switch_to",
        "switch_fpu",
        "fpu_",
        "fpu__",
        "__fpu_",
        "kernel_fpu_",
        "save_fpregs",
        "restore_fpregs",
        "fpregs_",
        "copy_fpstate",
        "xfd_",
        "os_x",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
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

/// Reads it. `on_cpu`: the CPU that the thread was on when the host died.
/// `need_load` is what [`need_load_bit`] found.
pub(super) fn read(
    task: &Object<'_>,
    layout: &XsaveLayout,
    need_load: u64,
    on_cpu: Option<u32>,
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
    let in_memory = swapped_out || task.u("thread_info.flags")? & need_load != 0;
    // Within KVM_RUN those in the CPU are the guest's.
    let found = if swapped_out {
        Found::InMemory
    } else {
        find(task, on_cpu, in_memory)
    };
    if let Found::Kept(state) = &found
        && let Some(kept) = &state.fpu
    {
        area.clone_from(kept);
    }
    let mut standard = layout.to_standard(&area, features | LEGACY_FEATURES);
    // Where ptrace and signal frames say the same. Linux arch/x86/include/uapi/asm/sigcontext.h.
    if let Some(place) = standard.get_mut(XCR0) {
        place.copy_from_slice(&(features | LEGACY_FEATURES).to_le_bytes());
    }
    let live_pkru = live_pkru(kernel, on_cpu, task);
    // Within KVM_RUN that in the CPU may be the guest's.
    if let Some(pkru) = live_pkru.filter(|_| !swapped_out) {
        layout.set_pkru(&mut standard, pkru);
    } else if task.has("thread.pkru") {
        // Kept apart since Linux commit 954436989cc5 ("x86/fpu: Remove PKRU
        // handling from switch_fpu_finish()") (in v5.14).
        let pkru = u32::try_from(task.u("thread.pkru")?).unwrap_or(0);
        layout.set_pkru(&mut standard, pkru);
    }
    Ok(FpuState {
        xsave: Blob(standard),
        found,
    })
}

/// The protection-key rights of a thread on a CPU: the kernel leaves them in the CPU while it works
/// for the thread, and saves them when it switches away.
fn live_pkru(kernel: &Kernel, on_cpu: Option<u32>, task: &Object<'_>) -> Option<u32> {
    let state = kernel.cpu_state(on_cpu?).ok()??;
    let thread = state.thread?;
    state.pkru.filter(|_| thread.task == task.addr())
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

/// Its own registers are out of the CPU because a guest's took their place: it is within KVM_RUN.
pub(super) fn runs_a_guest(task: &Object<'_>) -> Result<bool, KernelError> {
    Ok(own_state(&fpu(task)?)?.1)
}

/// Features of user state, where the state itself does not say.
fn features_of_cpu(kernel: &Kernel) -> u64 {
    let mask = |symbol: &str| kernel.symbol(symbol).and_then(|a| kernel.read_u64(a)).ok();
    mask("xfeatures_mask_all").unwrap_or(LEGACY_FEATURES)
}
