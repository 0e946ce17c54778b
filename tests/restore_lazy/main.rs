//! A process goes on while its memory still arrives, and cannot tell; or it is ended, and somebody says so.
//!
//! Needs root (ptrace, userfaultfd) and a C compiler, as tests/restore_live.rs.

#[path = "../common/live.rs"]
mod live;
#[path = "../common/living.rs"]
mod living;
mod sources;
mod trouble;

use living::{Killed, Living, assert_unbroken, root_or_say_so};
use sources::{Changing, Slow, Stuck};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vmrestore::dataset::{
    Dataset, Irqchip, MappingKind, Memslot, ObjectId, PageContent, PageRun, PageSource, Vm, VmCaps,
    VmClock, Vma,
};
use vmrestore::restore::{Arrival, Memory, Options, Pager, RestoreError, prepare};
use vmrestore::sys::task_control;

/// PIDs are the machine's, and tests want theirs: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const LAZY: Options = Options {
    paused: false,
    dry_run: false,
    strict: false,
    tcp: vmrestore::restore::TcpPolicy::Keep,
    force: false,
    in_place: false,
    container: None,
    memory: Memory::Lazy,
    progress: None,
};

fn huge_pages(count: u64) -> bool {
    let path = "/proc/sys/vm/nr_hugepages";
    let _ = fs::write(path, count.to_string());
    let got = fs::read_to_string(path).unwrap_or_default();
    got.trim().parse::<u64>().is_ok_and(|got| got >= count)
}

/// The program, stopped, looked at and killed.
fn taken(name: &str) -> (Living, live::Taken, usize) {
    let mut living = Living::launch(name, "lazy");
    let begin = Instant::now();
    while living.ticks().len() < 15 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{}",
            living.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut taken = living.take();
    for vma in &mut taken.dataset.processes[0].mm.vmas {
        if vma.flags & 0x40_0000 != 0 {
            vma.huge_page = 2 << 20;
        }
    }
    living.kill();
    let before = living.ticks().len();
    (living, taken, before)
}

fn go(dataset: &Dataset, pages: &dyn PageSource) -> (Killed, Pager) {
    let prepared = prepare(dataset, pages, &LAZY).expect("prepared");
    assert!(prepared.arriving().pager.is_some());
    let (restored, pager) = prepared
        .resume_at_once(|| Ok::<(), RestoreError>(()))
        .expect("resumed");
    (Killed(restored[0].pid), pager.expect("a pager"))
}

fn wait_for(what: &str, living: &Living, limit: u64, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(
            begin.elapsed() < Duration::from_secs(limit),
            "{what}\n{}",
            living.log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

/// The VMA of a region of the program, by its address.
fn biggest(taken: &live::Taken) -> &Vma {
    let vmas = &taken.dataset.processes[0].mm.vmas;
    vmas.iter()
        .max_by_key(|v| v.len() * u64::from(v.start >> 44 == 2))
        .expect("VMAs")
}

/// Forks, gives memory back, moves, unmaps, splits and grows it, and has the kernel read and write it.
#[test]
fn it_cannot_tell_that_its_memory_arrives() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    if !huge_pages(8) {
        eprintln!("SKIPPED in part: there are no huge pages on this machine");
    }
    let (living, taken, before) = taken("arrives");
    fs::write(living.dir.join("go"), "").expect("go");
    let slow = Slow {
        memory: &taken.memory,
        pause: Duration::from_millis(4),
        damaged: None,
    };
    let (killed, pager) = go(&taken.dataset, &slow);
    let resident = format!("/proc/{}/statm", killed.0);
    let resident = || {
        let text = fs::read_to_string(&resident).unwrap_or_default();
        let pages = text.split(' ').nth(1).and_then(|w| w.parse::<u64>().ok());
        pages.unwrap_or(0) * 4096
    };
    let early = pager.figures();
    eprintln!("at once: {early:?}, {} MiB resident", resident() >> 20);
    assert!(early.done < early.total / 2, "{early:?}");
    let arrival = pager.wait(|figures| figures.time < Duration::from_secs(100));
    let figures = pager.figures();
    eprintln!("{figures:?}; {} MiB resident", resident() >> 20);
    assert_eq!(arrival, Arrival::Resident, "{}", living.log());
    assert_eq!((figures.done, figures.total), (early.total, early.total));
    assert!(figures.faults > 1000, "{figures:?}");
    wait_for("all is read", &living, 60, || {
        living.log().contains("all read")
    });
    let log = living.log();
    for stage in [
        "fork",
        "fork chain",
        "fork many",
        "balloon",
        "remove",
        "give back",
        "move",
        "unmap",
        "split",
        "grow",
        "kernel",
        "thread",
    ] {
        assert!(log.contains(&format!("did {stage}\n")), "{stage}\n{log}");
    }
    let after = living.await_ticks(before + 20);
    assert_unbroken(&after, taken.dataset.processes[0].pid);
    // Nothing of the pager is left, and the kernel serves the memory alone.
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", killed.0)).expect("smaps");
    wait_for("it is let go", &living, 30, || {
        !lives(pager.pid()) && !lives(pager.guardian())
    });
    assert!(!smaps.contains(" um"), "{smaps}");
    // What was in huge pages is so again: most of the region that nothing has cut up.
    let here = format!("/proc/{}/smaps", killed.0);
    let huge = || -> u64 {
        let smaps = fs::read_to_string(&here).expect("smaps");
        let lines = smaps
            .lines()
            .filter_map(|l| l.strip_prefix("AnonHugePages:"));
        lines
            .filter_map(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .sum()
    };
    eprintln!("{} MiB in huge pages", huge() >> 10);
    if fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|text| !text.contains("[never]"))
    {
        assert!(huge() >= 32 << 10, "{} KiB in huge pages", huge());
    }
    huge_pages(0);
}

/// A program that becomes another one needs nothing more of what it was.
#[test]
fn another_program_needs_nothing_of_it() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (living, taken, before) = taken("exec");
    let slow = Slow {
        memory: &taken.memory,
        pause: Duration::from_millis(5),
        damaged: None,
    };
    let (killed, pager) = go(&taken.dataset, &slow);
    living.await_ticks(before + 3);
    fs::write(living.dir.join("exec"), "").expect("exec");
    let arrival = pager.wait(|figures| figures.time < Duration::from_secs(60));
    assert_eq!(arrival, Arrival::Ended, "{}", living.log());
    wait_for("it is another", &living, 10, || {
        living.log().contains("did exec")
    });
    assert!(lives(killed.0) && !living.log().contains("BAD"));
}

/// A machine without a CPU, whose memory is the program's memfd: a VMM's memory of which it has a
/// descriptor arrives, too. The number of its pages.
fn become_a_vmm(dataset: &mut Dataset) -> u64 {
    let guest = dataset
        .shared_memory
        .iter()
        .find(|m| m.memfd && m.size == 16 << 20);
    let guest = guest.expect("its memfd").id;
    let process = &dataset.processes[0];
    let vma = process
        .mm
        .vmas
        .iter()
        .find(|vma| matches!(vma.kind, MappingKind::Shared { memory, .. } if memory == guest));
    let vma = vma.expect("its mapping");
    let machine = Vm {
        id: ObjectId(0x600d),
        pid: process.pid,
        name: Some("balloon".into()),
        uuid: None,
        vendor: String::new(),
        vm_type: 0,
        memslots: vec![Memslot {
            slot: 0,
            address_space: 0,
            flags: 0,
            guest_address: 0,
            size: vma.len(),
            user_address: vma.start,
        }],
        irqchip: Irqchip::None,
        pit: None,
        routes: Vec::new(),
        irqfds: Vec::new(),
        ioeventfds: Vec::new(),
        coalesced_zones: Vec::new(),
        clock: VmClock::default(),
        default_tsc_khz: 0,
        caps: VmCaps::default(),
        tss_addr: None,
        identity_map_addr: None,
        vcpus: Vec::new(),
    };
    let pages = vma.len() / 4096;
    dataset.vms.push(machine);
    pages
}

/// A balloon in memory that a VMM has a descriptor of: zeros from then on, although the kernel does not
/// tell of the hole. One of which nobody says where it is ends the guest.
#[test]
fn what_a_vmm_discards_is_never_seen_again() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm");
        return;
    }
    let (living, mut taken, before) = taken("balloon");
    let source = Slow {
        memory: &taken.memory,
        pause: Duration::from_millis(4),
        damaged: None,
    };
    let plain = {
        let prepared = prepare(&taken.dataset, &source, &LAZY).expect("prepared");
        prepared.arriving().pager.as_ref().expect("a pager").bytes
    };
    let pages = become_a_vmm(&mut taken.dataset);
    fs::write(living.dir.join("go"), "").expect("go");
    let (killed, pager) = go(&taken.dataset, &source);
    assert_eq!(pager.bytes, plain + pages * 4096);
    let arrival = pager.wait(|figures| figures.time < Duration::from_secs(100));
    assert_eq!(arrival, Arrival::Resident, "{}", living.log());
    wait_for("all is read", &living, 60, || {
        living.log().contains("all read")
    });
    assert!(living.log().contains("did balloon"));
    living.await_ticks(before + 20);
    let pid = killed.0;
    drop(killed);
    vmrestore::sys::child::ended(pid, true);
    wait_for("it ends", &living, 10, || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    // The same from the same memory, with a hole alone.
    fs::remove_file(living.dir.join("go")).expect("no go");
    let ticks = living.ticks().len();
    let (killed, pager) = go(&taken.dataset, &source);
    wait_for("it runs", &living, 20, || living.ticks().len() > ticks + 1);
    fs::write(living.dir.join("punch"), "").expect("punch");
    match pager.wait(|figures| figures.time < Duration::from_secs(60)) {
        Arrival::Stopped(why) => assert!(why.contains("by a descriptor"), "{why}"),
        other => panic!("{other:?}\n{}", living.log()),
    }
    wait_for("it ends", &living, 10, || !lives(killed.0));
    let log = living.log();
    assert!(!log.contains("BAD") && !log.contains("did punch"), "{log}");
}

/// The kernel's log from now on.
fn kernel_log() -> fs::File {
    use std::io::{Seek, SeekFrom};
    use std::os::unix::fs::OpenOptionsExt;
    let mut log = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .expect("the kernel's log");
    log.seek(SeekFrom::End(0)).expect("its end");
    log
}

fn read_log(log: &mut fs::File) -> String {
    use std::io::Read;
    let mut text = String::new();
    let mut record = [0; 8192];
    while let Ok(len @ 1..) = log.read(&mut record) {
        text += &String::from_utf8_lossy(&record[..len]);
    }
    text
}

/// The disk holds the stream up for as long as it likes: no fault waits for that.
#[test]
fn a_stream_that_gets_nothing_holds_up_no_fault() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let (living, taken, before) = taken("stuck");
    let until = living.dir.join("stream");
    let stuck = Stuck {
        memory: &taken.memory,
        until: until.clone(),
        test: nix::unistd::getpid(),
    };
    let (killed, pager) = go(&taken.dataset, &stuck);
    living.await_ticks(before + 5);
    fs::write(living.dir.join("go"), "").expect("go");
    wait_for("all is read", &living, 120, || {
        assert!(lives(killed.0), "{}", living.log());
        living.log().contains("all read")
    });
    assert!(lives(pager.pid()), "the stream has got nothing");
    fs::write(&until, "").expect("the stream may go on");
    match pager.wait(|figures| figures.time < Duration::from_secs(60)) {
        Arrival::Resident => {}
        other => panic!("{other:?}"),
    }
    assert_unbroken(&living.await_ticks(before + 15), killed.0);
    assert!(!living.log().contains("BAD"), "{}", living.log());
}

/// The command itself, killed or interrupted when the process runs and its memory still arrives: that
/// goes on.
#[test]
fn whoever_restored_it_may_go() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    for signal in [libc::SIGKILL, libc::SIGINT, 0] {
        let (living, mut taken, before) = taken("left");
        taken.dataset.crash_id = "left".into();
        let pid = taken.dataset.processes[0].pid;
        let work = living.dir.join("work");
        vmrestore::extract::directory::write(&taken.dataset, &taken.memory, &work.join("dataset"))
            .expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"))
            .arg("restore")
            .arg(work.join("dataset"))
            .args(["--memory", "lazy", "--state-dir"])
            .arg(work.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let stderr = std::io::BufReader::new(command.stderr.take().expect("its words"));
        let mut said = String::new();
        for line in stderr.lines().map_while(Result::ok) {
            said += &line;
            said.push('\n');
            if !line.contains("arrive behind it") {
                continue;
            }
            if signal != 0 {
                task_control::kill(command.id() as i32, signal).expect("sends it");
                continue;
            }
            // It runs already, and there is no second one; what it came from may lose its name.
            let again = Command::new(env!("CARGO_BIN_EXE_vmrestore"))
                .arg("restore")
                .arg(work.join("dataset"))
                .args(["--memory", "lazy", "--state-dir"])
                .arg(work.join("state"))
                .output()
                .expect("runs");
            let words = String::from_utf8_lossy(&again.stderr);
            assert_eq!(again.status.code(), Some(5), "{words}");
            fs::remove_dir_all(work.join("dataset")).expect("removed");
        }
        let output = command.wait_with_output().expect("ends");
        let report = String::from_utf8_lossy(&output.stdout);
        eprintln!("{said}{report}");
        let _killed = Killed(pid);
        match signal {
            libc::SIGKILL => assert_eq!(output.status.code(), None),
            _ => assert!(
                matches!(output.status.code(), Some(0 | 8)),
                "{said}{report}"
            ),
        }
        let mut log = kernel_log();
        fs::write(living.dir.join("go"), "").expect("go");
        wait_for("all is read", &living, 60, || {
            assert!(lives(pid), "{}{}", living.log(), read_log(&mut log));
            living.log().contains("all read")
        });
        assert_unbroken(&living.await_ticks(before + 20), pid);
        // Nobody stays behind.
        wait_for("the pager has gone", &living, 20, || {
            fs::read_dir("/proc").expect("/proc").flatten().all(|e| {
                let comm = fs::read_to_string(e.path().join("comm")).unwrap_or_default();
                let program = fs::read_link(e.path().join("exe")).unwrap_or_default();
                program != Path::new(env!("CARGO_BIN_EXE_vmrestore"))
                    || !comm.starts_with("vmrestore-")
            })
        });
    }
}
