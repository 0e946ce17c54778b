//! `kill -9` of vmrestore at the system calls of its last phase, from the first thread that no
//! longer depends on it to its end: either nothing of the process has run and nothing is left of it,
//! or all of it runs, once, and the journal knows.
//!
//! Needs root and a C compiler, as tests/restore_live.rs.
#![allow(unsafe_code)]

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, assert_unbroken, root_or_say_so};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use vmrestore::sys::ptrace::{self, Registers};

/// Within this time the program counts on.
const TICKS: Duration = Duration::from_millis(100);
/// What has been killed is gone within this time.
const GONE: Duration = Duration::from_secs(10);

#[test]
fn killed_at_each_call_of_its_last_phase_it_ran_once_or_not_at_all() {
    each_call("commit", false);
}

#[test]
fn likewise_in_a_pid_namespace_of_its_own() {
    each_call("commit-own", true);
}

/// With `taken`, the process's PID is in use on this host.
fn each_call(name: &str, taken: bool) {
    if !root_or_say_so() {
        return;
    }
    let (mut nothing, mut runs) = (0, 0);
    let mut call = 0;
    let mut finished = false;
    while !finished {
        let dead = Dead::of(name, taken);
        loop {
            finished = dead.restore_until(call);
            // Once all threads have been let go, one call is like the next.
            call += if runs < 16 { 1 } else { 7 };
            match dead.survivor() {
                Some(pid) => {
                    dead.judge(pid);
                    runs += 1;
                    break;
                }
                None => nothing += 1,
            }
            dead.await_end_of_remains();
            let said = fs::read_to_string(dead.work.join("said")).unwrap_or_default();
            assert!(!finished, "it came to its end, and nothing runs\n{said}");
            // What ran for a moment would have counted.
            assert_eq!(dead.living.log(), dead.log, "killed at call {call}");
        }
    }
    eprintln!("{name}: killed at {call} calls: {nothing} times nothing ran, {runs} times all");
    assert!(nothing > 3 && runs > 3, "that was not the last phase");
}

/// A process of which only the dataset is left.
struct Dead {
    living: Living,
    pid: i32,
    work: PathBuf,
    log: String,
}

impl Dead {
    fn of(name: &str, taken: bool) -> Self {
        let mut living = Living::start(name, "living");
        let pid = living.pid();
        let mut dump = living.take();
        if taken {
            living.kill_only();
        } else {
            living.kill();
        }
        dump.dataset.crash_id = "commit".into();
        let work = std::env::temp_dir().join(format!("vmrestore-{name}-{pid}-work"));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).expect("a directory");
        vmrestore::extract::directory::write(&dump.dataset, &dump.memory, &work.join("dataset"))
            .expect("written");
        let log = living.log();
        Self {
            living,
            pid,
            work,
            log,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
        command
            .arg("restore")
            .arg(self.work.join("dataset"))
            .arg("--state-dir")
            .arg(self.work.join("state"))
            .stdin(Stdio::null());
        command
    }

    /// A restore that is killed before the call with this number of its last phase. `true`: it came
    /// to its end before.
    fn restore_until(&self, call: u32) -> bool {
        let mut command = self.command();
        let said = fs::File::create(self.work.join("said")).expect("a file");
        let child = command.stdout(Stdio::null()).stderr(said).spawn();
        let mut child = child.expect("starts");
        let killed = kill_at(child.id().cast_signed(), call);
        // Its end may have been seen already.
        let _ = child.wait();
        !killed
    }

    /// PID here of what the last restore has left running.
    fn survivor(&self) -> Option<i32> {
        let begin = Instant::now();
        while begin.elapsed() < GONE {
            let (pid, _) = self.record()?;
            if !lives(pid) {
                return None;
            }
            if self.living.log() != self.log {
                // Not merely for a moment.
                std::thread::sleep(Duration::from_millis(100));
                assert!(lives(pid), "it ran, and was ended");
                return Some(pid);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("it neither runs nor is it gone");
    }

    /// Who was killed along with vmrestore takes a moment to close what it had open, and as long as
    /// anybody writes to a file of the process's a restore is refused.
    fn await_end_of_remains(&self) {
        let log = self.living.dir.join("log");
        let is_open = || {
            let all = fs::read_dir("/proc").expect("/proc").flatten();
            let mut fds = all.filter_map(|process| fs::read_dir(process.path().join("fd")).ok());
            fds.any(|fds| {
                let mut targets = fds.flatten().map(|fd| fs::read_link(fd.path()));
                targets.any(|target| target.is_ok_and(|target| target == log))
            })
        };
        let begin = Instant::now();
        while is_open() {
            assert!(begin.elapsed() < GONE, "somebody keeps {log:?} open");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All of it runs, and cannot be restored a second time.
    fn judge(&self, pid: i32) {
        let guard = Killed(pid);
        let before = self.log.lines().count();
        let ticks = self.living.await_ticks(before + 5);
        assert_unbroken(&ticks, self.pid);
        self.refused("while it lives");
        let noted = self.record().is_some_and(|(_, running)| running);
        drop(guard);
        while lives(pid) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if noted {
            self.refused("when it has ended");
        }
    }

    fn refused(&self, when: &str) {
        let Output { status, stderr, .. } = self.command().output().expect("runs");
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(5), "{when}: {said}");
    }

    /// What the journal says: the PID here, and whether it runs.
    fn record(&self) -> Option<(i32, bool)> {
        let name = format!("state/commit/resumed-{}.json", self.pid);
        let bytes = fs::read(self.work.join(name)).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        let here = i32::try_from(record.get("as_pid")?.as_i64()?).ok()?;
        Some((here, record.get("running")?.as_bool()?))
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        let _ = self.living.child.wait();
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// The process is there, and not merely its remains.
fn lives(pid: i32) -> bool {
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

/// Follows vmrestore, whose own tracees are none of ours, and kills it right before a call; `false`:
/// it has ended.
fn kill_at(pid: i32, call: u32) -> bool {
    let options = libc::PTRACE_O_TRACESYSGOOD.cast_unsigned() as usize;
    assert!(request(libc::PTRACE_SEIZE, pid, options), "seizes");
    assert!(request(libc::PTRACE_INTERRUPT, pid, 0), "stops it");
    let mut seen = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        assert_eq!(waited, pid, "waits");
        if !libc::WIFSTOPPED(status) {
            return false;
        }
        let signal = match libc::WSTOPSIG(status) {
            stop if stop == libc::SIGTRAP | 0x80 => {
                let regs = ptrace::registers(pid).expect("registers");
                if is_entry(&regs) {
                    seen = match seen {
                        None if lets_outlive(&regs) => Some(0),
                        None => None,
                        Some(number) => Some(number + 1),
                    };
                }
                if seen == Some(call) {
                    // Whoever runs already is to be seen to have run.
                    std::thread::sleep(TICKS);
                    // SAFETY: no memory is involved.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                    return true;
                }
                0
            }
            // A stop that PTRACE_SEIZE makes is no signal.
            _ if status >> 16 != 0 => 0,
            signal => usize::try_from(signal).expect("a signal"),
        };
        request(libc::PTRACE_SYSCALL, pid, signal);
    }
}

fn is_entry(regs: &Registers) -> bool {
    regs.rax == (-i64::from(libc::ENOSYS)).cast_unsigned()
}

/// PTRACE_SETOPTIONS to none: the first that vmrestore frees from itself.
fn lets_outlive(regs: &Registers) -> bool {
    let call = i64::try_from(regs.orig_rax).unwrap_or(-1);
    call == libc::SYS_ptrace && regs.rdi == u64::from(libc::PTRACE_SETOPTIONS) && regs.r10 == 0
}

fn request(request: libc::c_uint, pid: i32, data: usize) -> bool {
    // SAFETY: none of these requests reads or writes memory of ours.
    unsafe { libc::ptrace(request, pid, 0, data) == 0 }
}
