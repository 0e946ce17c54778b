//! What belongs to one thread alone.

use super::error::Context;
use super::inject::Tracee;
use super::{RestoreError, Syscalls, calls, credentials, signals};
use crate::dataset::{Fidelity, Process, Scheduling, SeccompState, Thread};
use crate::sys::{ptrace, task_control};

/// `SECCOMP_SET_MODE_FILTER`, and bytes of a `struct sock_filter`.
const SET_MODE_FILTER: u64 = 1;
const FILTER_LEN: usize = 8;

/// SCHED_DEADLINE.
const DEADLINE: u32 = 6;

/// Sets everything of a thread but its registers and its signal mask. Memory
/// and dispositions must be in place; credentials come late, since with them
/// goes the right to set most other things.
///
/// # Errors
/// What was refused.
pub fn set(
    process: &Process,
    thread: &Thread,
    tracee: &mut Tracee,
    parent_is_restored: bool,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let tid = thread.tid;
    let subject = format!("pid {} thread {tid}", process.pid);
    let mut name: Vec<u8> = thread.comm.bytes().take(15).collect();
    name.push(0);
    calls::prctl_bytes(tracee, libc::PR_SET_NAME, &name)
        .during(tid, || "prctl(PR_SET_NAME)".into())?;

    calls::plain(tracee, libc::SYS_set_tid_address, [thread.clear_child_tid])
        .during(tid, || "set_tid_address".into())?;
    if let Some(list) = thread.robust_list {
        calls::plain(tracee, libc::SYS_set_robust_list, [list.head, list.len])
            .during(tid, || "set_robust_list".into())?;
    }
    alternate_stack(thread, tracee)?;
    if thread.timer_slack_ns != 0 {
        // Real-time threads have none to set.
        let _ = calls::prctl(tracee, libc::PR_SET_TIMERSLACK, [thread.timer_slack_ns]);
    }
    schedule(tracee.tid, tid, &subject, &thread.scheduling, notes)?;
    signals::queue(tracee, process.ns_pid, Some(thread.ns_tid), &thread.pending)?;

    if thread.no_new_privs {
        calls::prctl(tracee, libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0])
            .during(tid, || "prctl(PR_SET_NO_NEW_PRIVS)".into())?;
    }
    filter(tid, &thread.seccomp, tracee)?;
    credentials::set(tid, tracee, &thread.credentials)?;
    // A change of credentials clears it.
    if thread.pdeath_signal != 0 {
        if parent_is_restored {
            let signal = i64::from(thread.pdeath_signal).cast_unsigned();
            calls::prctl(tracee, libc::PR_SET_PDEATHSIG, [signal])
                .during(tid, || "prctl(PR_SET_PDEATHSIG)".into())?;
        } else {
            notes.push(Fidelity::lost(
                subject.clone(),
                "signal on the parent's death",
                "its parent is not restored, and has died",
            ));
        }
    }
    // Last: from here on the kernel looks at the area whenever the thread runs.
    if let Some(rseq) = thread.rseq {
        let call = [rseq.address, rseq.len.into(), 0, rseq.signature.into()];
        calls::plain(tracee, libc::SYS_rseq, call).during(tid, || "rseq".into())?;
    }
    Ok(())
}

fn alternate_stack(thread: &Thread, tracee: &mut Tracee) -> Result<(), RestoreError> {
    let stack = thread.sigaltstack;
    // SS_ONSTACK says where the thread is, and cannot be set.
    let flags = stack.flags & !libc::SS_ONSTACK.cast_unsigned();
    let flags = if stack.size == 0 {
        libc::SS_DISABLE.cast_unsigned()
    } else {
        flags
    };
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(stack.sp.to_ne_bytes());
    bytes.extend(u64::from(flags).to_ne_bytes());
    bytes.extend(stack.size.to_ne_bytes());
    calls::put(tracee, &bytes)
        .and_then(|at| calls::plain(tracee, libc::SYS_sigaltstack, [at, 0]))
        .during(thread.tid, || "sigaltstack".into())
        .map(drop)
}

/// Policy, priority and CPUs: set from outside, by the thread's ID.
fn schedule(
    live: i32,
    tid: i32,
    subject: &str,
    scheduling: &Scheduling,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    if scheduling.policy == DEADLINE {
        notes.push(Fidelity::lost(
            subject,
            "SCHED_DEADLINE",
            "its parameters are not in the dataset; it is scheduled as others are",
        ));
    } else {
        task_control::set_scheduler(
            live,
            scheduling.policy,
            scheduling.nice,
            scheduling.rt_priority,
        )
        .during(tid, || {
            format!(
                "sched_setattr (policy {}, priority {})",
                scheduling.policy, scheduling.rt_priority
            )
        })?;
    }
    if !scheduling.affinity.is_empty()
        && task_control::set_affinity(live, &scheduling.affinity).is_err()
    {
        notes.push(Fidelity::lost(
            subject,
            "CPU affinity",
            "this host has none of the CPUs that it was bound to",
        ));
    }
    Ok(())
}

/// Installs seccomp filters. They bind nobody until the tracee is let go:
/// PTRACE_O_SUSPEND_SECCOMP.
fn filter(tid: i32, seccomp: &SeccompState, tracee: &mut Tracee) -> Result<(), RestoreError> {
    if seccomp.mode == 0 {
        return Ok(());
    }
    // The dataset says then that they are lost.
    if seccomp.mode == 2 && seccomp.filters.is_empty() {
        return Ok(());
    }
    if !ptrace::suspend_seccomp(tracee.tid) {
        return Err(RestoreError::Unsupported {
            pid: tid,
            what: "its seccomp filters".into(),
            why: "this kernel or container refuses PTRACE_O_SUSPEND_SECCOMP".into(),
        });
    }
    if seccomp.mode == 1 {
        return calls::prctl(tracee, libc::PR_SET_SECCOMP, [1])
            .during(tid, || "prctl(PR_SET_SECCOMP)".into())
            .map(drop);
    }
    let (at, _) = tracee.scratch();
    for program in &seccomp.filters {
        let count = u16::try_from(program.0.len() / FILTER_LEN).unwrap_or(u16::MAX);
        // struct sock_fprog, then the program.
        let mut bytes = u64::from(count).to_ne_bytes().to_vec();
        bytes.extend((at + 16).to_ne_bytes());
        bytes.extend(&program.0);
        calls::put(tracee, &bytes)
            .and_then(|at| calls::plain(tracee, libc::SYS_seccomp, [SET_MODE_FILTER, 0, at]))
            .during(tid, || format!("seccomp filter of {count} instructions"))?;
    }
    Ok(())
}
