//! A process that holds one of everything, and what `task` reads of it.
//!
//! `tests/programs/zoo.c` says what it made; a real kernel runs it under QEMU's TCG, QEMU dumps the
//! machine's memory, and each thing is looked for. Needs gcc, qemu-system-x86_64 and a kernel:
//! `VMRESTORE_ZOO_KERNEL=/boot/vmlinuz-… cargo test --test task_zoo -- --ignored`.

#![allow(missing_docs)]

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use vmrestore::dataset::{
    FileKind, FileLock, FileOwner, MappingKind, ObjectId, OpenFile, PageContent, PageRun, PipeEnd,
    Process, RunState, SyscallResume, Thread, UnixState, Vma,
};
use vmrestore::dump::{Dump, PhysicalMemory};
use vmrestore::kernel::Kernel;
use vmrestore::task::{self, Extracted};
use vmrestore_lab::cpio::Cpio;
use vmrestore_lab::qmp::Qmp;

/// How long a kernel may take from its start to the last word of the zoo, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

struct Zoo {
    dump: Arc<Dump>,
    kernel: Kernel,
    /// What it said: the numbers behind each name.
    facts: HashMap<String, Vec<u64>>,
    found: Extracted,
}

/// The machine; gone when this is.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn build(dir: &Path) -> PathBuf {
    let program = dir.join("zoo");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/zoo.c");
    let built = Command::new("gcc")
        .args(["-O1", "-Wall", "-static", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .expect("gcc");
    assert!(built.success());
    program
}

fn boot(dir: &Path, program: &Path) -> (String, PathBuf) {
    let kernel = std::env::var_os("VMRESTORE_ZOO_KERNEL").expect("VMRESTORE_ZOO_KERNEL");
    let mut cpio = Cpio::new();
    cpio.file("init", program).unwrap();
    let initrd = dir.join("initrd");
    std::fs::write(&initrd, cpio.finish()).unwrap();
    let (console, socket, dump) = (dir.join("console"), dir.join("qmp"), dir.join("dump"));
    let qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", "512M", "-display", "none", "-no-reboot", "-kernel"])
        .arg(&kernel)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1", "-serial"])
        .arg(format!("file:{}", console.display()))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64");
    let mut qemu = Qemu(qemu);
    let start = Instant::now();
    let said = loop {
        let said =
            String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).replace('\r', "");
        if said.contains("\nREADY") {
            break said;
        }
        assert!(start.elapsed() < PATIENCE, "no READY in:\n{said}");
        assert_eq!(qemu.0.try_wait().unwrap(), None, "QEMU ended:\n{said}");
        std::thread::sleep(Duration::from_millis(200));
    };
    // The one that said so shall sleep.
    std::thread::sleep(Duration::from_secs(1));
    let mut qmp = Qmp::new(UnixStream::connect(&socket).unwrap()).unwrap();
    qmp.greet().unwrap();
    qmp.command("stop", json!({})).unwrap();
    let to = format!("file:{}", dump.display());
    qmp.command(
        "dump-guest-memory",
        json!({"paging": false, "protocol": to}),
    )
    .unwrap();
    (said, dump)
}

fn facts(said: &str) -> HashMap<String, Vec<u64>> {
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    said.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            let numbers: Option<Vec<u64>> = words.map(number).collect();
            Some((name, numbers.filter(|n| !n.is_empty())?))
        })
        .collect()
}

impl Zoo {
    fn visit(dir: &Path) -> Zoo {
        let (said, path) = boot(dir, &build(dir));
        assert!(!said.contains("failed "), "{said}");
        let dump = Arc::new(Dump::open(&path).unwrap());
        let kernel = match dump.vmcoreinfo() {
            Some(note) => Kernel::open(dump.clone(), note),
            None => Kernel::discover(dump.clone()),
        }
        .unwrap();
        let facts = facts(&said);
        let pid = i32::try_from(facts["zoo"][0]).unwrap();
        let found = task::extract(&kernel, &[pid]).unwrap();
        Zoo {
            dump,
            kernel,
            facts,
            found,
        }
    }

    fn process(&self) -> &Process {
        &self.found.processes[0]
    }

    fn fact(&self, name: &str) -> u64 {
        self.facts[name][0]
    }

    fn file(&self, name: &str, which: usize) -> &OpenFile {
        let number = i32::try_from(self.facts[name][which]).unwrap();
        let fd = self.process().fds.iter().find(|f| f.fd == number).unwrap();
        self.found.files.iter().find(|f| f.id == fd.file).unwrap()
    }

    fn thread(&self, name: &str) -> &Thread {
        let tid = i32::try_from(self.fact(&format!("thread-{name}"))).unwrap();
        let found = self.process().threads.iter().find(|t| t.tid == tid);
        let found = found.unwrap_or_else(|| panic!("thread {name}"));
        assert_eq!(found.comm, name);
        found
    }

    fn vma(&self, name: &str) -> &Vma {
        let at = self.fact(name);
        let vmas = &self.process().mm.vmas;
        vmas.iter().find(|v| v.start <= at && at < v.end).unwrap()
    }

    /// The page at `at` of these runs, if it has one.
    fn page(&self, runs: &[PageRun], at: u64) -> Option<Vec<u8>> {
        let run = runs
            .iter()
            .find(|r| r.start <= at && at < r.start + r.count * 4096)?;
        let PageContent::Frame(first) = run.content else {
            panic!("{run:?} is not in memory")
        };
        let mut page = vec![0; 4096];
        let pfn = first + (at - run.start) / 4096;
        self.dump.read_physical(pfn * 4096, &mut page).unwrap();
        Some(page)
    }

    fn memory(&self, id: ObjectId) -> &vmrestore::dataset::SharedMemory {
        let all = &self.found.shared_memory;
        all.iter().find(|m| m.id == id).unwrap()
    }
}

fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

const SECOND: i64 = 1_000_000_000;

#[test]
#[ignore = "boots a kernel: set VMRESTORE_ZOO_KERNEL"]
fn everything_in_the_zoo_is_found() {
    let dir = std::env::temp_dir().join(format!("vmrestore-zoo-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let zoo = Zoo::visit(&dir);
    the_process(&zoo);
    pipes_and_events(&zoo);
    sockets_and_terminals(&zoo);
    edges_and_messages(&zoo);
    a_ring(&zoo);
    files(&zoo);
    memories(&zoo);
    calls(&zoo);
    threads(&zoo);
    drop(zoo);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn the_process(zoo: &Zoo) {
    let process = zoo.process();
    let listed = task::processes(&zoo.kernel).unwrap();
    let listed = listed.iter().find(|p| p.pid == process.pid).unwrap();
    assert_eq!((listed.ppid, listed.uid, listed.state), (1, 0, 'S'));
    // The kernel's own thread for the ring is not the process's.
    let workers = usize::from(zoo.facts.contains_key("ring"));
    assert_eq!(listed.threads as usize, process.threads.len() + workers);
    assert_eq!(process.cmdline, ["/init"]);
    assert_eq!((process.pgid, process.sid), (process.pid, process.pid));
    assert_eq!(process.fs.cwd, "/tmp");
    assert_eq!(process.fs.umask, 0o027);
    assert_eq!(process.mm.exe_path.as_deref(), Some("/init"));
    let files = process.rlimits[libc::RLIMIT_NOFILE as usize];
    assert_eq!((files.soft, files.hard), (1234, 4096));
    let action = |signal: i32| process.sigactions[usize::try_from(signal).unwrap() - 1];
    assert_eq!(action(libc::SIGUSR2).handler, zoo.fact("handler"));
    assert_eq!(action(libc::SIGUSR2).mask, bit(2));
    assert_eq!(action(libc::SIGUSR2).flags & 0x1000_0004, 0x1000_0004);
    assert_eq!(action(libc::SIGPIPE).handler, 1);
    assert_eq!(action(libc::SIGTERM).handler, 0);
    let alarm = process.itimers[0];
    assert_eq!((process.itimers.len(), alarm.which), (1, 0));
    assert_eq!(alarm.interval_ns, 3_000_000_000);
    assert!((2_500..2_777).contains(&(alarm.remaining_ns / 1_000_000_000)));
    let timer = &process.posix_timers[0];
    assert_eq!(
        timer.signal,
        i32::try_from(zoo.fact("posix-timer")).unwrap()
    );
    assert_eq!((timer.clock, timer.notify), (1, 0));
    assert_eq!(timer.value.0, [0x42, 0x42, 0, 0, 0, 0, 0, 0]);
    assert_eq!(timer.interval_ns, 2_000_000_000);
    assert!((2_300..2_555).contains(&(timer.remaining_ns.unwrap() / 1_000_000_000)));
}

fn pipes_and_events(zoo: &Zoo) {
    let end = |which| match zoo.file("pipe", which).kind {
        FileKind::Pipe { pipe, end, named } => (pipe, end, named),
        ref other => panic!("{other:?}"),
    };
    assert_eq!((end(0).1, end(1).1), (PipeEnd::Read, PipeEnd::Write));
    assert_eq!((end(0).0, end(0).2), (end(1).0, false));
    let pipe = |id| zoo.found.pipes.iter().find(|p| p.id == id).unwrap();
    let inherited = pipe(end(0).0);
    assert_eq!(inherited.content.0, b"hello pipe again");
    assert_eq!(inherited.capacity, 131_072);
    assert!(!inherited.closed_set, "the child holds it too");
    match zoo.file("fifo", 0).kind {
        FileKind::Pipe {
            pipe: id,
            end,
            named,
        } => {
            assert!(named && end == PipeEnd::Both);
            assert_eq!(pipe(id).content.0, b"ff");
        }
        ref other => panic!("{other:?}"),
    }
    assert_eq!(zoo.file("fifo", 0).path, "/tmp/fifo");
    match zoo.file("eventfd", 0).kind {
        FileKind::EventFd { count, flags, .. } => assert_eq!((count, flags & 1), (7, 1)),
        ref other => panic!("{other:?}"),
    }
    match zoo.file("timerfd", 0).kind {
        FileKind::TimerFd {
            clock,
            remaining_ns,
            interval_ns,
            ticks,
            ..
        } => {
            assert_eq!((clock, ticks, interval_ns), (1, 0, 5_000_000_000));
            assert!((2_700 * SECOND..3_000 * SECOND).contains(&remaining_ns.unwrap()));
        }
        ref other => panic!("{other:?}"),
    }
    match zoo.file("timerfd-expired", 0).kind {
        FileKind::TimerFd {
            clock,
            remaining_ns,
            ticks,
            ..
        } => {
            assert_eq!(clock, 0);
            // Every 100 ms for the second and more since it was made.
            assert!((5..3_000).contains(&ticks), "{ticks} ticks");
            assert!((1..=SECOND / 10).contains(&remaining_ns.unwrap()));
        }
        ref other => panic!("{other:?}"),
    }
    match zoo.file("signalfd", 0).kind {
        FileKind::SignalFd { mask } => assert_eq!(mask, bit(10) | bit(15)),
        ref other => panic!("{other:?}"),
    }
    let FileKind::Epoll { watches } = &zoo.file("epoll", 0).kind else {
        panic!("{:?}", zoo.file("epoll", 0))
    };
    let watch = |data| watches.iter().find(|w| w.data == data).unwrap();
    assert_eq!(watches.len(), 2);
    assert_eq!(watch(0xdead_beef_cafe).file, zoo.file("idle", 0).id);
    assert_eq!(watch(0xdead_beef_cafe).events & 0x8000_0001, 0x8000_0001);
    assert_eq!(watch(0x77).file, zoo.file("timerfd", 0).id);
    assert_eq!(watch(0x77).events & 0x4000_0004, 0x4000_0004);
}

/// Which watches have something to tell, and what nobody has read.
fn edges_and_messages(zoo: &Zoo) {
    let FileKind::Epoll { watches } = &zoo.file("edges", 0).kind else {
        panic!("{:?}", zoo.file("edges", 0))
    };
    let watch = |data| watches.iter().find(|w| w.data == data).unwrap();
    assert!(!watch(1).pending, "it was told");
    assert!(watch(2).pending, "nobody was told");
    assert_eq!(
        watch(3).events,
        1 << 30,
        "it has fired: nothing but ONESHOT"
    );

    let socket = |which| match &zoo.file("unread", which).kind {
        FileKind::UnixSocket(socket) => socket.clone(),
        other => panic!("{other:?}"),
    };
    let texts = |which| -> Vec<Vec<u8>> {
        let unread = socket(which).unread;
        unread.into_iter().map(|message| message.data.0).collect()
    };
    assert_eq!(texts(0), Vec::<Vec<u8>>::new());
    let stream = texts(1).concat();
    assert_eq!(stream.len(), 4 + 100_000);
    assert!(stream.starts_with(b"readzzz"), "half of it was read");
    assert!(stream[4..].iter().all(|byte| *byte == b'z'));
    assert_eq!((socket(0).shutdown, socket(1).shutdown), (2, 1));
    assert_eq!(texts(2), [b"one".to_vec(), Vec::new(), b"three".to_vec()]);
    let parcel = socket(3).unread;
    assert_eq!(parcel[0].data.0, b"parcel");
    let inside = zoo.found.files.iter().find(|f| f.id == parcel[0].files[0]);
    match inside.unwrap().kind {
        FileKind::EventFd { count, .. } => assert_eq!(count, 77),
        ref other => panic!("{other:?}"),
    }
}

/// Where the kernel has io_uring: what is under way in it.
fn a_ring(zoo: &Zoo) {
    if !zoo.facts.contains_key("ring") {
        return;
    }
    match &zoo.file("ring", 0).kind {
        FileKind::Unsupported {
            operations, why, ..
        } => {
            assert_eq!(operations, "io_uring_fops");
            assert!(
                why.contains("1 requests in flight, 1 kernel threads"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    let comms = &zoo.found.processes[0].threads;
    assert!(comms.iter().all(|t| !t.comm.starts_with("iou-wrk")));
}

fn sockets_and_terminals(zoo: &Zoo) {
    let socket = |name, which| match &zoo.file(name, which).kind {
        FileKind::UnixSocket(socket) => socket.clone(),
        other => panic!("{other:?}"),
    };
    let listener = socket("listener", 0);
    assert_eq!(listener.address.0, b"/tmp/zoo.sock");
    assert_eq!(listener.socket_type, 1);
    assert_eq!(listener.state, UnixState::Listening { backlog: 9 });
    let bound = socket("abstract", 0);
    assert_eq!(bound.address.0, b"\0zoo");
    assert_eq!(
        (bound.socket_type, bound.state),
        (5, UnixState::Unconnected)
    );
    let (one, other) = (socket("socketpair", 0), socket("socketpair", 1));
    let connected = |peer| UnixState::Connected { peer };
    assert_eq!(one.state, connected(other.socket));
    assert_eq!(other.state, connected(one.socket));
    let tty = |which| match zoo.file("terminal", which).kind {
        FileKind::Tty {
            major, pty_index, ..
        } => (major, pty_index),
        ref other => panic!("{other:?}"),
    };
    assert_eq!(tty(0), (128, Some(0)), "the master");
    assert_eq!(tty(1), (136, Some(0)), "the slave");
}

fn files(zoo: &Zoo) {
    let file = zoo.file("file", 0);
    assert_eq!(file.id, zoo.file("file", 1).id, "dup shares it");
    assert_eq!((file.path.as_str(), file.position), ("/tmp/file", 4));
    let flags = (libc::O_RDWR | libc::O_APPEND).cast_unsigned();
    assert_eq!(file.flags & 0o2003, flags);
    let pid = zoo.process().pid;
    assert_eq!(
        file.owner,
        Some(FileOwner {
            pid,
            signal: 34,
            thread: false
        })
    );
    let end = i64::MAX.cast_unsigned();
    for lock in [
        FileLock::Posix {
            pid,
            write: true,
            start: 2,
            end: 4,
        },
        FileLock::Ofd {
            write: false,
            start: 100,
            end,
        },
        FileLock::Flock { write: true },
    ] {
        assert!(file.locks.contains(&lock), "{lock:?} in {:?}", file.locks);
    }
    let inode = |file: &OpenFile| {
        let id = file.inode.unwrap();
        zoo.found.inodes.iter().find(|i| i.id == id).unwrap()
    };
    assert_eq!(inode(file).fs_type, "tmpfs");
    assert_eq!(inode(file).size, 10);
    assert!(inode(file).writable);
    let content = zoo.page(&inode(file).dirty, 0).unwrap();
    assert_eq!(&content[..11], b"0123456789\0");
    let deleted = zoo.file("deleted", 0);
    let FileKind::Memfd { memory } = deleted.kind else {
        panic!("{deleted:?}")
    };
    assert!(deleted.deleted);
    let content = zoo.page(&zoo.memory(memory).pages, 0).unwrap();
    assert_eq!(&content[..9], b"deleted!\0");
    assert!(matches!(zoo.file("directory", 0).kind, FileKind::Directory));
    assert!(matches!(
        zoo.file("random", 0).kind,
        FileKind::CharDevice { major: 1, minor: 9 }
    ));
    let cloexec = |name: &str| {
        let number = i32::try_from(zoo.fact(name)).unwrap();
        let fds = &zoo.process().fds;
        fds.iter().find(|f| f.fd == number).unwrap().cloexec
    };
    assert!(cloexec("idle") && cloexec("timerfd") && !cloexec("file"));
}

fn memories(zoo: &Zoo) {
    let FileKind::Memfd { memory } = zoo.file("memfd", 0).kind else {
        panic!("{:?}", zoo.file("memfd", 0))
    };
    let memfd = zoo.memory(memory);
    assert_eq!((memfd.name.as_str(), memfd.memfd), ("zoomem", true));
    assert_eq!((memfd.size, memfd.seals), (5 * 4096, 4));
    assert_eq!(&zoo.page(&memfd.pages, 0).unwrap()[..6], b"page0\0");
    assert_eq!(&zoo.page(&memfd.pages, 3 * 4096).unwrap()[..6], b"page3\0");
    assert_eq!(zoo.page(&memfd.pages, 4096), None, "a hole");
    let offset = 0;
    assert_eq!(
        zoo.vma("memfd-map").kind,
        MappingKind::Shared { memory, offset }
    );
    let MappingKind::Shared { memory, .. } = zoo.vma("shared-map").kind else {
        panic!("{:?}", zoo.vma("shared-map").kind)
    };
    let content = zoo.page(&zoo.memory(memory).pages, 4096).unwrap();
    assert_eq!(&content[..17], b"shared anonymous\0");

    let huge = zoo.vma("huge-map");
    for i in 0..1536 {
        let page = zoo.page(&huge.pages, zoo.fact("huge-map") + i * 4096);
        assert!(page.unwrap().iter().all(|b| *b == 0x5a), "page {i}");
    }
    let copy = zoo.vma("copy-map");
    assert!(matches!(copy.kind, MappingKind::File { offset: 0, .. }));
    let own = |page: u64| zoo.page(&copy.pages, zoo.fact("copy-map") + page * 4096);
    assert_eq!(own(1).unwrap()[0], b'X');
    assert_eq!((own(0), own(2)), (None, None), "the file's pages");
    let touched = zoo.vma("touched-map");
    let own = |page: u64| zoo.page(&touched.pages, zoo.fact("touched-map") + page * 4096);
    assert_eq!(own(2).unwrap()[0], b'T');
    assert_eq!((own(0), own(1)), (None, None), "the page of zeros");
    let orphan = zoo.vma("orphan-map");
    let own = |page: u64| zoo.page(&orphan.pages, zoo.fact("orphan-map") + page * 4096);
    assert!(matches!(orphan.kind, MappingKind::Anonymous { .. }));
    assert_eq!(&own(0).unwrap()[..8], b"its own\0");
    assert_eq!(&own(1).unwrap()[..14], b"from the file\0");
}

fn calls(zoo: &Zoo) {
    let again = SyscallResume::Reissue;
    for (name, call) in [
        ("sleeper", "clock_nanosleep"),
        ("waiter", "futex"),
        ("reader", "read"),
        ("suspended", "rt_sigsuspend"),
        ("expecting", "rt_sigtimedwait"),
        ("poller", "ppoll"),
        ("restarted", "poll"),
        ("marked", "nanosleep"),
        ("filtered", "pause"),
    ] {
        let thread = zoo.thread(name);
        let syscall = thread.syscall.as_ref().unwrap();
        assert_eq!(syscall.name, call, "{name}");
        assert_eq!(thread.regs.orig_rax, syscall.number, "{name}");
        match name {
            // Their timeouts go on with what was left.
            "restarted" | "marked" => {
                let resume = &thread.resume;
                assert!(
                    matches!(resume, SyscallResume::Rest { moved: 0, .. }),
                    "{name} {resume:?}"
                );
            }
            _ => assert_eq!(thread.resume, again, "{name}"),
        }
        assert_eq!(thread.run_state, RunState::InSyscall, "{name}");
        assert!(!thread.fpu_stale, "{name}");
    }
    let SyscallResume::Return { value: child } = zoo.thread("parent").resume else {
        panic!("{:?}", zoo.thread("parent"))
    };
    let all = task::processes(&zoo.kernel).unwrap();
    let child = all.iter().find(|p| i64::from(p.pid) == child).unwrap();
    assert_eq!(
        (child.ppid, child.comm.as_str()),
        (zoo.process().pid, "parent")
    );
    let spinner = zoo.thread("spinner");
    assert_eq!(
        (&spinner.syscall, &spinner.resume),
        (&None, &SyscallResume::UserMode)
    );
    if matches!(spinner.run_state, RunState::OnCpuUser { .. }) {
        assert!(spinner.fpu_stale);
    }
    let lost = |thread: &str| {
        let subject = format!("thread {}", zoo.fact(&format!("thread-{thread}")));
        let of = |f: &&vmrestore::dataset::Fidelity| f.subject.ends_with(&subject);
        zoo.found.fidelity.iter().filter(of).count()
    };
    // What slept is exact, and nothing is said of it.
    for exact in [
        "sleeper",
        "waiter",
        "reader",
        "suspended",
        "expecting",
        "poller",
        "restarted",
        "marked",
    ] {
        assert_eq!(lost(exact), 0, "{exact}");
    }
    assert_eq!(lost("parent"), 1);
}

fn threads(zoo: &Zoo) {
    for (name, mask) in [
        ("waiter", 0),
        ("suspended", bit(10)),
        ("expecting", bit(1)),
        ("poller", bit(28)),
    ] {
        assert_eq!(zoo.thread(name).sigmask, mask, "{name}");
    }
    let marked = zoo.thread("marked");
    assert_eq!(marked.regs.r14, 0x5151_5151_5151_5151);
    let xmm9 = &marked.xsave.as_ref().unwrap().0[160 + 9 * 16..][..8];
    assert_eq!(xmm9, 0x0123_4567_89ab_cdef_u64.to_le_bytes());
    assert_eq!(zoo.thread("spinner").regs.r15, 0x1122_3344_5566_7788);

    let filtered = zoo.thread("filtered");
    assert!(filtered.no_new_privs);
    assert_eq!(filtered.seccomp.mode, 2);
    let lengths: Vec<usize> = filtered.seccomp.filters.iter().map(|f| f.0.len()).collect();
    assert_eq!(lengths, [8, 16], "the oldest first");
    assert_eq!(zoo.thread("waiter").seccomp.mode, 0);

    let user = zoo.thread("other_user");
    assert_eq!(user.credentials.uid, [0, 1001, 1002, 1001]);
    assert_eq!(user.credentials.gid, [100, 101, 102, 101]);
    assert_eq!(user.credentials.groups, [10, 20, 30]);
    assert_eq!(user.credentials.cap_effective, 0);
    assert_ne!(user.credentials.cap_permitted, 0);
    assert_eq!(user.scheduling.nice, 7);
    assert_eq!(zoo.thread("waiter").credentials.uid, [0; 4]);

    let real_time = zoo.thread("real_time");
    assert_eq!(real_time.scheduling.policy, 1);
    assert_eq!(real_time.scheduling.rt_priority, 3);
    assert_eq!(real_time.scheduling.affinity, [1]);
    assert_eq!(zoo.thread("waiter").scheduling.affinity, [0u32; 0], "all");

    let queued = zoo.thread("queued");
    let signal = u32::try_from(zoo.fact("queued-signal")).unwrap();
    assert_eq!(queued.sigmask, bit(signal));
    let values: Vec<(u32, &[u8])> = queued
        .pending
        .iter()
        .map(|p| (p.signal, &p.info.0[24..28]))
        .collect();
    assert_eq!(
        values,
        [
            (signal, &[0x34, 0x12, 0, 0][..]),
            (signal, &[0x78, 0x56, 0, 0][..])
        ]
    );
    assert!(queued.pending.iter().all(|p| p.info.0.len() == 128));
    assert_eq!(queued.sigaltstack.sp, zoo.fact("altstack"));
    assert_eq!(queued.sigaltstack.size, 16384);
    for thread in &zoo.process().threads {
        assert_ne!(thread.regs.fs_base, 0, "{}", thread.comm);
        assert_ne!(thread.clear_child_tid, 0, "{}", thread.comm);
        assert!(thread.robust_list.is_some(), "{}", thread.comm);
    }
}
