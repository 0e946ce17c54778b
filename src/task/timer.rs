//! Timers of a process: timerfds, interval timers, and those of timer_create.

use super::clock::Clocks;
use super::list::int;
use crate::dataset::{Blob, FileKind, IntervalTimer, PosixTimer};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// `hrtimer.state`: it is on a queue.
const ENQUEUED: u64 = 1;

/// Time until a `struct hrtimer` expires; `None` when it is not armed.
/// Nanoseconds, negative when it is late.
fn remaining(clocks: &Clocks, timer: &Object<'_>) -> Result<Option<i64>, KernelError> {
    // A bool instead of bits since v7.1 or so.
    let queued = if timer.has("is_queued") {
        timer.u("is_queued")?
    } else {
        timer.u("state")? & ENQUEUED
    };
    if queued == 0 {
        return Ok(None);
    }
    let clock = timer.follow("base")?.i("clockid")?;
    let expires = timer.i("node.expires")?;
    Ok(Some(expires.saturating_sub(clocks.now(clock))))
}

/// Time until a `struct alarm` fires; `None` when it is not armed.
fn alarm_remaining(
    clocks: &Clocks,
    alarm: &Object<'_>,
    clock: i64,
) -> Result<Option<i64>, KernelError> {
    if alarm.u("state")? & ENQUEUED == 0 {
        return Ok(None);
    }
    let expires = alarm.i("node.expires")?;
    Ok(Some(expires.saturating_sub(clocks.now(clock))))
}

/// CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM.
fn is_alarm_clock(clock: i64) -> bool {
    clock == 8 || clock == 9
}

/// Reads the `timerfd_ctx` at `addr`.
pub(super) fn timerfd(
    clocks: &Clocks,
    kernel: &Kernel,
    addr: u64,
) -> Result<FileKind, KernelError> {
    let context = kernel.object("timerfd_ctx", addr)?;
    let clock = i64::from(int(&context, "clockid")?);
    let interval = context.i("tintv")?;
    let mut ticks = context.u("ticks")?;
    let (armed, late) = if is_alarm_clock(clock) {
        let alarm = context.get("t.alarm")?;
        let expires = alarm.i("node.expires")?;
        (
            alarm_remaining(clocks, &alarm, clock)?,
            clocks.now(clock).saturating_sub(expires),
        )
    } else {
        // Its own clock is not always the descriptor's: relative times of
        // CLOCK_REALTIME are kept by CLOCK_MONOTONIC.
        let timer = context.get("t.tmr")?;
        let own = timer.follow("base")?.i("clockid")?;
        let expires = timer.i("node.expires")?;
        (
            remaining(clocks, &timer)?,
            clocks.now(own).saturating_sub(expires),
        )
    };
    // A periodic timer that has expired is armed again only by the read: until
    // then its further periods are implied.
    let remaining_ns = match armed {
        None if context.u("expired")? != 0 && interval > 0 => {
            let late = late.max(0);
            ticks = ticks.saturating_add((late / interval).unsigned_abs());
            Some(interval - late % interval)
        }
        other => other,
    };
    Ok(FileKind::TimerFd {
        clock: i32::try_from(clock).unwrap_or(0),
        remaining_ns,
        interval_ns: interval.max(0).unsigned_abs(),
        ticks,
        settime_flags: u32::try_from(context.u("settime_flags")?).unwrap_or(0),
    })
}

/// Interval timers that run.
pub(super) fn intervals(
    clocks: &Clocks,
    signal: &Object<'_>,
) -> Result<Vec<IntervalTimer>, KernelError> {
    const ITIMER_REAL: u32 = 0;
    const ITIMER_VIRTUAL: u32 = 1;
    const ITIMER_PROF: u32 = 2;
    let mut out = Vec::new();
    if let Some(ns) = remaining(clocks, &signal.get("real_timer")?)? {
        out.push(IntervalTimer {
            which: ITIMER_REAL,
            // One that is due must not be taken for one that is off.
            remaining_ns: ns.max(1).unsigned_abs(),
            interval_ns: signal.i("it_real_incr")?.max(0).unsigned_abs(),
        });
    }
    // CPUCLOCK_PROF 0 and CPUCLOCK_VIRT 1, in CPU time of the process.
    let used = |field: &str| signal.u(&format!("cputimer.cputime_atomic.{field}.counter"));
    for (index, which) in [(0, ITIMER_PROF), (1, ITIMER_VIRTUAL)] {
        let expires = signal.u(&format!("it[{index}].expires"))?;
        if expires == 0 {
            continue;
        }
        let mut now = used("utime").unwrap_or(0);
        if which == ITIMER_PROF {
            now = now.saturating_add(used("stime").unwrap_or(0));
        }
        out.push(IntervalTimer {
            which,
            remaining_ns: expires.saturating_sub(now).max(1),
            interval_ns: signal.u(&format!("it[{index}].incr"))?,
        });
    }
    Ok(out)
}

/// Timers of timer_create.
pub(super) fn posix(clocks: &Clocks, signal: &Object<'_>) -> Result<Vec<PosixTimer>, KernelError> {
    let head = signal.get("posix_timers")?;
    // A hash list since v6.12 or so, a list before.
    let timers = if head.has("first") {
        containers::hlist(&head, "k_itimer", "list")?
    } else {
        containers::list(&head, "k_itimer", "list")?
    };
    let mut out = Vec::new();
    for timer in &timers {
        out.push(posix_timer(clocks, timer)?);
    }
    Ok(out)
}

/// Time until a timer that tells nobody expires: such are on no queue, and
/// their periods are counted when somebody asks. Linux kernel/time/posix-timers.c,
/// common_timer_get.
fn silent(clocks: &Clocks, timer: &Object<'_>) -> Result<Option<i64>, KernelError> {
    let queue = timer.get("it.real.timer")?;
    let clock = queue.follow("base")?.i("clockid")?;
    let left = queue.i("node.expires")?.saturating_sub(clocks.now(clock));
    let interval = timer.i("it_interval")?;
    Ok(match left {
        1.. => Some(left),
        _ if interval > 0 => Some(interval - left.unsigned_abs().cast_signed() % interval),
        _ => None,
    })
}

fn posix_timer(clocks: &Clocks, timer: &Object<'_>) -> Result<PosixTimer, KernelError> {
    const SIGEV_THREAD_ID: i32 = 4;
    const SIGEV_NONE: i32 = 1;
    let notify = int(timer, "it_sigev_notify")? & !(1 << 31);
    let kernel = timer.kernel();
    let clock = i64::from(int(timer, "it_clock")?);
    let kind = kernel
        .symbol_at(timer.ptr("kclock")?)
        .map(|(name, _)| name)
        .unwrap_or_default();
    let left = if is_alarm_clock(clock) || kind == "alarm_clock" {
        alarm_remaining(clocks, &timer.get("it.alarm.alarmtimer")?, clock)?
    } else if clock < 0 || clock == 2 || clock == 3 {
        // A CPU time clock: how much its task has used by now is not kept, so
        // the timer gets its next period from the restore on.
        let expires = timer.u("it.cpu.node.expires")?;
        (expires != 0).then(|| timer.i("it_interval").unwrap_or(0))
    } else if notify == SIGEV_NONE {
        silent(clocks, timer)?
    } else {
        remaining(clocks, &timer.get("it.real.timer")?)?
    };
    // Embedded since v6.13, allocated before.
    let queued = if timer.has("sigq.info") {
        Some(timer.get("sigq")?)
    } else {
        timer.follow_opt("sigq")?
    };
    let (signal, value) = match &queued {
        Some(queued) => (
            int(queued, "info.si_signo")?,
            queued.get("info._sifields._timer._sigval")?.bytes()?,
        ),
        None => (0, vec![0; 8]),
    };
    let thread = if notify & SIGEV_THREAD_ID != 0 {
        match timer.follow_opt("it_pid")? {
            Some(pid) => super::process::pid_number(&pid, 0)?,
            None => 0,
        }
    } else {
        0
    };
    Ok(PosixTimer {
        id: int(timer, "it_id")?,
        clock: i32::try_from(clock).unwrap_or(0),
        notify,
        signal,
        value: Blob(value),
        thread,
        remaining_ns: left.map(|ns| ns.max(1).unsigned_abs()),
        interval_ns: timer.i("it_interval")?.max(0).unsigned_abs(),
        overrun: i32::try_from(timer.i("it_overrun")?.max(0)).unwrap_or(i32::MAX),
    })
}
