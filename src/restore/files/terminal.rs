//! Terminals. A serial line or a console is opened again; a pseudo-terminal
//! whose master the process holds is made anew; one whose master died with the
//! host (an ssh session, a terminal window) cannot come back.

use super::{Place, Workshop};
use crate::dataset::{Blob, Fidelity, FileKind, OpenFile};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, Syscalls, calls};

/// Majors of `/dev/tty` and `/dev/ptmx`, and of pseudo-terminal slaves.
const AUX: u32 = 5;
const PTMX_MINOR: u32 = 2;
/// What the driver calls the masters that /dev/ptmx gives.
const MASTERS: std::ops::RangeInclusive<u32> = 128..=135;
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

/// `TCSETS2`, and bytes of `struct termios2`, which `struct ktermios` equals.
const TCSETS2: u64 = 0x402c_542b;
const TERMIOS_LEN: usize = 44;

/// `TIOCSPTLCK`, `TIOCGPTN`.
const UNLOCK: u64 = 0x4004_5431;
const NUMBER: u64 = 0x8004_5430;

/// `TIOCSWINSZ`, and bytes of `struct winsize`.
const SET_WINDOW: u64 = 0x5414;
const WINSIZE_LEN: usize = 8;

/// Pseudo-terminals that are opened and closed again to come to a certain number.
const MOST_HELD: usize = 256;

impl Workshop<'_> {
    /// Opens a terminal, or what comes closest.
    pub(super) fn terminal(
        &mut self,
        file: &OpenFile,
        (major, minor): (u32, u32),
        (termios, window): (Option<&Blob>, Option<&Blob>),
        pty: Option<u32>,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let subject = format!("pid {}", place.pid);
        let access = file.flags.cast_signed() & libc::O_ACCMODE;
        let flags = access | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let fd = if is_master(major, minor) {
            let known = pty.and_then(|index| self.masters.get(&index)).copied();
            let made = match known {
                Some(known) => {
                    let base = i64::from(place.base).cast_unsigned();
                    calls::fcntl(place.sys, known.fd, libc::F_DUPFD_CLOEXEC, base)
                        .and_then(|fd| i32::try_from(fd).map_err(|_| Errno(libc::EBADF)))
                        .map(|fd| (fd, known.number))
                }
                None => open_master(place.sys, flags, pty),
            };
            let (fd, number) = made.during(place.pid, || {
                "open /dev/ptmx, ioctl(TIOCSPTLCK, TIOCGPTN)".into()
            })?;
            if let Some(old) = pty {
                self.terminals.insert(old, number);
            }
            if pty != Some(number) {
                self.notes.push(Fidelity::reconstructed(
                    subject.clone(),
                    format!(
                        "pseudo-terminal {}",
                        pty.map_or("?".into(), |n| n.to_string())
                    ),
                    format!("it is /dev/pts/{number} now"),
                ));
            }
            Some(fd)
        } else if SLAVES.contains(&major) {
            let number = (major - SLAVES.start()) * 256 + minor;
            let new = self.terminals.get(&pty.unwrap_or(number));
            match new {
                Some(new) => Some(
                    calls::open(place.sys, &format!("/dev/pts/{new}"), flags)
                        .during(place.pid, || format!("open /dev/pts/{new}"))?,
                ),
                None => None,
            }
        } else if major == AUX && minor == 0 {
            None // /dev/tty: the terminal of a session that is no more
        } else {
            calls::open_file(place.sys, file, flags).ok()
        };
        let Some(fd) = fd else {
            self.notes.push(Fidelity::lost(
                subject,
                format!("terminal {}", file.path),
                "it went with the host: reading it gives the end, what is written is dropped",
            ));
            return calls::open(place.sys, "/dev/null", access | libc::O_CLOEXEC)
                .during(place.pid, || "open /dev/null".into());
        };
        if let Some(termios) = termios {
            let mut bytes = termios.0.clone();
            bytes.resize(TERMIOS_LEN, 0);
            place
                .sys
                .ioctl(fd, TCSETS2, &mut bytes)
                .during(place.pid, || format!("ioctl(TCSETS2) of {}", file.path))?;
        }
        if let Some(window) = window.filter(|w| w.0.iter().any(|b| *b != 0)) {
            let mut bytes = window.0.clone();
            bytes.resize(WINSIZE_LEN, 0);
            place
                .sys
                .ioctl(fd, SET_WINDOW, &mut bytes)
                .during(place.pid, || format!("ioctl(TIOCSWINSZ) of {}", file.path))?;
        }
        Ok(fd)
    }
}

fn is_master(major: u32, minor: u32) -> bool {
    (major, minor) == (AUX, PTMX_MINOR) || MASTERS.contains(&major)
}

/// Of a pseudo-terminal's master: its number, where that is known.
pub fn terminal_master(kind: &FileKind) -> Option<Option<u32>> {
    match kind {
        FileKind::Tty {
            major,
            minor,
            pty_index,
            ..
        } if is_master(*major, *minor) => Some(*pty_index),
        _ => None,
    }
}

/// A new pseudo-terminal's master, unlocked, and its number: the one that it had, where that is
/// free. The kernel gives the lowest free number, so those below are held for a moment.
pub fn open_master(
    sys: &mut dyn Syscalls,
    flags: i32,
    wanted: Option<u32>,
) -> Result<(i32, u32), Errno> {
    let mut held = Vec::new();
    let made = loop {
        let fd = calls::open(sys, "/dev/ptmx", flags)?;
        let mut number = [0; 4];
        sys.ioctl(fd, NUMBER, &mut number)?;
        let number = u32::from_ne_bytes(number);
        let wanted = wanted.unwrap_or(number);
        if number < wanted && held.len() < MOST_HELD {
            held.push(fd);
            continue;
        }
        if number == wanted {
            break (fd, number);
        }
        // It is in use: the lowest that is free is as good as any.
        match held.first_mut() {
            Some(lowest) => {
                let lowest = std::mem::replace(lowest, fd);
                let mut number = [0; 4];
                sys.ioctl(lowest, NUMBER, &mut number)?;
                break (lowest, u32::from_ne_bytes(number));
            }
            None => break (fd, number),
        }
    };
    for fd in held {
        calls::close(sys, fd)?;
    }
    sys.ioctl(made.0, UNLOCK, &mut [0; 4])?;
    Ok(made)
}
