//! A process is stopped, looked at, killed, and brought back from what was
//! seen: the restorer on its own, without a dump and without a reboot.
//!
//! Needs root (ptrace, PIDs of choice, time namespaces) and a C compiler.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, assert_unbroken, root_or_say_so};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vmrestore::dataset::{
    IntervalTimer, MappingKind, Namespace, NamespaceKind, PageSource, SignalStack,
};
use vmrestore::restore::{Options, RestoreError, prepare};

/// PIDs are the machine's, and tests want theirs: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_threaded_process_goes_on() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("on", "living");
    let pid = living.pid();
    let mut taken = living.take();
    living.kill();
    let before = living.ticks();
    // As if the dead host had been up for a thousand seconds longer than this one.
    const AHEAD: u64 = 1_000_000_000_000;
    taken.dataset.host.monotonic_ns += AHEAD as i64;
    taken.dataset.host.boottime_ns += AHEAD as i64;

    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    let restored = prepared.resume().expect("resumed");
    assert_eq!(restored.len(), 1);
    let _killed = Killed(restored[0].pid);
    assert_eq!(restored[0].pid, pid, "{:?}", restored[0].fidelity);
    assert_eq!(restored[0].fidelity, []);

    let after = living.await_ticks(before.len() + 20);
    assert_unbroken(&after, pid);
    let (last, next) = (before.last().expect("tick"), &after[before.len()]);
    let gap = next.monotonic - last.monotonic;
    assert!((AHEAD..AHEAD + 5_000_000_000).contains(&gap), "{gap}");

    // It answers at its socket, which is a new one at the old path.
    use std::io::Read;
    let mut answer = String::new();
    std::os::unix::net::UnixStream::connect(living.dir.join("socket"))
        .expect("its socket")
        .read_to_string(&mut answer)
        .expect("an answer");
    assert_eq!(answer, "hello\n");

    // Nothing of vmrestore is in it: every mapping is one that it had.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    for line in maps.lines().filter(|l| !l.contains("[vsyscall]")) {
        let range = line.split(' ').next().expect("a range");
        let (start, end) = range.split_once('-').expect("two");
        let start = u64::from_str_radix(start, 16).expect("hex");
        let end = u64::from_str_radix(end, 16).expect("hex");
        let vmas = &taken.dataset.processes[0].mm.vmas;
        assert!(
            vmas.iter().any(|v| v.start <= start && start < v.end)
                && vmas.iter().any(|v| v.start < end && end <= v.end)
                || line.contains("[vvar")
                || line.contains("[heap]"),
            "{line}\n{maps}"
        );
    }
    let names: Vec<String> = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("tasks")
        .map(|t| fs::read_to_string(t.expect("task").path().join("comm")).expect("comm"))
        .collect();
    for name in ["living", "spinner", "sleeper", "reader", "waiter"] {
        assert!(names.iter().any(|n| n.trim() == name), "{names:?}");
    }
}

#[test]
fn a_taken_pid_gets_a_namespace_of_its_own() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("taken", "living");
    let pid = living.pid();
    let taken = living.take();
    // The original is only stopped: its IDs are in use, and its file lock holds.
    match prepare(&taken.dataset, &taken.memory, &Options::default()) {
        Err(e @ RestoreError::Call { errno, .. }) => {
            assert_eq!(errno.0, libc::EAGAIN, "{e}");
            assert!(e.hint().contains("running already"));
        }
        other => panic!("{:?}", other.map(|p| p.processes().to_vec())),
    }
    let mut dataset = taken.dataset.clone();
    dataset.files.iter_mut().for_each(|f| f.locks.clear());
    // Its socket is bound, too.
    let socket = living.dir.join("socket");
    match prepare(&dataset, &taken.memory, &Options::default()) {
        Err(RestoreError::Host { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        }
        other => panic!("{:?}", other.map(|p| p.processes().to_vec())),
    }
    assert!(socket.exists());
    fs::remove_file(&socket).expect("unlink");
    let restored = prepare(&dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let killed = Killed(restored[0].pid);
    assert_ne!(restored[0].pid, pid);
    assert!(restored[0].own_pid_namespace);
    let before = living.ticks().len();
    let after = living.await_ticks(before + 10);
    assert_unbroken(&after, pid);
    // PID 1 of its namespace goes with it.
    let ns = fs::read_link(format!("/proc/{}/ns/pid", restored[0].pid)).expect("ns");
    living.kill();
    drop(killed);
    let begin = Instant::now();
    while namespace_lives(&ns) {
        assert!(begin.elapsed() < Duration::from_secs(5), "{ns:?} lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn namespace_lives(ns: &Path) -> bool {
    fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .any(|e| fs::read_link(e.path().join("ns/pid")).is_ok_and(|other| other == ns))
}

#[test]
fn paused_it_waits_for_sigcont() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("paused", "living");
    let taken = living.take();
    living.kill();
    let options = Options {
        paused: true,
        ..Options::default()
    };
    let restored = prepare(&taken.dataset, &taken.memory, &options)
        .expect("prepared")
        .resume()
        .expect("resumed");
    let pid = restored[0].pid;
    let _killed = Killed(pid);
    std::thread::sleep(Duration::from_millis(200));
    let before = living.ticks().len();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("tasks") {
        let stat = fs::read_to_string(task.expect("task").path().join("stat")).expect("stat");
        assert!(stat.contains(") T "), "{stat}");
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(living.ticks().len(), before);
    vmrestore::sys::task_control::kill(pid, libc::SIGCONT).expect("SIGCONT");
    let after = living.await_ticks(before + 10);
    assert_unbroken(&after, living.pid());
}

#[test]
fn a_failure_or_a_dry_run_leaves_nothing() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("nothing", "living");
    let pid = living.pid();
    let taken = living.take();
    living.kill();

    let dry = Options {
        dry_run: true,
        ..Options::default()
    };
    let inode = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        fs::symlink_metadata(path).map(|m| m.ino()).ok()
    };
    let socket = inode(&living.dir.join("socket"));
    let prepared = prepare(&taken.dataset, &taken.memory, &dry).expect("prepared");
    assert_eq!(prepared.resume().expect("resumed")[0].pid, 0);
    assert_eq!(inode(&living.dir.join("socket")), socket);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    // Dropped instead of resumed.
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    assert!(Path::new(&format!("/proc/{pid}/exe")).exists());
    drop(prepared);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    // A descriptor that cannot be made, after memory and threads are there.
    let mut dataset = taken.dataset.clone();
    for file in &mut dataset.files {
        if file.path.ends_with("positioned") {
            file.path = "/nowhere/at/all".into();
        }
    }
    let error = prepare(&dataset, &taken.memory, &Options::default()).expect_err("no such file");
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    // A library that was replaced since.
    let mut dataset = taken.dataset.clone();
    let library = dataset
        .inodes
        .iter_mut()
        .find(|i| i.path.contains("libc"))
        .expect("libc");
    library.mtime_ns += 1;
    let error = prepare(&dataset, &taken.memory, &Options::default()).expect_err("replaced");
    assert!(matches!(error, RestoreError::FileChanged { .. }), "{error}");

    // Another vDSO.
    let mut dataset = taken.dataset.clone();
    for vma in &mut dataset.processes[0].mm.vmas {
        if vma.kind == MappingKind::Vdso {
            vma.pages[0].content = vmrestore::dataset::PageContent::Zero;
        }
    }
    let error = prepare(&dataset, &taken.memory, &Options::default()).expect_err("another vDSO");
    assert!(matches!(error, RestoreError::Vdso { .. }), "{error}");
    let children: String = fs::read_dir("/proc/self/task")
        .expect("tasks")
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default())
        .collect();
    assert_eq!(children, "");
}

/// Another user, one capability, seccomp, limits, timers.
#[test]
fn a_process_with_few_rights_has_neither_more_nor_less() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("guarded", "guarded");
    let pid = living.pid();
    let mut taken = living.take();
    living.kill();
    let process = &mut taken.dataset.processes[0];
    assert_eq!(process.threads[0].seccomp.filters.len(), 1);
    assert_eq!(process.posix_timers.len(), 1);
    assert_eq!(process.posix_timers[0].id, 1);
    process.itimers = vec![IntervalTimer {
        which: 0,
        remaining_ns: 40_000_000,
        interval_ns: 40_000_000,
    }];
    let stack = fs::read(living.dir.join("altstack")).expect("altstack");
    let word = |at| u64::from_ne_bytes(stack[at..at + 8].try_into().expect("8"));
    process.threads[0].sigaltstack = SignalStack {
        sp: word(0),
        flags: 0,
        size: word(8),
    };
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let _killed = Killed(pid);
    assert_eq!(restored[0].fidelity, []);
    let before = living.ticks().len();
    assert_unbroken(&living.await_ticks(before + 10), pid);
    // What it does not look at itself.
    let status = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let (now, cred) = (
        status(pid),
        &taken.dataset.processes[0].threads[0].credentials,
    );
    for (name, then) in [
        ("CapInh", cred.cap_inheritable),
        ("CapPrm", cred.cap_permitted),
        ("CapEff", cred.cap_effective),
        ("CapBnd", cred.cap_bounding),
        ("CapAmb", cred.cap_ambient),
    ] {
        let line = format!("{name}:\t{then:016x}");
        assert!(now.contains(&line), "{line}\n{now}");
    }
}

/// The host came back with another kernel, whose vDSO is another, too: here
/// the running one's, and the "dead" one has nothing in its functions but
/// traps. If one of them is still run, the process dies.
#[test]
fn the_functions_of_another_vdso_are_led_on() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("vdso", "living");
    let pid = living.pid();
    let mut taken = living.take();
    living.kill();
    let vmas = &mut taken.dataset.processes[0].mm.vmas;
    let vdso = vmas
        .iter_mut()
        .find(|v| v.kind == MappingKind::Vdso)
        .expect("a vDSO");
    let pages = (vdso.end - vdso.start) / 4096;
    let mut image = vec![0; pages as usize * 4096];
    taken
        .memory
        .read_pages(&vdso.pages[0], 0, pages, &mut image)
        .expect("its image");
    let functions: Vec<_> = {
        let elf = goblin::elf::Elf::parse(&image).expect("an ELF file");
        elf.dynsyms
            .iter()
            .filter(|s| s.is_function() && s.st_value != 0)
            .map(|s| s.st_value as usize..(s.st_value + s.st_size) as usize)
            .collect()
    };
    assert!(functions.len() > 4);
    for function in functions {
        image[function].fill(0xcc);
    }
    vdso.pages = vec![taken.memory.store(vdso.start, &image)];
    let at = vdso.start;
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let _killed = Killed(pid);
    assert_eq!(restored[0].fidelity.len(), 1, "{:?}", restored[0].fidelity);
    assert_eq!(restored[0].fidelity[0].what, "vDSO");
    let before = living.ticks().len();
    assert_unbroken(&living.await_ticks(before + 20), pid);
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let now = maps.lines().find(|l| l.ends_with("[vdso]")).expect("vdso");
    assert!(!now.starts_with(&format!("{at:x}-")), "{maps}");
}

#[test]
fn a_tap_and_locked_memory_come_back() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    if !Path::new("/dev/net/tun").exists() {
        eprintln!("SKIPPED: this machine has no /dev/net/tun");
        return;
    }
    let mut living = Living::start("tapped", "tapped");
    let pid = living.pid();
    let taken = living.take();
    living.kill();
    assert!(!Path::new("/sys/class/net/vmrtest0").exists());
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let _killed = Killed(pid);
    // It went with its last user, so it is a new one, in no bridge.
    assert_eq!(restored[0].fidelity.len(), 1, "{:?}", restored[0].fidelity);
    assert!(restored[0].fidelity[0].what.contains("vmrtest0"));
    let before = living.ticks().len();
    assert_unbroken(&living.await_ticks(before + 10), pid);
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let locked = smaps
        .lines()
        .filter(|l| l.contains(" lo ") && l.contains(" lf"));
    assert!(locked.count() > 0 || smaps.contains(" lo "), "{smaps}");
}

/// Ctrl-C between building and letting go.
#[test]
fn interrupted_it_leaves_nothing() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("interrupted", "living");
    let pid = living.pid();
    let taken = living.take();
    living.kill();
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    assert!(living.dir.join("socket").exists());
    vmrestore::sys::task_control::kill(std::process::id() as i32, libc::SIGINT).expect("SIGINT");
    // Any thread may be the one that takes it.
    let begin = Instant::now();
    while !prepared.interrupted() {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "SIGINT went nowhere"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = prepared.resume().expect_err("interrupted");
    assert!(matches!(error, RestoreError::Interrupted), "{error}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!living.dir.join("socket").exists());
}

/// `kill -9` of vmrestore itself, at the worst moment.
#[test]
fn killed_it_takes_everything_along() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    use std::io::BufRead;
    let mut helper = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "prepares_and_waits", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("itself");
    let output = std::io::BufReader::new(helper.stdout.take().expect("output"));
    let pid: i32 = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("PREPARED ")?.1.parse().ok())
        .expect("a PID");
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    assert_eq!(threads(), 5);
    helper.kill().expect("kill");
    helper.wait().expect("wait");
    let begin = Instant::now();
    while threads() != 0 {
        assert!(begin.elapsed() < Duration::from_secs(5), "it lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "the other half of killed_it_takes_everything_along"]
fn prepares_and_waits() {
    let mut living = Living::start("waits", "living");
    let taken = living.take();
    living.kill();
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    let _ = fs::remove_dir_all(&living.dir);
    println!("PREPARED {}", prepared.processes()[0].pid);
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_first_process_with_threads_is_taken_down_again() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("first", "living");
    let mut taken = living.take();
    living.kill();
    // As if it had been PID 1 of a namespace: its last thread waits for all others to be reaped.
    let process = &mut taken.dataset.processes[0];
    process.ns_pid = 1;
    for (number, thread) in process.threads.iter_mut().enumerate() {
        thread.ns_tid = number as i32 + 1;
    }
    assert!(process.threads.len() > 2);
    for kind in [NamespaceKind::Pid, NamespaceKind::Mount] {
        process.namespaces.own.push(Namespace { kind, number: 1 });
    }
    let prepared = prepare(&taken.dataset, &taken.memory, &Options::default()).expect("prepared");
    let pid = prepared.processes()[0].pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let ids = status.lines().find(|l| l.starts_with("NSpid:"));
    assert!(ids.is_some_and(|ids| ids.ends_with("\t1")), "{ids:?}");
    drop(prepared);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}
