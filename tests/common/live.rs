//! Makes a dataset from a *live* process, so that the restorer can be tried
//! on any machine, without a dump and without a reboot.
//!
//! It asks the running kernel (procfs, ptrace); what a dump's reader knows of
//! kernel structures it does not know. It takes what the test programs hold,
//! and panics on anything else.
#![allow(unsafe_code, dead_code)]

#[path = "live/files.rs"]
mod files;
#[path = "live/set.rs"]
pub mod set;
#[path = "live/sysv.rs"]
pub mod sysv;
#[path = "live/tcp.rs"]
pub mod tcp;
#[path = "live/threads.rs"]
mod threads;

use files::open_file;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use threads::{posix_timers, thread};
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
                let at = usize::try_from(at.saturating_add(first.saturating_mul(PAGE))).ok();
                let len = usize::try_from(count * PAGE).expect("the reader's buffer");
                if let Some(there) = at.and_then(|at| self.0.get(at..)?.get(..len)) {
                    out.copy_from_slice(there);
                    return Ok(());
                }
            }
            PageContent::Zero => {
                out.fill(0);
                return Ok(());
            }
            _ => {}
        }
        Err(PageSourceError {
            at: run.start.saturating_add(first.saturating_mul(PAGE)),
            content: run.content,
            why: "the test has no such pages".into(),
        })
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
    stop(pid);
    let mut taker = Taker::new(pid);
    let process = taker.process(sigactions);
    taker.taken(vec![process], Vec::new())
}

/// The same of a process in a container, as one who reads a dump sees it: all of
/// its namespaces are its own.
pub fn take_from_container(pid: i32, sigactions: Vec<SigAction>) -> Taken {
    stop(pid);
    let mut taker = Taker::new(pid);
    taker.root = format!("/proc/{pid}/root").into();
    let mut process = taker.process(sigactions);
    let inner = |tid: i32| -> i32 {
        let all = status(tid, "NSpid");
        let last = all.split_ascii_whitespace().last().expect("a PID");
        last.parse().expect("a number")
    };
    process.ns_pid = inner(pid);
    for thread in &mut process.threads {
        thread.ns_tid = inner(thread.tid);
    }
    for kind in [
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Net,
        NamespaceKind::Cgroup,
        NamespaceKind::Pid,
        NamespaceKind::Mount,
        NamespaceKind::User,
    ] {
        let of = |who: &str| link(&format!("/proc/{who}/ns/{}", kind.file()));
        if of(&pid.to_string()) != of("self") {
            process.namespaces.own.push(Namespace { kind, number: 1 });
        }
    }
    process.namespaces.foreign_root = true;
    // IDs as its user namespace has them: procfs says the host's.
    for (map, users) in [("uid_map", true), ("gid_map", false)] {
        let text = fs::read_to_string(format!("/proc/{pid}/{map}")).expect("a map");
        let words: Vec<u32> = text
            .split_ascii_whitespace()
            .map(|word| word.parse().expect("a number"))
            .collect();
        for thread in &mut process.threads {
            let ids = match users {
                true => &mut thread.credentials.uid,
                false => &mut thread.credentials.gid,
            };
            for id in ids {
                *id = *id - words[1] + words[0];
            }
        }
        for object in &mut taker.sysv {
            let ids = match users {
                true => [&mut object.uid, &mut object.creator_uid],
                false => [&mut object.gid, &mut object.creator_gid],
            };
            for id in ids {
                *id = *id - words[1] + words[0];
            }
        }
    }
    // What is connected is so with itself.
    let sockets: Vec<(i32, u64)> = process
        .fds
        .iter()
        .filter_map(|fd| match &taker.files[&fd.file.0].kind {
            FileKind::UnixSocket(s) if matches!(s.state, UnixState::Connected { .. }) => {
                Some((fd.fd, s.socket.0))
            }
            _ => None,
        })
        .collect();
    if let [a, b] = sockets.as_slice() {
        for file in taker.files.values_mut() {
            let FileKind::UnixSocket(socket) = &mut file.kind else {
                continue;
            };
            for ((fd, own), (_, other)) in [(a, b), (b, a)] {
                if socket.socket.0 == *own {
                    let peer = ObjectId(*other);
                    socket.state = UnixState::Connected { peer };
                    socket.unread = set::unread(pid, *fd);
                }
            }
        }
    }
    process.cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .expect("cgroup")
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .expect("the unified hierarchy")
        .into();
    taker.taken(vec![process], Vec::new())
}

/// Stops all threads of a process, whose tracer the caller becomes.
pub fn stop(pid: i32) {
    for tid in numbers(&format!("/proc/{pid}/task")) {
        ptrace::seize(tid).expect("seize");
        ptrace::interrupt(tid).expect("interrupt");
        let stop = ptrace::wait(tid).expect("wait");
        assert!(
            matches!(stop, Stop::Event(128)),
            "the thread stopped for another reason"
        );
    }
}

impl Taker {
    fn new(pid: i32) -> Self {
        Self {
            pid,
            root: "/".into(),
            memory: Memory::default(),
            files: BTreeMap::new(),
            known: Vec::new(),
            pipes: Vec::new(),
            inodes: HashMap::new(),
            shared: BTreeMap::new(),
            aio: Vec::new(),
            sysv: Vec::new(),
        }
    }

    /// Everything of a stopped process.
    fn process(&mut self, sigactions: Vec<SigAction>) -> Process {
        let taker = self;
        let pid = taker.pid;
        let mut tids = numbers(&format!("/proc/{pid}/task"));
        // The leader first, also where its threads' IDs have begun anew.
        tids.sort_by_key(|tid| *tid != pid);
        let vmas = taker.vmas();
        let mem = File::open(format!("/proc/{pid}/mem")).expect("mem");
        let (objects, segments) =
            sysv::within(pid, || sysv::objects(pid, &mem, &mut taker.memory, &vmas));
        for object in objects {
            if !taker.sysv.contains(&object) {
                taker.sysv.push(object);
            }
        }
        taker
            .shared
            .extend(segments.into_iter().map(|segment| (segment.id.0, segment)));
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
        Process {
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
                mdwe: 0,
                memory_merge: false,
                membarrier: 0,
                aio: std::mem::take(&mut taker.aio),
                core_filter: None,
                protection_keys: 0,
                oom_score_adj: fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
                    .expect("oom_score_adj")
                    .trim()
                    .parse()
                    .expect("a number"),
            },
            fds,
            fs: FsState {
                cwd: link(&format!("/proc/{pid}/cwd")),
                cwd_deleted: false,
                root: link(&format!("/proc/{pid}/root")),
                umask: u32::from_str_radix(&status(pid, "Umask"), 8).expect("octal"),
                seen_at: String::new(),
            },
            rlimits: rlimits(pid),
            sigactions,
            pending: threads::pending(pid, true),
            itimers: Vec::new(),
            posix_timers: posix_timers(pid),
            personality: 0,
            child_subreaper: false,
            stopped: false,
            kin: Kin::default(),
            namespaces: Namespaces::default(),
            cgroup: String::new(),
            legacy_cgroups: Vec::new(),
            threads,
        }
    }

    /// The whole, as of now.
    fn taken(self, processes: Vec<Process>, zombies: Vec<Zombie>) -> Taken {
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
                processes,
                zombies,
                files: self.files.into_values().collect(),
                pipes: self.pipes,
                inodes: self.inodes.into_values().collect(),
                shared_memory: self.shared.into_values().collect(),
                sysv: self.sysv,
                message_queues: Vec::new(),
                vms: Vec::new(),
                outside: Vec::new(),
                swap: Vec::new(),
                fidelity: Vec::new(),
            },
            memory: self.memory,
        }
    }
}

struct Taker {
    pid: i32,
    /// Where its root directory is seen from here.
    root: PathBuf,
    memory: Memory,
    files: BTreeMap<u64, OpenFile>,
    /// Descriptors that were looked at: process, number, path, file.
    known: Vec<(i32, i32, String, ObjectId)>,
    pipes: Vec<Pipe>,
    inodes: HashMap<u64, Inode>,
    shared: BTreeMap<u64, SharedMemory>,
    aio: Vec<AioContext>,
    sysv: Vec<SysvObject>,
}

/// An asynchronous I/O context with nothing under way, by what its ring says.
fn ring(id: u64, len: u64, mem: &File) -> AioContext {
    let mut bytes = vec![0; len as usize];
    mem.read_exact_at(&mut bytes, id).expect("a ring");
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4"));
    let (entries, head, tail) = (word(4), word(8), word(12));
    let mut events = Vec::new();
    let mut at = head;
    while at != tail {
        let event = 32 + at as usize * IO_EVENT as usize;
        events.extend(&bytes[event..event + IO_EVENT as usize]);
        at = (at + 1) % entries;
    }
    AioContext {
        id,
        len,
        // The program asks for so many.
        max_requests: 64,
        entries,
        head,
        tail,
        events: Blob(events),
        under_way: Vec::new(),
        unknown: None,
    }
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
            n if n.starts_with("/[aio]") => {
                self.aio.push(ring(start, end - start, mem));
                MappingKind::AioRing
            }
            _ if inode == 0 && !name.starts_with("/SYSV") => MappingKind::Anonymous {
                name: None,
                stack: name == "[stack]",
                heap: name == "[heap]",
            },
            // The inode's number is the segment's ID.
            n if n.starts_with("/SYSV") => MappingKind::Segment {
                memory: sysv::segment(inode),
                // Parts of one attachment lie where they belong together.
                attachment: ObjectId(start.wrapping_sub(offset)),
                offset,
            },
            n if n.ends_with("(deleted)") && flags & 8 == 0 => MappingKind::Anonymous {
                name: None,
                stack: false,
                heap: false,
            },
            n if n.ends_with("(deleted)") => {
                let path = format!("/proc/{}/map_files/{start:x}-{end:x}", self.pid);
                let memory = self.memory_file(inode, n, Path::new(&path));
                MappingKind::Shared { memory, offset }
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
            // A page that no file has, or of a file that no path leads to.
            let anonymous = matches!(kind, MappingKind::Anonymous { .. });
            let own = entry >> 63 == 1 && (anonymous || !file_page)
                || anonymous && name.ends_with("(deleted)");
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
            huge_page: 0,
        })
    }

    /// A file that no path leads to, with all that is in it.
    fn memory_file(&mut self, inode: u64, name: &str, path: &Path) -> ObjectId {
        let id = ObjectId(inode);
        if !self.shared.contains_key(&inode) {
            let mut bytes = fs::read(path).expect("a file without a name");
            let size = bytes.len() as u64;
            bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
            let pages = match size {
                0 => Vec::new(),
                _ => vec![self.memory.store(0, &bytes)],
            };
            let memory = SharedMemory {
                id,
                name: name.into(),
                memfd: name.starts_with("/memfd:"),
                size,
                seals: u32::from(name.starts_with("/memfd:")),
                pages,
                huge_page: 0,
            };
            self.shared.insert(inode, memory);
        }
        id
    }

    fn inode(&mut self, number: u64, path: &str) {
        let meta = fs::metadata(self.root.join(&path[1..])).expect(path);
        self.inodes.entry(number).or_insert_with(|| Inode {
            uid: meta.uid(),
            gid: meta.gid(),
            id: ObjectId(number),
            path: path.into(),
            device: String::new(),
            fs_uuid: None,
            fs_type: String::new(),
            number,
            generation: None,
            kind: InodeKind::Regular,
            mode: meta.mode(),
            links: 1,
            size: meta.size(),
            mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            ctime_ns: 0,
            writable: false,
            dirty: Vec::new(),
            uncommitted: Vec::new(),
            blocks: Vec::new(),
            block: None,
            newborn: false,
        });
    }
}
