//! eventfd, timerfd, signalfd.

use super::Place;
use crate::dataset::{Dataset, FileKind, Process};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, Syscalls, calls, timers};

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

/// A timerfd, not armed yet.
pub(super) fn timerfd(place: &mut Place<'_>, clock: i32, ticks: u64) -> Result<i32, RestoreError> {
    let args = [
        i64::from(clock).cast_unsigned(),
        libc::TFD_CLOEXEC.cast_unsigned().into(),
    ];
    let fd = calls::make_fd(place.sys, libc::SYS_timerfd_create, args)
        .during(place.pid, || format!("timerfd_create of clock {clock}"))?;
    if ticks != 0 {
        place
            .sys
            .ioctl(fd, SET_TICKS, &mut ticks.to_ne_bytes())
            .during(place.pid, || "ioctl(TFD_IOC_SET_TICKS)".into())?;
    }
    Ok(fd)
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
    for fd in &process.fds {
        let Some(file) = dataset.file(fd.file) else {
            continue;
        };
        let FileKind::TimerFd {
            clock,
            remaining_ns: Some(remaining),
            interval_ns,
            settime_flags,
            ticks,
        } = file.kind
        else {
            continue;
        };
        let wall = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_ALARM].contains(&clock);
        let absolute = wall && settime_flags & ABSTIME != 0;
        // A moment of the wall clock stays that moment, however long the host was down.
        let value = if absolute {
            dataset.host.realtime_ns.saturating_add(remaining)
        } else {
            remaining
        };
        if ticks != 0 && interval_ns == 0 {
            continue; // it has expired, and waits to be read
        }
        let value = timers::armed(interval_ns, u64::try_from(value).unwrap_or(1));
        let flags = if absolute { settime_flags } else { 0 };
        settime(sys, fd.fd, flags, &value).during(process.pid, || {
            format!("timerfd_settime of descriptor {}", fd.fd)
        })?;
    }
    Ok(())
}

fn settime(sys: &mut dyn Syscalls, fd: i32, flags: u32, value: &[u8]) -> Result<(), Errno> {
    let at = calls::put(sys, value)?;
    let fd = i64::from(fd).cast_unsigned();
    calls::plain(sys, libc::SYS_timerfd_settime, [fd, flags.into(), at, 0]).map(drop)
}
