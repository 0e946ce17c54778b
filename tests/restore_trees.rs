//! Sets of related processes of this machine: stopped, looked at, killed, and
//! brought back together; then each goes on and judges itself.
//!
//! Needs root, a C compiler, bash, and iproute2's ss.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use live::set;
use living::root_or_say_so;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vmrestore::dataset::{FileKind, OpenFile};
use vmrestore::restore::{Options, RestoreError, Restored, prepare};
use vmrestore::sys::{ptrace, task_control};

/// PIDs are the machine's, and tests want theirs: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A set of processes that the test program makes, or a shell with it.
struct Tree {
    dir: PathBuf,
    child: Child,
    pids: Vec<i32>,
}

impl Tree {
    /// Runs a command of bash, in which `$T` is the test program and `$D` a directory of its own.
    fn start(name: &str, command: &str) -> Self {
        // Whoever is orphaned here is this process's child, and does not stay a zombie.
        // SAFETY: plain numbers.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let dir =
            std::env::temp_dir().join(format!("vmrestore-tree-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let program = dir.join("tree");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/tree.c");
        let built = Command::new("cc")
            .args(["-O1", "-pthread", "-o"])
            .args([&program, &source])
            .status()
            .expect("a C compiler");
        assert!(built.success());
        // Descriptors that this process was itself started with are none of its.
        let command = format!(
            "for fd in /proc/self/fd/*; do fd=${{fd##*/}}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done; {command}"
        );
        let child = Command::new("bash")
            .args(["-c", &command])
            .env("T", &program)
            .env("D", &dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash");
        Self {
            dir,
            child,
            pids: Vec::new(),
        }
    }

    fn text(&self, file: &str) -> String {
        fs::read(self.dir.join(file)).map_or(String::new(), |b| String::from_utf8_lossy(&b).into())
    }

    /// Waits until a file has so many lines; none of the program's may be bad.
    fn await_lines(&self, file: &str, count: usize) -> Vec<String> {
        self.until(file, |text| text.lines().count() >= count)
            .lines()
            .map(String::from)
            .collect()
    }

    fn until(&self, file: &str, enough: impl Fn(&str) -> bool) -> String {
        let begin = Instant::now();
        loop {
            let log = self.text("log");
            assert!(!log.contains("BAD"), "{log}");
            let text = self.text(file);
            if enough(&text) {
                return text;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{file}:\n{text}\nlog:\n{log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes the whole tree, and ends the originals.
    fn take(&mut self) -> live::Taken {
        self.pids = set::tree(self.child.id() as i32);
        let taken = set::take(&self.pids);
        self.end();
        taken
    }

    /// Ends all that the caller is the tracer of: threads before their leaders, children before
    /// parents.
    fn end(&mut self) {
        let mut tids = Vec::new();
        for pid in &self.pids {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
            let of = tasks.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
            tids.extend(of.filter(|tid| tid != pid));
        }
        tids.extend(self.pids.iter().rev());
        for pid in &self.pids {
            task_control::kill(*pid, libc::SIGKILL).expect("kill");
        }
        for tid in tids {
            while !matches!(ptrace::wait(tid), Ok(ptrace::Stop::Gone(_)) | Err(_)) {}
        }
        let _ = self.child.wait();
        reap();
        for pid in &self.pids {
            assert!(
                !Path::new(&format!("/proc/{pid}")).exists(),
                "{pid} is there still"
            );
        }
    }
}

/// Waits for orphans that have ended.
fn reap() {
    // SAFETY: a null status is allowed.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

impl Drop for Tree {
    fn drop(&mut self) {
        for pid in &self.pids {
            let _ = task_control::kill(*pid, libc::SIGKILL);
        }
        let _ = self.child.kill();
        std::thread::sleep(Duration::from_millis(50));
        reap();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn restore(taken: &live::Taken) -> Vec<Restored> {
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    for (process, now) in taken.dataset.processes.iter().zip(&restored) {
        assert_eq!(
            (process.pid, now.pid),
            (now.old_pid, now.old_pid),
            "{:?}",
            now.fidelity
        );
    }
    restored
}

fn lossless(restored: &[Restored]) {
    for process in restored {
        assert_eq!(process.fidelity, [], "pid {}", process.pid);
    }
}

/// `(state, ppid, pgid, sid)`
fn kin(pid: i32) -> (String, i32, i32, i32) {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let behind = text.rsplit_once(')').expect("comm").1;
    let words: Vec<&str> = behind.split_ascii_whitespace().collect();
    let number = |at: usize| words[at].parse().expect("a number");
    (words[0].into(), number(1), number(2), number(3))
}

#[test]
fn a_pipeline_of_three_goes_on_without_gap_or_repeat() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start(
        "pipeline",
        "set -m; $T numbers $D 300 | $T double $D | $T log $D; echo ended $? >> $D/end",
    );
    tree.await_lines("log", 40);
    let taken = tree.take();
    assert_eq!(tree.pids.len(), 4, "bash and three");
    let before = tree.text("log").lines().count();
    let restored = restore(&taken);
    lossless(&restored);
    for process in &taken.dataset.processes[1..] {
        let (_, ppid, pgid, sid) = kin(process.pid);
        assert_eq!((ppid, pgid), (tree.pids[0], tree.pids[1]));
        assert_eq!(sid, kin(tree.pids[0]).3);
    }
    // The third ends with 7 as the numbers do, and the shell has waited for it.
    tree.until("end", |text| text.contains("ended 7"));
    let log = tree.await_lines("log", 300);
    assert!(before < 300, "it was through before it was taken");
    let expected: Vec<String> = (1..=300).map(|n| (2 * n).to_string()).collect();
    assert_eq!(log, expected);
}

#[test]
fn a_family_with_zombies_shares_memory_and_a_file_offset() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start("family", "exec setsid $T family $D 900");
    tree.await_lines("log", 8);
    let taken = tree.take();
    assert_eq!((tree.pids.len(), taken.dataset.zombies.len()), (4, 2));
    lossless(&restore(&taken));
    for zombie in &taken.dataset.zombies {
        assert_eq!(kin(zombie.pid).0, "Z");
    }
    tree.until("log", |text| text.contains("done"));
    // No record is missing or overwritten.
    let records = tree.text("records");
    let expected: String = (1..=900).map(|n| format!("{n:08}\n")).collect();
    assert_eq!(records, expected);
    let log = tree.text("log");
    let ticks: Vec<&str> = log.lines().filter(|l| l.starts_with("tick")).collect();
    assert_eq!(ticks.len(), 45, "{log}");
}

#[test]
fn a_prefork_server_answers_and_reforks() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start("prefork", "exec $T prefork $D");
    tree.await_lines("log", 10);
    let taken = tree.take();
    assert_eq!(tree.pids.len(), 3);
    lossless(&restore(&taken));
    let port: u16 = tree.text("port").parse().expect("a port");
    let ask = || {
        let mut answer = String::new();
        TcpStream::connect(("127.0.0.1", port))
            .expect("the listener")
            .read_to_string(&mut answer)
            .expect("an answer");
        let words: Vec<&str> = answer.split_ascii_whitespace().collect();
        let [worker, parent] = [1, 3].map(|at| words[at].parse::<i32>().expect("a PID"));
        assert_eq!(parent, tree.pids[0]);
        worker
    };
    let first = ask();
    assert!(tree.pids[1..].contains(&first), "{first}");
    let other = *tree.pids[1..]
        .iter()
        .find(|pid| **pid != first)
        .expect("two");
    // One is killed: the other answers, and its parent hears of it and makes a new one.
    task_control::kill(first, libc::SIGKILL).expect("kill");
    tree.until("log", |text| text.contains(&format!("ended {first}")));
    task_control::kill(other, libc::SIGKILL).expect("kill");
    tree.until("log", |text| text.contains(&format!("ended {other}")));
    let third = ask();
    assert!(!tree.pids.contains(&third));
    tree.pids.extend(set::tree(tree.pids[0]));
}

#[test]
fn sessions_and_groups_whose_leaders_are_dead_are_what_they_were() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start("orphans", "exec $T orphans $D 100");
    tree.await_lines("log", 20);
    let taken = tree.take();
    assert_eq!(tree.pids.len(), 3);
    let (sid, group) = (
        taken.dataset.processes[1].sid,
        taken.dataset.processes[2].pgid,
    );
    assert!(!tree.pids.contains(&sid));
    lossless(&restore(&taken));
    for process in &taken.dataset.processes[1..] {
        let (_, ppid, pgid, of) = kin(process.pid);
        assert_eq!((ppid, pgid, of), (tree.pids[0], process.pgid, sid));
    }
    assert_ne!(group, sid);
    tree.until("log", |text| text.contains("done"));
    let log = tree.text("log");
    for child in 0..2 {
        assert!(log.contains(&format!("ended with 1{child}")), "{log}");
        let of = format!(" of {child} in {sid}");
        let ticks: Vec<&str> = log.lines().filter(|l| l.contains(&of)).collect();
        assert_eq!(ticks.len(), 100, "{log}");
    }
}

#[test]
fn a_shell_on_its_terminal_has_job_control() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start("terminal", "exec $T terminal $D");
    tree.until("output", |text| {
        text.contains("cat") && text.contains("[1]")
    });
    std::thread::sleep(Duration::from_millis(300));
    let taken = tree.take();
    assert_eq!(tree.pids.len(), 4, "the terminal, bash, sleep, cat");
    let restored = restore(&taken);
    lossless(&restored);
    let shell = tree.pids[1];
    let foreground = taken.dataset.processes[1].kin.terminal.expect("a terminal");
    for pid in &tree.pids[1..] {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        let behind = stat.rsplit_once(')').expect("comm").1;
        let words: Vec<i64> = behind
            .split_ascii_whitespace()
            .skip(1)
            .take(5)
            .map(|w| w.parse().expect("a number"))
            .collect();
        assert_eq!(words[2], i64::from(shell), "its session");
        assert_ne!(words[3], 0, "its terminal");
        assert_eq!(words[4], i64::from(foreground.foreground), "the foreground");
    }
    // cat is in the foreground: it says again what is typed, until ^C; then the shell goes on.
    let types = |at: usize, keys: &str| {
        let path = tree.dir.join(format!("type{at}"));
        fs::write(path.with_extension("new"), keys).expect("write");
        fs::rename(path.with_extension("new"), path).expect("rename");
    };
    types(0, "polly\n");
    tree.until("output", |text| text.matches("polly").count() >= 2);
    types(1, "\u{3}");
    tree.until("output", |text| text.contains("^C"));
    types(2, "jobs; echo back $((40+2))\n");
    let output = tree.until("output", |text| text.contains("back 42"));
    assert!(output.contains("Running"), "{output}");
    types(3, "kill %1; wait; exit 11\n");
    tree.until("log", |text| text.contains("shell ended with 11"));
}

#[test]
fn a_pair_an_eventfd_and_an_epoll_instance_are_shared_again() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start("pairs", "exec $T pairs $D 300");
    tree.await_lines("log", 20);
    let taken = tree.take();
    assert_eq!(tree.pids.len(), 2);
    lossless(&restore(&taken));
    tree.until("log", |text| text.contains("done"));
    let log = tree.text("log");
    let ticks: Vec<&str> = log.lines().filter(|l| l.starts_with("tick")).collect();
    for (n, tick) in ticks.iter().enumerate() {
        assert!(tick.starts_with(&format!("tick {n} ")), "{tick}");
    }
    assert_eq!(ticks.len(), 300);
}

#[test]
fn a_part_of_a_pipeline_hears_the_other_parts_end() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start(
        "cut",
        "set -m; $T numbers $D 3000 | $T double $D | $T log $D; echo ended $? >> $D/end",
    );
    tree.await_lines("log", 40);
    let mut taken = tree.take();
    // The second alone: the first's end is its input's, and nobody reads from it.
    taken.dataset.processes.drain(..2);
    taken.dataset.processes.truncate(1);
    let fds = taken.dataset.processes[0].fds.clone();
    let dataset = &mut taken.dataset;
    let is_pipe = |kind: &FileKind| matches!(kind, FileKind::Pipe { .. });
    let held = |file: &OpenFile| fds.iter().any(|fd| fd.file == file.id);
    dataset.files.retain(|f| !is_pipe(&f.kind) || held(f));
    let restored = restore(&taken);
    assert_eq!(restored.len(), 1);
    let cut: Vec<&str> = restored[0]
        .fidelity
        .iter()
        .map(|f| f.what.as_str())
        .collect();
    assert!(cut.iter().any(|what| what.starts_with("the ")), "{cut:?}");
    let begin = Instant::now();
    while Path::new(&format!("/proc/{}", restored[0].pid)).exists() {
        reap();
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "it waits for the dead"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_failure_in_one_takes_all() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut tree = Tree::start("all", "exec $T family $D 100000");
    tree.await_lines("log", 2);
    let mut taken = tree.take();
    let records = |f: &&mut OpenFile| f.path.ends_with("records");
    let file = taken
        .dataset
        .files
        .iter_mut()
        .find(records)
        .expect("its file");
    file.path = "/nowhere/at/all".into();
    let error = prepare(&taken.dataset, &taken.memory, &Options::default()).expect_err("no file");
    assert!(matches!(error, RestoreError::Call { .. }), "{error}");
    for pid in tree
        .pids
        .iter()
        .chain(taken.dataset.zombies.iter().map(|z| &z.pid))
    {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid}");
    }
    // One that is in the way of a child is in the way of all: a namespace of their own.
    file_again(&mut taken, &tree.dir);
    let busy = Command::new("sleep").arg("100").spawn().expect("sleep");
    let mut busy = Busy(busy);
    let old = taken.dataset.processes[2].pid;
    let taken_pid = busy.0.id() as i32;
    let child = &mut taken.dataset.processes[2];
    (child.pid, child.ns_pid) = (taken_pid, taken_pid);
    (child.threads[0].tid, child.threads[0].ns_tid) = (taken_pid, taken_pid);
    if child.pgid == old {
        child.pgid = taken_pid;
    }
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    assert!(restored.iter().all(|r| r.own_pid_namespace));
    tree.pids = restored.iter().map(|r| r.pid).collect();
    let _ = busy.0.kill();
}

fn file_again(taken: &mut live::Taken, dir: &Path) {
    for file in &mut taken.dataset.files {
        if file.path == "/nowhere/at/all" {
            file.path = dir.join("records").to_string_lossy().into();
        }
    }
}

struct Busy(Child);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
