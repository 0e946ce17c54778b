//! Signals: dispositions, masks, and what is queued.

use super::list::int;
use crate::dataset::{Blob, PendingSignal, SigAction, SignalStack};
use crate::kernel::{KernelError, Object, containers};

/// Signals 1 to 64.
const SIGNALS: u32 = 64;
/// Bytes of a `siginfo_t` of user space; the kernel's is its beginning.
const SIGINFO: usize = 128;

/// Dispositions of all signals (`sighand.action`).
pub(super) fn actions(task: &Object<'_>) -> Result<Vec<SigAction>, KernelError> {
    let table = task.follow("sighand")?.get("action")?;
    (0..SIGNALS)
        .map(|i| {
            let action = table.element(u64::from(i))?.get("sa")?;
            Ok(SigAction {
                signal: i + 1,
                handler: action.ptr("sa_handler")?,
                flags: action.u("sa_flags")?,
                restorer: action.ptr("sa_restorer")?,
                mask: action.u("sa_mask.sig[0]")?,
            })
        })
        .collect()
}

/// What is queued in a `struct sigpending`, in order.
pub(super) fn pending(pending: &Object<'_>) -> Result<Vec<PendingSignal>, KernelError> {
    let mut set = pending.u("signal.sig[0]")?;
    let mut out = Vec::new();
    for queued in containers::list(&pending.get("list")?, "sigqueue", "list")? {
        let info = queued.get("info")?;
        let signal = u32::try_from(int(&info, "si_signo")?).unwrap_or(0);
        if !(1..=SIGNALS).contains(&signal) {
            return Err(KernelError::Damaged {
                what: "sigqueue",
                addr: queued.addr(),
                detail: format!("signal {signal}"),
            });
        }
        let mut bytes = info.bytes()?;
        bytes.resize(SIGINFO, 0);
        out.push(PendingSignal {
            signal,
            info: Blob(bytes),
        });
        set &= !(1 << (signal - 1));
    }
    // A bit alone: the kernel had no room for its siginfo.
    for bit in 0..SIGNALS {
        if set >> bit & 1 != 0 {
            out.push(PendingSignal {
                signal: bit + 1,
                info: Blob::default(),
            });
        }
    }
    Ok(out)
}

/// The signal that a traced thread was about to get when it stopped for its tracer, who had not said
/// yet what to do about it. Linux kernel/signal.c, ptrace_stop().
pub(super) fn before_delivery(task: &Object<'_>) -> Result<Option<PendingSignal>, KernelError> {
    // The stop's code: events have more than a signal's number, and system calls SIGTRAP | 0x80.
    let signal = u32::try_from(int(task, "exit_code")?).unwrap_or(0);
    let Some(info) = task.follow_opt("last_siginfo")? else {
        return Ok(None);
    };
    if !(1..=SIGNALS).contains(&signal) || info.i("si_signo")? != i64::from(signal) {
        return Ok(None);
    }
    let mut bytes = info.bytes()?;
    bytes.resize(SIGINFO, 0);
    Ok(Some(PendingSignal {
        signal,
        info: Blob(bytes),
    }))
}

/// The blocked signals that hold once the call that the thread is in is over.
pub(super) fn mask(task: &Object<'_>, syscall: Option<u64>) -> Result<u64, KernelError> {
    const RT_SIGSUSPEND: u64 = 130;
    let saved = task.u("saved_sigmask.sig[0]")?;
    // sigsuspend() restores its caller's mask by a flag that it sets only when
    // it wakes up; ppoll and its like set theirs before they sleep.
    if syscall == Some(RT_SIGSUSPEND) || restores_mask(task)? {
        return Ok(saved);
    }
    // sigtimedwait() unblocks what it waits for, and keeps the mask here.
    let real = task.u("real_blocked.sig[0]")?;
    if real != 0 {
        return Ok(real);
    }
    task.u("blocked.sig[0]")
}

/// The mask is put back on the way out of the system call.
fn restores_mask(task: &Object<'_>) -> Result<bool, KernelError> {
    const TS_RESTORE_SIGMASK: u64 = 8;
    if task.has("restore_sigmask") {
        return Ok(task.u("restore_sigmask")? != 0);
    }
    Ok(task.u("thread_info.status")? & TS_RESTORE_SIGMASK != 0)
}

/// `sigaltstack`.
pub(super) fn alternate_stack(task: &Object<'_>) -> Result<SignalStack, KernelError> {
    Ok(SignalStack {
        sp: task.u("sas_ss_sp")?,
        flags: u32::try_from(task.u("sas_ss_flags")?).unwrap_or(0),
        size: task.u("sas_ss_size")?,
    })
}
