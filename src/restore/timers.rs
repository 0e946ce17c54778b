//! Interval timers and `timer_create` timers. They start when this is called,
//! so it is called right before the process goes on.

use super::error::Context;
use super::{Errno, RestoreError, Syscalls, calls};
use crate::dataset::{Fidelity, PosixTimer, Process};

const SECOND: u64 = 1_000_000_000;

/// `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15), its ON and OFF.
const RESTORE_IDS: i32 = 77;
const ON: u64 = 1;
const OFF: u64 = 0;

/// How far timer IDs are counted up by making and deleting timers.
const MAX_COUNTED: i32 = 100_000;

/// `struct itimerspec` (or, with 1000 for `unit`, `struct itimerval`).
fn spec(interval_ns: u64, remaining_ns: u64, unit: u64) -> Vec<u8> {
    [
        interval_ns / SECOND,
        interval_ns % SECOND / unit,
        remaining_ns / SECOND,
        remaining_ns % SECOND / unit,
    ]
    .iter()
    .flat_map(|v| v.to_ne_bytes())
    .collect()
}

/// As [`spec`], for an armed timer: it must not be zero, which would disarm it.
pub fn armed(interval_ns: u64, remaining_ns: u64) -> Vec<u8> {
    spec(interval_ns, remaining_ns.max(1), 1)
}

/// Starts a process's timers.
///
/// # Errors
/// What was refused.
pub fn start(
    process: &Process,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let pid = process.pid;
    for timer in &process.itimers {
        let value = spec(timer.interval_ns, timer.remaining_ns.max(1000), 1000);
        calls::put(sys, &value)
            .and_then(|at| calls::plain(sys, libc::SYS_setitimer, [timer.which.into(), at, 0]))
            .during(pid, || format!("setitimer {}", timer.which))?;
    }
    if process.posix_timers.is_empty() {
        return Ok(());
    }
    let chosen = calls::prctl(sys, RESTORE_IDS, [ON, 0, 0, 0]).is_ok();
    let mut timers: Vec<&PosixTimer> = process.posix_timers.iter().collect();
    timers.sort_by_key(|t| t.id);
    for timer in timers {
        create(process, timer, chosen, sys)
            .during(pid, || format!("timer_create of timer {}", timer.id))?;
        if let Some(remaining) = timer.remaining_ns {
            let id = i64::from(timer.id).cast_unsigned();
            calls::put(sys, &armed(timer.interval_ns, remaining))
                .and_then(|at| calls::plain(sys, libc::SYS_timer_settime, [id, 0, at, 0]))
                .during(pid, || format!("timer_settime of timer {}", timer.id))?;
        }
        if timer.overrun != 0 {
            notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("overruns of timer {}", timer.id),
                "no call sets them",
            ));
        }
    }
    if chosen {
        calls::prctl(sys, RESTORE_IDS, [OFF, 0, 0, 0])
            .during(pid, || "prctl(PR_TIMER_CREATE_RESTORE_IDS)".into())?;
    }
    Ok(())
}

/// Makes a timer with the ID that it had. Where the ID cannot be chosen the
/// kernel counts them up: timers are made and deleted until it comes.
fn create(
    process: &Process,
    timer: &PosixTimer,
    chosen: bool,
    sys: &mut dyn Syscalls,
) -> Result<(), Errno> {
    let (at, _) = sys.scratch();
    // struct sigevent (64 bytes: value, signo, notify, tid), then the ID.
    let thread = process
        .threads
        .iter()
        .find(|t| t.tid == timer.thread)
        .map_or(timer.thread, |t| t.ns_tid);
    let mut value = timer.value.0.clone();
    value.resize(8, 0);
    let mut event = value;
    event.extend(timer.signal.to_ne_bytes());
    event.extend(timer.notify.to_ne_bytes());
    event.extend(thread.to_ne_bytes());
    event.resize(64, 0);
    event.extend(timer.id.to_ne_bytes());
    let clock = i64::from(timer.clock).cast_unsigned();
    for _ in 0..MAX_COUNTED {
        calls::put(sys, &event)?;
        calls::plain(sys, libc::SYS_timer_create, [clock, at, at + 64])?;
        let mut id = [0; 4];
        sys.read(at + 64, &mut id)?;
        let id = i32::from_ne_bytes(id);
        if id == timer.id {
            return Ok(());
        }
        calls::plain(sys, libc::SYS_timer_delete, [i64::from(id).cast_unsigned()])?;
        if chosen || id > timer.id {
            break;
        }
    }
    Err(Errno(libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_timer_expires_at_once_rather_than_never() {
        assert_eq!(
            armed(0, 0)[16..],
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
