//! Signals: dispositions, what is pending.

use super::error::Context;
use super::{Errno, RestoreError, Syscalls, calls};
use crate::dataset::{PendingSignal, Process, SigAction};

const SIGNALS: u32 = 64;

/// Bytes of `siginfo_t`.
const SIGINFO_LEN: usize = 128;

/// `SI_KERNEL`-less: what kill(2) would have sent, for a signal of which the
/// kernel kept only the bit.
const SI_USER: i32 = 0;

fn catchable(signal: u32) -> bool {
    (1..=SIGNALS).contains(&signal)
        && signal != libc::SIGKILL.cast_unsigned()
        && signal != libc::SIGSTOP.cast_unsigned()
}

/// Sets every signal's disposition.
///
/// # Errors
/// rt_sigaction refused.
pub fn set_actions(process: &Process, sys: &mut dyn Syscalls) -> Result<(), RestoreError> {
    for signal in (1..=SIGNALS).filter(|s| catchable(*s)) {
        let action = process.sigactions.iter().find(|a| a.signal == signal);
        set_action(sys, signal, action)
            .during(process.pid, || format!("rt_sigaction of signal {signal}"))?;
    }
    Ok(())
}

fn set_action(
    sys: &mut dyn Syscalls,
    signal: u32,
    action: Option<&SigAction>,
) -> Result<(), Errno> {
    let words = action.map_or([0; 4], |a| [a.handler, a.flags, a.restorer, a.mask]);
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let at = calls::put(sys, &bytes)?;
    calls::plain(sys, libc::SYS_rt_sigaction, [signal.into(), at, 0, 8]).map(drop)
}

/// Queues signals for the whole process (`None`), or for the thread that makes
/// the calls. Every signal must be blocked in it. `pid` and `tid` are those in
/// its own namespace; only to itself may a task send any siginfo.
///
/// # Errors
/// rt_sigqueueinfo refused.
pub fn queue(
    sys: &mut dyn Syscalls,
    pid: i32,
    tid: Option<i32>,
    pending: &[PendingSignal],
) -> Result<(), RestoreError> {
    for signal in pending.iter().filter(|p| catchable(p.signal)) {
        let mut info = signal.info.0.clone();
        info.resize(SIGINFO_LEN, 0);
        if signal.info.0.is_empty() {
            let head = [signal.signal.cast_signed(), 0, SI_USER];
            for (to, from) in info.chunks_mut(4).zip(head) {
                to.copy_from_slice(&from.to_ne_bytes());
            }
        }
        let number = signal.signal.into();
        let process = i64::from(pid).cast_unsigned();
        calls::put(sys, &info)
            .and_then(|at| match tid {
                None => calls::plain(sys, libc::SYS_rt_sigqueueinfo, [process, number, at]),
                Some(tid) => {
                    let tid = i64::from(tid).cast_unsigned();
                    calls::plain(sys, libc::SYS_rt_tgsigqueueinfo, [process, tid, number, at])
                }
            })
            .during(tid.unwrap_or(pid), || {
                format!("queue the pending signal {}", signal.signal)
            })?;
    }
    Ok(())
}
