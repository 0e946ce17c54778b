//! Controlling terminals. A session's leader takes its terminal before it has
//! children: they have it from it, and could not come to it later.
//!
//! So the masters of such pseudo-terminals are opened first of all, by whoever
//! makes the roots; every stub is born with them.

use super::error::Context;
use super::files::{open_master, terminal_master};
use super::inject::Tracee;
use super::{Errno, RestoreError, calls, objects};
use crate::dataset::{ControllingTerminal, Dataset, Fidelity, FileKind, Process};
use std::collections::HashMap;

/// `TIOCSCTTY`, `TIOCSPGRP`.
const TAKE: u64 = 0x540e;
const SET_FOREGROUND: u64 = 0x5410;

/// A pseudo-terminal made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its master's descriptor, the same in every stub.
    pub fd: i32,
    /// Its number now.
    pub number: u32,
}

/// Those that are controlling terminals, by their old numbers.
#[derive(Debug, Default)]
pub struct Masters(pub HashMap<u32, Master>);

impl Masters {
    /// Opens them in the task that makes the roots.
    ///
    /// # Errors
    /// /dev/ptmx cannot be opened.
    pub fn open(dataset: &Dataset, maker: &mut Tracee) -> Result<Self, RestoreError> {
        let mut made = HashMap::new();
        let base = objects::base(dataset);
        for process in &dataset.processes {
            let terminal = process.kin.terminal.and_then(|t| t.pty_index);
            let Some(index) = terminal.filter(|index| !made.contains_key(index)) else {
                continue;
            };
            let is_master = |kind: &FileKind| terminal_master(kind) == Some(Some(index));
            if !dataset.files.iter().any(|f| is_master(&f.kind)) {
                continue;
            }
            let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
            let (fd, number) = open_master(maker, flags, Some(index))
                .and_then(|(fd, number)| Ok((calls::raise(maker, fd, base)?, number)))
                .during(process.pid, || "open /dev/ptmx".into())?;
            made.insert(index, Master { fd, number });
        }
        Ok(Self(made))
    }

    /// Closes them in the task that made the roots.
    ///
    /// # Errors
    /// close refused.
    pub fn close(&self, maker: &mut Tracee) -> Result<(), RestoreError> {
        for master in self.0.values() {
            calls::close(maker, master.fd).during(0, || "close".into())?;
        }
        Ok(())
    }
}

/// Gives the leader of a new session its terminal.
pub fn take(
    dataset: &Dataset,
    process: &Process,
    terminal: ControllingTerminal,
    masters: &Masters,
    sys: &mut Tracee,
    notes: &mut Vec<Fidelity>,
) {
    let made = terminal.pty_index.and_then(|index| masters.0.get(&index));
    let path = match (made, terminal.pty_index) {
        (Some(master), _) => Some(format!("/dev/pts/{}", master.number)),
        (None, Some(_)) => None,
        (None, None) => dataset.files.iter().find_map(|f| match f.kind {
            FileKind::Tty { major, minor, .. }
                if (major, minor) == (terminal.major, terminal.minor) && f.path != "/dev/tty" =>
            {
                Some(f.path.clone())
            }
            _ => None,
        }),
    };
    let taken = path.ok_or(None).and_then(|path| {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let fd = calls::open(sys, &path, flags).map_err(Some)?;
        let taken = calls::plain(sys, libc::SYS_ioctl, [fd_arg(fd), TAKE, 0]);
        calls::close(sys, fd).map_err(Some)?;
        taken.map_err(Some)
    });
    if let Err(errno) = taken {
        let why = match errno {
            None => "it went with the host: job control has ended, as by a hang-up".into(),
            Some(Errno(libc::EPERM)) => "it is another session's here".into(),
            Some(errno) => errno.to_string(),
        };
        notes.push(Fidelity::lost(
            format!("pid {}", process.pid),
            "controlling terminal",
            why,
        ));
    }
}

/// Puts a process group into the foreground of the terminal of the session
/// that the caller leads.
///
/// # Errors
/// The errno of the call; where it has no terminal, ENXIO.
pub fn set_foreground(sys: &mut Tracee, group: i32) -> Result<(), Errno> {
    let fd = calls::open(
        sys,
        "/dev/tty",
        libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK,
    )?;
    let set = calls::put(sys, &group.to_ne_bytes())
        .and_then(|at| calls::plain(sys, libc::SYS_ioctl, [fd_arg(fd), SET_FOREGROUND, at]));
    calls::close(sys, fd)?;
    set.map(drop)
}

fn fd_arg(fd: i32) -> u64 {
    i64::from(fd).cast_unsigned()
}
