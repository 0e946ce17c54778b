//! How long it takes to bring a process back, beside CRIU: the same program with the same memory,
//! once taken into a directory as `vmrestore extract` writes it, once dumped by CRIU, and restored
//! from there in turn by a command of its own, from its start to its exit. Files in the page cache.
//!
//!     cargo bench --bench restore -- --table [--criu COMMAND] [ROUNDS]
//!
//! As root. Every restored process must tell the sum over its memory that it told before. Without
//! CRIU its column stays empty: Debian 12's CRIU is too old for newer kernels' vDSO.

#[path = "../tests/common/live.rs"]
mod live;

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmrestore::extract::directory;

/// What is held: MiB, in huge pages.
const HELD: [(u32, bool); 3] = [(1, false), (1024, false), (1024, true)];

/// MiB that are touched and freed before each restore: a virtual machine that gives free memory back
/// pays for it again at the next touch.
const WARMED: &str = "1200";

fn main() -> Result<()> {
    // `cargo bench` adds a word of its own.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| w != "--bench")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (criu, rounds) = match words.as_slice() {
        ["--table", rest @ ..] => match rest {
            ["--criu", command, rest @ ..] => (*command, rest.first()),
            rest => ("criu", rest.first()),
        },
        _ => {
            println!("restore: cargo bench --bench restore -- --table (as root; a minute)");
            return Ok(());
        }
    };
    let rounds = rounds.map_or(Ok(5), |r| r.parse())?;
    let work = std::env::temp_dir().join(format!("vmrestore-bench-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let done = table(&work, criu, rounds);
    fs::remove_dir_all(&work)?;
    done
}

fn table(work: &Path, criu: &str, rounds: usize) -> Result<()> {
    let program = work.join("holder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/holder.c");
    let built = Command::new("cc")
        .args(["-O2", "-o"])
        .args([&program, &source])
        .status()
        .context("a C compiler")?;
    ensure!(built.success(), "the program does not build");
    let version = Command::new(criu).arg("--version").output().ok();
    match &version {
        Some(said) => println!("{}", String::from_utf8_lossy(&said.stdout).trim()),
        None => println!("no CRIU here ({criu})"),
    }
    println!("\n| process | vmrestore, s | CRIU, s | times |\n|---|---|---|---|");
    for (mib, huge) in HELD {
        let ours = Taken::new(work, &program, mib, huge)?;
        let theirs = version
            .as_ref()
            .map(|_| Dumped::new(work, &program, criu, mib, huge))
            .transpose()?;
        let (mut by_us, mut by_them) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            by_us.push(ours.restore(round)?);
            if let Some(theirs) = &theirs {
                by_them.push(theirs.restore()?);
            }
        }
        let (us, them) = (median(by_us), median(by_them));
        let pages = if huge { "huge pages" } else { "4 KiB pages" };
        match them {
            Some(them) => println!(
                "| {mib} MiB in {pages} | {us:.3} | {them:.3} | {times:.1} |",
                us = us.unwrap_or_default(),
                times = them / us.unwrap_or(f64::NAN)
            ),
            None => println!(
                "| {mib} MiB in {pages} | {:.3} | | |",
                us.unwrap_or_default()
            ),
        }
    }
    Ok(())
}

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// The program, running, and what its memory sums up to.
struct Holder {
    child: Child,
    dir: PathBuf,
    sum: String,
}

impl Holder {
    fn start(dir: PathBuf, program: &Path, mib: u32, huge: bool) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        // A session of its own, which is all that CRIU asks of a process.
        let child = Command::new("setsid")
            .arg(program)
            .arg(&dir)
            .args([
                mib.to_string().as_str(),
                if huge { "huge" } else { "small" },
            ])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("setsid")?;
        let mut holder = Self {
            child,
            dir,
            sum: String::new(),
        };
        holder.sum = ask(&holder.dir)?;
        Ok(holder)
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

/// The sum that the process of that directory tells.
fn ask(dir: &Path) -> Result<String> {
    let told = dir.join("sum");
    let _ = fs::remove_file(&told);
    fs::write(dir.join("ask"), "")?;
    let began = Instant::now();
    while !told.exists() {
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "it does not answer"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(fs::read_to_string(&told)?)
}

/// Times one restore; what came back must hold what it held, and goes again.
fn timed(mut command: Command, dir: &Path, sum: &str, pid: i32) -> Result<f64> {
    let warmer = dir.parent().context("its directory")?.join("holder");
    ensure!(
        Command::new(warmer)
            .args(["-", WARMED, "huge"])
            .status()?
            .success(),
        "no memory"
    );
    let began = Instant::now();
    let output = command.output()?;
    let took = began.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let now = ask(dir)?;
    vmrestore::sys::task_control::kill(pid, libc::SIGKILL)?;
    while Path::new(&format!("/proc/{pid}")).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    ensure!(now == sum, "it came back with other memory: {sum} {now}");
    Ok(took)
}

/// A process in a directory of ours.
struct Taken {
    dir: PathBuf,
    sum: String,
    pid: i32,
}

impl Taken {
    fn new(work: &Path, program: &Path, mib: u32, huge: bool) -> Result<Self> {
        let dir = work.join(format!("ours-{mib}-{huge}"));
        let mut holder = Holder::start(dir.clone(), program, mib, huge)?;
        let pid = holder.pid();
        let mut taken = live::take(pid, Vec::new());
        taken.dataset.crash_id = "bench".into();
        directory::write(&taken.dataset, &taken.memory, &dir.join("taken"))?;
        holder.child.kill()?;
        holder.child.wait()?;
        let sum = holder.sum;
        Ok(Self { dir, sum, pid })
    }

    fn restore(&self, round: usize) -> Result<f64> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
        command
            .arg("restore")
            .arg(self.dir.join("taken"))
            .arg("--state-dir")
            .arg(self.dir.join(format!("state-{round}")));
        timed(command, &self.dir, &self.sum, self.pid)
    }
}

/// A process in CRIU's images.
struct Dumped {
    dir: PathBuf,
    sum: String,
    pid: i32,
    criu: String,
}

impl Dumped {
    fn new(work: &Path, program: &Path, criu: &str, mib: u32, huge: bool) -> Result<Self> {
        let dir = work.join(format!("theirs-{mib}-{huge}"));
        let mut holder = Holder::start(dir.clone(), program, mib, huge)?;
        let images = dir.join("images");
        fs::create_dir_all(&images)?;
        let pid = holder.pid();
        let output = Command::new(criu)
            .args(["dump", "-t", &pid.to_string(), "-D"])
            .arg(&images)
            .output()?;
        holder.child.wait()?;
        ensure!(
            output.status.success(),
            "criu dump: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self {
            dir,
            sum: holder.sum,
            pid,
            criu: criu.into(),
        })
    }

    fn restore(&self) -> Result<f64> {
        let mut command = Command::new(&self.criu);
        command
            .args(["restore", "-d", "-D"])
            .arg(self.dir.join("images"));
        timed(command, &self.dir, &self.sum, self.pid)
    }
}
