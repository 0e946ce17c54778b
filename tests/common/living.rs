//! The test program `living`, and others like it: started, looked at, judged
//! by the log that they write.
#![allow(dead_code)]

use crate::live;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vmrestore::dataset::SigAction;
use vmrestore::sys::ptrace;

pub fn root_or_say_so() -> bool {
    // SAFETY-free: procfs knows it as well.
    let root = fs::metadata("/proc/self").is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt;
        m.uid() == 0
    });
    if !root {
        eprintln!("SKIPPED: restoring needs root");
    }
    root
}

/// A test program, running.
pub struct Living {
    pub dir: PathBuf,
    pub child: Child,
}

impl Living {
    /// As [`Self::launch`]; waits until it has counted a little.
    pub fn start(name: &str, program: &str) -> Self {
        let living = Self::launch(name, program);
        living.await_ticks(10);
        living
    }

    /// Builds a program of tests/programs, and starts it with a directory of its own.
    pub fn launch(name: &str, program: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("vmrestore-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/programs")
            .join(format!("{program}.c"));
        let program = dir.join(program);
        let built = Command::new("cc")
            .args(["-O1", "-pthread", "-o"])
            .args([&program, &source])
            .status()
            .expect("a C compiler");
        assert!(built.success());
        let child = Command::new(&program)
            .arg(&dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the test program");
        Self { dir, child }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn ticks(&self) -> Vec<Tick> {
        self.log().lines().filter_map(Tick::parse).collect()
    }

    pub fn await_ticks(&self, count: usize) -> Vec<Tick> {
        let begin = Instant::now();
        loop {
            let ticks = self.ticks();
            assert!(!self.log().contains("BAD"), "{}", self.log());
            if ticks.len() >= count {
                return ticks;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "only {} of {count} ticks:\n{}",
                ticks.len(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn take(&self) -> live::Taken {
        // A program that writes none has none.
        let bytes = fs::read(self.dir.join("sigactions")).unwrap_or_default();
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|c| u64::from_ne_bytes(c.try_into().expect("8")))
            .collect();
        let actions = (1..)
            .zip(words.chunks_exact(4))
            .map(|(signal, w)| SigAction {
                signal,
                handler: w[0],
                flags: w[1],
                restorer: w[2],
                mask: w[3],
            })
            .collect();
        live::take(self.pid(), actions)
    }

    /// Ends the original, whose tracer this thread is: its threads must be
    /// waited for before it.
    pub fn kill(&mut self) {
        self.kill_only();
        self.child.wait().expect("wait");
    }

    /// The same; its remains keep the PID until they are waited for.
    pub fn kill_only(&mut self) {
        let tids: Vec<i32> = fs::read_dir(format!("/proc/{}/task", self.pid()))
            .expect("tasks")
            .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
            .filter(|tid| *tid != self.pid())
            .collect();
        self.child.kill().expect("kill");
        for tid in tids {
            while !matches!(ptrace::wait(tid), Ok(ptrace::Stop::Gone(_)) | Err(_)) {}
        }
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Kills what was restored when the test ends.
pub struct Killed(pub i32);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = vmrestore::sys::task_control::kill(self.0, libc::SIGKILL);
    }
}

/// One line of the program's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Tick {
    pub number: u64,
    pub pid: i32,
    pub monotonic: u64,
    pub spins: u64,
}

impl Tick {
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let after = |name| {
            let at = words.iter().position(|w| *w == name)?;
            words.get(at + 1)?.parse::<u64>().ok()
        };
        Some(Self {
            number: after("tick")?,
            pid: after("pid")? as i32,
            monotonic: after("mono")?,
            spins: after("spins")?,
        })
    }
}

/// No tick is missing, none came twice, and the threads went on.
pub fn assert_unbroken(ticks: &[Tick], pid: i32) {
    for pair in ticks.windows(2) {
        assert_eq!(pair[1].number, pair[0].number + 1);
        assert!(pair[1].monotonic > pair[0].monotonic);
        assert!(pair[1].spins >= pair[0].spins);
    }
    assert!(ticks.iter().all(|t| t.pid == pid), "{ticks:?}");
    let last = ticks.last().expect("ticks");
    assert!(last.spins > ticks[9].spins);
}
