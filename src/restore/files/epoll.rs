//! Epoll instances: their watches, by the numbers they were added with, and
//! with what they had been told already.
//!
//! The kernel looks at a file as it is added to an instance, and puts it on
//! the ready list. That is right for a level-triggered watch. An edge-triggered
//! one that had been told of what is there must not be told again, and one
//! that had not must be; a one-shot watch that had fired must stay disarmed.

use crate::dataset::{EpollWatch, Fidelity, FileKind, ObjectId, OpenFile, Process};
use crate::restore::error::Context;
use crate::restore::objects::Objects;
use crate::restore::{Errno, RestoreError, Syscalls, calls};

const EDGE: u32 = libc::EPOLLET.cast_unsigned();
const ONE_SHOT: u32 = libc::EPOLLONESHOT.cast_unsigned();
/// What stays in a one-shot watch that has fired: EP_PRIVATE_BITS of Linux
/// fs/eventpoll.c, EPOLLEXCLUSIVE among them.
const PRIVATE: u32 = EDGE | ONE_SHOT | 1 << 29 | 1 << 28;
/// By one of these a watch fires at once, wherever anything is ready.
const ANY: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP).cast_unsigned();
/// Events taken at a time, and bytes of a `struct epoll_event`, which is
/// packed on x86-64.
const BATCH: usize = 64;
const EVENT_LEN: usize = 12;
/// Instances that watch each other: EP_MAX_NESTS is 4.
const MAX_NESTS: usize = 5;

/// How many instances lie below this one: those below are filled first.
pub(super) fn depth<'d>(
    file: &'d OpenFile,
    find: &dyn Fn(ObjectId) -> Option<&'d OpenFile>,
) -> usize {
    fn below<'d>(
        file: &'d OpenFile,
        find: &dyn Fn(ObjectId) -> Option<&'d OpenFile>,
        left: usize,
    ) -> usize {
        match &file.kind {
            FileKind::Epoll { watches } if left > 0 => watches
                .iter()
                .filter_map(|watch| find(watch.file))
                .map(|file| below(file, find, left - 1))
                .max()
                .map_or(1, |most| most + 1),
            _ => 0,
        }
    }
    below(file, find, MAX_NESTS)
}

/// Adds an epoll instance's watches.
pub(super) fn watch(
    process: &Process,
    epoll: i32,
    watches: &[EpollWatch],
    objects: &Objects,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let mut all = Watches {
        process,
        epoll,
        objects,
        sys,
        notes,
    };
    // What they find ready as they are added is an edge that was told: taken
    // here, before anything that must be told is added.
    for watch in watches.iter().filter(|w| was_told(w)) {
        all.add(watch, watch.events)?;
    }
    for _ in 0..=watches.len() / BATCH {
        if all.take()?.is_empty() {
            break;
        }
    }
    for watch in watches.iter().filter(|w| has_fired(w)) {
        all.add_fired(watch)?;
    }
    for watch in watches.iter().filter(|w| !was_told(w) && !has_fired(w)) {
        all.add(watch, watch.events)?;
    }
    Ok(())
}

/// An edge-triggered watch with no edge on its way.
fn was_told(watch: &EpollWatch) -> bool {
    watch.events & EDGE != 0 && watch.events & ONE_SHOT == 0 && !watch.pending
}

/// A one-shot watch that waits to be armed again.
fn has_fired(watch: &EpollWatch) -> bool {
    watch.events & ONE_SHOT != 0 && watch.events & !PRIVATE == 0
}

struct Watches<'a> {
    process: &'a Process,
    epoll: i32,
    objects: &'a Objects,
    sys: &'a mut dyn Syscalls,
    notes: &'a mut Vec<Fidelity>,
}

impl Watches<'_> {
    /// Adds a watch for these events; `false` where there is nothing to watch.
    fn add(&mut self, watch: &EpollWatch, events: u32) -> Result<bool, RestoreError> {
        let pid = self.process.pid;
        let now = self.process.fds.iter().find(|f| f.fd == watch.fd);
        let added = if now.is_some_and(|f| f.file == watch.file) {
            control(self.sys, libc::EPOLL_CTL_ADD, self.epoll, watch, events)
        } else {
            self.add_under_old_number(watch, events)
        };
        match added {
            // A stand-in (/dev/null) that nobody can wait for, or a watch that
            // stayed behind when its descriptor was closed.
            Err(Errno(libc::EPERM | libc::EBADF | libc::ENOENT)) => {
                self.notes.push(Fidelity::lost(
                    format!("pid {pid}"),
                    format!("epoll watch of descriptor {}", watch.fd),
                    "what it watched is not there any more",
                ));
                Ok(false)
            }
            other => other
                .during(pid, || format!("epoll_ctl(ADD) of descriptor {}", watch.fd))
                .map(|()| true),
        }
    }

    /// Adds a one-shot watch and has it fire. Where nothing is ready it cannot:
    /// then it is armed for nothing but errors and hang-ups, which no call
    /// takes from an armed watch.
    fn add_fired(&mut self, watch: &EpollWatch) -> Result<(), RestoreError> {
        if !self.add(watch, watch.events | ANY)? || self.take()?.contains(&watch.data) {
            return Ok(());
        }
        let pid = self.process.pid;
        let now = self.process.fds.iter().find(|f| f.fd == watch.fd);
        if now.is_some_and(|f| f.file == watch.file) {
            control(
                self.sys,
                libc::EPOLL_CTL_MOD,
                self.epoll,
                watch,
                watch.events,
            )
            .during(pid, || format!("epoll_ctl(MOD) of descriptor {}", watch.fd))?;
        }
        self.notes.push(Fidelity::reconstructed(
            format!("pid {pid}"),
            format!("one-shot epoll watch of descriptor {}", watch.fd),
            "it had fired and waits to be armed; until then it would fire for a hang-up",
        ));
        Ok(())
    }

    /// The `data` of what is ready; edges and one-shot watches are spent by it.
    fn take(&mut self) -> Result<Vec<u64>, RestoreError> {
        let (at, _) = self.sys.scratch();
        let epoll = i64::from(self.epoll).cast_unsigned();
        let pid = self.process.pid;
        let call = [epoll, at, BATCH as u64, 0];
        let count = calls::plain(self.sys, libc::SYS_epoll_wait, call)
            .during(pid, || "epoll_wait".into())?;
        let count = usize::try_from(count).unwrap_or(0).min(BATCH);
        let mut events = vec![0; count * EVENT_LEN];
        self.sys
            .read(at, &mut events)
            .during(pid, || "read the events".into())?;
        Ok(events
            .chunks_exact(EVENT_LEN)
            .filter_map(|event| event.get(4..)?.try_into().ok())
            .map(u64::from_ne_bytes)
            .collect())
    }

    /// The descriptor was moved or closed since it was added, but its file is
    /// still open elsewhere: it gets its old number for a moment.
    fn add_under_old_number(&mut self, watch: &EpollWatch, events: u32) -> Result<(), Errno> {
        let fds = &self.process.fds;
        let now = fds.iter().find(|f| f.file == watch.file);
        let now = now.ok_or(Errno(libc::ENOENT))?;
        let occupant = fds.iter().find(|f| f.fd == watch.fd);
        let aside = match occupant {
            Some(_) => {
                let base = i64::from(self.objects.base).cast_unsigned();
                let fd = calls::fcntl(self.sys, watch.fd, libc::F_DUPFD_CLOEXEC, base)?;
                Some(i32::try_from(fd).map_err(|_| Errno(libc::EBADF))?)
            }
            None => None,
        };
        calls::dup_to(self.sys, now.fd, watch.fd, true)?;
        let added = control(self.sys, libc::EPOLL_CTL_ADD, self.epoll, watch, events);
        match (aside, occupant) {
            (Some(aside), Some(occupant)) => {
                calls::dup_to(self.sys, aside, watch.fd, occupant.cloexec)?;
                calls::close(self.sys, aside)?;
            }
            _ => calls::close(self.sys, watch.fd)?,
        }
        added
    }
}

fn control(
    sys: &mut dyn Syscalls,
    what: i32,
    epoll: i32,
    watch: &EpollWatch,
    events: u32,
) -> Result<(), Errno> {
    let mut event = events.to_ne_bytes().to_vec();
    event.extend(watch.data.to_ne_bytes());
    let at = calls::put(sys, &event)?;
    let arg = |value: i32| i64::from(value).cast_unsigned();
    calls::plain(
        sys,
        libc::SYS_epoll_ctl,
        [arg(epoll), arg(what), arg(watch.fd), at],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(events: u32, pending: bool) -> EpollWatch {
        EpollWatch {
            fd: 3,
            file: ObjectId(3),
            events,
            data: 0,
            pending,
        }
    }

    #[test]
    fn which_watches_have_nothing_to_tell() {
        let input = libc::EPOLLIN.cast_unsigned();
        assert!(was_told(&watch(input | EDGE, false)));
        assert!(!was_told(&watch(input | EDGE, true)));
        assert!(!was_told(&watch(input, false)));
        assert!(has_fired(&watch(ONE_SHOT, false)));
        assert!(has_fired(&watch(ONE_SHOT | EDGE, false)));
        assert!(!has_fired(&watch(ONE_SHOT | input, false)));
    }
}
