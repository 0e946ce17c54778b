//! What waited in pseudo-terminals: put back where it was.
//!
//! The line discipline of each end takes the bytes that it had taken by TIOCSTI,
//! one by one and before the call returns. In line mode they are whole lines and
//! a begun one, erased and echoed long ago: for this moment the terminal has
//! settings in which nothing is erased, echoed or a signal, an end of file has a
//! character of its own, and so has "take the next one as it is". What lay
//! before the line discipline is written at the other end, as it was the first
//! time.

use super::{Workshop, terminal_master};
use crate::dataset::{Fidelity, FileKind, OpenFile, TerminalEnd};
use crate::restore::RestoreError;
use crate::restore::error::Context;
use crate::restore::objects::Objects;
use crate::restore::stub::Family;
use crate::sys::{pidfd, tty};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Where `struct ktermios` has its flags and characters, and their bits.
const OFLAG: usize = 4;
const LFLAG: usize = 12;
const CHARACTERS: usize = 17;
const ICANON: u32 = 0x2;
const IEXTEN: u32 = 0x8000;
const EXTPROC: u32 = 0x1_0000;
const VEOF: usize = 4;
const VSTOP: usize = 9;
const VEOL: usize = 11;
const VLNEXT: usize = 15;
const VEOL2: usize = 16;
const LAST_CHARACTER: usize = 18;

type Settings = [u8; tty::SETTINGS];

/// An end of a pseudo-terminal that was made again.
struct End<'d> {
    file: &'d OpenFile,
    inside: &'d TerminalEnd,
    /// The slave's.
    settings: Option<Settings>,
    is_master: bool,
    number: u32,
    open: OwnedFd,
    pid: i32,
}

impl<'d> Workshop<'d> {
    /// Puts what waited into all pseudo-terminals, and sets what would stand in
    /// the way of that before.
    ///
    /// # Errors
    /// A descriptor cannot be had.
    pub fn fill_terminals(
        &mut self,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<(), RestoreError> {
        let ends = self.ends(family, objects)?;
        for master in ends.iter().filter(|end| end.is_master) {
            let slave = ends
                .iter()
                .find(|end| !end.is_master && end.number == master.number);
            let pair = match slave {
                Some(_) => Ok(None),
                None => self.absent_slave(master),
            };
            let filled = pair.and_then(|stranger| {
                let other = match (&stranger, slave) {
                    (Some(stranger), _) => Some(stranger.as_fd()),
                    (None, Some(slave)) => Some(slave.open.as_fd()),
                    (None, None) => None,
                };
                fill(master, slave, other)
            });
            let lost = match filled {
                Ok(lost) => lost,
                Err(e) => vec![(master.inside.unread(), e.to_string())],
            };
            for (count, why) in lost.into_iter().filter(|(count, _)| *count > 0) {
                self.notes.push(Fidelity::lost(
                    format!("pid {}", master.pid),
                    format!("terminal {}", master.file.path),
                    format!("{count} bytes in it that nobody has read: {why}"),
                ));
            }
        }
        Ok(())
    }

    /// The ends that were made, each once.
    fn ends(
        &self,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<Vec<End<'d>>, RestoreError> {
        let mut seen = HashSet::new();
        let mut ends = Vec::new();
        for file in &self.dataset.files {
            let FileKind::Tty {
                termios,
                pty_index: Some(index),
                inside: Some(inside),
                ..
            } = &file.kind
            else {
                continue;
            };
            let (Some(number), Some(holder)) =
                (self.terminals.get(index), objects.files.get(&file.id))
            else {
                continue;
            };
            if !seen.insert(inside.terminal) {
                continue;
            }
            let live = family.leader(holder.stub)?.tid;
            let pid = family.process(holder.stub)?.pid;
            let open = pidfd::take(live, holder.fd)
                .during(pid, || format!("pidfd_getfd of {}", file.path))?;
            let settings = termios.as_ref().map(|blob| {
                let mut settings = [0; tty::SETTINGS];
                let len = blob.0.len().min(settings.len());
                settings[..len].copy_from_slice(&blob.0[..len]);
                settings
            });
            ends.push(End {
                file,
                inside,
                settings,
                is_master: terminal_master(&file.kind).is_some(),
                number: *number,
                open,
                pid,
            });
        }
        Ok(ends)
    }

    /// The slave of a master of which nobody restored has one: it was open, and
    /// is closed when this is dropped, which the master hears.
    fn absent_slave(&self, master: &End<'_>) -> io::Result<Option<OwnedFd>> {
        if !master.inside.was_open {
            return Ok(None);
        }
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(format!("/dev/pts/{}", master.number))?;
        Ok(Some(file.into()))
    }
}

/// Fills both directions of a pair. Gives how many bytes could not be, and why.
fn fill(
    master: &End<'_>,
    slave: Option<&End<'_>>,
    other: Option<BorrowedFd<'_>>,
) -> io::Result<Vec<(usize, String)>> {
    let mut lost = Vec::new();
    let settings = slave.and_then(|s| s.settings).or(master.settings);
    if let (Some(slave), Some(other)) = (slave, other) {
        match settings {
            Some(settings) => lost.extend(put_lines(other, slave.inside, &settings)?),
            None => lost.push((
                slave.inside.line.0.len(),
                "its settings are not known".into(),
            )),
        }
    }
    // A master has no settings of its own: whatever comes is as it is.
    let came = &master.inside.line.0;
    for byte in came {
        tty::insert(master.open.as_fd(), *byte)?;
    }
    let got = tty::waiting(master.open.as_fd())?;
    lost.push((came.len().saturating_sub(got), "there was no room".into()));
    let behind = &master.inside.behind.0;
    let wrote = match (other, settings) {
        _ if behind.is_empty() => 0,
        (Some(other), Some(settings)) => {
            // It has been through the slave's output processing.
            tty::set(other, &with(&settings, OFLAG, 0))?;
            let wrote = tty::write_now(other, behind)?;
            tty::set(other, &settings)?;
            wrote
        }
        _ => 0,
    };
    lost.push((behind.len() - wrote, "its other end is not there".into()));
    if let Some(slave) = slave {
        let behind = &slave.inside.behind.0;
        let wrote = tty::write_now(master.open.as_fd(), behind)?;
        lost.push((behind.len() - wrote, "there was no room".into()));
        lost.push((slave.inside.echo as usize, "of echo".into()));
    }
    if let (Some(slave), Some(settings)) = (slave, settings) {
        if slave.inside.flow_off {
            tty::stop_output(slave.open.as_fd())?;
        } else if slave.inside.stopped {
            tty::insert(slave.open.as_fd(), settings[CHARACTERS + VSTOP])?;
        }
        if slave.inside.exclusive {
            tty::exclusive(slave.open.as_fd())?;
        }
    }
    if master.inside.exclusive {
        tty::exclusive(master.open.as_fd())?;
    }
    if master.inside.packets {
        tty::packet_mode(master.open.as_fd())?;
    }
    if master.inside.locked {
        tty::lock(master.open.as_fd())?;
    }
    Ok(lost)
}

/// What a slave's line discipline had.
fn put_lines(
    slave: BorrowedFd<'_>,
    inside: &TerminalEnd,
    settings: &Settings,
) -> io::Result<Option<(usize, String)>> {
    let bytes = &inside.line.0;
    if bytes.is_empty() {
        return Ok(None);
    }
    let line_mode = word(settings, LFLAG) & (ICANON | EXTPROC) == ICANON;
    let Some(script) = Script::of(bytes, &inside.ends, line_mode) else {
        let why = "it has every character there is".to_owned();
        return Ok(Some((bytes.len(), why)));
    };
    tty::set(slave, &script.settings(settings))?;
    let put = script.bytes.iter().try_for_each(|b| tty::insert(slave, *b));
    // What a read will give, as far as it can be asked: of a line that is not ended nothing is said.
    let there = tty::waiting(slave);
    tty::set(slave, settings)?;
    put?;
    let wanted = match line_mode {
        false => bytes.len(),
        true => {
            let end = inside.ends.last().map_or(0, |last| *last as usize + 1);
            let nul = |end: &&u32| bytes.get(**end as usize) == Some(&0);
            end.saturating_sub(inside.ends.iter().filter(nul).count())
        }
    };
    let short = wanted.saturating_sub(there?);
    Ok((short > 0).then(|| (short, "the terminal did not take them".into())))
}

/// What is put in so that certain bytes are in it, and certain of them end lines.
#[derive(Debug, PartialEq)]
struct Script {
    bytes: Vec<u8>,
    line_mode: bool,
    end_of_file: u8,
    as_it_is: u8,
    /// Other characters that end lines.
    ends: [u8; 2],
}

impl Script {
    fn of(bytes: &[u8], ends: &[u32], line_mode: bool) -> Option<Self> {
        let mut script = Self {
            bytes: bytes.to_vec(),
            line_mode,
            end_of_file: 0,
            as_it_is: 0,
            ends: [0; 2],
        };
        if !line_mode {
            return Some(script);
        }
        let mut unused = (1..=255_u8).filter(|b| *b != b'\n' && !bytes.contains(b));
        script.end_of_file = unused.next()?;
        script.as_it_is = unused.next()?;
        script.bytes.clear();
        let ends: HashSet<usize> = ends.iter().map(|n| *n as usize).collect();
        for (n, byte) in bytes.iter().enumerate() {
            if ends.contains(&n) && !matches!(*byte, 0 | b'\n') && !script.ends.contains(byte) {
                *script.ends.iter_mut().find(|end| **end == 0)? = *byte;
            }
        }
        for (n, byte) in bytes.iter().enumerate() {
            match (ends.contains(&n), *byte) {
                (true, 0) => script.bytes.push(script.end_of_file),
                (true, byte) => script.bytes.push(byte),
                (false, byte) => {
                    if byte == b'\n' || (byte != 0 && script.ends.contains(&byte)) {
                        script.bytes.push(script.as_it_is);
                    }
                    script.bytes.push(byte);
                }
            }
        }
        Some(script)
    }

    /// Settings in which nothing happens but that. Whether the terminal is in line mode stays: a
    /// change of it moves the ends of lines.
    fn settings(&self, settings: &Settings) -> Settings {
        let mode = word(settings, LFLAG) & (ICANON | EXTPROC);
        let mut quiet = with(settings, 0, 0);
        quiet = with(
            &quiet,
            LFLAG,
            mode | if self.line_mode { IEXTEN } else { 0 },
        );
        quiet[CHARACTERS..=CHARACTERS + LAST_CHARACTER].fill(0);
        quiet[CHARACTERS + VEOF] = self.end_of_file;
        quiet[CHARACTERS + VLNEXT] = self.as_it_is;
        quiet[CHARACTERS + VEOL] = self.ends[0];
        quiet[CHARACTERS + VEOL2] = self.ends[1];
        quiet
    }
}

fn word(settings: &Settings, at: usize) -> u32 {
    let bytes = settings.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

fn with(settings: &Settings, at: usize, word: u32) -> Settings {
    let mut changed = *settings;
    if let Some(to) = changed.get_mut(at..at + 4) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_lines_are_where_they_were() {
        // "a", end of file; "b\n" with the newline taken as it is, "c;" ended by ";", "d" begun.
        let script = Script::of(b"a\0b\nc;d", &[1, 5], true).expect("a script");
        assert_eq!((script.end_of_file, script.as_it_is), (1, 2));
        assert_eq!(script.bytes, b"a\x01b\x02\nc;d");
        assert_eq!(script.ends, [b';', 0]);
        let script = Script::of(b"x;y;\n", &[3, 4], true).expect("a script");
        assert_eq!(script.bytes, b"x\x02;y;\n");
    }

    #[test]
    fn without_lines_bytes_are_bytes() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(Script::of(&all, &[], false).expect("a script").bytes, all);
        assert_eq!(Script::of(&all, &[], true), None);
    }

    #[test]
    fn the_mode_stays_and_nothing_else() {
        let mut settings = [0xff; tty::SETTINGS];
        settings = with(&settings, LFLAG, 0x8a3b);
        let script = Script::of(b"a\n", &[1], true).expect("a script");
        let quiet = script.settings(&settings);
        assert_eq!((word(&quiet, 0), word(&quiet, LFLAG)), (0, ICANON | IEXTEN));
        assert_eq!(word(&quiet, 8), u32::MAX, "speed and size of characters");
        assert_eq!(quiet[CHARACTERS + VEOF], 1);
    }
}
