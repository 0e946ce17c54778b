//! One restore of one of the bench's guests by the command, and what the guest says of it.

use crate::Guest;
use crate::dumps::VMM;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the VMM keeps its report (vmm.c): magic, pages, last exit, first exit of this life, exits, of wrong
/// pages, longest; then exits by time in steps of [`STEP_US`].
const REPORT: u64 = 0x1000_0000_0000;
const MAGIC: u64 = 0x5eed_5eed_5eed_5eed;
const STEPS: usize = 1024;
const STEP_US: u64 = 2;

/// What was measured.
pub struct Restored {
    /// From the command's exec to the guest's first exit, ms.
    pub first: f64,
    /// The command's JSON on memory.
    pub memory: Value,
    /// Until the command had ended: the guest's touches in a second, 99 of 100 within so many µs.
    pub touches: f64,
    pub p99_us: u64,
    pub longest_ms: f64,
}

struct Report([u64; 7 + STEPS]);

impl Report {
    fn of(pid: i32) -> Result<Self> {
        let mut bytes = [0; 8 * (7 + STEPS)];
        File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, REPORT)?;
        let mut words = [0; 7 + STEPS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        ensure!(words[0] == MAGIC, "process {pid} is not the bench's VMM");
        Ok(Self(words))
    }

    fn p99_us(&self) -> u64 {
        let mut left = self.0[4] / 100;
        for (step, count) in self.0[7..].iter().enumerate().rev() {
            if *count > left {
                return (step as u64 + 1) * STEP_US;
            }
            left -= count;
        }
        0
    }
}

fn now() -> Result<u64> {
    Ok(u64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos(),
    )?)
}

/// Touches and frees so much memory: a virtual machine that gives free memory back pays for it again at the
/// next touch.
pub fn warm(holder: &Path, mib: u64) -> Result<()> {
    let status = Command::new(holder)
        .args(["-", &(mib + 512).to_string(), "huge"])
        .status()?;
    ensure!(status.success(), "this machine has not got {mib} MiB free");
    Ok(())
}

/// The command, for a guest of a dump.
pub fn command(dump: &Path, guest: &Guest, memory: &str, state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
    command
        .args(["--json", "guests"])
        .arg(dump)
        .arg(format!("pid:{}", guest.pid))
        // The lab's CPU has what this one lacks; the guest does not use it.
        .args(["--force", "--memory", memory, "--state-dir"])
        .arg(state);
    command
}

/// Restores a guest, lets it run for a while, and ends it.
pub fn restore(dump: &Path, guest: &Guest, memory: &str, work: &Path) -> Result<Restored> {
    let state = work.join("state");
    let _ = fs::remove_dir_all(&state);
    let mut command = command(dump, guest, memory, &state);
    let begin = now()?;
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let json: Value =
        serde_json::from_str(&said).with_context(|| format!("{command:?}: {said}{error}"))?;
    let line = &json["results"][0];
    let pid = line["new_pid"]
        .as_i64()
        .with_context(|| format!("{command:?}: {said}{error}"))?;
    let pid = i32::try_from(pid)?;
    let measured = measure(pid, begin, line);
    vmrestore::sys::task_control::kill(pid, libc::SIGKILL)?;
    while Path::new(&format!("/proc/{pid}")).exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    measured
}

fn measure(pid: i32, begin: u64, line: &Value) -> Result<Restored> {
    let exe = fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(exe == Path::new(VMM), "{pid} is {}", exe.display());
    let mut report = Report::of(pid)?;
    let waited = Instant::now();
    // Eagerly restored, it may have no exit behind it yet.
    while report.0[3] < begin {
        ensure!(
            waited.elapsed() < Duration::from_secs(20),
            "it does not run"
        );
        std::thread::sleep(Duration::from_millis(1));
        report = Report::of(pid)?;
    }
    let meanwhile = match report.0[4] {
        // Too short a time to say anything of.
        ..100 => {
            std::thread::sleep(Duration::from_millis(500));
            Report::of(pid)?
        }
        _ => report,
    };
    std::thread::sleep(Duration::from_millis(300));
    let later = Report::of(pid)?;
    ensure!(
        later.0[4] > meanwhile.0[4],
        "it ran, and does not run any more"
    );
    ensure!(
        later.0[5] == 0,
        "{} pages were not what they had been",
        later.0[5]
    );
    let back = meanwhile.0[3];
    let seconds = (meanwhile.0[2] - back) as f64 / 1e9;
    Ok(Restored {
        first: (back - begin) as f64 / 1e6,
        memory: line["memory"].clone(),
        touches: meanwhile.0[4] as f64 / seconds,
        p99_us: meanwhile.p99_us(),
        longest_ms: meanwhile.0[6] as f64 / 1e6,
    })
}
