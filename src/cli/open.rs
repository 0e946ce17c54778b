//! Opens the dump that the command line names, for every command alike.

use super::args::{DumpArgs, SourceArgs};
use super::exit::{Exit, Failure};
use super::table::bytes;
use crate::dump::{Dump, OpenError, Opening};
use crate::extract::{DeadHost, ExtractError};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Opens a dump.
///
/// # Errors
/// When it is none, or one that is not read.
pub fn dump(path: &Path, source: &SourceArgs) -> Result<Arc<Dump>, Failure> {
    let mut progress = Progress::new();
    let mut opening = Opening::of(path).on_progress(|bytes| progress.show(bytes));
    for part in &source.parts {
        opening = opening.part(part);
    }
    if let Some(directory) = &source.spool_dir {
        opening = opening.spool_directory(directory);
    }
    let opened = opening.open();
    progress.end();
    let dump = opened.map_err(|error| {
        let no_room = matches!(error, OpenError::Spool { .. });
        let mut failure = Failure::from(ExtractError::from(error));
        if no_room {
            failure.exit = Exit::HostCannot;
        }
        failure
    })?;
    Ok(Arc::new(dump))
}

/// Opens a dump and finds the kernel in it. That the dump is not whole, or not dead, is said before
/// anything else.
///
/// # Errors
/// When it is none, or its kernel cannot be read.
pub fn host(args: &DumpArgs) -> Result<DeadHost, Failure> {
    let dump = dump(&args.dump, &args.source)?;
    if dump.is_live() {
        eprintln!(
            "note: this is the kernel that runs here; what moves while it is read may be seen wrongly"
        );
    }
    kernel_in(dump)
}

/// The same, to bring back what is in it, which must be dead.
///
/// # Errors
/// Those, and when the kernel is alive.
pub fn dead_host(args: &DumpArgs) -> Result<DeadHost, Failure> {
    let dump = dump(&args.dump, &args.source)?;
    if dump.is_live() {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "{} is the memory of the kernel that runs: its guests and processes are alive",
                args.dump.display()
            ),
            "two copies on one disk destroy it; move a running guest with its VMM's own migration",
        ));
    }
    kernel_in(dump)
}

fn kernel_in(dump: Arc<Dump>) -> Result<DeadHost, Failure> {
    if let Some(why) = dump.incomplete() {
        eprintln!("warning: the dump is not whole: {why}");
    }
    Ok(DeadHost::of(dump)?)
}

/// What has come through a pipe: one line that moves on a terminal, else a line now and then.
struct Progress {
    terminal: bool,
    last: Instant,
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            last: Instant::now(),
            shown: false,
        }
    }

    fn show(&mut self, so_far: u64) {
        let pause = Duration::from_millis(if self.terminal { 200 } else { 10_000 });
        if self.last.elapsed() < pause {
            return;
        }
        self.last = Instant::now();
        self.shown = true;
        if self.terminal {
            eprint!("\rreading the pipe: {}  ", bytes(so_far));
        } else {
            eprintln!("reading the pipe: {}", bytes(so_far));
        }
    }

    /// The line is wiped out.
    fn end(self) {
        if self.terminal && self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
