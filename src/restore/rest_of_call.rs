//! The rest of a call that was under way: made with other arguments than it was begun with.
//!
//! A relative timeout that is to go on with what was left of it, or a write that is to go on behind
//! what was written, is another call than the one that the thread's registers ask for. But a system
//! call leaves its arguments' registers as they are, and code may count on that. So the thread goes on
//! at a few instructions of vmrestore's, which make the call and then give the registers their own
//! values. They stay mapped: nobody knows when the last thread has passed through them. A signal that
//! arrives meanwhile finds the thread in a system call as ever, and the kernel makes it again or lets
//! it return as it would have.

use super::RestoreError;
use super::error::Context;
use super::inject::{Scratch, Tracee};
use crate::dataset::{CallMemory, LentWord, Process, SyscallResume, Thread, UserRegs};
use std::os::unix::fs::FileExt;

/// Each part of a slot begins at a multiple of this.
const ALIGN: usize = 16;
/// Before them: what injected calls are made by.
const FIRST: u64 = 64;
const PAGE: u64 = 4096;

fn threads(process: &Process) -> impl Iterator<Item = (usize, &Thread)> {
    let all = process.threads.iter().enumerate();
    all.filter(|(_, thread)| matches!(thread.resume, SyscallResume::Rest { .. }))
}

/// Bytes of the scratch mapping that stay mapped: whole pages, 0 where no thread needs them.
///
/// # Errors
/// More threads than there is room for.
pub fn bytes(process: &Process) -> Result<u64, RestoreError> {
    let (mut count, mut needed) = (0u64, FIRST);
    for (_, thread) in threads(process) {
        count += 1;
        // As long as it will be, whatever the registers.
        let slot = slot_of(&thread.resume, number(thread), &mut UserRegs::default(), 0);
        needed = needed.saturating_add(slot.len() as u64);
    }
    let needed = match count {
        0 => 0,
        _ => needed.next_multiple_of(PAGE),
    };
    if needed >= Scratch::LEN {
        return Err(RestoreError::Unsupported {
            pid: process.pid,
            what: format!("{count} threads in the middle of calls of which the rest is to be made"),
            why: format!(
                "they need {} KiB, and there is room for {}",
                needed >> 10,
                (Scratch::LEN - PAGE) >> 10
            ),
        });
    }
    Ok(needed)
}

/// Writes the instructions into the scratch mapping and lets the threads' registers lead there.
///
/// # Errors
/// The memory cannot be written.
pub fn write(
    process: &Process,
    tracee: &Tracee,
    goal: &mut [UserRegs],
) -> Result<(), RestoreError> {
    let mut at = tracee.scratch_mapping().start + FIRST;
    for (index, thread) in threads(process) {
        let Some(regs) = goal.get_mut(index) else {
            continue;
        };
        let slot = slot_of(&thread.resume, number(thread), regs, at);
        let memory = tracee.memory();
        memory
            .write_all_at(&slot, at)
            .during(thread.tid, || "write the rest of its call".into())?;
        if let SyscallResume::Rest {
            memory: Some(own), ..
        } = &thread.resume
        {
            let begin = at + (slot.len() - padded(own.bytes.0.len())) as u64;
            for word in &own.lent {
                memory
                    .write_all_at(&during(word, begin).to_le_bytes(), word.address)
                    .during(thread.tid, || {
                        format!("write the rest of its call at {:#x}", word.address)
                    })?;
            }
        }
        at += slot.len() as u64;
    }
    Ok(())
}

/// What a lent word is during the call, with the call's memory at `begin`.
fn during(word: &LentWord, begin: u64) -> u64 {
    match word.points {
        true => word.during.wrapping_add(begin),
        false => word.during,
    }
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Of the call that it was in.
fn number(thread: &Thread) -> u64 {
    match &thread.syscall {
        Some(call) => call.number,
        None => thread.regs.orig_rax,
    }
}

/// The slot at address `at` of a thread that is to go on with `regs`, which are changed to lead there:
/// instructions, a `struct timespec`, the call's memory.
fn slot_of(resume: &SyscallResume, number: u64, regs: &mut UserRegs, at: u64) -> Vec<u8> {
    let SyscallResume::Rest {
        mut args,
        timespec,
        moved,
        ref memory,
    } = *resume
    else {
        return Vec::new();
    };
    let memory = memory.as_deref();
    let mut slot = instructions(regs, moved, memory);
    slot.resize(padded(slot.len()), 0xcc);
    let mut point = |argument: u8, to: usize| {
        if let Some(argument) = args.get_mut(usize::from(argument)) {
            *argument = at + to as u64;
        }
    };
    if let Some((argument, ..)) = timespec {
        point(argument, slot.len());
    }
    let (_, seconds, nanoseconds) = timespec.unwrap_or_default();
    slot.extend(seconds.to_le_bytes());
    slot.extend(nanoseconds.to_le_bytes());
    if let Some(memory) = memory {
        let begin = slot.len();
        slot.extend(&memory.bytes.0);
        for pointer in &memory.pointers {
            let place = begin.saturating_add(*pointer as usize);
            if let Some(word) = slot.get_mut(place..).and_then(|s| s.first_chunk_mut::<8>()) {
                let to = u64::from_le_bytes(*word).wrapping_add(at + begin as u64);
                *word = to.to_le_bytes();
            }
        }
        if let Some(argument) = memory.argument {
            point(argument, begin);
        }
        slot.resize(padded(slot.len()), 0);
    }
    regs.rax = number;
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
    regs.rip = at;
    slot
}

/// The call; then what it returns with what was moved before, the words that were lent, the registers,
/// and where the thread was.
fn instructions(regs: &UserRegs, moved: u64, memory: Option<&CallMemory>) -> Vec<u8> {
    let mut code = vec![0x0f, 0x05]; // syscall
    let load = |code: &mut Vec<u8>, opcode: [u8; 2], value: u64| {
        code.extend(opcode);
        code.extend(value.to_le_bytes());
    };
    let grows = memory.and_then(|m| m.grows);
    let failed = memory.and_then(|m| m.failed).unwrap_or(moved);
    if moved > 0 || failed > 0 {
        let mut counted = Vec::new();
        if let Some((address, by)) = grows {
            load(&mut counted, [0x48, 0xbf], address); // mov rdi, address
            counted.extend([0x81, 0x07]); // add dword [rdi], by
            counted.extend(by.to_le_bytes());
        }
        load(&mut counted, [0x48, 0xb9], moved); // mov rcx, moved
        counted.extend([0x48, 0x01, 0xc8]); // add rax, rcx
        counted.extend([0xeb, 10]); // jmp on
        code.extend([0x48, 0x85, 0xc0]); // test rax, rax
        // It is 41 bytes at most.
        code.extend([0x78, u8::try_from(counted.len()).unwrap_or(0)]); // js failed
        code.extend(counted);
        load(&mut code, [0x48, 0xb8], failed); // failed: mov rax, failed
    }
    for (address, value) in memory
        .into_iter()
        .flat_map(|m| &m.lent)
        .filter_map(|word| Some((word.address, word.after?)))
    {
        load(&mut code, [0x48, 0xbf], address); // mov rdi, address
        load(&mut code, [0x48, 0xbe], value); // mov rsi, value
        code.extend([0x48, 0x89, 0x37]); // mov [rdi], rsi
    }
    load(&mut code, [0x48, 0xbf], regs.rdi);
    load(&mut code, [0x48, 0xbe], regs.rsi);
    load(&mut code, [0x48, 0xba], regs.rdx);
    load(&mut code, [0x49, 0xba], regs.r10);
    load(&mut code, [0x49, 0xb8], regs.r8);
    load(&mut code, [0x49, 0xb9], regs.r9);
    // rcx is what a system call leaves in it: where it returned to.
    load(&mut code, [0x48, 0xb9], regs.rip);
    code.extend([0xff, 0x25, 0, 0, 0, 0]); // jmp [behind]
    code.extend(regs.rip.to_le_bytes());
    code
}

/// Leaves the time that is left where select and its like would: in the caller's memory.
pub fn leave_time(tracee: &Tracee, thread: &Thread) {
    if let SyscallResume::ReissueLeft {
        at,
        seconds,
        fraction,
    } = thread.resume
    {
        let mut words = seconds.to_le_bytes().to_vec();
        words.extend(fraction.to_le_bytes());
        // Where the caller cannot write itself, the kernel writes nothing either.
        if let Err(error) = tracee.memory().write_all_at(&words, at) {
            tracing::warn!("thread {}: its timeout starts anew: {error}", thread.tid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Blob;

    #[test]
    fn the_jump_over_what_counts_leads_behind_it() {
        let grows = CallMemory {
            grows: Some((0x1000, 7)),
            ..CallMemory::default()
        };
        for memory in [None, Some(&grows)] {
            let code = instructions(&UserRegs::default(), 9, memory);
            assert_eq!(code[5], 0x78);
            let failed = 7 + usize::from(code[6]);
            assert_eq!(code[failed..failed + 2], [0x48, 0xb8]);
            // The other way ends behind these ten bytes.
            assert_eq!(code[failed - 2..failed], [0xeb, 10]);
            assert_eq!(code[failed + 10..failed + 12], [0x48, 0xbf]);
        }
    }

    #[test]
    fn pointers_lead_into_the_memory_of_the_call() {
        let resume = SyscallResume::Rest {
            args: [1, 2, 3, 4, 5, 6],
            timespec: None,
            moved: 5,
            memory: Some(Box::new(CallMemory {
                bytes: Blob([16u64, 7, 8].map(u64::to_le_bytes).concat()),
                argument: Some(1),
                pointers: vec![0, 1000],
                ..CallMemory::default()
            })),
        };
        let mut regs = UserRegs::default();
        let slot = slot_of(&resume, 20, &mut regs, 0x1000);
        assert_eq!(regs.rip, 0x1000);
        let begin = usize::try_from(regs.rsi - 0x1000).unwrap();
        assert_eq!(begin + padded(24), slot.len());
        assert_eq!(slot[begin..begin + 8], (regs.rsi + 16).to_le_bytes());
        assert_eq!(slot[begin + 8], 7);
    }
}
