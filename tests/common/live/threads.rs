//! Threads of a live process, by ptrace and procfs.

use super::{field, stat, status};
use std::fs;
use vmrestore::dataset::*;
use vmrestore::sys::ptrace;

pub fn thread(pid: i32, tid: i32) -> Thread {
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
        pending: pending(tid, false),
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
        confinement: Confinement::default(),
        scheduling: Scheduling {
            policy: stat(tid)[41 - 3].parse().expect("a number"),
            nice: stat(tid)[19 - 3].parse().expect("a number"),
            rt_priority: stat(tid)[40 - 3].parse().expect("a number"),
            io_priority: 0,
            deadline: None,
            affinity: list(&status(tid, "Cpus_allowed_list")),
        },
        pdeath_signal: 0,
        controls: Controls::default(),
        ended: None,
        timer_slack_ns: fs::read_to_string(format!("/proc/{tid}/timerslack_ns"))
            .expect("timerslack_ns")
            .trim()
            .parse()
            .expect("a number"),
        regs,
    }
}

/// What waits for a thread (`SigPnd`), or for its process (`ShdPnd`), with its siginfo.
pub fn pending(tid: i32, shared: bool) -> Vec<PendingSignal> {
    const PEEKSIGINFO: u32 = 0x4209;
    const INFO: usize = 128;
    // struct ptrace_peeksiginfo_args: offset, flags (1: the process's), how many.
    let mut args = [0u64, u64::from(shared) | 64 << 32];
    let mut infos = vec![0u8; 64 * INFO];
    // SAFETY: the kernel reads the arguments and writes at most 64 infos.
    let count = unsafe { libc::ptrace(PEEKSIGINFO, tid, args.as_mut_ptr(), infos.as_mut_ptr()) };
    infos
        .chunks_exact(INFO)
        .take(count.max(0) as usize)
        .map(|info| PendingSignal {
            signal: u32::from_ne_bytes(info[..4].try_into().expect("4")),
            info: Blob(info.to_vec()),
        })
        .collect()
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
    SeccompState {
        mode,
        filters,
        ..SeccompState::default()
    }
}

/// `/proc/PID/timers`: it does not say when they expire, so each does at once.
pub fn posix_timers(pid: i32) -> Vec<PosixTimer> {
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
