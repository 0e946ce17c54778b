//! The last steps: nothing of vmrestore stays in the process, and all of its
//! threads go on at once.

use super::address_space::syscall_instruction;
use super::error::Context;
use super::inject::{Scratch, Tracee};
use super::stub::{Family, Stub};
use super::{RestoreError, calls, promises, registers, rest_of_call};
use crate::dataset::{Fidelity, Process, UserRegs};
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
    goal: &mut Goal,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let process = stub.process;
    let leader = stub.leader()?;
    let scratch = leader.scratch_mapping().start;
    let kept = rest_of_call::bytes(process)?;
    match syscall_instruction(process, leader.memory()) {
        _ if kept > 0 => {
            rest_of_call::write(process, leader, goal)?;
            calls::protect(leader, scratch, kept, libc::PROT_READ | libc::PROT_EXEC)
                .during(process.pid, || "mprotect of the rest of its calls".into())?;
            promises::no_more_code(process, leader, notes);
            calls::unmap(leader, scratch + kept, Scratch::LEN - kept)
                .during(process.pid, || "munmap of the scratch memory".into())?;
            notes.push(Fidelity::reconstructed(
                format!("pid {}", process.pid),
                "address space",
                format!(
                    "{} KiB of vmrestore's stay mapped at {scratch:#x}: threads return through \
                     them from calls that go on where they were",
                    kept >> 10
                ),
            ));
        }
        Some(code) => {
            leader.use_code(code);
            promises::no_more_code(process, leader, notes);
            calls::unmap(leader, scratch, Scratch::LEN)
                .during(process.pid, || "munmap of the scratch memory".into())?;
        }
        None => {
            promises::no_more_code(process, leader, notes);
            notes.push(Fidelity::reconstructed(
                format!("pid {}", process.pid),
                "address space",
                format!(
                    "{} KiB of vmrestore's stay mapped at {scratch:#x}: the process has no \
                     syscall instruction by which to unmap them",
                    Scratch::LEN >> 10
                ),
            ));
        }
    }
    end_leader(process, leader, goal, scratch)?;
    for ((tracee, thread), regs) in stub.threads.iter().zip(&process.threads).zip(goal.iter()) {
        registers::set(tracee, thread, regs)?;
        if let Some(dispatch) = thread.controls.dispatch {
            let area = [dispatch.offset, dispatch.len];
            ptrace::set_dispatch(tracee.tid, Some((area, dispatch.selector)))
                .during(thread.tid, || "set which of its calls are signals".into())?;
        }
        ptrace::set_signal_mask(tracee.tid, thread.sigmask)
            .during(thread.tid, || "set the signal mask".into())?;
    }
    Ok(())
}

/// A first thread that had ended before the others ends again: exit(2) is all that it does.
fn end_leader(
    process: &Process,
    leader: &Tracee,
    goal: &mut Goal,
    scratch: u64,
) -> Result<(), RestoreError> {
    let Some(status) = process.threads.first().and_then(|t| t.ended) else {
        return Ok(());
    };
    // Without one of the process's own the scratch mapping stays, and begins with one.
    let by = syscall_instruction(process, leader.memory()).unwrap_or(scratch);
    if let Some(regs) = goal.first_mut() {
        regs.rip = by;
        regs.rax = libc::SYS_exit.cast_unsigned();
        regs.rdi = i64::from(status >> 8 & 0xff).cast_unsigned();
    }
    Ok(())
}

/// Lets every thread of every process go. `commit` makes it durable that they run: what dies before
/// it has been called has not run, and what has been told to it runs, whatever becomes of vmrestore.
///
/// # Errors
/// Those of `commit`, and of a process that was killed meanwhile: then all of them are.
pub fn let_go<E: From<RestoreError>>(
    family: &mut Family<'_>,
    paused: bool,
    commit: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    for stub in &family.stubs {
        if paused || stub.process.stopped {
            // Pending when the tracer lets go, it stops all threads before
            // their first instruction.
            // If that fails, nothing runs yet, and the family is killed.
            task_control::kill(stub.pid, libc::SIGSTOP)
                .during(stub.process.pid, || "send SIGSTOP".into())?;
        }
    }
    // First none of them depends on vmrestore any more, then they go: were it killed in between, no
    // process would run with a part of its threads. Those who were made last are the first to be
    // killed or let go at its end, so a process is not let go by one thread and killed by another.
    family.ready_init()?;
    for stub in &family.stubs {
        for tracee in &stub.threads {
            ptrace::let_outlive(tracee.tid)
                .during(stub.process.pid, || format!("free thread {}", tracee.tid))?;
        }
    }
    commit()?;
    let mut failure = None;
    for stub in &family.stubs {
        for tracee in &stub.threads {
            if let Err(e) = ptrace::detach(tracee.tid)
                .during(stub.process.pid, || format!("let thread {} go", tracee.tid))
            {
                failure.get_or_insert(e);
            }
        }
    }
    if failure.is_some() {
        // The others run already; half of them is worse than none.
        for stub in &family.stubs {
            let _ = task_control::kill(stub.pid, libc::SIGKILL);
        }
    }
    family.release();
    failure.map_or(Ok(()), |error| Err(error.into()))
}
