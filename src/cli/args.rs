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
Selectors: a guest's number in `list`, its name or UUID, pid:N, or a command name;
for `process` also tree:SELECTOR, user:NAME, cgroup:PATH, unit:NAME (docs/trees.md).

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
        bare: BareArgs,
        #[command(flatten)]
        options: RestoreArgs,
        /// In kdump's capture kernel, of /proc/vmcore: the guests go on in the memory where they lie,
        /// which is neither copied nor saved first (docs/in-place.md)
        #[arg(long, conflicts_with_all = ["bare", "memory"])]
        in_place: bool,
        /// The order in which they go on: the plan that `prepare` made; those that are not in it come last
        #[arg(
            long,
            value_name = "FILE",
            requires = "in_place",
            conflicts_with = "selectors"
        )]
        plan: Option<PathBuf>,
    },
    /// Restore processes of a dead host; on a terminal, none named: choose among them
    Process {
        #[command(flatten)]
        dump: DumpArgs,
        /// Processes: pid:N, N, or a command name; tree:…, user:…, cgroup:… and unit:… name sets
        selectors: Vec<String>,
        #[command(flatten)]
        sets: SetArgs,
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
    /// Write guests or processes to a directory, to restore them later or elsewhere; or one as a
    /// core: a guest for crash, drgn and gdb, a process for gdb
    Extract {
        #[command(flatten)]
        dump: DumpArgs,
        /// Guests or processes
        selectors: Vec<String>,
        #[command(flatten)]
        sets: SetArgs,
        /// The directory, which must be new or empty; with --core, the file
        #[arg(short, long)]
        output: PathBuf,
        /// Write the memory and registers of one guest, or of one process, as an ELF core
        #[arg(long)]
        core: bool,
        /// Replace a core of that name
        #[arg(long, requires = "core")]
        force: bool,
    },
    /// On this healthy host, as root: make all ready for its guests to go on in kdump's capture kernel
    /// when it panics (docs/in-place.md)
    Prepare {
        #[command(flatten)]
        options: Box<PrepareArgs>,
    },
    /// In the capture kernel of a host that panicked: let its guests go on, save the dump, wait until
    /// they have been moved away. kdump-tools' hook calls it
    AfterPanic {
        #[command(flatten)]
        options: AfterPanicArgs,
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
    /// The crash dump: a file, a directory that holds it, or - for standard input; `guests` and
    /// `process` also take a directory that `extract` wrote
    pub dump: PathBuf,
    #[command(flatten)]
    pub source: SourceArgs,
    /// What QEMU's `info registers -a` said of this host when the dump was made (docs/keeper.md)
    #[arg(long, value_name = "FILE")]
    pub cpu_state: Option<PathBuf>,
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

/// Which processes, as sets. Those chosen that belong together (parent and child, of one session,
/// sharing pipes, connections, memory) are restored together, all or none.
#[derive(Clone, Debug, Default, Args)]
pub struct SetArgs {
    /// Each process that is named, with all that descend from it
    #[arg(long)]
    pub tree: bool,
    /// All processes of a user (name, or number)
    #[arg(long, value_name = "USER")]
    pub all_of_user: Vec<String>,
    /// All processes in a cgroup, and in those below it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,
    /// All processes of a systemd unit (without a suffix: a service)
    #[arg(long, value_name = "NAME")]
    pub unit: Vec<String>,
    /// Selectors from a file, one on each line (# begins a comment); those that nothing matches are
    /// passed over, and the exit code says so
    #[arg(long = "selectors", value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// What time it is for what is restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ClockPolicy {
    /// Clocks go on from the crash; a guest's wall clock is behind by the time that the host was down
    #[default]
    StandStill,
    /// Clocks jump forward by the time that the host was down; a guest's wall clock is right at once
    CatchUp,
}

/// A look at a guest instead of a restore.
#[derive(Clone, Debug, Args)]
pub struct BareArgs {
    /// Only look: run the guest alone, its serial port on this terminal (ctrl-a x ends it), without
    /// its disks and network; nothing is written, and nothing of it is left
    #[arg(long, conflicts_with_all = ["paused", "dry_run", "strict"])]
    pub bare: bool,
    /// End it after so many seconds
    #[arg(long = "for", value_name = "SECONDS", requires = "bare")]
    pub for_seconds: Option<u64>,
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
    /// Take data that was written past the page cache, and whose blocks the crash took from its
    /// file, from where it lay: right unless these blocks have held something else since
    #[arg(long, conflicts_with = "strict")]
    pub rescue_blocks: bool,
    /// When its memory is there: before it runs, or while it runs (docs/memory.md). Without it:
    /// guests' while they run, if this host can; others' before
    #[arg(long, value_enum)]
    pub memory: Option<MemoryChoice>,
    /// Into which namespaces: those of a process (PID), those of a container (the path of its
    /// cgroup), a network namespace (netns:NAME), or this host's own (host). Without it: of a
    /// container with the same cgroup, or the network namespace of the same name
    #[arg(long, value_name = "PID|CGROUP|netns:NAME|host")]
    pub into: Option<crate::restore::container::Into>,
    /// What the clocks show: the time of the crash, as if none had passed, or the time of now
    #[arg(long, value_enum, default_value_t)]
    pub clock: ClockPolicy,
    /// What becomes of TCP connections with other machines: kept where possible, closed, or
    /// required to go on; those between restored processes always go on
    #[arg(long, value_enum, default_value_t)]
    pub tcp: TcpChoice,
    /// See `guests --in-place`, and `--plan`.
    #[arg(skip)]
    pub in_place: bool,
    #[arg(skip)]
    pub plan: Option<PathBuf>,
    /// Where the journal of restores is kept
    #[arg(long, env = "VMRESTORE_STATE_DIR", default_value = crate::restore::journal::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// How to make a host ready.
#[derive(Clone, Debug, Args)]
pub struct PrepareArgs {
    /// Guests that go on before the others, by name or UUID, the first first. Without it the order of
    /// the earlier plan is kept
    #[arg(long, value_name = "GUEST", value_delimiter = ',')]
    pub first: Vec<String>,
    /// Where the plan is
    #[arg(long, value_name = "FILE", default_value = super::prepare::plan::DEFAULT)]
    pub plan: PathBuf,
    /// Say what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write an initramfs for the capture kernel by which guests go on without a root file system
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// In it: also this file, or all below this directory
    #[arg(long, value_name = "PATH")]
    pub add: Vec<PathBuf>,
    /// A command that is started in the capture kernel when the guests run. Its program is put into the
    /// initramfs
    #[arg(long, value_name = "COMMAND")]
    pub run: Vec<String>,
    /// Also this kernel module
    #[arg(long, value_name = "NAME")]
    pub module: Vec<String>,
    /// `uname -r` of the capture kernel, if it is not the one that runs
    #[arg(long, value_name = "RELEASE")]
    pub kernel: Option<String>,
    /// Where that kernel's modules are (else /lib/modules/RELEASE)
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// With the initramfs: where the dump for the kernel's developers is saved; without it none is
    #[arg(long, value_name = "DIR")]
    pub dump_directory: Option<PathBuf>,
    /// Reset the machine after so many minutes even if guests run on it still; 0: never
    #[arg(long, value_name = "MINUTES")]
    pub reboot_after: Option<u64>,
    /// Put the hook into Debian's kdump-tools
    #[arg(long)]
    pub install: bool,
    /// Take the hook out of it; nothing else is done
    #[arg(long, conflicts_with_all = ["install", "initramfs"])]
    pub uninstall: bool,
    /// Where the root of the system is that the hook is put into
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
    /// Where the journal of restores is kept; it must outlive the capture kernel
    #[arg(long, env = "VMRESTORE_STATE_DIR", default_value = crate::restore::journal::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// What to do in the capture kernel.
#[derive(Clone, Debug, Args)]
pub struct AfterPanicArgs {
    /// The plan that `prepare` made
    #[arg(long, value_name = "FILE", default_value = super::prepare::plan::DEFAULT)]
    pub plan: PathBuf,
    /// The command by which kdump saves the dump. It is not run when no guest goes on
    #[arg(long, value_name = "COMMAND")]
    pub save: Option<String>,
    /// Where the journal of restores is kept
    #[arg(long, env = "VMRESTORE_STATE_DIR", default_value = crate::restore::journal::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
}

/// When the memory of what is restored is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MemoryChoice {
    /// All of it before it runs
    Eager,
    /// It runs at once; what it touches arrives at its first touch, the rest behind it. It needs the
    /// dump until all is there
    Lazy,
}

/// What becomes of TCP connections with other machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TcpChoice {
    /// They go on where that is possible; else they are closed, and the report says so
    #[default]
    Keep,
    /// They are closed
    Close,
    /// They go on, or nothing is restored
    Require,
}

impl From<TcpChoice> for crate::restore::TcpPolicy {
    fn from(choice: TcpChoice) -> Self {
        match choice {
            TcpChoice::Keep => Self::Keep,
            TcpChoice::Close => Self::Close,
            TcpChoice::Require => Self::Require,
        }
    }
}
