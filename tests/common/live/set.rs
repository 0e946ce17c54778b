//! Several living processes as one set, with what they share kept shared.

use super::{Taken, Taker, numbers, stat, stop};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use vmrestore::dataset::*;
use vmrestore::restore::Syscalls;
use vmrestore::restore::inject::{Scratch, Tracee};
use vmrestore::sys::{pidfd, ptrace};

/// Stops these processes, parents first, and takes them and their zombies.
pub fn take(pids: &[i32]) -> Taken {
    for pid in pids {
        stop(*pid);
    }
    let mut taker = Taker::new(0);
    let mut processes: Vec<Process> = Vec::new();
    for &pid in pids {
        taker.pid = pid;
        let mut process = taker.process(Vec::new());
        let mut asked = Asked::of(pid);
        process.sigactions = asked.actions();
        process.child_subreaper = asked.prctl(libc::PR_GET_CHILD_SUBREAPER) != 0;
        let leader = &mut process.threads[0];
        leader.pdeath_signal = asked.prctl(libc::PR_GET_PDEATHSIG);
        leader.sigaltstack = asked.alternate_stack();
        leader.clear_child_tid = asked.clear_child_tid(leader.clear_child_tid);
        process.kin = kin(pid, pids);
        processes.push(process);
    }
    for file in taker.files.values_mut() {
        if let FileKind::UnixSocket(socket) = &mut file.kind {
            connect(socket);
        }
    }
    for (pid, fd, _, file) in &taker.known {
        let file = taker.files.get_mut(&file.0).expect("a file");
        if let FileKind::UnixSocket(socket) = &mut file.kind
            && socket.unread.is_empty()
            && let UnixState::Connected { .. } = socket.state
        {
            socket.unread = unread(*pid, *fd);
        }
    }
    let zombies = pids.iter().flat_map(|pid| zombies(*pid)).collect();
    taker.taken(processes, zombies)
}

/// Children of a process, and theirs, parents first; zombies are none.
pub fn tree(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let parent = all[at];
        let children = numbers("/proc").into_iter().filter(|child| {
            let of = stat_of(*child);
            of.is_some_and(|s| s[4 - 3] == parent.to_string() && s[0] != "Z")
        });
        all.extend(children);
        at += 1;
    }
    all
}

fn stat_of(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let behind = text.rsplit_once(')')?.1;
    Some(behind.split_ascii_whitespace().map(String::from).collect())
}

fn zombies(parent: i32) -> Vec<Zombie> {
    let dead = numbers("/proc").into_iter().filter_map(|pid| {
        let stat = stat_of(pid)?;
        let number = |field: usize| -> i32 { stat[field - 3].parse().expect("a number") };
        (stat[0] == "Z" && number(4) == parent).then(|| Zombie {
            pid,
            ns_pid: pid,
            ppid: parent,
            pgid: number(5),
            sid: number(6),
            comm: "dead".into(),
            status: number(52),
            exit_signal: number(38),
            uid: fs::metadata(format!("/proc/{pid}")).expect("uid").uid(),
        })
    });
    dead.collect()
}

fn kin(pid: i32, pids: &[i32]) -> Kin {
    // Linux include/uapi/linux/kcmp.h.
    let [vm, files, fs] = [1, 2, 3].map(|kind: i32| {
        let first = pids.iter().find(|other| {
            // SAFETY: a system call whose arguments are numbers.
            unsafe { libc::syscall(libc::SYS_kcmp, pid, **other, kind, 0, 0) == 0 }
        });
        ObjectId(u64::try_from(*first.unwrap_or(&pid)).expect("a PID"))
    });
    let stat = stat(pid);
    let number = |field: usize| -> i32 { stat[field - 3].parse().expect("a number") };
    let leads = number(6) == pid;
    let terminal = (leads && number(7) != 0).then(|| {
        let device = number(7) as u32;
        let minor = device & 0xff | device >> 12 & 0xf_ff00;
        let major = device >> 8 & 0xfff;
        ControllingTerminal {
            major,
            minor,
            pty_index: (136..144)
                .contains(&major)
                .then(|| (major - 136) * 256 + minor),
            foreground: number(8).max(0),
        }
    });
    Kin {
        exit_signal: number(38),
        files,
        fs,
        mm: vm,
        vforked: false,
        terminal,
    }
}

/// What /dev/tty is for a process.
pub fn terminal_of(pid: i32) -> FileKind {
    let device: u32 = stat(pid)[7 - 3].parse().expect("a device");
    let index = device & 0xff;
    FileKind::Tty {
        major: 136,
        minor: index,
        termios: None,
        pty_index: Some(index),
        window: None,
        inside: None,
    }
}

/// The other end of a connected UNIX socket, as `ss` tells it.
fn connect(socket: &mut UnixListener) {
    let UnixState::Connected { peer } = &mut socket.state else {
        return;
    };
    let told = Command::new("ss").args(["-xan"]).output().expect("ss");
    let text = String::from_utf8(told.stdout).expect("text");
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words.get(5) == Some(&socket.socket.0.to_string().as_str()) {
            *peer = ObjectId(words[7].parse().expect("an inode"));
        }
    }
}

/// What a stream has received and not read.
pub fn unread(pid: i32, fd: i32) -> Vec<UnixMessage> {
    use std::os::fd::AsRawFd;
    let socket = pidfd::take(pid, fd).expect("the socket");
    let mut bytes = vec![0u8; 1 << 16];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes to a buffer of that length.
    let got = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            flags,
        )
    };
    let got = usize::try_from(got).unwrap_or(0);
    bytes.truncate(got);
    (got > 0)
        .then(|| UnixMessage {
            data: Blob(bytes),
            files: Vec::new(),
        })
        .into_iter()
        .collect()
}

/// A stopped process that is made to answer for itself what procfs does not
/// tell. It is killed afterwards.
struct Asked {
    tracee: Tracee,
    at: u64,
}

impl Asked {
    fn of(pid: i32) -> Self {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
        let line = maps.lines().find(|l| l.ends_with("[vdso]")).expect("vdso");
        let (start, end) = line
            .split(' ')
            .next()
            .expect("a range")
            .split_once('-')
            .expect("two");
        let [start, end] = [start, end].map(|s| u64::from_str_radix(s, 16).expect("hex"));
        let mem = File::open(format!("/proc/{pid}/mem")).expect("mem");
        let mut image = vec![0; (end - start) as usize];
        mem.read_exact_at(&mut image, start).expect("the vDSO");
        let code = image
            .windows(2)
            .position(|w| w == [0x0f, 0x05])
            .expect("a system call");
        // Below the stack's red zone.
        let at = (ptrace::registers(pid).expect("registers").rsp - 4096) & !0xff;
        let scratch = Scratch { start: at - 4096 };
        let tracee = Tracee::new(pid, start + code as u64, scratch).expect("a tracee");
        Self { tracee, at }
    }

    fn words<const N: usize>(&mut self) -> [u64; N] {
        let mut bytes = vec![0; N * 8];
        self.tracee.read(self.at, &mut bytes).expect("words");
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("8"));
        }
        words
    }

    fn actions(&mut self) -> Vec<SigAction> {
        (1..=64u32)
            .map(|signal| {
                let call = [signal.into(), 0, self.at, 8, 0, 0];
                self.tracee
                    .syscall(libc::SYS_rt_sigaction, call)
                    .expect("rt_sigaction");
                let [handler, flags, restorer, mask] = self.words();
                SigAction {
                    signal,
                    handler,
                    flags,
                    restorer,
                    mask,
                }
            })
            .collect()
    }

    fn prctl(&mut self, option: i32) -> i32 {
        let call = [option as u64, self.at, 0, 0, 0, 0];
        self.tracee.syscall(libc::SYS_prctl, call).expect("prctl");
        let [word] = self.words();
        word as i32
    }

    fn alternate_stack(&mut self) -> SignalStack {
        let call = [0, self.at, 0, 0, 0, 0];
        self.tracee
            .syscall(libc::SYS_sigaltstack, call)
            .expect("sigaltstack");
        let [sp, flags, size] = self.words();
        SignalStack {
            sp,
            flags: flags as u32,
            size,
        }
    }

    /// PR_GET_TID_ADDRESS, where the kernel can tell.
    fn clear_child_tid(&mut self, guess: u64) -> u64 {
        const GET_TID_ADDRESS: u64 = 40;
        let call = [GET_TID_ADDRESS, self.at, 0, 0, 0, 0];
        match self.tracee.syscall(libc::SYS_prctl, call) {
            Ok(_) => self.words::<1>()[0],
            Err(_) => guess,
        }
    }
}
