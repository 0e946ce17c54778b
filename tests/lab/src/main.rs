//! The lab's command: see docs/lab.md.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use vmrestore_lab::crash::{CachedDump, Extra};
use vmrestore_lab::recode::{Codec, recode};
use vmrestore_lab::suite::Foreign;
use vmrestore_lab::{
    Lab, Luggage, Output, Rebooted, Scenario, cached_dumps, campaign, clean, downtime, flavours,
    grow,
};

/// Makes real dumps of real crashes, and reboots into the host that died
#[derive(Parser)]
#[command(name = "lab")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds programs and host images
    Prepare,
    /// Makes a scenario's dump, or finds it in the cache; prints its directory
    Dump {
        #[command(flatten)]
        scenario: Choice,
    },
    /// Lists the dumps in the cache, and the scenarios
    List,
    /// Boots the host that died again and runs commands in it, with the dump
    /// in /dump and vmrestore on the PATH; then judges what came back
    Run {
        /// Directory of a dump in the cache, or the beginning of its name
        #[arg(long, default_value = "main")]
        dump: String,
        /// The vmrestore binary to take along
        #[arg(long)]
        vmrestore: Option<PathBuf>,
        /// More files for /tools
        #[arg(long = "tool")]
        tools: Vec<PathBuf>,
        /// Files for /dump instead of the dump's own
        #[arg(long = "file")]
        files: Vec<PathBuf>,
        /// Seconds that each command may take
        #[arg(long, default_value_t = 300)]
        seconds: u64,
        /// Then wait for so many new lines of every guest and of the program
        #[arg(long)]
        lines: Option<usize>,
        /// Judge all outputs at the end (implied by --lines)
        #[arg(long)]
        judge: bool,
        /// Show the lines on both sides of the crash
        #[arg(long)]
        around: bool,
        /// CPUs of the rebooted host
        #[arg(long)]
        cpus: Option<u32>,
        /// Directory for the run's files
        #[arg(long)]
        keep: Option<PathBuf>,
        /// Shell commands, one after the other
        #[arg(last = true)]
        commands: Vec<String>,
    },
    /// Starts a scenario, crashes nothing, and runs commands beside its guests
    Live {
        #[command(flatten)]
        scenario: Choice,
        /// The vmrestore binary to take along
        #[arg(long)]
        vmrestore: Option<PathBuf>,
        /// Then wait for so many new lines of every guest and of the program
        #[arg(long)]
        lines: Option<usize>,
        /// Judge all outputs at the end (implied by --lines)
        #[arg(long)]
        judge: bool,
        /// Directory for the run's files
        #[arg(long)]
        keep: Option<PathBuf>,
        /// Shell commands, one after the other
        #[arg(last = true)]
        commands: Vec<String>,
    },
    /// Starts a scenario whose capture kernel is a host (in-place, in-place-four), crashes it, runs
    /// commands in the capture kernel, and judges
    Capture {
        #[command(flatten)]
        scenario: Choice,
        /// The vmrestore binary to take along
        #[arg(long)]
        vmrestore: Option<PathBuf>,
        /// Then wait for so many new lines of every guest
        #[arg(long)]
        lines: Option<usize>,
        /// Directory for the run's files
        #[arg(long)]
        keep: Option<PathBuf>,
        /// Shell commands, one after the other
        #[arg(last = true)]
        commands: Vec<String>,
    },
    /// The same guest in place and from a dump after a reboot: from the panic to its next line
    Downtime {
        /// The vmrestore binary
        #[arg(long, default_value = "target/release/vmrestore")]
        vmrestore: PathBuf,
        /// MiB of the guest, 256 or 2048
        #[arg(long = "size", default_values_t = [256, 2048])]
        sizes: Vec<u32>,
    },
    /// Crashes at random moments over a mix of guests, each judged: docs/survival.md
    Campaign {
        /// Crashes in all; those that were had before count
        crashes: u64,
        /// The vmrestore binary
        #[arg(long, default_value = "target/release/vmrestore")]
        vmrestore: PathBuf,
        /// Crashes of the plan to pass over
        #[arg(long, default_value_t = 0)]
        skip: u64,
        /// So many hosts at once
        #[arg(long, default_value_t = 1)]
        at_once: usize,
        /// Where crashes are written down; a campaign goes on where it was cut
        /// off. A directory `campaign` beside the dumps where not said
        #[arg(long)]
        state: Option<PathBuf>,
        /// File for the table in Markdown
        #[arg(long)]
        table: Option<PathBuf>,
    },
    /// The main job once, for people to watch: crash, reboot, restore
    Demo {
        /// The vmrestore binary
        #[arg(long, default_value = "target/release/vmrestore")]
        vmrestore: PathBuf,
    },
    /// Runs makedumpfile of a newer Debian than 12, which knows zstd
    Makedumpfile {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Stores the pages of a dump that makedumpfile -c made with another codec
    Recode {
        /// How
        #[arg(long, value_enum)]
        codec: Codec,
        /// The dump
        from: PathBuf,
        /// The file to write
        to: PathBuf,
    },
    /// Makes a dump of a machine with more memory than anybody has out of a
    /// real one (see docs/scale.md)
    Grow {
        /// What to make
        #[arg(long, value_enum, default_value = "kdump")]
        format: Grown,
        /// Address space, GiB
        #[arg(long, default_value_t = 1024)]
        gib: u64,
        /// kdump: pages to add; elf: segments to add
        #[arg(long, default_value_t = 16 << 20)]
        count: u64,
        /// A kdump-compressed dump, or for elf a whole /proc/vmcore
        from: PathBuf,
        /// The file to write
        to: PathBuf,
    },
    /// Removes the files of runs that have ended, and with --dumps the cached dumps too
    Clean {
        /// The dumps too
        #[arg(long)]
        dumps: bool,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Grown {
    Kdump,
    Elf,
}

#[derive(clap::Args)]
struct Choice {
    /// The scenario's name (see `lab list`)
    #[arg(long, default_value = "main")]
    scenario: String,
    /// Tells dumps of one scenario apart and decides the crash's moment
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// CPUs of the host
    #[arg(long)]
    host_cpus: Option<u32>,
    /// Emulate all of the host's CPUs in one thread, in turn (or not)
    #[arg(long)]
    one_thread: Option<bool>,
}

impl Choice {
    fn scenario(&self) -> Result<Scenario> {
        let mut scenario = Scenario::named(&self.scenario)
            .with_context(|| format!("no scenario {:?} (see lab list)", self.scenario))?;
        scenario.seed = self.seed;
        if let Some(cpus) = self.host_cpus {
            scenario.hardware.cpus = cpus;
        }
        if let Some(one_thread) = self.one_thread {
            scenario.hardware.one_thread = one_thread;
        }
        Ok(scenario)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Prepare => {
            let lab = Lab::prepare()?;
            println!("{}", lab.dir.join("images").join(&lab.images.key).display());
        }
        Command::Dump { scenario } => {
            let lab = Lab::prepare()?;
            let started = Instant::now();
            let dump = lab.dump(&scenario.scenario()?)?;
            let record = &dump.record;
            eprintln!(
                "lab: {:.0} s; when it was made: {:.0} s to the crash, {:.0} s to the dump, {} \
                 attempts lost before the crash",
                started.elapsed().as_secs_f64(),
                record.seconds_to_crash,
                record.seconds_to_dump,
                record.lost_attempts.len()
            );
            println!("{}", dump.dir.display());
        }
        Command::List => list()?,
        Command::Run {
            dump,
            vmrestore,
            tools,
            files,
            seconds,
            lines,
            judge,
            around,
            cpus,
            keep,
            commands,
        } => {
            let mut dump = find_dump(&dump)?;
            if let Some(cpus) = cpus {
                dump.record.scenario.reboot_cpus = cpus;
            }
            let mut luggage = Luggage {
                tools: named(&tools)?,
                dumps: named(&files)?,
                after: None,
            };
            if let Some(binary) = vmrestore {
                luggage.tools.push(("vmrestore".into(), binary));
            }
            let lab = Lab::of(&dump)?;
            let dir = keep.unwrap_or_else(|| lab.new_run());
            let after = After {
                lines,
                judge: judge || around,
                around,
            };
            return run_again(&lab, &dump, &luggage, &dir, &commands, seconds, &after);
        }
        Command::Live {
            scenario,
            vmrestore,
            lines,
            judge,
            keep,
            commands,
        } => {
            let lab = Lab::prepare()?;
            let luggage = vmrestore.as_deref().map(Luggage::vmrestore);
            let dir = keep.unwrap_or_else(|| lab.new_run());
            let luggage = luggage.unwrap_or_default();
            let mut host = lab.live(&scenario.scenario()?, &luggage, &dir)?;
            for command in &commands {
                print(command, &host.run(command, Duration::from_secs(300))?);
            }
            let after = After {
                lines,
                judge,
                around: false,
            };
            return finish(host, &after, &dir);
        }
        Command::Capture {
            scenario,
            vmrestore,
            lines,
            keep,
            commands,
        } => {
            let lab = Lab::prepare()?;
            let scenario = scenario.scenario()?;
            let dir = keep.unwrap_or_else(|| lab.new_run());
            let extra = Extra {
                tools: vmrestore
                    .map(|v| ("vmrestore".into(), v))
                    .into_iter()
                    .collect(),
                ..Extra::default()
            };
            let mut host = lab.in_capture_kernel(&scenario, extra, &dir)?;
            if let Some((_, up)) = host.died {
                eprintln!(
                    "lab: the capture kernel is up {:.1} s after the crash",
                    up.as_secs_f64()
                );
            }
            host.follow_all()?;
            for command in &commands {
                print(command, &host.run(command, Duration::from_secs(300))?);
            }
            for name in host.names() {
                let first = host.wait_new_lines(&name, 1, Duration::from_secs(60));
                match (first, host.silence(&name)) {
                    (Ok(()), Some(silent)) => {
                        eprintln!("lab: {name} was silent for {:.1} s", silent.as_secs_f64());
                    }
                    (Err(error), _) => eprintln!("lab: {error:#}"),
                    (Ok(()), None) => {}
                }
            }
            let after = After {
                lines,
                judge: true,
                around: false,
            };
            return finish(host, &after, &dir);
        }
        Command::Downtime { vmrestore, sizes } => {
            downtime::run(&Lab::prepare()?, &vmrestore, &sizes)?;
        }
        Command::Campaign {
            crashes,
            skip,
            vmrestore,
            at_once,
            state,
            table,
        } => {
            let lab = Lab::prepare()?;
            let options = campaign::Options {
                vmrestore,
                crashes,
                skip,
                at_once: at_once.max(1),
                state: state.unwrap_or_else(|| lab.dir.join("campaign")),
                table,
            };
            if !campaign::run(&lab, &options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Demo { vmrestore } => vmrestore_lab::demo::run(&vmrestore)?,
        Command::Makedumpfile { arguments } => {
            let dir = Lab::directory();
            std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            let mut program = Foreign::makedumpfile(&dir.canonicalize()?)?.command();
            return Err(program.args(arguments).exec()).context("makedumpfile");
        }
        Command::Recode { codec, from, to } => recode(&from, &to, codec)?,
        Command::Grow {
            format,
            gib,
            count,
            from,
            to,
        } => {
            let pages = match format {
                Grown::Kdump => grow::kdump(&from, &to, gib << 30, count)?,
                Grown::Elf => grow::elf(&from, &to, gib << 30, count)?,
            };
            eprintln!("lab: {pages} pages added");
        }
        Command::Clean { dumps } => {
            clean::ended_runs(&Lab::directory())?;
            if dumps {
                clean::dumps(&Lab::directory())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<()> {
    println!("scenarios:");
    for (name, what) in Scenario::NAMES {
        println!("  {name:10} {what}");
    }
    println!("flavours of guests, each a scenario of one:");
    for guest in flavours::all() {
        let (board, cpus) = (guest.board.name(), guest.cpus);
        println!("  {:20} {board}, {cpus} vCPUs", guest.flavour);
    }
    println!(
        "dumps in {}/dumps, the newest first:",
        Lab::directory().display()
    );
    for dir in cached_dumps(&Lab::directory()) {
        let dump = CachedDump::open(&dir)?;
        let size = std::fs::metadata(dump.path()).map_or(0, |meta| meta.len());
        println!(
            "  {}  {} MB, seed {}",
            dir.file_name().unwrap_or_default().to_string_lossy(),
            size / 1_000_000,
            dump.record.scenario.seed
        );
    }
    Ok(())
}

/// A dump by its name; a scenario's name makes it if it is not there.
fn find_dump(name: &str) -> Result<CachedDump> {
    match Scenario::named(name) {
        Some(scenario) => Lab::prepare()?.dump(&scenario),
        None => Lab::find_dump(&Lab::directory(), name),
    }
}

fn named(files: &[PathBuf]) -> Result<Vec<(String, PathBuf)>> {
    files
        .iter()
        .map(|file| {
            let name = file.file_name().context("a file's path")?;
            Ok((name.to_string_lossy().into_owned(), file.clone()))
        })
        .collect()
}

fn print(command: &str, output: &Output) {
    eprintln!("lab: $ {command}");
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    if output.code != 0 {
        eprintln!("lab: exit code {}", output.code);
    }
}

/// What is done when all commands have run.
struct After {
    lines: Option<usize>,
    judge: bool,
    around: bool,
}

fn run_again(
    lab: &Lab,
    dump: &CachedDump,
    luggage: &Luggage,
    dir: &Path,
    commands: &[String],
    seconds: u64,
    after: &After,
) -> Result<ExitCode> {
    let started = Instant::now();
    let mut host = lab.reboot_in(dump, luggage, dir)?;
    eprintln!("lab: up after {:.1} s", started.elapsed().as_secs_f64());
    let mut code = 0;
    for command in commands {
        let output = host.run(command, Duration::from_secs(seconds));
        let output = output.with_context(|| host.machine.console_end())?;
        print(command, &output);
        if code == 0 {
            code = output.code;
        }
    }
    let judged = finish(host, after, dir)?;
    Ok(match code {
        0 => judged,
        code => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    })
}

/// Waits for new lines, turns the host off, judges, where that was asked for.
fn finish(mut host: Rebooted, after: &After, dir: &Path) -> Result<ExitCode> {
    if after.lines.is_none() && !after.judge {
        return Ok(ExitCode::SUCCESS);
    }
    let lines = after.lines.unwrap_or(0);
    host.follow_all()?;
    for name in host.names() {
        let waited = host.wait_new_lines(&name, lines, Duration::from_secs(120));
        if let Err(error) = waited {
            eprintln!("lab: {error:#}");
        }
    }
    let aftermath = host.finish()?;
    let mut good = true;
    for (name, verdict) in aftermath.verdicts(lines) {
        if after.around {
            println!("{}", verdict.around(&name, 110));
        }
        println!("{name}: {verdict}");
        good &= verdict.is_good();
    }
    eprintln!(
        "lab: outputs and disks are in {}",
        dir.join("after").display()
    );
    if !good {
        bail!(
            "not everything came back whole (the run is kept in {})",
            dir.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
