//! File locks: taken again. That one cannot be taken means that somebody else
//! works on the file now, which is no time to wake a guest up.

use crate::dataset::{FileLock, OpenFile};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, Syscalls, calls};

/// `F_SETLK`, `F_OFD_SETLK`.
const SETLK: i32 = libc::F_SETLK;
const OFD_SETLK: i32 = libc::F_OFD_SETLK;

/// OFD and flock locks: the file's own.
pub(super) fn of_file(
    pid: i32,
    fd: i32,
    file: &OpenFile,
    sys: &mut dyn Syscalls,
) -> Result<(), RestoreError> {
    for lock in &file.locks {
        match *lock {
            FileLock::Ofd { write, start, end } => record(sys, fd, OFD_SETLK, write, start, end),
            FileLock::Flock { write } => {
                let kind = if write { libc::LOCK_EX } else { libc::LOCK_SH };
                let args = [kind | libc::LOCK_NB];
                calls::plain(
                    sys,
                    libc::SYS_flock,
                    [
                        i64::from(fd).cast_unsigned(),
                        i64::from(args[0]).cast_unsigned(),
                    ],
                )
                .map(drop)
            }
            FileLock::Posix { .. } | FileLock::Lease { .. } => Ok(()),
        }
        .during(pid, || format!("lock {} ({lock:?})", file.path))?;
    }
    Ok(())
}

/// Leases, whose signal names the descriptor, and POSIX locks: the process's own, and so taken by it, by any descriptor.
/// (Closing another descriptor of the file would drop them: they come when all
/// descriptors are in place.)
pub(super) fn posix(
    pid: i32,
    fd: i32,
    file: &OpenFile,
    sys: &mut dyn Syscalls,
) -> Result<(), RestoreError> {
    for lock in &file.locks {
        if let FileLock::Posix {
            pid: owner,
            write,
            start,
            end,
        } = *lock
            && owner == pid
        {
            record(sys, fd, SETLK, write, start, end)
                .during(pid, || format!("lock {} ({lock:?})", file.path))?;
        }
        if let FileLock::Lease { write } = *lock {
            let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
            calls::fcntl(sys, fd, libc::F_SETLEASE, i64::from(kind).cast_unsigned())
                .during(pid, || format!("take a lease on {}", file.path))?;
        }
    }
    Ok(())
}

fn record(
    sys: &mut dyn Syscalls,
    fd: i32,
    command: i32,
    write: bool,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    // The kernel's `end` is the last byte; to the end of the file is i64::MAX.
    let len = if end >= i64::MAX.cast_unsigned() {
        0
    } else {
        end.saturating_sub(start).saturating_add(1)
    };
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let kind = i16::try_from(kind).unwrap_or(0);
    // struct flock: l_type, l_whence, 4 bytes of padding, l_start, l_len, l_pid.
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 6]);
    bytes.extend(start.to_ne_bytes());
    bytes.extend(len.to_ne_bytes());
    bytes.extend([0; 8]);
    let at = calls::put(sys, &bytes)?;
    calls::fcntl(sys, fd, command, at).map(drop)
}
