//! Another process's descriptors.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A descriptor of our own for what process `pid` has open at number `fd`.
///
/// # Errors
/// `pidfd_open(2)` or `pidfd_getfd(2)` refused.
pub fn take(pid: i32, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    use std::os::fd::AsRawFd;
    // SAFETY: plain numbers, of which the first is an open descriptor.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// A descriptor that a call has just made.
fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(answer) {
        Ok(fd @ 0..) => {
            // SAFETY: the call made it for us, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
