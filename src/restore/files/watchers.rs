//! What watches others: pidfds and inotify instances.

use super::Workshop;
use crate::dataset::{Fidelity, FileKind, InotifyWatch, OpenFile, Process};
use crate::restore::error::Context;
use crate::restore::stub::{Birth, Family, Kind, reap, spawn};
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use std::collections::HashSet;

/// PIDFD_THREAD.
const THREAD: u64 = 0o200;
/// IN_DONT_FOLLOW: the path is of the very thing.
const DONT_FOLLOW: u32 = 1 << 25;
/// Numbers that are given and taken back to come to the one that is wanted. The kernel counts them
/// up, so a program that had many watches before has high ones.
const MOST_SKIPPED: i32 = 1 << 16;
/// Bytes of events that are thrown away in one step.
const EVENTS: usize = 4096;

impl Workshop<'_> {
    /// A pidfd, in the stub that has it first: of a process that is restored, or as of one that has
    /// ended.
    pub(super) fn pidfd(
        &mut self,
        file: &OpenFile,
        stub: usize,
        family: &mut Family<'_>,
        base: i32,
    ) -> Result<i32, RestoreError> {
        let FileKind::PidFd { pid, thread, ended } = file.kind else {
            return Err(RestoreError::Malformed {
                pid: 0,
                what: file.path.clone(),
                why: "it is no pidfd".into(),
            });
        };
        let owner = family.process(stub)?.pid;
        let target = if ended { None } else { self.number_of(pid) };
        if let Some(number) = target {
            let flags = if thread { THREAD } else { 0 };
            let number = i64::from(number).cast_unsigned();
            let sys = family.leader(stub)?;
            let fd = calls::make_fd(sys, libc::SYS_pidfd_open, [number, flags])
                .during(owner, || format!("pidfd_open of pid {pid}"))?;
            return calls::raise(sys, fd, base).during(owner, || "fcntl".into());
        }
        if !ended {
            self.notes.push(Fidelity::lost(
                format!("pid {owner}"),
                format!("pidfd of pid {pid}"),
                "that process is not restored: it is as of one that has ended",
            ));
        }
        let sys = family.leader(stub)?;
        // Nobody waits for it: its parent to be ignores SIGCHLD by now.
        let mut child = spawn(sys, Kind::Process(Birth::default()), None)?;
        let number = calls::plain::<0>(&mut child, libc::SYS_getpid, []);
        let opened = number.and_then(|number| {
            let fd = calls::make_fd(sys, libc::SYS_pidfd_open, [number, 0])?;
            calls::raise(sys, fd, base)
        });
        reap(&[child.tid]);
        opened.during(owner, || "pidfd_open of a process that has ended".into())
    }

    /// The ID, in its namespace, of a process, thread or zombie that is restored.
    fn number_of(&self, pid: i32) -> Option<i32> {
        let threads = self.dataset.processes.iter().flat_map(|p| &p.threads);
        let thread = threads.into_iter().find(|t| t.tid == pid);
        let zombie = self.dataset.zombies.iter().find(|z| z.pid == pid);
        thread.map(|t| t.ns_tid).or(zombie.map(|z| z.ns_pid))
    }

    /// Adds the watches of the inotify instances of a process: right before it goes on, since what
    /// the restore itself does to files is none of its business.
    ///
    /// # Errors
    /// An instance does not answer. A watch that cannot be is a line of the report.
    pub fn start_watches(
        &mut self,
        process: &Process,
        sys: &mut dyn Syscalls,
        seen: &mut HashSet<crate::dataset::ObjectId>,
    ) -> Result<(), RestoreError> {
        let pid = process.pid;
        for fd in &process.fds {
            let file = self.file(pid, fd.file)?;
            let FileKind::Inotify { watches, .. } = &file.kind else {
                continue;
            };
            if !seen.insert(file.id) {
                continue;
            }
            let mut skipped = false;
            for watch in watches {
                match add(sys, fd.fd, watch) {
                    Ok(some) => skipped |= some,
                    Err(errno) => self.notes.push(Fidelity::lost(
                        format!("pid {pid}"),
                        format!("inotify watch {} on {}", watch.number, watch.path),
                        errno.to_string(),
                    )),
                }
            }
            if skipped {
                drain(sys, fd.fd, file.flags)
                    .during(pid, || "read of an inotify instance".into())?;
            }
        }
        Ok(())
    }
}

/// Adds a watch under its number; true when others were added and removed on the way, which the
/// instance tells of.
fn add(sys: &mut dyn Syscalls, fd: i32, watch: &InotifyWatch) -> Result<bool, Errno> {
    let instance = i64::from(fd).cast_unsigned();
    let mut path: Vec<u8> = watch.path.bytes().filter(|byte| *byte != 0).collect();
    path.push(0);
    let mut last = 0;
    loop {
        let at = calls::put(sys, &path)?;
        let mask = u64::from(watch.mask | DONT_FOLLOW);
        let got = calls::plain(sys, libc::SYS_inotify_add_watch, [instance, at, mask])?;
        let number = i32::try_from(got).map_err(|_| Errno(libc::EOVERFLOW))?;
        if number == watch.number {
            return Ok(last > 0);
        }
        calls::plain(sys, libc::SYS_inotify_rm_watch, [instance, got])?;
        // They count up; one that is too high already will not come down.
        let hopeless = number > watch.number || number <= last;
        if hopeless || watch.number - number > MOST_SKIPPED {
            return Err(Errno(libc::EEXIST));
        }
        last = number;
    }
}

/// Reads all events away.
fn drain(sys: &mut dyn Syscalls, fd: i32, flags: u32) -> Result<(), Errno> {
    let now = u64::from(flags) | u64::from(libc::O_NONBLOCK.cast_unsigned());
    calls::fcntl(sys, fd, libc::F_SETFL, now)?;
    let instance = i64::from(fd).cast_unsigned();
    let at = calls::put(sys, &[0; EVENTS])?;
    let result = loop {
        match calls::plain(sys, libc::SYS_read, [instance, at, EVENTS as u64]) {
            Ok(0) | Err(Errno(libc::EAGAIN)) => break Ok(()),
            Ok(_) => {}
            Err(errno) => break Err(errno),
        }
    };
    calls::fcntl(sys, fd, libc::F_SETFL, flags.into())?;
    result
}
