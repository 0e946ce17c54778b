//! What every kind of file has: status flags, an owner, locks. And what stands
//! in for a file that cannot be made.

use super::{Place, STATUS, Workshop, locks, unix};
use crate::dataset::{Fidelity, OpenFile};
use crate::restore::error::Context;
use crate::restore::{RestoreError, Syscalls, calls};

/// `F_SETSIG`. Linux include/uapi/asm-generic/fcntl.h.
const SETSIG: i32 = 10;
/// `F_SETOWN_EX`.
const SETOWN_EX: i32 = 15;

/// Sets O_ASYNC at a descriptor's final number, which its signal names (`si_fd`).
pub(super) fn set_async(
    pid: i32,
    fd: i32,
    file: &OpenFile,
    sys: &mut dyn Syscalls,
) -> Result<(), RestoreError> {
    let flags = file.flags.cast_signed();
    if flags & libc::O_ASYNC == 0 || flags & libc::O_PATH != 0 {
        return Ok(());
    }
    let status = i64::from(flags & STATUS).cast_unsigned();
    // Set already by another of its descriptors: no change, and no error.
    calls::fcntl(sys, fd, libc::F_SETFL, status)
        .during(pid, || format!("fcntl(F_SETFL, O_ASYNC) of {}", file.path))
        .map(drop)
}

/// Whether programs are built to bear the loss of such a file.
pub fn is_bearable(operations: &str) -> bool {
    let bearable = ["socket_file_ops", "fanotify_fops"];
    bearable.contains(&operations)
}

impl Workshop<'_> {
    /// For what cannot be made, but whose loss a program is built to bear: a
    /// socket on which nothing ever comes.
    pub(super) fn stand_in(
        &mut self,
        file: &OpenFile,
        operations: &str,
        why: &str,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        if !is_bearable(operations) {
            return Err(RestoreError::Unsupported {
                pid: place.pid,
                what: format!("its open file {} ({operations})", file.path),
                why: why.into(),
            });
        }
        self.notes.push(Fidelity::lost(
            format!("pid {}", place.pid),
            format!("open file {} ({operations})", file.path),
            format!("{why}: a socket on which nothing ever comes is in its place"),
        ));
        unix::quiet(place)
    }

    /// Status flags, owner and locks of a new file.
    pub(super) fn dress(
        &mut self,
        file: &OpenFile,
        fd: i32,
        place: &mut Place<'_>,
    ) -> Result<(), RestoreError> {
        let flags = file.flags.cast_signed();
        if flags & libc::O_PATH != 0 {
            return Ok(());
        }
        let status = i64::from(flags & STATUS & !libc::O_ASYNC).cast_unsigned();
        if let Err(errno) = calls::fcntl(place.sys, fd, libc::F_SETFL, status) {
            // A stand-in may not have all that the file had.
            self.notes.push(Fidelity::lost(
                format!("pid {}", place.pid),
                format!("flags {status:#o} of {}", file.path),
                format!("fcntl(F_SETFL): {errno}"),
            ));
        }
        if let Some(owner) = file.owner.filter(|o| o.pid != 0) {
            let known = self.dataset.processes.iter().any(|p| {
                p.pid == owner.pid.abs()
                    || p.pgid == -owner.pid
                    || p.threads.iter().any(|t| owner.thread && t.tid == owner.pid)
            });
            if known {
                let pid = i64::from(owner.pid).cast_unsigned();
                let signal = i64::from(owner.signal).cast_unsigned();
                let owned = if owner.thread {
                    // struct f_owner_ex: F_OWNER_TID, its ID.
                    let bytes = [0i32.to_ne_bytes(), owner.pid.to_ne_bytes()].concat();
                    calls::put(place.sys, &bytes)
                        .and_then(|at| calls::fcntl(place.sys, fd, SETOWN_EX, at))
                } else {
                    calls::fcntl(place.sys, fd, libc::F_SETOWN, pid)
                };
                owned
                    .and_then(|_| calls::fcntl(place.sys, fd, SETSIG, signal))
                    .during(place.pid, || format!("fcntl(F_SETOWN) of {}", file.path))?;
            } else {
                self.notes.push(Fidelity::lost(
                    format!("pid {}", place.pid),
                    format!("owner of {}", file.path),
                    format!("process {} is not restored", owner.pid),
                ));
            }
        }
        locks::of_file(place.pid, fd, file, place.sys)
    }
}
