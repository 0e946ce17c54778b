//! Registers of a thread that was just entering the kernel when its CPU was stopped.
//!
//! What a thread had in user mode is put down in the `pt_regs` at the top of its kernel stack, by a few
//! instructions that an NMI may come between. What is there then is of the *last* time that it entered
//! the kernel: a thread that went on from there would have registers of the past and memory of the
//! present. Linux arch/x86/entry/entry_64.S.
//!
//! ```text
//! syscall    entry_SYSCALL_64: the user's RSP is put into the TSS (sp2), then all is pushed
//! interrupt  the CPU pushes five words onto the entry stack (the TSS's sp0), asm_*, and error_entry
//! exception  push the rest; sync_regs copies all of it to the thread's stack
//! ```
//!
//! What was pushed already is on the stack, what was not is in the CPU, whose registers the NMI's handler
//! has saved (`crash_notes`). On the way out nothing of `pt_regs` is overwritten: it is right.

use super::page_cache::words;
use super::registers::{PtRegs, USER_CS, from_words};
use crate::dataset::UserRegs;
use crate::kernel::{Kernel, KernelError, Object};

const SYSCALL_ENTRY: &str = "entry_SYSCALL_64";
/// `syscall`. Bytes.
const SYSCALL_LEN: u64 = 2;
/// `struct pt_regs`. Bytes.
const FRAME: u64 = 21 * 8;
/// What of it the CPU pushes, and the word below that. Bytes.
const HARDWARE: u64 = 5 * 8;
/// `struct entry_stack`. Bytes, at most.
const ENTRY_STACK: u64 = 4096;
/// `__USER_DS`.
const USER_SS: u64 = 0x2b;
/// Not in a system call.
const NO_CALL: u64 = u64::MAX;
/// Code on the way out that is on the entry stack too.
const WAYS_OUT: [&str; 7] = [
    "swapgs_restore_regs_and_return_to_usermode",
    "common_interrupt_return",
    "entry_SYSCALL_64",
    "entry_SYSRETQ",
    "syscall_return_via_sysret",
    "native_i",
    "restore_regs",
];

/// The registers of `task`, which was on `cpu`, if it was entering the kernel; `None`: `saved`, which its
/// `pt_regs` holds, are right.
pub(super) fn registers(
    task: &Object<'_>,
    cpu: u32,
    saved: &PtRegs,
) -> Result<Option<UserRegs>, KernelError> {
    let kernel = task.kernel();
    let Some(now) = kernel.stopped_registers(cpu) else {
        return Ok(None);
    };
    let now = Cpu(now);
    // From user mode an NMI has put all of it down itself.
    if now.cs() & 3 != 0 {
        return Ok(None);
    }
    if let Some(entry) = syscall_entry(kernel, now.rip())? {
        // With the last word that is pushed all of it is there.
        if (task.ptr("stack")?..=saved.at).contains(&now.rsp()) {
            return Ok(None);
        }
        let rsp = match entry {
            Entry::UsersStack => now.rsp(),
            Entry::Later => tss(kernel, cpu, "sp2")?,
        };
        return Ok(Some(of_call(&now, rsp, &saved.regs)));
    }
    let name = kernel
        .symbol_at(now.rip())
        .map_or_else(String::new, |(name, _)| name);
    // The word above all registers is an exception's error code until it is cleared.
    let here = saved.at.saturating_sub(64)..=saved.at;
    if name.starts_with("asm_") && here.contains(&now.rsp()) {
        return Ok(Some(UserRegs {
            orig_rax: NO_CALL,
            ..saved.regs
        }));
    }
    let top = tss(kernel, cpu, "sp0")?;
    let on_entry_stack = top.saturating_sub(ENTRY_STACK)..=top.saturating_sub(HARDWARE);
    if !on_entry_stack.contains(&now.rsp()) || WAYS_OUT.iter().any(|out| name.starts_with(out)) {
        return Ok(None);
    }
    let mut frame = [0; FRAME as usize];
    kernel.read(top.wrapping_sub(FRAME), &mut frame)?;
    Ok(of_interrupt(&now, top, &words(&frame), &name, &saved.regs))
}

/// How far it is in the entry of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// The stack pointer is still the user's.
    UsersStack,
    /// It is in the TSS.
    Later,
}

/// `None`: it is not there, or behind the call of the function that makes the call.
fn syscall_entry(kernel: &Kernel, rip: u64) -> Result<Option<Entry>, KernelError> {
    /// Its pushes, and what else it does before, take less.
    const MOST: usize = 512;
    let start = kernel.symbol(SYSCALL_ENTRY)?;
    let Some(offset) = rip.checked_sub(start).filter(|at| *at < MOST as u64) else {
        return Ok(None);
    };
    let handler = kernel.symbol("do_syscall_64")?;
    let mut code = [0; MOST];
    kernel.read(start, &mut code)?;
    Ok(entry_at(&code, start, offset, handler))
}

fn entry_at(code: &[u8], start: u64, offset: u64, handler: u64) -> Option<Entry> {
    const SWAPGS: [u8; 3] = [0x0f, 0x01, 0xf8];
    const CALL: u8 = 0xe8;
    let call = code.windows(5).enumerate().find_map(|(at, bytes)| {
        let &[CALL, a, b, c, d] = bytes else {
            return None;
        };
        let behind = start.wrapping_add(at as u64 + 5);
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        (behind.wrapping_add_signed(distance) == handler).then_some(at as u64)
    })?;
    if offset > call {
        return None;
    }
    let swapgs = code.windows(3).position(|bytes| bytes == SWAPGS)? as u64;
    // Behind it the stack pointer is put away.
    Some(match offset <= swapgs + 3 {
        true => Entry::UsersStack,
        false => Entry::Later,
    })
}

/// A word of the CPU's task state segment.
fn tss(kernel: &Kernel, cpu: u32, member: &str) -> Result<u64, KernelError> {
    let at = kernel.per_cpu(kernel.symbol("cpu_tss_rw")?, cpu)?;
    let offset = kernel.offset_of("tss_struct", &format!("x86_tss.{member}"))?;
    kernel.read_u64(at.wrapping_add(offset))
}

/// What a CPU had in its registers, in the order of `struct pt_regs`.
struct Cpu([u64; 21]);

impl Cpu {
    fn rip(&self) -> u64 {
        self.0[16]
    }

    fn cs(&self) -> u64 {
        self.0[17]
    }

    fn rsp(&self) -> u64 {
        self.0[19]
    }

    /// The registers that no instruction of an entry has changed yet.
    fn general(&self, beside: &UserRegs) -> UserRegs {
        UserRegs {
            orig_rax: NO_CALL,
            fs_base: beside.fs_base,
            gs_base: beside.gs_base,
            ds: beside.ds,
            es: beside.es,
            fs: beside.fs,
            gs: beside.gs,
            ..from_words(&self.0)
        }
    }
}

/// It is made to come to its `syscall` again: RCX holds the address behind it, R11 the flags.
fn of_call(now: &Cpu, rsp: u64, beside: &UserRegs) -> UserRegs {
    let regs = now.general(beside);
    UserRegs {
        rip: regs.rcx.wrapping_sub(SYSCALL_LEN),
        rflags: regs.r11,
        cs: USER_CS,
        ss: USER_SS,
        rsp,
        ..regs
    }
}

/// What an interrupt or an exception has pushed onto the entry stack, whose top is `top` and whose last
/// words are `frame`, and the rest. `None`: it did not come from user mode.
fn of_interrupt(
    now: &Cpu,
    top: u64,
    frame: &[u64],
    name: &str,
    beside: &UserRegs,
) -> Option<UserRegs> {
    /// Where RSI stands in `pt_regs`, in words.
    const RSI: usize = 13;
    let &[rip, cs, rflags, rsp, ss] = frame.get(16..21)? else {
        return None;
    };
    if cs & 0xffff != USER_CS {
        return None;
    }
    let mut regs = match now.rsp() <= top.wrapping_sub(FRAME) {
        true => Cpu(frame.try_into().ok()?).general(beside),
        false => now.general(beside),
    };
    // error_entry has its return address there meanwhile.
    if name == "error_entry" && now.rsp() <= top.wrapping_sub(FRAME - RSI as u64 * 8) {
        regs.rsi = *frame.get(RSI)?;
    }
    Some(UserRegs {
        rip,
        cs: cs & 0xffff,
        rflags,
        rsp,
        ss: ss & 0xffff,
        ..regs
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0xffff_ffff_8180_0000;
    const HANDLER: u64 = START - 0x1000;

    /// endbr64; swapgs; mov %rsp, %gs:…; pushes; call; pops.
    fn code() -> Vec<u8> {
        let mut code = vec![0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x01, 0xf8];
        code.extend([0x65, 0x48, 0x89, 0x24, 0x25, 0x14, 0x60, 0x00, 0x00]);
        code.extend([0x50; 32]);
        let behind = START + code.len() as u64 + 5;
        let distance = i32::try_from(HANDLER.wrapping_sub(behind).cast_signed()).expect("near");
        code.push(0xe8);
        code.extend(distance.to_le_bytes());
        code.extend([0x58; 32]);
        code
    }

    fn numbered() -> Cpu {
        Cpu(std::array::from_fn(|word| 0x1000 + word as u64))
    }

    #[test]
    fn before_the_call_and_behind_it() {
        let at = |offset| entry_at(&code(), START, offset, HANDLER);
        assert_eq!(at(0), Some(Entry::UsersStack));
        assert_eq!(at(7), Some(Entry::UsersStack), "about to put it away");
        assert_eq!(at(16), Some(Entry::Later));
        assert_eq!(at(48), Some(Entry::Later), "at the call");
        assert_eq!(at(53), None, "on the way out");
        assert_eq!(entry_at(&code(), START, 8, HANDLER + 1), None, "no call");
    }

    #[test]
    fn a_call_that_has_not_begun_is_come_to_again() {
        let stale = UserRegs {
            fs_base: 7,
            orig_rax: 16,
            rip: 5,
            ..UserRegs::default()
        };
        let regs = of_call(&numbered(), 0x7fff_0000, &stale);
        assert_eq!((regs.rip, regs.rflags), (0x100b - 2, 0x1006));
        assert_eq!((regs.rsp, regs.orig_rax), (0x7fff_0000, NO_CALL));
        assert_eq!((regs.rax, regs.r15, regs.rdi), (0x100a, 0x1000, 0x100e));
        assert_eq!((regs.cs, regs.ss, regs.fs_base), (USER_CS, USER_SS, 7));
    }

    #[test]
    fn what_was_pushed_is_on_the_stack_and_the_rest_in_the_cpu() {
        let top = 0xffff_fe00_0000_3000;
        let mut frame: Vec<u64> = (0..21).map(|word| 0x2000 + word).collect();
        frame[17] = USER_CS;
        let beside = UserRegs::default();
        let at = |rsp, name| {
            let mut now = numbered();
            now.0[19] = rsp;
            of_interrupt(&now, top, &frame, name, &beside).expect("from user mode")
        };
        let begun = at(top - 48, "asm_common_interrupt");
        assert_eq!((begun.rip, begun.rsp), (0x2010, 0x2013));
        assert_eq!((begun.rax, begun.rsi), (0x100a, 0x100d));
        let half = at(top - 80, "error_entry");
        assert_eq!((half.rax, half.rsi, half.rdi), (0x100a, 0x200d, 0x100e));
        let all = at(top - FRAME - 8, "error_entry");
        assert_eq!((all.rax, all.rsi, all.r15), (0x200a, 0x200d, 0x2000));
        assert_eq!(all.orig_rax, NO_CALL);
        frame[17] = 0x10;
        let now = numbered();
        assert!(of_interrupt(&now, top, &frame, "error_entry", &beside).is_none());
    }
}
