//! Makes a dataset from a *live* process, so that the restorer can be tried
//! on any machine, without a dump and without a reboot.
//!
//! It asks the running kernel (procfs, ptrace); what a dump's reader knows of
//! kernel structures it does not know. It takes what the test programs hold,
//! and panics on anything else.
#![allow(unsafe_code, dead_code)]

#[path = "live/files.rs"]
mod files;
#[path = "live/threads.rs"]
mod threads;

use files::open_file;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
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
        });
    }
}
