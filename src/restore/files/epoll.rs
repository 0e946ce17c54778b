//! Epoll instances: their watches, by the numbers they were added with.

use crate::dataset::{EpollWatch, Fidelity, ObjectId, Process};
use crate::restore::error::Context;
use crate::restore::objects::Objects;
use crate::restore::{Errno, RestoreError, Syscalls, calls};

/// Adds an epoll instance's watches. The kernel looks at each file as it is
/// added, and so finds again which of them are ready.
pub(super) fn watch(
    process: &Process,
    epoll: i32,
    watches: &[EpollWatch],
    objects: &Objects,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let pid = process.pid;
    for watch in watches {
        let added = if file_at(process, watch.fd) == Some(watch.file) {
            add(sys, epoll, watch)
        } else {
            add_under_old_number(process, epoll, watch, objects, sys)
        };
        match added {
            // A stand-in (/dev/null) that nobody can wait for, or a watch that
            // stayed behind when its descriptor was closed.
            Err(Errno(libc::EPERM | libc::EBADF | libc::ENOENT)) => notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("epoll watch of descriptor {}", watch.fd),
                "what it watched is not there any more",
            )),
            other => other.during(pid, || format!("epoll_ctl(ADD) of descriptor {}", watch.fd))?,
        }
    }
    Ok(())
}

fn file_at(process: &Process, fd: i32) -> Option<ObjectId> {
    process.fds.iter().find(|f| f.fd == fd).map(|f| f.file)
}

fn add(sys: &mut dyn Syscalls, epoll: i32, watch: &EpollWatch) -> Result<(), Errno> {
    // struct epoll_event is packed on x86-64.
    let mut event = watch.events.to_ne_bytes().to_vec();
    event.extend(watch.data.to_ne_bytes());
    let at = calls::put(sys, &event)?;
    let arg = |fd: i32| i64::from(fd).cast_unsigned();
    let add = arg(libc::EPOLL_CTL_ADD);
    calls::plain(
        sys,
        libc::SYS_epoll_ctl,
        [arg(epoll), add, arg(watch.fd), at],
    )
    .map(drop)
}

/// The descriptor was moved or closed since it was added, but its file is
/// still open elsewhere: it gets its old number for a moment.
fn add_under_old_number(
    process: &Process,
    epoll: i32,
    watch: &EpollWatch,
    objects: &Objects,
    sys: &mut dyn Syscalls,
) -> Result<(), Errno> {
    let now = process.fds.iter().find(|f| f.file == watch.file);
    let now = now.ok_or(Errno(libc::ENOENT))?;
    let occupant = process.fds.iter().find(|f| f.fd == watch.fd);
    let aside = match occupant {
        Some(_) => {
            let base = i64::from(objects.base).cast_unsigned();
            let fd = calls::fcntl(sys, watch.fd, libc::F_DUPFD_CLOEXEC, base)?;
            Some(i32::try_from(fd).map_err(|_| Errno(libc::EBADF))?)
        }
        None => None,
    };
    calls::dup_to(sys, now.fd, watch.fd, true)?;
    let added = add(sys, epoll, watch);
    match (aside, occupant) {
        (Some(aside), Some(occupant)) => {
            calls::dup_to(sys, aside, watch.fd, occupant.cloexec)?;
            calls::close(sys, aside)?;
        }
        _ => calls::close(sys, watch.fd)?,
    }
    added
}
