//! Threads that were on a CPU, and what their CPU still held.
//!
//! Of a host that was stopped from outside, as by a hypervisor, no CPU was told to put its registers
//! down. What the kernel has of a thread is what it last entered the kernel with: right if it was in
//! the kernel, older than the thread if it was in user mode. Which of the two, and the registers
//! themselves, the hypervisor can tell.

use super::fpu;
use super::registers::USER_CS;
use crate::dataset::UserRegs;
use crate::kernel::{Kernel, KernelError, Object};

/// The registers of a thread that was on a CPU.
#[derive(Clone, Debug)]
pub(super) enum Live {
    /// What the kernel has is right: the thread was in the kernel.
    InKernel,
    /// It was in user mode, with these.
    InUserMode(Box<UserRegs>),
    /// Nobody can tell, and why.
    Unknown(&'static str),
}

/// The host did not panic: PANIC_CPU_INVALID. Linux include/linux/panic.h.
pub(super) fn stopped_from_outside(kernel: &Kernel) -> bool {
    const NO_CPU: u32 = u32::MAX;
    kernel
        .symbol("panic_cpu")
        .and_then(|at| kernel.read_u32(at))
        .is_ok_and(|cpu| cpu == NO_CPU)
}

/// What is known of `task`, which was on `cpu`.
pub(super) fn registers(task: &Object<'_>, cpu: u32) -> Result<Live, KernelError> {
    if fpu::runs_a_guest(task)? {
        return Ok(Live::InKernel);
    }
    let kernel = task.kernel();
    let Some(registers) = kernel.cpu_state(cpu)?.and_then(|state| state.registers) else {
        return Ok(Live::Unknown("nobody wrote down what its CPU held"));
    };
    if !has_page_tables(task, registers.cr[3])? {
        return Ok(Live::Unknown("its CPU had the memory of another"));
    }
    if registers.cs.selector & 3 == 0 {
        if is_entry_code(kernel, registers.rip) || !kernel.has_host_gs(cpu, &registers)? {
            return Ok(Live::Unknown(
                "it was on its way between user mode and the kernel",
            ));
        }
        return Ok(Live::InKernel);
    }
    if u64::from(registers.cs.selector) != USER_CS {
        return Ok(Live::Unknown("it was in a mode that is not known"));
    }
    let [r8, r9, r10, r11, r12, r13, r14, r15] = registers.r8_to_r15;
    Ok(Live::InUserMode(Box::new(UserRegs {
        rax: registers.rax,
        rbx: registers.rbx,
        rcx: registers.rcx,
        rdx: registers.rdx,
        rsi: registers.rsi,
        rdi: registers.rdi,
        rbp: registers.rbp,
        rsp: registers.rsp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: registers.rip,
        rflags: registers.rflags,
        cs: u64::from(registers.cs.selector),
        ss: u64::from(registers.ss.selector),
        ds: u64::from(registers.ds.selector),
        es: u64::from(registers.es.selector),
        fs: u64::from(registers.fs.selector),
        gs: u64::from(registers.gs.selector),
        fs_base: registers.fs.base,
        gs_base: registers.gs.base,
        // It came by no system call.
        orig_rax: u64::MAX,
    })))
}

/// FS and GS base of user mode, of a thread on a CPU: the kernel leaves FS alone, and swaps GS for its
/// own. `None`: what the kernel has is the best that is known.
pub(super) fn user_bases(task: &Object<'_>, cpu: u32) -> Result<Option<(u64, u64)>, KernelError> {
    let kernel = task.kernel();
    // KVM saves them before it enters the guest, whose own may be in the CPU.
    if fpu::runs_a_guest(task)? {
        return Ok(None);
    }
    let Some(state) = kernel.cpu_state(cpu)? else {
        return Ok(None);
    };
    let bases = match (state.thread, state.user_bases, state.registers) {
        (Some(thread), Some(bases), _) if thread.task == task.addr() => Some(bases),
        (None, _, Some(r)) if has_page_tables(task, r.cr[3])? => match r.kernel_gs_base {
            _ if r.cs.selector & 3 != 0 => Some((r.fs.base, r.gs.base)),
            Some(gs) if kernel.has_host_gs(cpu, &r)? => Some((r.fs.base, gs)),
            _ => None,
        },
        _ => None,
    };
    // In the few instructions of the entry from user mode GS is not swapped yet.
    Ok(bases.filter(|(fs, gs)| fs >> 56 == 0 && gs >> 56 == 0))
}

/// Where the registers of user mode are put down and taken up again. Unknown is taken for that.
fn is_entry_code(kernel: &Kernel, addr: u64) -> bool {
    let bounds = ["__entry_text_start", "__entry_text_end"].map(|name| kernel.symbol(name));
    match bounds {
        [Ok(start), Ok(end)] => (start..end).contains(&addr),
        _ => true,
    }
}

/// Whether CR3 leads to the page tables of the task's memory.
pub(crate) fn has_page_tables(task: &Object<'_>, cr3: u64) -> Result<bool, KernelError> {
    /// Bits 12 to 51: the others are a PCID and flags.
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    /// With page-table isolation user mode has a table of its own right behind the kernel's.
    const USER_HALF: u64 = 0x1000;
    let Some(mm) = task.follow_opt("mm")? else {
        return Ok(false);
    };
    let tables = task.kernel().virt_to_phys(mm.ptr("pgd")?)?;
    Ok(cr3 & FRAME == tables || cr3 & FRAME == tables | USER_HALF)
}
