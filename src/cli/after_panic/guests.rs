//! Guests, resumed by a vmrestore of their own: should it die, the dump is saved all the same.

use super::RUN;
use super::log::Log;
use serde::Deserialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What became of the guests.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Name and PID here.
    pub running: Vec<(String, i32)>,
    /// Every guest of the dead host runs: none needs to come back from a dump.
    pub all: bool,
}

/// The parts of the report of `vmrestore guests --json` that count here.
#[derive(Debug, Deserialize)]
struct Report {
    results: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    name: String,
    new_pid: Option<i32>,
    verdict: String,
    error: Option<String>,
}

/// Resumes all guests, in the order of the plan.
pub fn resume(plan: Option<&PathBuf>, state_dir: &Path, log: &mut Log) -> Resumed {
    let to = Path::new(RUN).join("guests.json");
    let report = match begin(plan, state_dir, &to) {
        Ok(code) => {
            log.say(format!("guests: vmrestore ended with exit code {code}"));
            fs::read(&to).unwrap_or_default()
        }
        Err(error) => {
            log.say(format!("guests: {error}"));
            return Resumed::default();
        }
    };
    read(&report, log)
}

fn begin(plan: Option<&PathBuf>, state_dir: &Path, to: &Path) -> std::io::Result<i32> {
    fs::create_dir_all(RUN)?;
    let mut command = Command::new("/proc/self/exe");
    command.args([
        "--json",
        "guests",
        "/proc/vmcore",
        "--in-place",
        "--state-dir",
    ]);
    command.arg(state_dir);
    if let Some(plan) = plan {
        command.arg("--plan").arg(plan);
    }
    // A file: what guests inherit by mistake can hold up nobody.
    let status = command
        .env("VMRESTORE_STATE_DIR", state_dir)
        .stdin(Stdio::null())
        .stdout(File::create(to)?)
        .status()?;
    Ok(status.code().unwrap_or(-1))
}

fn read(report: &[u8], log: &mut Log) -> Resumed {
    let Ok(report) = serde_json::from_slice::<Report>(report) else {
        log.say("no guest goes on: vmrestore gave no report");
        return Resumed::default();
    };
    let mut resumed = Resumed {
        all: !report.results.is_empty(),
        ..Resumed::default()
    };
    for line in report.results {
        match line.new_pid.filter(|_| line.verdict == "running") {
            Some(pid) => {
                log.say(format!("{} goes on in place, pid {pid}", line.name));
                resumed.running.push((line.name, pid));
            }
            None => {
                resumed.all = false;
                let why = line.error.unwrap_or(line.verdict);
                log.say(format!("{} does not go on: {why}", line.name));
            }
        }
    }
    resumed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_who_runs() {
        let report = br#"{"schema_version":1,"results":[
            {"name":"a","new_pid":7,"verdict":"running","error":null},
            {"name":"b","new_pid":null,"verdict":"refused","error":"no room"}]}"#;
        let found = read(report, &mut Log::new());
        assert_eq!(found.running, [("a".to_owned(), 7)]);
        assert!(!found.all);
        let none = read(b"", &mut Log::new());
        assert!(none.running.is_empty() && !none.all);
    }
}
