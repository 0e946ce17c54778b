//! Registers: how a thread goes on, its FPU, and that the kernel took both.

use super::RestoreError;
use super::error::Context;
use super::inject::Tracee;
use crate::dataset::{Fidelity, Rseq, SyscallResume, Thread, UserRegs};
use crate::sys::ptrace::{self, Registers};
use std::os::unix::fs::FileExt;

/// Length of the `syscall` instruction. Bytes.
const SYSCALL_LEN: u64 = 2;

/// User mode's 64-bit code segment. Linux arch/x86/include/asm/segment.h.
const USER_CS: u64 = 0x33;

/// RFLAGS bits that user mode may have set by ptrace (`FLAG_MASK` of
/// arch/x86/kernel/ptrace.c), and the one that is always set.
const FLAGS: u64 = 0x0005_4dd5;
const FLAG_TRAP: u64 = 0x100;
const FLAG_FIXED: u64 = 2;
const FLAG_INTERRUPT: u64 = 0x200;

/// Offsets in the XSAVE area: MXCSR, FCW, the kernel's copy of XCR0 (in the
/// bytes that are software's), and the header's XSTATE_BV and XCOMP_BV.
mod xsave {
    pub const FCW: usize = 0;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const XCR0: usize = 464;
    pub const XSTATE_BV: usize = 512;
    pub const XCOMP_BV: usize = 520;
    pub const HEADER_END: usize = 576;
}

/// The registers with which a thread goes on.
///
/// # Errors
/// Registers that no 64-bit thread has.
pub fn resumed(thread: &Thread, aborted_to: Option<u64>) -> Result<UserRegs, RestoreError> {
    let mut regs = thread.regs;
    if regs.cs != USER_CS {
        return Err(RestoreError::Unsupported {
            pid: thread.tid,
            what: "the thread".into(),
            why: format!("it runs 32-bit code (cs {:#x})", regs.cs),
        });
    }
    match thread.resume {
        SyscallResume::UserMode => {
            if let Some(abort) = aborted_to {
                regs.rip = abort;
            }
        }
        SyscallResume::Reissue | SyscallResume::ReissueLeft { .. } => {
            let number = match &thread.syscall {
                Some(call) => call.number,
                None => regs.orig_rax,
            };
            regs.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
            regs.rax = number;
        }
        // It returns to where it would have; the way there is `rest_of_call`'s.
        SyscallResume::Rest { .. } => {}
        SyscallResume::Return { value } => regs.rax = value.cast_unsigned(),
    }
    // So the kernel does not take it for an interrupted call.
    regs.orig_rax = u64::MAX;
    regs.rflags = (regs.rflags & FLAGS & !FLAG_TRAP) | FLAG_FIXED | FLAG_INTERRUPT;
    Ok(regs)
}

fn to_kernel(regs: &UserRegs) -> Registers {
    Registers {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        rax: regs.rax,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        orig_rax: regs.orig_rax,
        rip: regs.rip,
        cs: regs.cs,
        eflags: regs.rflags,
        rsp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
    }
}

/// Sets the registers and reads them back.
///
/// # Errors
/// The kernel refused them, or holds others.
pub fn set(tracee: &Tracee, thread: &Thread, regs: &UserRegs) -> Result<(), RestoreError> {
    let tid = thread.tid;
    let wanted = to_kernel(regs);
    ptrace::set_registers(tracee.tid, &wanted).during(tid, || "set the registers".into())?;
    let got = ptrace::registers(tracee.tid).during(tid, || "read the registers".into())?;
    let differ = |what: &str, wanted: u64, got: u64| {
        Err(RestoreError::Differs {
            pid: tid,
            what: format!("register {what}"),
            wanted: format!("{wanted:#x}"),
            got: format!("{got:#x}"),
        })
    };
    for (what, wanted, got) in [
        ("rip", wanted.rip, got.rip),
        ("rsp", wanted.rsp, got.rsp),
        ("rax", wanted.rax, got.rax),
        ("rbx", wanted.rbx, got.rbx),
        ("rcx", wanted.rcx, got.rcx),
        ("rdx", wanted.rdx, got.rdx),
        ("rsi", wanted.rsi, got.rsi),
        ("rdi", wanted.rdi, got.rdi),
        ("rbp", wanted.rbp, got.rbp),
        ("r8", wanted.r8, got.r8),
        ("r9", wanted.r9, got.r9),
        ("r10", wanted.r10, got.r10),
        ("r11", wanted.r11, got.r11),
        ("r12", wanted.r12, got.r12),
        ("r13", wanted.r13, got.r13),
        ("r14", wanted.r14, got.r14),
        ("r15", wanted.r15, got.r15),
        ("fs_base", wanted.fs_base, got.fs_base),
        ("gs_base", wanted.gs_base, got.gs_base),
        ("orig_rax", wanted.orig_rax, got.orig_rax),
    ] {
        if wanted != got {
            return differ(what, wanted, got);
        }
    }
    if wanted.eflags & FLAGS != got.eflags & FLAGS {
        return differ("rflags", wanted.eflags, got.eflags);
    }
    Ok(())
}

fn word(area: &[u8], at: usize) -> u64 {
    area.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_ne_bytes)
}

fn put(area: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = area.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// The XSAVE area for this kernel: as long as it wants it, of the components
/// that this CPU has. The second value is the components left out.
fn adapt(saved: Option<&[u8]>, live: &[u8]) -> (Vec<u8>, u64) {
    let mut area = vec![0; live.len()];
    // As after FNINIT, for a thread that has never used the FPU.
    put(&mut area, xsave::FCW, &0x37f_u16.to_ne_bytes());
    put(&mut area, xsave::MXCSR, &0x1f80_u32.to_ne_bytes());
    let Some(saved) = saved else {
        return (area, 0);
    };
    let len = saved.len().min(area.len());
    if let (Some(to), Some(from)) = (area.get_mut(..len), saved.get(..len)) {
        to.copy_from_slice(from);
    }
    let here = word(live, xsave::XCR0);
    let components = word(&area, xsave::XSTATE_BV);
    let components = if len < xsave::HEADER_END {
        3 // FXSAVE's: x87 and SSE
    } else {
        components
    };
    let kept = components & here;
    put(&mut area, xsave::XSTATE_BV, &kept.to_ne_bytes());
    put(
        &mut area,
        xsave::XCOMP_BV,
        &[0; xsave::HEADER_END - xsave::XCOMP_BV],
    );
    // The reserved bits of MXCSR raise #GP when they are set.
    let mask = word(live, xsave::MXCSR_MASK) as u32;
    let mask = if mask == 0 { 0xffbf } else { mask };
    let mxcsr = (word(&area, xsave::MXCSR) as u32) & mask;
    put(&mut area, xsave::MXCSR, &mxcsr.to_ne_bytes());
    (area, components & !here)
}

/// Sets the FPU registers and reads them back.
///
/// # Errors
/// The kernel refused them, or holds others.
pub fn set_fpu(
    tracee: &Tracee,
    thread: &Thread,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let tid = thread.tid;
    let live = ptrace::xstate(tracee.tid).during(tid, || "read the FPU registers".into())?;
    let (area, left_out) = adapt(thread.xsave.as_ref().map(|b| b.0.as_slice()), &live);
    ptrace::set_xstate(tracee.tid, &area).during(tid, || "set the FPU registers".into())?;
    let got = ptrace::xstate(tracee.tid).during(tid, || "read the FPU registers".into())?;
    // The header's software bytes (464..512) are the kernel's own.
    let same = got.len() == area.len()
        && [(0..24), (32..416)].into_iter().all(|part| {
            word(&area, xsave::XSTATE_BV) & 3 != 3 || got.get(part.clone()) == area.get(part)
        })
        && got.get(xsave::HEADER_END..) == area.get(xsave::HEADER_END..);
    if !same && word(&area, xsave::XSTATE_BV) & !3 == word(&got, xsave::XSTATE_BV) & !3 {
        let at = got.iter().zip(&area).position(|(a, b)| a != b);
        return Err(RestoreError::Differs {
            pid: tid,
            what: format!("the XSAVE area (byte {})", at.unwrap_or(0)),
            wanted: format!("{:#x} components", word(&area, xsave::XSTATE_BV)),
            got: format!("{:#x} components", word(&got, xsave::XSTATE_BV)),
        });
    }
    if left_out != 0 {
        notes.push(Fidelity::lost(
            format!("thread {tid}"),
            format!("XSAVE components {left_out:#x}"),
            "this CPU has no such registers",
        ));
    }
    Ok(())
}

/// If the thread was inside a restartable sequence: where it must go on
/// instead. The sequence's descriptor is taken out of the area, as the kernel
/// would do it.
///
/// # Errors
/// The area cannot be written.
pub fn abort_sequence(tracee: &Tracee, rip: u64, rseq: &Rseq) -> std::io::Result<Option<u64>> {
    /// Offset of `rseq_cs` in `struct rseq`; bytes of `struct rseq_cs`.
    const POINTER: u64 = 8;
    const LEN: usize = 32;
    let memory = tracee.memory();
    let mut pointer = [0; 8];
    memory.read_exact_at(&mut pointer, rseq.address.wrapping_add(POINTER))?;
    let descriptor = u64::from_ne_bytes(pointer);
    if descriptor == 0 {
        return Ok(None);
    }
    memory.write_all_at(&[0; 8], rseq.address.wrapping_add(POINTER))?;
    let mut bytes = [0; LEN];
    if memory.read_exact_at(&mut bytes, descriptor).is_err() {
        return Ok(None);
    }
    let (start, length, abort) = (word(&bytes, 8), word(&bytes, 16), word(&bytes, 24));
    if rip.wrapping_sub(start) >= length {
        return Ok(None);
    }
    let mut signature = [0; 4];
    let signed = memory
        .read_exact_at(&mut signature, abort.wrapping_sub(4))
        .is_ok()
        && u32::from_ne_bytes(signature) == rseq.signature;
    Ok(signed.then_some(abort))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Vec<u8> {
        let mut live = vec![0; 2696];
        put(&mut live, xsave::XCR0, &0x207_u64.to_ne_bytes());
        put(&mut live, xsave::MXCSR_MASK, &0xffff_u32.to_ne_bytes());
        live
    }

    #[test]
    fn an_area_of_another_length_and_cpu_is_adapted() {
        let mut saved = vec![0xaa; 11008];
        put(&mut saved, xsave::XSTATE_BV, &0x60207_u64.to_ne_bytes());
        let (area, left_out) = adapt(Some(&saved), &live());
        assert_eq!(area.len(), 2696);
        assert_eq!(word(&area, xsave::XSTATE_BV), 0x207);
        assert_eq!(word(&area, xsave::XCOMP_BV), 0);
        assert_eq!(left_out, 0x60000);
        assert_eq!(area[600], 0xaa);
    }

    #[test]
    fn no_area_is_the_initial_state() {
        let (area, _) = adapt(None, &live());
        assert_eq!(&area[..2], [0x7f, 3]);
        assert_eq!(&area[24..28], [0x80, 0x1f, 0, 0]);
        assert_eq!(word(&area, xsave::XSTATE_BV), 0);
    }
}
