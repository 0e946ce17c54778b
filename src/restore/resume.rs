//! The last steps: nothing of vmrestore stays in the process, and all of its
//! threads go on at once.

use super::address_space::syscall_instruction;
use super::error::Context;
use super::inject::Scratch;
use super::stub::{Family, Stub};
use super::{RestoreError, calls, registers};
use crate::dataset::{Fidelity, UserRegs};
use crate::sys::{ptrace, task_control};

/// A thread's registers, in the order of the process's threads.
pub type Goal = Vec<UserRegs>;

/// Takes the scratch mapping out of a process and sets all its registers and
/// signal masks. No call can be made in it afterwards.
///
/// # Errors
/// What was refused.
pub fn prepare(
    stub: &mut Stub<'_>,
    goal: &Goal,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let process = stub.process;
    let leader = stub.leader()?;
    let scratch = leader.scratch_mapping().start;
    match syscall_instruction(process, leader.memory()) {
        Some(code) => {
            leader.use_code(code);
            calls::unmap(leader, scratch, Scratch::LEN)
                .during(process.pid, || "munmap of the scratch memory".into())?;
        }
        None => notes.push(Fidelity::reconstructed(
            format!("pid {}", process.pid),
            "address space",
            format!(
                "{} KiB of vmrestore's stay mapped at {scratch:#x}: the process has no \
                 syscall instruction by which to unmap them",
                Scratch::LEN >> 10
            ),
        )),
    }
    for ((tracee, thread), regs) in stub.threads.iter().zip(&process.threads).zip(goal) {
        registers::set(tracee, thread, regs)?;
        ptrace::set_signal_mask(tracee.tid, thread.sigmask)
            .during(thread.tid, || "set the signal mask".into())?;
    }
    Ok(())
}

/// Lets every thread of every process go.
///
/// # Errors
/// None but for a process that was killed meanwhile; by then the others run.
pub fn let_go(family: &mut Family<'_>, paused: bool) -> Result<(), RestoreError> {
    let mut failure = None;
    for stub in &family.stubs {
        if paused || stub.process.stopped {
            // Pending when the tracer lets go, it stops all threads before
            // their first instruction.
            // If that fails, nothing runs yet, and the family is killed.
            task_control::kill(stub.pid, libc::SIGSTOP)
                .during(stub.process.pid, || "send SIGSTOP".into())?;
        }
    }
    // First none of them depends on vmrestore any more, then they go: were it
    // killed in between, no process would run with a part of its threads.
    for stub in &family.stubs {
        for tracee in &stub.threads {
            ptrace::let_outlive(tracee.tid)
                .during(stub.process.pid, || format!("free thread {}", tracee.tid))?;
        }
    }
    for stub in &mut family.stubs {
        for tracee in &stub.threads {
            if let Err(e) = ptrace::detach(tracee.tid)
                .during(stub.process.pid, || format!("let thread {} go", tracee.tid))
            {
                failure.get_or_insert(e);
            }
        }
    }
    family.release();
    failure.map_or(Ok(()), Err)
}
