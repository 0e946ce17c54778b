//! Makes a dataset from a *live* process, so that the restorer can be tried
//! on any machine, without a dump and without a reboot.
//!
//! It asks the running kernel (procfs, ptrace); what a dump's reader knows of
//! kernel structures it does not know. It takes what the test programs hold,
//! and panics on anything else.
#![allow(unsafe_code, dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use vmrestore::dataset::*;
use vmrestore::sys::ptrace::{self, Stop};

const PAGE: u64 = 4096;

/// Page contents that the dataset's `Stored` runs refer to.
#[derive(Default)]
pub struct Memory(Vec<u8>);

impl PageSource for Memory {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        match run.content {
            PageContent::Stored(at) => {
                let at = (at + first * PAGE) as usize;
                out.copy_from_slice(&self.0[at..at + (count * PAGE) as usize]);
            }
            PageContent::Zero => out.fill(0),
            other => {
                return Err(PageSourceError {
                    at: run.start + first * PAGE,
                    content: other,
                    why: "the test has no such pages".into(),
                });
            }
        }
        Ok(())
    }
}

impl Memory {
    pub fn store(&mut self, start: u64, bytes: &[u8]) -> PageRun {
        let at = self.0.len() as u64;
        self.0.extend(bytes);
        PageRun {
            start,
            count: bytes.len() as u64 / PAGE,
            content: PageContent::Stored(at),
        }
    }
}

/// A process that was stopped and looked at. It stays stopped.
pub struct Taken {
    pub dataset: Dataset,
    pub memory: Memory,
}

/// Stops a process and takes everything of it. It is to be killed afterwards.
pub fn take(pid: i32, sigactions: Vec<SigAction>) -> Taken {
    let tids = numbers(&format!("/proc/{pid}/task"));
    for &tid in &tids {
        ptrace::seize(tid).expect("seize");
        ptrace::interrupt(tid).expect("interrupt");
        let stop = ptrace::wait(tid).expect("wait");
        assert!(
            matches!(stop, Stop::Event(128)),
            "the thread stopped for another reason"
        );
    }
    let mut taker = Taker {
        pid,
        memory: Memory::default(),
        files: BTreeMap::new(),
        pipes: Vec::new(),
        inodes: HashMap::new(),
        shared: BTreeMap::new(),
    };
    let vmas = taker.vmas();
    let fds = taker.fds();
    let threads: Vec<Thread> = tids.iter().map(|tid| thread(pid, *tid)).collect();
    let stat = stat(pid);
    let number = |field: usize| -> u64 { stat[field - 3].parse().expect("a number") };
    let heap_end = vmas
        .iter()
        .find(|v| matches!(v.kind, MappingKind::Anonymous { heap: true, .. }))
        .map(|v| v.end);
    let exe = fs::read_link(format!("/proc/{pid}/exe")).expect("exe");
    let auxv: Vec<u64> = fs::read(format!("/proc/{pid}/auxv"))
        .expect("auxv")
        .chunks_exact(8)
        .map(|c| u64::from_ne_bytes(c.try_into().expect("8")))
        .collect();
    let vdso = vmas
        .iter()
        .find(|v| v.kind == MappingKind::Vdso)
        .map_or(0, |v| v.start);
    let process = Process {
        pid,
        ns_pid: pid,
        ppid: number(4) as i32,
        pgid: number(5) as i32,
        sid: number(6) as i32,
        comm: threads[0].comm.clone(),
        cmdline: Vec::new(),
        mm: Mm {
            vmas,
            start_code: number(26),
            end_code: number(27),
            start_data: number(45),
            end_data: number(46),
            start_brk: number(47),
            brk: heap_end.unwrap_or(number(47)),
            start_stack: number(28),
            arg_start: number(48),
            arg_end: number(49),
            env_start: number(50),
            env_end: number(51),
            auxv,
            exe: None,
            exe_path: Some(exe.to_string_lossy().into()),
            vdso,
            def_flags: 0,
            dumpable: 1,
            thp_disabled: false,
            oom_score_adj: fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
                .expect("oom_score_adj")
                .trim()
                .parse()
                .expect("a number"),
        },
        fds,
        fs: FsState {
            cwd: link(&format!("/proc/{pid}/cwd")),
            root: link(&format!("/proc/{pid}/root")),
            umask: u32::from_str_radix(&status(pid, "Umask"), 8).expect("octal"),
        },
        rlimits: rlimits(pid),
        sigactions,
        pending: pending(pid, "ShdPnd"),
        itimers: Vec::new(),
        posix_timers: posix_timers(pid),
        child_subreaper: false,
        stopped: false,
        threads,
    };
    let clock = |clock| {
        // SAFETY: timespec is plain data; zeros are a value of it.
        let mut t: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one timespec to where it is told.
        unsafe { libc::clock_gettime(clock, &raw mut t) };
        t.tv_sec * 1_000_000_000 + t.tv_nsec
    };
    Taken {
        dataset: Dataset {
            schema_version: SCHEMA_VERSION,
            crash_id: "live".into(),
            host: Host {
                release: String::new(),
                version: String::new(),
                hostname: String::new(),
                realtime_ns: clock(libc::CLOCK_REALTIME),
                monotonic_ns: clock(libc::CLOCK_MONOTONIC),
                boottime_ns: clock(libc::CLOCK_BOOTTIME),
                tsc_khz: 0,
                tsc: 0,
            },
            processes: vec![process],
            files: taker.files.into_values().collect(),
            pipes: taker.pipes,
            inodes: taker.inodes.into_values().collect(),
            shared_memory: taker.shared.into_values().collect(),
            vms: Vec::new(),
            fidelity: Vec::new(),
        },
        memory: taker.memory,
    }
}

struct Taker {
    pid: i32,
    memory: Memory,
    files: BTreeMap<u64, OpenFile>,
    pipes: Vec<Pipe>,
    inodes: HashMap<u64, Inode>,
    shared: BTreeMap<u64, SharedMemory>,
}

fn numbers(dir: &str) -> Vec<i32> {
    let mut all: Vec<i32> = fs::read_dir(dir)
        .expect(dir)
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

fn link(path: &str) -> String {
    fs::read_link(path).expect(path).to_string_lossy().into()
}

fn field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
        .map(|v| v.trim().to_string())
}

fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    field(&text, name).unwrap_or_else(|| panic!("{name} in status"))
}

fn stat(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let behind = text.rsplit_once(')').expect("comm").1;
    behind.split_ascii_whitespace().map(String::from).collect()
}

fn pending(tid: i32, which: &str) -> Vec<PendingSignal> {
    let mask = u64::from_str_radix(&status(tid, which), 16).expect("hex");
    (1..=64)
        .filter(|s| mask >> (s - 1) & 1 == 1)
        .map(|signal| PendingSignal {
            signal,
            info: Blob::default(),
        })
        .collect()
}

/// `/proc/PID/limits` names them, in another order than their numbers.
fn rlimits(pid: i32) -> Vec<ResourceLimit> {
    const NAMES: [&str; 16] = [
        "Max cpu time",
        "Max file size",
        "Max data size",
        "Max stack size",
        "Max core file size",
        "Max resident set",
        "Max processes",
        "Max open files",
        "Max locked memory",
        "Max address space",
        "Max file locks",
        "Max pending signals",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max realtime timeout",
    ];
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let limit = |name: &str| -> ResourceLimit {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).expect(name);
        let mut words = line.split_ascii_whitespace();
        let mut number = || match words.next().expect("a limit") {
            "unlimited" => u64::MAX,
            n => n.parse().expect("a number"),
        };
        let soft = number();
        ResourceLimit {
            soft,
            hard: number(),
        }
    };
    NAMES.into_iter().map(limit).collect()
}

fn thread(pid: i32, tid: i32) -> Thread {
    let regs = ptrace::registers(tid).expect("registers");
    let nr = regs.orig_rax as i64;
    let restart = nr >= 0 && (-516..=-512).contains(&(regs.rax as i64));
    let regs = UserRegs {
        r15: regs.r15,
        r14: regs.r14,
        r13: regs.r13,
        r12: regs.r12,
        rbp: regs.rbp,
        rbx: regs.rbx,
        r11: regs.r11,
        r10: regs.r10,
        r9: regs.r9,
        r8: regs.r8,
        rax: if restart {
            (-libc::ENOSYS) as i64 as u64
        } else {
            regs.rax
        },
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        orig_rax: regs.orig_rax,
        rip: regs.rip,
        cs: regs.cs,
        rflags: regs.eflags,
        rsp: regs.rsp,
        ss: regs.ss,
        fs_base: regs.fs_base,
        gs_base: regs.gs_base,
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
    };
    let ids = |name: &str| -> [u32; 4] {
        let v: Vec<u32> = status(tid, name)
            .split_ascii_whitespace()
            .map(|w| w.parse().expect("an ID"))
            .collect();
        v.try_into().expect("four")
    };
    let caps = |name: &str| u64::from_str_radix(&status(tid, name), 16).expect("hex");
    let mut head = 0u64;
    let mut len = 0usize;
    // SAFETY: the kernel writes two words to where it is told.
    unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    Thread {
        tid,
        ns_tid: tid,
        comm: fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"))
            .expect("comm")
            .trim()
            .into(),
        run_state: if restart {
            RunState::InSyscall
        } else {
            RunState::PreemptedUser
        },
        syscall: restart.then(|| InFlightSyscall {
            number: regs.orig_rax,
            name: String::new(),
            args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
        }),
        resume: if restart {
            SyscallResume::Reissue
        } else {
            SyscallResume::UserMode
        },
        xsave: Some(Blob(ptrace::xstate(tid).expect("xstate"))),
        fpu_stale: false,
        sigmask: ptrace::signal_mask(tid).expect("mask"),
        pending: pending(tid, "SigPnd"),
        sigaltstack: SignalStack {
            flags: 2,
            ..SignalStack::default()
        },
        rseq: ptrace::rseq(tid)
            .expect("rseq")
            .map(|(address, len, signature)| Rseq {
                address,
                len,
                signature,
            }),
        robust_list: (head != 0).then_some(RobustList {
            head,
            len: len as u64,
        }),
        // glibc 2.36's `struct pthread.tid`.
        clear_child_tid: regs.fs_base + 0x2d0,
        credentials: Credentials {
            uid: ids("Uid"),
            gid: ids("Gid"),
            groups: status(tid, "Groups")
                .split_ascii_whitespace()
                .map(|w| w.parse().expect("an ID"))
                .collect(),
            cap_inheritable: caps("CapInh"),
            cap_permitted: caps("CapPrm"),
            cap_effective: caps("CapEff"),
            cap_bounding: caps("CapBnd"),
            cap_ambient: caps("CapAmb"),
            securebits: 0,
        },
        no_new_privs: status(tid, "NoNewPrivs") == "1",
        seccomp: seccomp(tid),
        scheduling: Scheduling {
            policy: 0,
            nice: stat(tid)[19 - 3].parse().expect("a number"),
            rt_priority: 0,
            affinity: list(&status(tid, "Cpus_allowed_list")),
        },
        pdeath_signal: 0,
        timer_slack_ns: 50_000,
        regs,
    }
}

/// `0-1,5`
fn list(text: &str) -> Vec<u32> {
    text.split(',')
        .flat_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |s: &str| s.parse::<u32>().expect("a CPU");
            number(first)..=number(last)
        })
        .collect()
}

/// PTRACE_SECCOMP_GET_FILTER counts them from the newest.
fn seccomp(tid: i32) -> SeccompState {
    const GET_FILTER: u32 = 0x420c;
    let mode = status(tid, "Seccomp").parse().expect("a mode");
    let mut filters = Vec::new();
    for index in 0usize.. {
        let mut program = vec![0u8; 4096 * 8];
        // SAFETY: a system call whose arguments are numbers or buffers of its own.
        let count = unsafe {
            let at = std::ptr::without_provenance_mut::<libc::c_void>(index);
            libc::ptrace(GET_FILTER, tid, at, program.as_mut_ptr())
        };
        if mode != 2 || count < 0 {
            break;
        }
        program.truncate(count as usize * 8);
        filters.insert(0, Blob(program));
    }
    SeccompState { mode, filters }
}

/// `/proc/PID/timers`: it does not say when they expire, so each does at once.
fn posix_timers(pid: i32) -> Vec<PosixTimer> {
    let text = fs::read_to_string(format!("/proc/{pid}/timers")).expect("timers");
    let mut timers = Vec::new();
    let mut block = String::new();
    for line in text.lines() {
        block += line;
        block += "\n";
        if !line.starts_with("ClockID:") {
            continue;
        }
        let value = |name: &str| field(&block, name).expect("a field of timers");
        // `signal: 37/0000000000001092`
        let signal = value("signal");
        let (signal, data) = signal.split_once('/').expect("two");
        let data = u64::from_str_radix(data, 16).expect("hex");
        timers.push(PosixTimer {
            id: value("ID").parse().expect("a number"),
            clock: value("ClockID").parse().expect("a clock"),
            notify: 0,
            signal: signal.parse().expect("a signal"),
            value: Blob(data.to_ne_bytes().to_vec()),
            thread: 0,
            remaining_ns: Some(1),
            interval_ns: 30_000_000,
            overrun: 0,
        });
        block.clear();
    }
    timers
}

/// What the two letters of `VmFlags` in smaps are in `vm_flags`.
const FLAGS: [(&str, u64); 20] = [
    ("rd", 1),
    ("wr", 2),
    ("ex", 4),
    ("sh", 8),
    ("mr", 0x10),
    ("mw", 0x20),
    ("me", 0x40),
    ("ms", 0x80),
    ("gd", 0x100),
    ("lo", 0x2000),
    ("sr", 0x8000),
    ("rr", 0x1_0000),
    ("dc", 0x2_0000),
    ("ac", 0x10_0000),
    ("nr", 0x20_0000),
    ("wf", 0x200_0000),
    ("dd", 0x400_0000),
    ("hg", 0x2000_0000),
    ("nh", 0x4000_0000),
    ("mg", 0x8000_0000),
];

impl Taker {
    fn vmas(&mut self) -> Vec<Vma> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.pid)).expect("smaps");
        let mem = File::open(format!("/proc/{}/mem", self.pid)).expect("mem");
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid)).expect("pagemap");
        let mut vmas = Vec::new();
        let mut head: Option<Vec<String>> = None;
        for line in smaps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                let head = head.take().expect("a VMA before its flags");
                let mut bits = 0;
                for word in flags.split_ascii_whitespace() {
                    bits |= FLAGS
                        .iter()
                        .find(|(name, _)| *name == word)
                        .map_or(0, |f| f.1);
                }
                vmas.extend(self.vma(&head, bits, &mem, &pagemap));
            } else if line.as_bytes()[0].is_ascii_hexdigit()
                && !line.as_bytes()[0].is_ascii_uppercase()
            {
                head = Some(line.splitn(6, ' ').map(|w| w.trim().to_string()).collect());
            }
        }
        vmas
    }

    fn vma(&mut self, head: &[String], flags: u64, mem: &File, pagemap: &File) -> Option<Vma> {
        let hex = |s: &str| u64::from_str_radix(s, 16).expect("hex");
        let (start, end) = head[0].split_once('-').expect("a range");
        let (start, end) = (hex(start), hex(end));
        let offset = hex(&head[2]);
        let inode: u64 = head[4].parse().expect("an inode");
        let name = head.get(5).map_or("", String::as_str);
        let kind = match name {
            "[vsyscall]" => return None,
            "[vdso]" => MappingKind::Vdso,
            n if n.starts_with("[vvar") => MappingKind::Vvar,
            _ if inode == 0 => MappingKind::Anonymous {
                name: None,
                stack: name == "[stack]",
                heap: name == "[heap]",
            },
            n if n.ends_with("(deleted)") => {
                let id = ObjectId(inode);
                let size = 1 << 16;
                if !self.shared.contains_key(&inode) {
                    assert_eq!(end - start, size);
                    let mut bytes = vec![0; size as usize];
                    mem.read_exact_at(&mut bytes, start).expect("shared memory");
                    let run = self.memory.store(0, &bytes);
                    self.shared.insert(
                        inode,
                        SharedMemory {
                            id,
                            name: n.into(),
                            memfd: n.starts_with("/memfd:"),
                            size,
                            seals: 1,
                            pages: vec![run],
                        },
                    );
                }
                MappingKind::Shared { memory: id, offset }
            }
            path => {
                let id = ObjectId(1 << 40 | inode);
                self.inode(inode, path);
                self.files
                    .entry(id.0)
                    .or_insert_with(|| open_file(id, path));
                MappingKind::File {
                    file: id,
                    inode: ObjectId(inode),
                    offset,
                }
            }
        };
        let mut pages = Vec::new();
        let wanted = matches!(
            kind,
            MappingKind::Anonymous { .. } | MappingKind::File { .. } | MappingKind::Vdso
        );
        for at in (start..end).step_by(PAGE as usize).filter(|_| wanted) {
            let mut entry = [0; 8];
            pagemap
                .read_exact_at(&mut entry, at / PAGE * 8)
                .expect("pagemap");
            let entry = u64::from_ne_bytes(entry);
            let file_page = entry >> 61 & 1 == 1;
            let own = entry >> 63 == 1 && !(file_page && matches!(kind, MappingKind::File { .. }));
            if own || kind == MappingKind::Vdso {
                let mut bytes = [0; PAGE as usize];
                mem.read_exact_at(&mut bytes, at).expect("a page");
                let next = self.memory.store(at, &bytes);
                match pages.last_mut() {
                    Some(PageRun { start, count, .. }) if *start + *count * PAGE == at => {
                        *count += 1;
                    }
                    _ => pages.push(next),
                }
            }
        }
        Some(Vma {
            start,
            end,
            flags,
            kind,
            pages,
        })
    }

    fn inode(&mut self, number: u64, path: &str) {
        let meta = fs::metadata(path).expect(path);
        self.inodes.entry(number).or_insert_with(|| Inode {
            id: ObjectId(number),
            path: path.into(),
            device: String::new(),
            fs_uuid: None,
            fs_type: String::new(),
            number,
            kind: InodeKind::Regular,
            mode: meta.mode(),
            links: 1,
            size: meta.size(),
            mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            ctime_ns: 0,
            writable: false,
            dirty: Vec::new(),
            uncommitted: Vec::new(),
        });
    }

    fn fds(&mut self) -> Vec<Fd> {
        let pid = self.pid;
        let mut fds: Vec<Fd> = Vec::new();
        for fd in numbers(&format!("/proc/{pid}/fd")) {
            let path = link(&format!("/proc/{pid}/fd/{fd}"));
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).expect("fdinfo");
            let flags = field(&info, "flags").expect("flags");
            let flags = u32::from_str_radix(&flags, 8).expect("octal");
            let same = fds.iter().find(|other| {
                const KCMP_FILE: i32 = 0;
                let (a, b) = (fd as u64, other.fd as u64);
                // SAFETY: a system call whose arguments are numbers or buffers of its own.
                unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a, b) == 0 }
            });
            let id = match same {
                Some(other) => other.file,
                None => {
                    let id = ObjectId(1 << 41 | fd as u64);
                    let kind = self.kind(fd, &path, &info);
                    let position = field(&info, "pos").expect("pos").parse().expect("a number");
                    let locks = info
                        .lines()
                        .filter_map(|l| l.strip_prefix("lock:"))
                        .map(lock)
                        .collect();
                    let file = OpenFile {
                        flags: flags & !(libc::O_CLOEXEC as u32),
                        position,
                        locks,
                        kind,
                        ..open_file(id, &path)
                    };
                    self.files.insert(id.0, file);
                    id
                }
            };
            fds.push(Fd {
                fd,
                file: id,
                cloexec: flags & libc::O_CLOEXEC as u32 != 0,
            });
        }
        // Watches name files: their descriptors are known only now.
        for file in self.files.values_mut() {
            if let FileKind::Epoll { watches } = &mut file.kind {
                for watch in watches {
                    let fd = fds.iter().find(|f| f.fd == watch.fd).expect("watched");
                    watch.file = fd.file;
                }
            }
        }
        fds
    }

    fn kind(&mut self, fd: i32, path: &str, info: &str) -> FileKind {
        let value = |name: &str| field(info, name).unwrap_or_else(|| panic!("{name}: {info}"));
        let bracketed = || -> u64 {
            let inside = path.split_once('[').expect("[").1;
            inside.trim_end_matches(']').parse().expect("a number")
        };
        let pair = |text: String| -> i64 {
            let inside = text.trim_matches(['(', ')']).to_string();
            let (s, ns) = inside.split_once(", ").expect("two");
            s.parse::<i64>().expect("s") * 1_000_000_000 + ns.parse::<i64>().expect("ns")
        };
        match path {
            "anon_inode:[eventfd]" => FileKind::EventFd {
                context: ObjectId(fd as u64),
                count: u64::from_str_radix(&value("eventfd-count"), 16).expect("hex"),
                flags: 0,
            },
            "anon_inode:[timerfd]" => FileKind::TimerFd {
                clock: value("clockid").parse().expect("a clock"),
                remaining_ns: Some(pair(value("it_value"))),
                interval_ns: pair(value("it_interval")) as u64,
                ticks: value("ticks").parse().expect("ticks"),
                settime_flags: 0,
            },
            "anon_inode:[signalfd]" => FileKind::SignalFd {
                mask: u64::from_str_radix(&value("sigmask"), 16).expect("hex"),
            },
            "anon_inode:[eventpoll]" => FileKind::Epoll {
                watches: info.lines().filter_map(watch).collect(),
            },
            p if p.starts_with("pipe:") => {
                let id = ObjectId(bracketed());
                let write = value("flags").ends_with('1');
                if !self.pipes.iter().any(|p| p.id == id) {
                    let mut content = Vec::new();
                    // Any end leads to the pipe.
                    File::options()
                        .read(true)
                        .custom_flags(libc::O_NONBLOCK)
                        .open(format!("/proc/{}/fd/{fd}", self.pid))
                        .and_then(|mut f| f.read_to_end(&mut content))
                        .map_or_else(|e| assert_eq!(e.raw_os_error(), Some(libc::EAGAIN)), drop);
                    self.pipes.push(Pipe {
                        id,
                        capacity: 65536,
                        content: Blob(content),
                        closed_set: true,
                    });
                }
                FileKind::Pipe {
                    pipe: id,
                    end: if write { PipeEnd::Write } else { PipeEnd::Read },
                    named: false,
                }
            }
            p if p.starts_with("socket:") => match tcp(bracketed()) {
                Some(socket) => FileKind::InetSocket(socket),
                None => FileKind::UnixSocket(unix(bracketed())),
            },
            p if p.starts_with("/memfd:") => {
                let meta = fs::metadata(format!("/proc/{}/fd/{fd}", self.pid)).expect("memfd");
                FileKind::Memfd {
                    memory: ObjectId(meta.ino()),
                }
            }
            p if p.starts_with("/dev/") => {
                let device = fs::metadata(p).expect(p).rdev();
                FileKind::CharDevice {
                    major: libc::major(device),
                    minor: libc::minor(device),
                }
            }
            p if p.starts_with('/') => FileKind::Regular,
            other => panic!("the test cannot take {other}"),
        }
    }
}

fn open_file(id: ObjectId, path: &str) -> OpenFile {
    OpenFile {
        id,
        path: path.into(),
        deleted: false,
        flags: 0,
        position: 0,
        inode: None,
        owner: None,
        locks: Vec::new(),
        kind: FileKind::Regular,
    }
}

/// `1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 3 6`
fn lock(line: &str) -> FileLock {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let end = words[7].parse().unwrap_or(i64::MAX as u64);
    let (write, start) = (words[3] == "WRITE", words[6].parse().expect("a number"));
    match words[1] {
        "OFDLCK" => FileLock::Ofd { write, start, end },
        "FLOCK" => FileLock::Flock { write },
        other => panic!("the test cannot take the lock {other}"),
    }
}

/// `tfd:        5 events:       19 data:                1  pos:0 ino:… sdev:…`
fn watch(line: &str) -> Option<EpollWatch> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    if words.first() != Some(&"tfd:") {
        return None;
    }
    Some(EpollWatch {
        fd: words[1].parse().expect("a number"),
        file: ObjectId(0),
        events: u32::from_str_radix(words[3], 16).expect("hex"),
        data: u64::from_str_radix(words[5], 16).expect("hex"),
    })
}

/// A line of /proc/net/tcp: `sl local rem st tx:rx tr:when retr uid timeout inode`.
fn tcp(inode: u64) -> Option<InetSocket> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let line = table
        .lines()
        .find(|l| l.split_ascii_whitespace().nth(9) == Some(&inode.to_string()))?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    assert_eq!(words[3], "0A", "the test can take listeners alone");
    let (address, port) = words[1].split_once(':').expect("two");
    let address = u32::from_str_radix(address, 16).expect("hex").to_ne_bytes();
    let port = u16::from_str_radix(port, 16).expect("hex");
    Some(InetSocket {
        family: libc::AF_INET,
        socket_type: libc::SOCK_STREAM,
        protocol: libc::IPPROTO_TCP,
        local: (address, port).into(),
        remote: None,
        backlog: Some(7),
        reuse_address: true,
        reuse_port: false,
        v6only: false,
    })
}

/// A line of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`.
fn unix(inode: u64) -> UnixListener {
    let table = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words[6] == inode.to_string() {
            return UnixListener {
                socket: ObjectId(inode),
                socket_type: i32::from_str_radix(words[4], 16).expect("hex"),
                address: Blob(words.get(7).map_or(Vec::new(), |p| p.as_bytes().to_vec())),
                state: if words[3] == "00010000" {
                    UnixState::Listening { backlog: 5 }
                } else {
                    UnixState::Unconnected
                },
            };
        }
    }
    panic!("socket {inode} is no UNIX socket")
}
