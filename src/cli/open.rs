//! Opens the dump that the command line names, for every command alike.

use super::args::{DumpArgs, SourceArgs};
use super::exit::{Exit, Failure};
use super::in_place;
use super::table::bytes;
use crate::dump::{Dump, OpenError, Opening, PAGE_SIZE};
use crate::extract::{DeadHost, ExtractError};
use crate::restore::journal;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
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
    crate::phases::done("dump opened");
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
    leave_out_guests(&dump)?;
    kernel_in(dump, args.cpu_state.as_deref())
}

/// Memory in which guests run that were resumed in place is not read.
///
/// # Errors
/// The journal does not say which.
fn leave_out_guests(dump: &Dump) -> Result<(), Failure> {
    let dir = std::env::var_os("VMRESTORE_STATE_DIR")
        .map_or_else(|| PathBuf::from(journal::DEFAULT_STATE_DIR), PathBuf::from);
    let mut frames = journal::frames_in_use(&dir, dump.identity().as_str())?;
    if dump.is_where_it_lay() {
        // Guests run in it here, whatever the journal says.
        let mapped = crate::restore::in_place::mapped().map_err(|e| {
            let hint = "it is to say where guests run that were resumed in place";
            Failure::new(Exit::HostCannot, format!("/proc: {e}"), hint)
        })?;
        frames.extend(mapped.into_iter().map(|(_, frames)| frames));
    }
    if !frames.is_empty() {
        dump.set_in_use(frames);
        eprintln!(
            "note: {} of this memory are left out: guests that were resumed in place run in them",
            bytes(dump.frames_in_use().saturating_mul(PAGE_SIZE))
        );
    }
    Ok(())
}

/// The same, to bring back what is in it, which must be dead.
///
/// # Errors
/// Those, and when the kernel is alive.
pub fn dead_host(args: &DumpArgs) -> Result<DeadHost, Failure> {
    let dump = dead_dump(args)?;
    leave_out_guests(&dump)?;
    kernel_in(dump, args.cpu_state.as_deref())
}

/// The same in the capture kernel of the host that died, where its memory still lies.
///
/// # Errors
/// Those, and when it does not.
pub fn dead_host_in_place(args: &DumpArgs) -> Result<DeadHost, Failure> {
    let dump = dead_dump(args)?;
    in_place::refuse_elsewhere(&dump)?;
    kernel_in(dump, args.cpu_state.as_deref())
}

fn dead_dump(args: &DumpArgs) -> Result<Arc<Dump>, Failure> {
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
    Ok(dump)
}

fn kernel_in(dump: Arc<Dump>, cpu_state: Option<&Path>) -> Result<DeadHost, Failure> {
    if let Some(why) = dump.incomplete() {
        eprintln!("warning: the dump is not whole: {why}");
    }
    let mut dead = DeadHost::of(dump)?;
    if let Some(file) = cpu_state {
        let used = take_cpu_state(&mut dead, file)?;
        eprintln!("{}: registers of {used}", file.display());
    }
    Ok(dead)
}

/// Gives the host what a hypervisor said of its CPUs.
fn take_cpu_state(dead: &mut DeadHost, file: &Path) -> Result<String, Failure> {
    /// A CPU takes 4 KiB.
    const MOST: u64 = 64 << 20;
    const HINT: &str = "make it together with the dump, with the machine stopped: `info registers -a` in QEMU's monitor, or `virsh qemu-monitor-command DOMAIN --hmp info registers -a`";
    let refuse = |why: String| {
        let what = format!("{}: {why}", file.display());
        Failure::new(Exit::Unreadable, what, HINT)
    };
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|open| open.take(MOST).read_to_string(&mut text))
        .map_err(|error| refuse(error.to_string()))?;
    dead.take_cpu_text(&text).map_err(|error| {
        let source = std::error::Error::source(&error);
        refuse(source.map_or_else(|| error.to_string(), |why| format!("{error}: {why}")))
    })
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
