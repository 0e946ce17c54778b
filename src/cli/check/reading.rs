//! Reads every page of the dump, and says on stderr how far it has come.

use crate::dump::{Dump, PAGE_SIZE, Progress, Scan};
use crate::sys::interrupt::Guard;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Between two words about the progress, on a terminal and elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(200);
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Reads all pages; `None` when it was interrupted (Ctrl-C, SIGTERM).
pub(super) fn read_all(dump: &Dump) -> Option<Scan> {
    let guard = Guard::install();
    let terminal = std::io::stderr().is_terminal();
    let every = if terminal { ON_TERMINAL } else { ELSEWHERE };
    let begun = Instant::now();
    let mut said = begun;
    let mut shown = false;
    let scan = dump.scan(|progress| {
        if said.elapsed() >= every {
            said = Instant::now();
            shown = true;
            say(terminal, &line(progress, begun.elapsed()));
        }
        match guard.interrupted() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    if terminal && shown {
        // Nothing is left of it.
        say(true, "");
    }
    scan
}

fn say(terminal: bool, text: &str) {
    let mut err = std::io::stderr().lock();
    // Whether anybody reads it does not matter.
    let _ = if terminal {
        write!(err, "\r\x1b[K{text}")
    } else {
        writeln!(err, "{text}")
    };
    let _ = err.flush();
}

fn line(progress: Progress, passed: Duration) -> String {
    let share = progress.done as f64 / progress.total.max(1) as f64;
    let seconds = passed.as_secs_f64();
    let rate = (progress.done * PAGE_SIZE) as f64 / 1e9 / seconds.max(0.001);
    let left = if share > 0.0 {
        seconds / share - seconds
    } else {
        0.0
    };
    format!(
        "reading every page: {:.0} %, {rate:.1} GB/s, {left:.0} s left (Ctrl-C: go on without)",
        share * 100.0
    )
}
