//! Threads in the middle of system calls: timeouts of an hour, of which two seconds were left, and a
//! write of which most was written. Each thread finds its registers as they were (tests/programs/calls.c).
//!
//! What the dead kernel's stacks say of them is not tried here: a living process's is not to be seen.
//!
//! Needs root (ptrace, PIDs of choice, time namespaces) and a C compiler.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, root_or_say_so};
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use vmrestore::dataset::{Blob, CallMemory, InFlightSyscall, SyscallResume, Thread};
use vmrestore::restore::{Options, prepare};

const LEFT: Option<(u8, i64, i64)> = Some((0, 2, 0));

fn wait_for(living: &Living, word: &str) {
    let begin = Instant::now();
    while !living.log().contains(word) {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "no {word:?}:\n{}",
            living.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is left of writev's three buffers, of which it has written 65 536 bytes.
fn rest_of_vector(pid: i32, at: u64) -> Vec<u8> {
    let mut words = [0; 48];
    fs::File::open(format!("/proc/{pid}/mem"))
        .and_then(|memory| memory.read_exact_at(&mut words, at))
        .expect("its buffers");
    let mut words = words
        .as_chunks::<8>()
        .0
        .iter()
        .map(|w| u64::from_le_bytes(*w));
    let (first, third) = (words.nth(1).expect("a length"), words.nth(2));
    let (third, len) = (third.expect("a buffer"), words.next().expect("a length"));
    let done = 65_536 - first;
    [third + done, len - done].map(u64::to_le_bytes).concat()
}

/// How a dead kernel's thread would have been told to go on.
fn go_on(thread: &mut Thread, vector: &[u8]) {
    let regs = &mut thread.regs;
    let mut args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    let number = match thread.comm.as_str() {
        "sleep" => 35,
        "clock" => 230,
        "futex" => 202,
        "poll" => 7,
        "epoll" => 232,
        "ppoll" => 271,
        "select" => 23,
        "sigwait" => 128,
        "write" => 1,
        "writev" => 20,
        _ => return,
    };
    let at = |argument: u8| Some((argument, LEFT.map_or(0, |l| l.1), 0));
    let mut timespec = None;
    let mut moved = 0;
    let mut memory = None;
    match thread.comm.as_str() {
        "sleep" => timespec = at(0),
        "clock" => timespec = at(2),
        "futex" => timespec = at(3),
        "sigwait" => timespec = at(2),
        "poll" => args[2] = 2000,
        "epoll" => args[3] = 2000,
        // A pipe holds 64 KiB; to stop the thread has made it return.
        "write" => {
            assert_eq!(regs.rax, 65_536);
            moved = 65_536;
            args[1] += moved;
            args[2] -= moved;
        }
        "writev" => {
            assert_eq!(regs.rax, 65_536);
            moved = 65_536;
            args[2] = 1;
            memory = Some(Box::new(CallMemory {
                bytes: Blob(vector.to_vec()),
                argument: Some(1),
                ..CallMemory::default()
            }));
        }
        _ => {}
    }
    thread.resume = match thread.comm.as_str() {
        "ppoll" => SyscallResume::ReissueLeft {
            at: args[2],
            seconds: 2,
            fraction: 7,
        },
        "select" => SyscallResume::ReissueLeft {
            at: args[4],
            seconds: 2,
            fraction: 7,
        },
        _ => SyscallResume::Rest {
            args,
            timespec,
            moved,
            memory,
        },
    };
    regs.rax = (-38i64).cast_unsigned();
    regs.orig_rax = number;
    thread.syscall = Some(InFlightSyscall {
        number,
        name: thread.comm.clone(),
        args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
    });
}

#[test]
fn calls_go_on_where_they_were() {
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::launch("calls", "calls");
    wait_for(&living, "ready");
    let mut taken = living.take();
    let threads = &taken.dataset.processes[0].threads;
    let writer = threads.iter().find(|t| t.comm == "writev").expect("it");
    let vector = rest_of_vector(living.pid(), writer.regs.rsi);
    living.kill();
    let process = &mut taken.dataset.processes[0];
    for thread in &mut process.threads {
        go_on(thread, &vector);
    }
    let rest = |t: &&Thread| matches!(t.resume, SyscallResume::Rest { .. });
    assert_eq!(process.threads.iter().filter(rest).count(), 8);

    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let _killed = Killed(restored[0].pid);
    let said = &restored[0].fidelity;
    assert!(
        said.iter()
            .any(|f| f.what == "address space" && f.how.starts_with("4 KiB")),
        "{said:?}"
    );
    fs::write(living.dir.join("go"), "").expect("go");
    wait_for(&living, "done");
    let log = living.log();
    for line in [
        "sleep 0 ok",
        "clock 0 ok",
        "futex -110 ok",
        "poll 0 ok",
        "epoll 0 ok",
        "ppoll 0 ok",
        "select 0 ok",
        "sigwait -11 ok",
        "write 100000 ok",
        "read 100000 ok",
        "writev 100000 ok",
        "readv 100000 ok",
    ] {
        let found = log.lines().any(|l| l.starts_with(&format!("{line} ")));
        assert!(found, "no {line:?} in\n{log}");
    }
}
