//! What became of each process: the fidelity report, for people and as JSON.

use super::exit::{Exit, Failure};
use super::output::print_json;
use crate::dataset::{Fidelity, FidelityLevel, Process};
use crate::restore::Pager;
use serde::Serialize;

/// What became of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It runs.
    Running,
    /// It is restored and stopped (`--paused`).
    Paused,
    /// A dry run went all the way.
    WouldRestore,
    /// It was refused before anything was started.
    Refused,
    /// It failed; nothing of it is left.
    Failed,
    /// It ran, and was ended, since the rest of its memory could not be had.
    Ended,
}

/// One process (with its guests) in the report.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Guest's name, or the command.
    pub name: String,
    /// PID in the dead host.
    pub pid: i32,
    /// PID now.
    pub new_pid: Option<i32>,
    /// All that were restored as one; mostly it is alone.
    pub processes: Vec<Member>,
    /// vCPUs of its guests.
    pub vcpus: usize,
    pub verdict: Verdict,
    /// Bytes of unwritten file data that were written back first.
    pub written_back_bytes: u64,
    /// From the start of its restore until it ran. Milliseconds.
    pub milliseconds: u64,
    /// When its memory is there; `None`: it did not come to that.
    pub memory: Option<MemoryLine>,
    pub fidelity: Vec<Fidelity>,
    pub error: Option<String>,
    pub hint: Option<String>,
    /// Brings what is not there yet.
    #[serde(skip)]
    pub pager: Option<Pager>,
    #[serde(skip)]
    pub exit: Exit,
}

/// How the memory of a process comes to be there.
#[derive(Debug, Serialize)]
pub struct MemoryLine {
    /// `eager` or `lazy`.
    pub how: &'static str,
    /// Why it, or a part of it, is eager, although it need not be.
    pub why: Option<String>,
    /// Bytes that arrive while it runs, and that have arrived.
    pub lazy_bytes: u64,
    pub arrived_bytes: u64,
    /// Touches that were answered, of these those of pages of zeros.
    pub faults: u64,
    pub zero_faults: u64,
    /// Within so many microseconds 99 of 100 were answered.
    pub p99_us: u64,
    /// From the begin of the pager until all was there, or until now. Milliseconds.
    pub milliseconds: u64,
}

/// One process of a set.
#[derive(Debug, Serialize)]
pub struct Member {
    /// PID in the dead host.
    pub pid: i32,
    pub ppid: i32,
    pub command: String,
    /// PID now.
    pub new_pid: Option<i32>,
}

impl Member {
    /// Not restored yet.
    pub fn of(process: &Process) -> Self {
        Self {
            pid: process.pid,
            ppid: process.ppid,
            command: process.comm.clone(),
            new_pid: None,
        }
    }
}

/// The JSON document of `guests`, `process` and `restore`.
#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    crash_id: &'a str,
    exit_code: u8,
    results: &'a [Line],
}

/// Prints the report and says how the command ends.
///
/// # Errors
/// When stdout cannot be written to.
pub fn finish(crash_id: &str, lines: &[Line], json: bool) -> Result<Exit, Failure> {
    let exit = exit_code(lines);
    if json {
        let document = Document {
            schema_version: super::SCHEMA_VERSION,
            crash_id,
            exit_code: exit as u8,
            results: lines,
        };
        print_json(&document)?;
    } else {
        for line in lines {
            print_line(line);
        }
    }
    Ok(exit)
}

/// All failed in one way: that way. Some failed: [`Exit::Partly`].
fn exit_code(lines: &[Line]) -> Exit {
    let failed: Vec<Exit> = lines
        .iter()
        .filter(|l| !l.succeeded())
        .map(|l| l.exit)
        .collect();
    match failed.as_slice() {
        [] if lines.iter().any(Line::has_losses) => Exit::WithLosses,
        [] => Exit::Done,
        [first, ..] if failed.len() == lines.len() => *first,
        _ => Exit::Partly,
    }
}

fn print_line(line: &Line) {
    let others = match line.processes.len() {
        0 | 1 => String::new(),
        count => format!(" and {} with it", count - 1),
    };
    let who = format!("{} (pid {}){others}", printable(&line.name), line.pid);
    match (line.verdict, line.new_pid) {
        (Verdict::Running, Some(pid)) if pid == line.pid => println!("{who}: running"),
        (Verdict::Running, pid) => println!("{who}: running as pid {}", pid.unwrap_or_default()),
        (Verdict::Paused, pid) => println!(
            "{who}: restored and stopped; `kill -CONT {}` lets it go on",
            all_pids(line, pid.unwrap_or(line.pid))
        ),
        (Verdict::WouldRestore, _) => println!("{who}: would be restored"),
        (Verdict::Refused, _) => println!("{who}: refused"),
        (Verdict::Failed, _) => println!("{who}: failed; nothing of it was left behind"),
        (Verdict::Ended, _) => {
            println!("{who}: it ran, and was ended: the rest of its memory cannot be had");
        }
    }
    if line.processes.len() > 1 {
        for member in &line.processes {
            let now = match member.new_pid {
                Some(pid) if pid != member.pid && pid != 0 => format!(", now {pid}"),
                _ => String::new(),
            };
            println!(
                "  pid {} ({}), child of {}{now}",
                member.pid,
                printable(&member.command),
                member.ppid
            );
        }
    }
    if line.written_back_bytes > 0 {
        println!(
            "  written back to its files first: {} bytes",
            line.written_back_bytes
        );
    }
    if let Some(memory) = &line.memory {
        print_memory(memory);
    }
    for level in [FidelityLevel::Lost, FidelityLevel::Reconstructed] {
        for f in line.fidelity.iter().filter(|f| f.level == level) {
            let word = match level {
                FidelityLevel::Lost => "lost",
                _ => "reconstructed",
            };
            println!(
                "  {word}: {}: {}: {}",
                printable(&f.subject),
                f.what,
                printable(&f.how)
            );
        }
    }
    if line.succeeded()
        && !line
            .fidelity
            .iter()
            .any(|f| f.level != FidelityLevel::Exact)
    {
        println!("  everything is exact");
    }
    if let Some(error) = &line.error {
        eprintln!("error: {}: {}", printable(&line.name), printable(error));
    }
    if let Some(hint) = line.hint.as_deref().filter(|h| !h.is_empty()) {
        eprintln!("hint: {hint}");
    }
}

fn print_memory(memory: &MemoryLine) {
    if let Some(why) = &memory.why {
        let all = if memory.lazy_bytes > 0 { "some" } else { "all" };
        println!("  memory: {all} there before it ran: {why}");
    }
    if memory.lazy_bytes > 0 {
        println!(
            "  memory: {} of {} MiB arrived while it ran, within {:.1} s; {} touches waited for it, 99 of \
             100 less than {} us",
            memory.arrived_bytes >> 20,
            memory.lazy_bytes >> 20,
            memory.milliseconds as f64 / 1000.0,
            memory.faults,
            memory.p99_us
        );
    }
}

/// The PIDs of all of a set, as for a command line.
fn all_pids(line: &Line, first: i32) -> String {
    let pids: Vec<String> = line
        .processes
        .iter()
        .filter_map(|member| member.new_pid)
        .map(|pid| pid.to_string())
        .collect();
    if pids.is_empty() {
        return first.to_string();
    }
    pids.join(" ")
}

/// Text from a dump, without control characters.
pub(super) fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control(), "?")
}

impl Line {
    fn succeeded(&self) -> bool {
        matches!(
            self.verdict,
            Verdict::Running | Verdict::Paused | Verdict::WouldRestore
        )
    }

    fn has_losses(&self) -> bool {
        self.fidelity.iter().any(|f| f.level == FidelityLevel::Lost)
    }
}
