//! What belongs to one thread alone.

use super::error::Context;
use super::inject::Tracee;
use super::{Errno, RestoreError, calls, credentials, seccomp, signals};
use crate::dataset::{Fidelity, Process, Scheduling, Thread};
use crate::sys::{ptrace, task_control};

/// `IOPRIO_WHO_PROCESS`.
const IOPRIO_OF_A_TASK: u64 = 1;

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
    if process.personality != 0 {
        calls::plain(tracee, libc::SYS_personality, [process.personality.into()])
            .during(tid, || format!("personality {:#x}", process.personality))?;
    }
    if thread.scheduling.io_priority != 0 {
        let call = [IOPRIO_OF_A_TASK, 0, thread.scheduling.io_priority.into()];
        calls::plain(tracee, libc::SYS_ioprio_set, call).during(tid, || "ioprio_set".into())?;
    }
    control(thread, tracee, &subject, notes);
    if thread.controls.dispatch.is_some() && ptrace::set_dispatch(tracee.tid, None).is_err() {
        return Err(RestoreError::Refused {
            pid: process.pid,
            what: format!("thread {tid}, whose system calls are signals to itself"),
            why: "this kernel lets nobody else set that (PR_SET_SYSCALL_USER_DISPATCH)".into(),
            hint: "a kernel from 6.4 on can (PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG)",
        });
    }
    schedule(tracee.tid, tid, &subject, &thread.scheduling, notes)?;
    signals::queue(tracee, process.ns_pid, Some(thread.ns_tid), &thread.pending)?;

    if thread.no_new_privs {
        calls::prctl(tracee, libc::PR_SET_NO_NEW_PRIVS, [1, 0, 0, 0])
            .during(tid, || "prctl(PR_SET_NO_NEW_PRIVS)".into())?;
    }
    seccomp::install(thread, &subject, tracee, notes)?;
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

/// What it had set of itself. What this kernel or CPU does not know is lost.
fn control(thread: &Thread, tracee: &mut Tracee, subject: &str, notes: &mut Vec<Fidelity>) {
    const PR_SET_SPECULATION_CTRL: i32 = 53;
    const PR_SET_IO_FLUSHER: i32 = 57;
    const ARCH_SET_CPUID: u64 = 0x1012;
    let controls = &thread.controls;
    let mut note = |what: &str, set: Result<u64, Errno>| {
        if let Err(errno) = set {
            notes.push(Fidelity::lost(subject, what, errno.to_string()));
        }
    };
    if controls.tsc_faults {
        let set = calls::prctl(tracee, libc::PR_SET_TSC, [2]);
        note("fault at the time-stamp counter (PR_SET_TSC)", set);
    }
    if controls.cpuid_faults {
        let set = calls::plain(tracee, libc::SYS_arch_prctl, [ARCH_SET_CPUID, 0]);
        note("fault at CPUID (ARCH_SET_CPUID)", set);
    }
    if let Some(early) = controls.memory_error_early {
        // PR_MCE_KILL_SET; PR_MCE_KILL_LATE 0, PR_MCE_KILL_EARLY 1.
        let set = calls::prctl(tracee, libc::PR_MCE_KILL, [1, early.into()]);
        note("policy for memory errors (PR_MCE_KILL)", set);
    }
    if controls.io_flusher {
        let set = calls::prctl(tracee, PR_SET_IO_FLUSHER, [1]);
        note("part in writing data back (PR_SET_IO_FLUSHER)", set);
    }
    for (which, value) in (0u64..).zip(controls.speculation) {
        if value != 0 {
            let set = calls::prctl(tracee, PR_SET_SPECULATION_CTRL, [which, value.into()]);
            note("limit to speculation (PR_SET_SPECULATION_CTRL)", set);
        }
    }
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
        let granted = match &scheduling.deadline {
            Some(d) => {
                let times = [d.runtime, d.deadline, d.period];
                task_control::set_deadline(live, scheduling.nice, times, d.flags)
                    .map_err(|e| format!("sched_setattr: {e}"))
            }
            None => Err("its parameters are not in the dataset".into()),
        };
        if let Err(why) = granted {
            let how = format!("{why}; it is scheduled as others are");
            notes.push(Fidelity::lost(subject, "SCHED_DEADLINE", how));
        }
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
