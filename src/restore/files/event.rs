//! eventfd, timerfd, signalfd.

use super::Place;
use crate::dataset::{Dataset, FileKind, Host, Process};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, Syscalls, calls, timers};
use std::collections::HashSet;

/// `EFD_SEMAPHORE`, the only flag that is not the file's own.
const SEMAPHORE: u32 = 1;

/// `TFD_IOC_SET_TICKS`. Linux include/uapi/linux/timerfd.h.
const SET_TICKS: u64 = 0x4008_5400;

/// `TFD_TIMER_ABSTIME`.
const ABSTIME: u32 = 1;

/// An eventfd with its count.
pub(super) fn eventfd(place: &mut Place<'_>, count: u64, flags: u32) -> Result<i32, RestoreError> {
    let first = u32::try_from(count).unwrap_or(0);
    let flags = flags & SEMAPHORE | libc::EFD_CLOEXEC.cast_unsigned();
    let fd = calls::make_fd(place.sys, libc::SYS_eventfd2, [first.into(), flags.into()])
        .during(place.pid, || "eventfd2".into())?;
    if u64::from(first) != count {
        let raw = i64::from(fd).cast_unsigned();
        calls::put(place.sys, &count.to_ne_bytes())
            .and_then(|at| calls::plain(place.sys, libc::SYS_write, [raw, at, 8]))
            .during(place.pid, || format!("write {count} to an eventfd"))?;
    }
    Ok(fd)
}

/// A timerfd. One that has run out and was not read is armed at the moment
/// when it first did: it runs out at once, and a read counts all periods since.
/// The others are armed by [`start_timers`].
pub(super) fn timerfd(
    place: &mut Place<'_>,
    host: &Host,
    kind: &FileKind,
) -> Result<i32, RestoreError> {
    let FileKind::TimerFd { clock, ticks, .. } = *kind else {
        return Err(RestoreError::Malformed {
            pid: place.pid,
            what: "a timerfd".into(),
            why: "it is something else".into(),
        });
    };
    let args = [
        i64::from(clock).cast_unsigned(),
        libc::TFD_CLOEXEC.cast_unsigned().into(),
    ];
    let fd = calls::make_fd(place.sys, libc::SYS_timerfd_create, args)
        .during(place.pid, || format!("timerfd_create of clock {clock}"))?;
    if ticks == 0 {
        return Ok(fd);
    }
    let pid = place.pid;
    match Arming::of(kind, host) {
        Some(arming) if arming.flags & ABSTIME != 0 => {
            arming
                .set(place.sys, fd)
                .during(pid, || "timerfd_settime".into())?;
        }
        arming => {
            if let Some(arming) = arming {
                arming
                    .set(place.sys, fd)
                    .during(pid, || "timerfd_settime".into())?;
            }
            // Behind settime, which clears them.
            place
                .sys
                .ioctl(fd, SET_TICKS, &mut ticks.to_ne_bytes())
                .during(pid, || "ioctl(TFD_IOC_SET_TICKS)".into())?;
        }
    }
    Ok(fd)
}

/// How a timerfd is armed: at a moment of its clock wherever that can be said,
/// so that the time which a restore takes does not shift it.
struct Arming {
    flags: u32,
    interval_ns: u64,
    /// The moment, or the time until it.
    value_ns: u64,
}

impl Arming {
    fn of(kind: &FileKind, host: &Host) -> Option<Self> {
        let FileKind::TimerFd {
            clock,
            remaining_ns: Some(remaining),
            interval_ns,
            settime_flags,
            ticks,
        } = *kind
        else {
            return None;
        };
        let crash = match clock {
            libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => host.boottime_ns,
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM => host.realtime_ns,
            _ => host.monotonic_ns,
        };
        let wall = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_ALARM].contains(&clock);
        if wall && settime_flags & ABSTIME == 0 {
            // A span of time, kept by another clock than the descriptor's.
            return Some(Self {
                flags: 0,
                interval_ns,
                value_ns: u64::try_from(remaining).unwrap_or(0),
            });
        }
        // Of the next expiry, less those that nobody has read of.
        let unread = i64::try_from(ticks.saturating_mul(interval_ns)).unwrap_or(i64::MAX);
        let first = crash.saturating_add(remaining).saturating_sub(unread);
        Some(Self {
            flags: settime_flags | ABSTIME,
            interval_ns,
            value_ns: u64::try_from(first).unwrap_or(0),
        })
    }

    fn set(&self, sys: &mut dyn Syscalls, fd: i32) -> Result<(), Errno> {
        let at = calls::put(sys, &timers::armed(self.interval_ns, self.value_ns))?;
        let fd = i64::from(fd).cast_unsigned();
        calls::plain(
            sys,
            libc::SYS_timerfd_settime,
            [fd, self.flags.into(), at, 0],
        )
        .map(drop)
    }
}

/// A signalfd.
pub(super) fn signalfd(place: &mut Place<'_>, mask: u64) -> Result<i32, RestoreError> {
    calls::put(place.sys, &mask.to_ne_bytes())
        .and_then(|at| {
            let flags = libc::SFD_CLOEXEC.cast_unsigned().into();
            calls::make_fd(place.sys, libc::SYS_signalfd4, [u64::MAX, at, 8, flags])
        })
        .during(place.pid, || "signalfd4".into())
}

/// Arms the timerfds of a process: right before it goes on.
///
/// # Errors
/// timerfd_settime refused.
pub fn start_timers(
    dataset: &Dataset,
    process: &Process,
    sys: &mut dyn Syscalls,
) -> Result<(), RestoreError> {
    let mut seen = HashSet::new();
    for fd in &process.fds {
        let Some(file) = dataset.file(fd.file).filter(|f| seen.insert(f.id)) else {
            continue;
        };
        // One with ticks to read was armed as it was made.
        if !matches!(file.kind, FileKind::TimerFd { ticks: 0, .. }) {
            continue;
        }
        if let Some(arming) = Arming::of(&file.kind, &dataset.host) {
            arming.set(sys, fd.fd).during(process.pid, || {
                format!("timerfd_settime of descriptor {}", fd.fd)
            })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host {
        release: String::new(),
        version: String::new(),
        hostname: String::new(),
        realtime_ns: 5_000,
        monotonic_ns: 700,
        boottime_ns: 900,
        tsc_khz: 0,
        tsc: 0,
    };

    fn timer(clock: i32, settime_flags: u32, ticks: u64) -> Arming {
        let kind = FileKind::TimerFd {
            clock,
            remaining_ns: Some(40),
            interval_ns: 100,
            ticks,
            settime_flags,
        };
        Arming::of(&kind, &HOST).expect("armed")
    }

    #[test]
    fn a_timer_keeps_its_phase() {
        let value = |clock, flags, ticks| {
            let arming = timer(clock, flags, ticks);
            (arming.flags, arming.value_ns)
        };
        assert_eq!(value(libc::CLOCK_MONOTONIC, 0, 0), (ABSTIME, 740));
        assert_eq!(value(libc::CLOCK_BOOTTIME, 0, 0), (ABSTIME, 940));
        assert_eq!(value(libc::CLOCK_MONOTONIC, 0, 3), (ABSTIME, 440));
        assert_eq!(value(libc::CLOCK_REALTIME, ABSTIME, 1), (ABSTIME, 4_940));
        assert_eq!(value(libc::CLOCK_REALTIME, 0, 0), (0, 40));
    }
}
