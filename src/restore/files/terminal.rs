//! Terminals. A serial line or a console is opened again; a pseudo-terminal
//! whose master the process holds is made anew; one whose master died with the
//! host (an ssh session, a terminal window) cannot come back.

use super::{Place, Workshop};
use crate::dataset::{Blob, Fidelity, OpenFile};
use crate::restore::error::Context;
use crate::restore::{RestoreError, calls};

/// Majors of `/dev/tty` and `/dev/ptmx`, and of pseudo-terminal slaves.
const AUX: u32 = 5;
const PTMX_MINOR: u32 = 2;
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

/// `TCSETS2`, and bytes of `struct termios2`, which `struct ktermios` equals.
const TCSETS2: u64 = 0x402c_542b;
const TERMIOS_LEN: usize = 44;

/// `TIOCSPTLCK`, `TIOCGPTN`.
const UNLOCK: u64 = 0x4004_5431;
const NUMBER: u64 = 0x8004_5430;

impl Workshop<'_> {
    /// Opens a terminal, or what comes closest.
    pub(super) fn terminal(
        &mut self,
        file: &OpenFile,
        (major, minor): (u32, u32),
        termios: Option<&Blob>,
        pty: Option<u32>,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let subject = format!("pid {}", place.pid);
        let access = file.flags.cast_signed() & libc::O_ACCMODE;
        let flags = access | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let fd = if major == AUX && minor == PTMX_MINOR {
            let fd = calls::open(place.sys, "/dev/ptmx", flags)
                .during(place.pid, || "open /dev/ptmx".into())?;
            let mut number = [0; 4];
            place
                .sys
                .ioctl(fd, UNLOCK, &mut [0; 4])
                .and_then(|_| place.sys.ioctl(fd, NUMBER, &mut number))
                .during(place.pid, || "ioctl(TIOCSPTLCK, TIOCGPTN)".into())?;
            let number = u32::from_ne_bytes(number);
            if let Some(old) = pty {
                self.terminals.insert(old, number);
            }
            self.notes.push(Fidelity::reconstructed(
                subject.clone(),
                format!(
                    "pseudo-terminal {}",
                    pty.map_or("?".into(), |n| n.to_string())
                ),
                format!("it is /dev/pts/{number} now"),
            ));
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
            calls::open(place.sys, &file.path, flags).ok()
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
        Ok(fd)
    }
}
