//! Memory that arrives while the guest runs: the choice, and the wait for it.
//!
//! The command ends when all of it is there. Ctrl-C ends the wait, and neither
//! the guest nor what brings its memory.

use super::args::{MemoryChoice, RestoreArgs};
use super::exit::Exit;
use super::report::{Line, MemoryLine, Verdict};
use crate::dataset::Dataset;
use crate::restore::lazy::Arriving;
use crate::restore::{Arrival, Figures, Memory};
use crate::sys::interrupt::Guard;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it is said how far it is: to a person, and to a log.
const PERSON: Duration = Duration::from_millis(200);
const LOG: Duration = Duration::from_secs(10);

/// What the command line asks for, of these processes.
pub fn wanted(options: &RestoreArgs, dataset: &Dataset) -> Memory {
    match options.memory {
        Some(MemoryChoice::Lazy) => Memory::Lazy,
        // In place most of it is there, and the capture kernel has no memory for a pager.
        None if !dataset.vms.is_empty() && !options.in_place => Memory::LazyIfPossible,
        Some(MemoryChoice::Eager) | None => Memory::Eager,
    }
}

/// What was decided.
pub fn said(arriving: &Arriving) -> MemoryLine {
    MemoryLine {
        how: match arriving.pager {
            Some(_) => "lazy",
            None => "eager",
        },
        why: arriving.why_not.clone(),
        lazy_bytes: arriving.pager.as_ref().map_or(0, |pager| pager.bytes),
        arrived_bytes: 0,
        faults: 0,
        zero_faults: 0,
        p99_us: 0,
        milliseconds: 0,
    }
}

/// Waits until the memory of all is there, or Ctrl-C.
pub fn wait(lines: &mut [Line]) {
    if lines.iter().all(|line| line.pager.is_none()) {
        return;
    }
    let guard = Guard::install();
    for line in lines {
        let Some(pager) = line.pager.take() else {
            continue;
        };
        eprintln!(
            "{} (pid {}) runs; {} MiB of its memory arrive behind it",
            line.name,
            line.pid,
            pager.bytes >> 20
        );
        let mut progress = Progress::new();
        let arrival = pager.wait(|figures| {
            progress.say(figures);
            !guard.interrupted()
        });
        progress.end();
        let figures = pager.figures();
        if let Some(memory) = &mut line.memory {
            memory.arrived_bytes = figures.done;
            memory.lazy_bytes = figures.total;
            memory.faults = figures.faults;
            memory.zero_faults = figures.zeros;
            memory.p99_us = u64::try_from(figures.p99.as_micros()).unwrap_or(u64::MAX);
            memory.milliseconds = u64::try_from(figures.time.as_millis()).unwrap_or(u64::MAX);
        }
        match arrival {
            Arrival::Resident => {}
            Arrival::Ended => eprintln!("{} (pid {}) has ended already", line.name, line.pid),
            Arrival::Waiting => eprintln!(
                "{} (pid {}) runs on; {} MiB of its memory are still to come: pid {} brings them, and \
                 needs the dump until then (killing that ends the guest)",
                line.name,
                line.pid,
                figures.total.saturating_sub(figures.done) >> 20,
                pager.pid()
            ),
            Arrival::Stopped(why) => {
                line.verdict = Verdict::Ended;
                line.exit = Exit::Failed;
                line.error = Some(format!("the rest of its memory cannot be had: {why}"));
                line.hint = Some(
                    "with --memory eager all of it is read before it runs; but it has run, and may \
                     have written to its disks: from this dump it cannot come back"
                        .into(),
                );
            }
        }
    }
}

/// How far it is, on stderr.
struct Progress {
    terminal: bool,
    said: Instant,
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            said: Instant::now(),
            shown: false,
        }
    }

    fn say(&mut self, figures: &Figures) {
        let pace = if self.terminal { PERSON } else { LOG };
        if self.said.elapsed() < pace {
            return;
        }
        self.said = Instant::now();
        self.shown = true;
        let text = format!(
            "  {} of {} MiB are there; {} touches have waited",
            figures.done >> 20,
            figures.total >> 20,
            figures.faults
        );
        if self.terminal {
            eprint!("\r{text}\x1b[K");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{text}");
        }
    }

    fn end(&self) {
        if self.terminal && self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
