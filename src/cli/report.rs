//! What became of each process: the fidelity report, for people and as JSON.

use super::exit::{Exit, Failure};
use super::output::print_json;
use crate::dataset::{Fidelity, FidelityLevel};
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
    /// vCPUs of its guests.
    pub vcpus: usize,
    pub verdict: Verdict,
    /// Bytes of unwritten file data that were written back first.
    pub written_back_bytes: u64,
    /// From the start of its restore until it ran. Milliseconds.
    pub milliseconds: u64,
    pub fidelity: Vec<Fidelity>,
    pub error: Option<String>,
    pub hint: Option<String>,
    #[serde(skip)]
    pub exit: Exit,
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
    let who = format!("{} (pid {})", printable(&line.name), line.pid);
    match (line.verdict, line.new_pid) {
        (Verdict::Running, Some(pid)) if pid == line.pid => println!("{who}: running"),
        (Verdict::Running, pid) => println!("{who}: running as pid {}", pid.unwrap_or_default()),
        (Verdict::Paused, pid) => println!(
            "{who}: restored and stopped; `kill -CONT {}` lets it go on",
            pid.unwrap_or(line.pid)
        ),
        (Verdict::WouldRestore, _) => println!("{who}: would be restored"),
        (Verdict::Refused, _) => println!("{who}: refused"),
        (Verdict::Failed, _) => println!("{who}: failed; nothing of it was left behind"),
    }
    if line.written_back_bytes > 0 {
        println!(
            "  written back to its files first: {} bytes",
            line.written_back_bytes
        );
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

/// Text from a dump, without control characters.
fn printable(text: &str) -> String {
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
