//! Epoll instances and timerfds, as thin as can be.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// EPOLLIN, level-triggered.
pub const LEVEL: u32 = libc::EPOLLIN as u32;
/// EPOLLIN, edge-triggered.
pub const EDGE: u32 = (libc::EPOLLIN | libc::EPOLLET) as u32;
/// EPOLLIN, once.
pub const ONCE: u32 = (libc::EPOLLIN | libc::EPOLLONESHOT) as u32;

/// An epoll instance.
pub struct Epoll(OwnedFd);

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

fn owned(fd: i32) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Epoll {
    /// A new one.
    pub fn new() -> Result<Self> {
        // SAFETY: no memory is involved.
        owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    /// Watches a descriptor.
    pub fn add(&self, fd: &impl AsRawFd, events: u32, data: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, data)
    }

    /// Arms a watch again.
    pub fn rearm(&self, fd: &impl AsRawFd, events: u32, data: u64) -> Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, data)
    }

    fn control(&self, what: i32, fd: &impl AsRawFd, events: u32, data: u64) -> Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: open descriptors and an event of our own.
        match unsafe { libc::epoll_ctl(self.as_raw_fd(), what, fd.as_raw_fd(), &mut event) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }

    /// What has happened, by the `data` of the watches.
    pub fn wait(&self, milliseconds: i32) -> Vec<u64> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: an array and its length.
        let count = unsafe {
            libc::epoll_wait(
                self.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                milliseconds,
            )
        };
        let count = usize::try_from(count).unwrap_or(0);
        events[..count].iter().map(|event| event.u64).collect()
    }
}

/// CLOCK_MONOTONIC. Nanoseconds.
pub fn now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid timespec to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A periodic timerfd of CLOCK_MONOTONIC whose every tick is counted: at any
/// time it is known from the clock how many there must have been.
pub struct Timer {
    fd: OwnedFd,
    origin: u64,
    interval: u64,
    /// Ticks taken.
    pub ticks: u64,
    /// Times when they were not as many as the clock says.
    pub wrong: u64,
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl Timer {
    /// Its first tick is one interval from now.
    pub fn every(interval: u64) -> Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no memory is involved.
        let fd = owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        let origin = now() + interval;
        let spec = |ns: u64| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        };
        let value = libc::itimerspec {
            it_interval: spec(interval),
            it_value: spec(origin),
        };
        // SAFETY: a descriptor and a value of our own.
        let set = unsafe {
            libc::timerfd_settime(
                fd.as_raw_fd(),
                libc::TFD_TIMER_ABSTIME,
                &value,
                std::ptr::null_mut(),
            )
        };
        if set != 0 {
            return Err(Error::last_os_error());
        }
        Ok(Self {
            fd,
            origin,
            interval,
            ticks: 0,
            wrong: 0,
        })
    }

    /// Takes the ticks there are, and compares their sum with the clock.
    pub fn take(&mut self) {
        let mut ticks = [0; 8];
        let before = now();
        // SAFETY: a buffer and its length.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), ticks.as_mut_ptr().cast(), 8) };
        let after = now();
        if got == 8 {
            self.ticks += u64::from_ne_bytes(ticks);
        }
        let by = |t: u64| match t.checked_sub(self.origin) {
            Some(since) => since / self.interval + 1,
            None => 0,
        };
        // A tick may be handled a little late, never early.
        let late = by(before.saturating_sub(self.interval / 2));
        if !(late..=by(after)).contains(&self.ticks) {
            self.wrong += 1;
        }
    }
}
