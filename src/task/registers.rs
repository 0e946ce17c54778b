//! User registers: the `pt_regs` at the top of a thread's kernel stack.

use super::page_cache::words;
use crate::dataset::UserRegs;
use crate::kernel::{KernelError, Object};

/// Words in `struct pt_regs`.
const WORDS: usize = 21;
/// Selectors of user code: 64-bit and 32-bit. Linux arch/x86/include/asm/segment.h.
pub(super) const USER_CS: u64 = 0x33;
pub(super) const USER32_CS: u64 = 0x23;

/// `struct pt_regs` of a thread.
pub(super) struct PtRegs {
    pub regs: UserRegs,
    /// Its address.
    pub at: u64,
}

/// The registers that a thread had when it last came from user mode.
pub(crate) fn read(task: &Object<'_>) -> Result<UserRegs, KernelError> {
    find(task).map(|found| found.regs)
}

/// The same, and where they are.
pub(super) fn find(task: &Object<'_>) -> Result<PtRegs, KernelError> {
    let stack = task.ptr("stack")?;
    let mut found = Vec::new();
    for size in stack_sizes(task) {
        // A kernel that can use FRED leaves two words free above pt_regs
        // (TOP_OF_KERNEL_STACK_PADDING, since v6.9).
        for padding in [0, 16] {
            let len = WORDS as u64 * 8;
            let at = stack.wrapping_add(size - padding - len);
            let mut bytes = vec![0; WORDS * 8];
            if let Err(error) = task.kernel().read(at, &mut bytes) {
                found.push(error.to_string());
                continue;
            }
            match plausible(&words(&bytes)) {
                Ok(mut regs) => {
                    segments(task, &mut regs)?;
                    return Ok(PtRegs { regs, at });
                }
                Err(why) => found.push(format!("at {at:#x} {why}")),
            }
        }
    }
    Err(KernelError::Damaged {
        what: "pt_regs of a thread",
        addr: stack,
        detail: found.join("; "),
    })
}

/// THREAD_SIZE: what the kernel mapped for this stack, or what it may be.
fn stack_sizes(task: &Object<'_>) -> Vec<u64> {
    const USUAL: [u64; 3] = [16 << 10, 32 << 10, 8 << 10];
    let mapped = task
        .follow("stack_vm_area")
        .and_then(|area| area.u("nr_pages"))
        .ok()
        .map(|pages| pages.saturating_mul(4096))
        .filter(|size| USUAL.contains(size) || *size == 64 << 10);
    match mapped {
        Some(size) => vec![size],
        None => USUAL.to_vec(),
    }
}

/// Takes 21 words for registers of user mode if they can be.
fn plausible(w: &[u64]) -> Result<UserRegs, String> {
    let words: &[u64; WORDS] = w.try_into().map_err(|_| "there are too few words")?;
    let mut regs = from_words(words);
    // The upper bits are the event's with FRED.
    regs.cs &= 0xffff;
    regs.ss &= 0xffff;
    let UserRegs {
        cs,
        ss,
        rip,
        rflags,
        ..
    } = regs;
    if cs != USER_CS && cs != USER32_CS {
        return Err(format!("cs is {cs:#x}"));
    }
    if ss & 3 != 3 || rip >> 56 != 0 || rflags & 2 == 0 {
        return Err(format!("ss is {ss:#x}, rip {rip:#x}, rflags {rflags:#x}"));
    }
    Ok(regs)
}

/// The words of a `struct pt_regs`, in which segment registers but two, and bases, are not.
pub(super) fn from_words(words: &[u64; WORDS]) -> UserRegs {
    let &[
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        rflags,
        rsp,
        ss,
    ] = words;
    UserRegs {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        rflags,
        rsp,
        ss,
        ..UserRegs::default()
    }
}

/// Segment registers and bases, as the last switch away from the thread saved
/// them. A thread that has run since has them still: what sets them
/// (arch_prctl, clone) writes here too.
fn segments(task: &Object<'_>, regs: &mut UserRegs) -> Result<(), KernelError> {
    let thread = task.get("thread")?;
    regs.fs_base = thread.u("fsbase")?;
    regs.gs_base = thread.u("gsbase")?;
    regs.ds = thread.u("ds")?;
    regs.es = thread.u("es")?;
    regs.fs = thread.u("fsindex")?;
    regs.gs = thread.u("gsindex")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_frame_is_not_taken_for_a_users() {
        let mut frame = vec![0; WORDS];
        frame[15] = 16; // orig_rax
        frame[16] = 0x7f00_0000_1000; // rip
        frame[17] = 0x33;
        frame[18] = 0x246;
        frame[19] = 0x7ffc_0000_0000;
        frame[20] = 0x2b;
        let regs = plausible(&frame);
        assert!(regs.is_ok_and(|r| r.orig_rax == 16 && r.rip == 0x7f00_0000_1000));
        frame[17] = 0x10; // __KERNEL_CS
        assert!(plausible(&frame).is_err());
        frame[17] = 0x33;
        frame[16] = 0xffff_ffff_8100_0000;
        assert!(plausible(&frame).is_err());
        assert!(plausible(&frame[1..]).is_err());
    }
}
