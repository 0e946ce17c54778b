//! A process of a container, taken from this living machine and restored into
//! the container, which has gone on without it: into its namespaces, with its
//! PIDs, files, sockets, segment and cgroup. tests/lab_containers.rs does the
//! same through a crash.
//!
//! Needs root with the right to make namespaces, and a C compiler.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, root_or_say_so};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmrestore::restore::container::{self, Into};
use vmrestore::restore::{Options, Prepared, RestoreError, prepare};
use vmrestore::sys::ptrace;

const PATIENCE: Duration = Duration::from_secs(20);

/// A container made by tests/programs/box.c.
struct Container {
    name: String,
    dir: PathBuf,
    program: PathBuf,
    cgroups: PathBuf,
    /// PID 1 of it, on the host.
    init: i32,
}

impl Container {
    /// `None`, said: this machine does not let us.
    fn start(name: &str, words: &[&str]) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
        let cgroups = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let Some(cgroups) = cgroups.and_then(|line| line.split(' ').nth(1)) else {
            eprintln!("SKIPPED: the unified hierarchy of cgroups is not mounted");
            return None;
        };
        let name = format!("{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(format!("vmrestore-{name}"));
        for below in ["bin", "proc", "tmp", "run", "job"] {
            fs::create_dir_all(dir.join(below)).expect("a directory");
        }
        let program = dir.join("bin/box");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/box.c");
        let built = Command::new("cc")
            .args(["-O1", "-static", "-o"])
            .args([&program, &source])
            .status()
            .expect("a C compiler");
        assert!(built.success());
        let mut made = Self {
            name,
            dir,
            program,
            cgroups: cgroups.into(),
            init: 0,
        };
        let name = made.name.clone();
        let mut all = vec!["start", &name, made.dir.to_str().expect("text")];
        let words: Vec<&str> = words
            .iter()
            .map(|word| {
                if *word == "NAME" {
                    name.as_str()
                } else {
                    *word
                }
            })
            .collect();
        all.extend(&words);
        let all: Vec<String> = all.into_iter().map(String::from).collect();
        let said = made.ask(&all.iter().map(String::as_str).collect::<Vec<_>>());
        made.init = said.trim().parse().unwrap_or_else(|_| panic!("{said:?}"));
        Some(made)
    }

    /// A new one of the same name, empty, in the place of one that has ended.
    fn restart(&mut self, words: &[&str]) {
        self.await_nobody();
        let dir = self.dir.to_str().expect("text").to_owned();
        let mut all = vec!["start", &self.name, &dir];
        all.extend(words);
        let said = self.ask(&all);
        self.init = said.trim().parse().unwrap_or_else(|_| panic!("{said:?}"));
    }

    fn await_nobody(&self) {
        let begin = Instant::now();
        while !self.pids().is_empty() && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask(&self, words: &[&str]) -> String {
        let output = Command::new(&self.program)
            .args(words)
            .env("CGROUPS", &self.cgroups)
            .output()
            .expect("box");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Processes in its cgroup.
    fn pids(&self) -> Vec<i32> {
        let path = self.cgroups.join(&self.name).join("cgroup.procs");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|l| l.parse().expect("a PID")).collect()
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("job/log")).unwrap_or_default();
        assert!(!text.contains("BAD"), "{text}");
        text.lines().map(String::from).collect()
    }

    fn await_lines(&self, count: usize) -> Vec<String> {
        let begin = Instant::now();
        while self.log().len() < count {
            assert!(begin.elapsed() < PATIENCE, "{:?}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.log()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // With PID 1 all of it goes. Where it never came up there is none, and 0
        // would be this test's own process group.
        if self.init > 0 {
            let _ = vmrestore::sys::task_control::kill(self.init, libc::SIGKILL);
        }
        self.await_nobody();
        let _ = fs::remove_dir(self.cgroups.join(&self.name));
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Takes the inmate and kills it.
fn take_inmate(made: &Container) -> live::Taken {
    made.await_lines(5);
    let inmate = *made.pids().iter().max().expect("an inmate");
    assert!(inmate > 0, "the inmate is in another PID namespace");
    let taken = live::take_from_container(inmate, Vec::new());
    end(inmate);
    taken
}

fn end(pid: i32) {
    let _ = vmrestore::sys::task_control::kill(pid, libc::SIGKILL);
    while !matches!(ptrace::wait(pid), Ok(ptrace::Stop::Gone(_)) | Err(_)) {}
}

/// The same; its segment goes, as with the host.
fn take(made: &Container) -> live::Taken {
    let taken = take_inmate(made);
    live::sysv::within(made.init, || live::sysv::remove(&taken.dataset.sysv));
    taken
}

/// As the command line does it.
fn restore(taken: &mut live::Taken, into: &Into) -> Result<i32, RestoreError> {
    let found = container::find(&taken.dataset, into)?;
    if let Some(found) = &found {
        found.look_into(&mut taken.dataset);
    }
    let options = Options {
        container: found.map(Arc::new),
        ..Options::default()
    };
    let restored = prepare(&taken.dataset, &taken.memory, &options).and_then(Prepared::resume)?;
    for line in &restored[0].fidelity {
        println!("{:?} {}: {}", line.level, line.what, line.how);
    }
    Ok(restored[0].pid)
}

/// Each line counts one further, and says the same of all else.
fn assert_unbroken(lines: &[String]) {
    let words = |line: &String| -> Vec<String> { line.split(' ').map(String::from).collect() };
    for (at, line) in lines.iter().enumerate() {
        let (first, now) = (words(&lines[0]), words(line));
        assert_eq!(now[3], (at + 1).to_string(), "{line}");
        let same = |w: &[String]| [w[1].clone(), w[5].clone(), w[7].clone(), w[9].clone()];
        assert_eq!(same(&now), same(&first), "{line}");
    }
}

fn into_its_container(name: &str, words: &[&str]) {
    let Some(made) = Container::start(name, words) else {
        return;
    };
    let mut taken = take(&made);
    let pid = restore(&mut taken, &Into::SameName).expect("restored");
    let _killed = Killed(pid);
    goes_on(&made, pid);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(
        status.contains(&format!("PPid:\t{}\n", made.init)),
        "{status}"
    );
}

/// It counts on, and answers in all ways.
fn goes_on(made: &Container, pid: i32) {
    let before = made.log().len();
    let lines = made.await_lines(before + 10);
    assert_unbroken(&lines);
    let nonce = lines[0].split(' ').nth(1).expect("a nonce").to_owned();
    let init = made.init.to_string();
    let socket = made.dir.join("run/inmate.sock");
    for words in [["ask", socket.to_str().expect("text")], ["tcp", &init]] {
        let answer = made.ask(&words);
        assert!(answer.contains(&nonce), "{words:?}: {answer}");
    }
    assert!(made.ask(&["segment", &init]).starts_with("count "));
    assert!(made.pids().contains(&pid), "it is not in its cgroup");
    // Nothing of it is the host's.
    let host = fs::read_to_string("/proc/sysvipc/shm").expect("shm");
    assert!(
        !host.lines().any(|l| l.trim_start().starts_with("119 ")),
        "{host}"
    );
}

#[test]
fn a_process_comes_back_into_its_container() {
    if root_or_say_so() {
        into_its_container("own", &["/bin/box", "inmate", "NAME"]);
    }
}

#[test]
fn one_of_a_user_namespace_too() {
    if root_or_say_so() {
        into_its_container("user", &["user", "/bin/box", "inmate", "NAME"]);
    }
}

/// PID 1 of a container comes back as PID 1 of a PID namespace below that of a new one.
fn as_first_of_its_container(name: &str, words: &[&str]) {
    let all = [words, &["init", "/bin/box", "inmate", "NAME"]].concat();
    let Some(mut made) = Container::start(name, &all) else {
        return;
    };
    let mut taken = take_inmate(&made);
    assert_eq!(taken.dataset.processes[0].ns_pid, 1);
    // Its tmpfs went with the container; from a dump the file is carried over.
    made.restart(&[words, &["/bin/box", "note", "NAME"]].concat());
    let pid = restore(&mut taken, &Into::SameName).expect("restored");
    goes_on(&made, pid);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(
        status.contains(&format!("PPid:\t{}\n", made.init)),
        "{status}"
    );
    let line = |key: &str| status.lines().find(|line| line.starts_with(key));
    let ids: Vec<&str> = line("NSpid").expect("IDs").split('\t').skip(1).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert_eq!(ids[2], "1", "{ids:?}");
    // It ends with the container that it is in.
    end(made.init);
    made.await_nobody();
    assert_eq!(made.pids(), Vec::<i32>::new());
}

#[test]
fn the_first_process_of_a_container_comes_back_as_the_first_of_a_new_namespace() {
    if root_or_say_so() {
        as_first_of_its_container("first", &[]);
    }
}

#[test]
fn that_of_a_user_namespace_too() {
    if root_or_say_so() {
        as_first_of_its_container("users-first", &["user"]);
    }
}

#[test]
fn one_that_cannot_be_made_leaves_the_container_alone() {
    if !root_or_say_so() {
        return;
    }
    let words = ["init", "/bin/box", "inmate", "NAME"];
    let Some(mut made) = Container::start("broken", &words) else {
        return;
    };
    let mut taken = take_inmate(&made);
    made.restart(&[]);
    let log = |file: &&mut vmrestore::dataset::OpenFile| file.path == "/job/log";
    let file = taken.dataset.files.iter_mut().find(log).expect("its log");
    file.path = "/job/gone".into();
    let refused = restore(&mut taken, &Into::SameName).expect_err("refused");
    println!("{refused}");
    assert_eq!(made.pids(), [made.init]);
    assert!(!made.dir.join("job/gone").exists());
}

/// Without a container: what it had of its own is made, if that is no more than PIDs and a /proc.
#[test]
fn the_first_process_of_a_namespace_with_the_hosts_files_needs_no_container() {
    if !root_or_say_so() {
        return;
    }
    let Some(made) = Container::start("lone", &[]) else {
        return;
    };
    let program = made.program.to_str().expect("text").to_owned();
    let output = Command::new(&program)
        .args(["lone", &program, "inmate", "lone"])
        .envs([("BASE", made.dir.to_str().expect("text")), ("KEY", "1")])
        .output()
        .expect("box");
    let pid: i32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{output:?}"));
    made.await_lines(5);
    let mut taken = live::take_from_container(pid, Vec::new());
    taken.dataset.processes[0].namespaces.foreign_root = false;
    end(pid);
    live::sysv::remove(&taken.dataset.sysv);
    let before = made.log().len();
    let pid = restore(&mut taken, &Into::SameName).expect("restored");
    let _killed = Killed(pid);
    assert_unbroken(&made.await_lines(before + 10));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(status.contains(&format!("NSpid:\t{pid}\t1\n")), "{status}");
    end(pid);
    live::sysv::remove(&taken.dataset.sysv);
}

/// Of the first version's hierarchies too: into the one of the same path, where that is.
#[test]
fn it_comes_into_its_cgroups_of_the_first_version() {
    if !root_or_say_so() {
        return;
    }
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let is_pids = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        words[2] == "cgroup" && words[3].split(',').any(|option| option == "pids")
    };
    let Some(pids) = mounts.lines().find(is_pids) else {
        eprintln!("SKIPPED: the hierarchy of the controller pids is not mounted");
        return;
    };
    let Some(made) = Container::start("old", &["/bin/box", "inmate", "NAME"]) else {
        return;
    };
    let pids = Path::new(pids.split(' ').nth(1).expect("a mount point")).join(&made.name);
    fs::create_dir(&pids).expect("a cgroup");
    let mut taken = take(&made);
    taken.dataset.processes[0].legacy_cgroups = ["pids", "name=nobody"]
        .map(|hierarchy| vmrestore::dataset::LegacyCgroup {
            hierarchy: hierarchy.into(),
            path: format!("/{}", made.name),
        })
        .into();
    let pid = restore(&mut taken, &Into::SameName).expect("restored");
    let text = fs::read_to_string(pids.join("cgroup.procs")).expect("processes");
    assert_eq!(text.trim(), pid.to_string());
    goes_on(&made, pid);
    end(pid);
    drop(made);
    fs::remove_dir(&pids).expect("an empty cgroup");
}

#[test]
fn without_a_container_it_is_refused() {
    if !root_or_say_so() {
        return;
    }
    let Some(made) = Container::start("gone", &["/bin/box", "inmate", "NAME"]) else {
        return;
    };
    let mut taken = take(&made);
    // This process is in no container.
    let into = Into::Pid(std::process::id().cast_signed());
    let refused = restore(&mut taken, &into).expect_err("refused").to_string();
    assert!(refused.contains("namespace of its own"), "{refused}");
    drop(made);
    let refused = restore(&mut taken, &Into::SameName).expect_err("refused");
    let text = refused.to_string();
    assert!(
        text.contains("no container of that name runs here"),
        "{text}"
    );
    assert!(refused.hint().contains("--into"), "{}", refused.hint());
}
