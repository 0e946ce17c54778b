//! The command line, defined once: parsing, `--help`.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Brings KVM guests and processes back from the crash dump of a dead host.
#[derive(Debug, Parser)]
#[command(name = "vmrestore", version, max_term_width = 100, after_help = AFTER)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Say more on stderr (twice: everything)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// One JSON document on stdout (schema: docs/json.md)
    #[arg(long, global = true)]
    pub json: bool,
}

const AFTER: &str = "\
Selectors: a guest's number in `list`, its name or UUID, pid:N, or a command name.

Exit codes:
  0 done             3 dump unreadable   6 this host cannot
  1 failed           4 nothing matches   7 some restored, some not
  2 usage            5 refused: incomplete or unsafe
  8 restored, with losses (named)";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Restore all guests of a dead host, or those named
    Guests {
        #[command(flatten)]
        dump: DumpArgs,
        /// Guests: number, name, UUID or pid:N; none: all
        selectors: Vec<String>,
        #[command(flatten)]
        options: RestoreArgs,
    },
    /// Restore processes of a dead host
    Process {
        #[command(flatten)]
        dump: DumpArgs,
        /// Processes: pid:N, N, or a command name
        #[arg(required = true)]
        selectors: Vec<String>,
        #[command(flatten)]
        options: RestoreArgs,
    },
    /// What was running: guests and processes, and whether they can come back
    List {
        #[command(flatten)]
        dump: DumpArgs,
        /// Kernel threads too
        #[arg(long)]
        all: bool,
    },
    /// One guest or process in full
    Show {
        #[command(flatten)]
        dump: DumpArgs,
        /// Guest: number, name, UUID; process: pid:N or a command name
        selector: String,
    },
    /// Can it be restored here? Without a dump: would this host's guests survive a crash?
    Check {
        /// The crash dump: a file, a directory that holds it, or - for standard input
        dump: Option<PathBuf>,
        #[command(flatten)]
        source: SourceArgs,
        /// Do not read and decode every page of the dump: damaged ones are not found
        #[arg(long, requires = "dump")]
        quick: bool,
    },
    /// Write guests or processes to a directory, to restore them later or elsewhere
    Extract {
        #[command(flatten)]
        dump: DumpArgs,
        /// Guests or processes
        #[arg(required = true)]
        selectors: Vec<String>,
        /// The directory, which must be new or empty
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Restore what `extract` wrote
    Restore {
        /// Its directory
        directory: PathBuf,
        #[command(flatten)]
        options: RestoreArgs,
    },
}

/// A dump.
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    /// The crash dump: a file, a directory that holds it, or - for standard input
    pub dump: PathBuf,
    #[command(flatten)]
    pub source: SourceArgs,
}

/// How to get at a dump that is not one file.
#[derive(Clone, Debug, Args)]
pub struct SourceArgs {
    /// A further part of a split dump (makedumpfile --split); once for each, in any order
    #[arg(long = "part", value_name = "FILE", requires = "dump")]
    pub parts: Vec<PathBuf>,
    /// Where a dump that comes through a pipe is kept while it is read (else $TMPDIR, or /var/tmp)
    #[arg(long, value_name = "DIR", requires = "dump")]
    pub spool_dir: Option<PathBuf>,
}

/// How to restore.
#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// Leave it stopped (SIGCONT lets it go on)
    #[arg(long)]
    pub paused: bool,
    /// Walk the whole way and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Refuse when anything is not exact
    #[arg(long)]
    pub strict: bool,
    /// Restore although a disk has changed or it was restored before: you know that it is safe
    #[arg(long)]
    pub force: bool,
    /// Where the journal of restores is kept
    #[arg(long, env = "VMRESTORE_STATE_DIR", default_value = crate::restore::journal::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}
