//! What every kind of file has: status flags, an owner, locks. And what stands
//! in for a file that cannot be made.

use super::{Place, STATUS, Workshop, locks, unix};
use crate::dataset::{Fidelity, OpenFile};
use crate::restore::error::Context;
use crate::restore::{RestoreError, calls};

/// `F_SETSIG`. Linux include/uapi/asm-generic/fcntl.h.
const SETSIG: i32 = 10;

impl Workshop<'_> {
    /// For what cannot be made, but whose loss a program is built to bear: a
    /// socket on which nothing ever comes, or (of a process that died) whose
    /// other side has gone.
    pub(super) fn stand_in(
        &mut self,
        file: &OpenFile,
        operations: &str,
        why: &str,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let bearable = [
            "socket_file_ops",
            "inotify_fops",
            "fanotify_fops",
            "pidfd_fops",
        ];
        if !bearable.contains(&operations) {
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
        if operations == "pidfd_fops" {
            return unix::closed(libc::SOCK_STREAM, place);
        }
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
        let status = i64::from(flags & STATUS).cast_unsigned();
        if let Err(errno) = calls::fcntl(place.sys, fd, libc::F_SETFL, status) {
            // A stand-in may not have all that the file had.
            self.notes.push(Fidelity::lost(
                format!("pid {}", place.pid),
                format!("flags {status:#o} of {}", file.path),
                format!("fcntl(F_SETFL): {errno}"),
            ));
        }
        if let Some(owner) = file.owner.filter(|o| o.pid != 0) {
            let known = self
                .dataset
                .processes
                .iter()
                .any(|p| p.pid == owner.pid.abs() || p.pgid == -owner.pid);
            if known {
                let pid = i64::from(owner.pid).cast_unsigned();
                let signal = i64::from(owner.signal).cast_unsigned();
                calls::fcntl(place.sys, fd, libc::F_SETOWN, pid)
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
