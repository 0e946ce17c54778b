//! What becomes of a system call that was under way: the policy, in one table.
//!
//! docs/syscalls.md is written from it, and a test holds them together. A call that is not here
//! neither waits nor does anything that it may not do twice: it is made again.

use Asleep::{Again, InParts};
use Running::{Repeats, Twice, WokenAgain, WokenZero};
use Timeout::{Anew, FutexOp, Millis, Timespec, TimespecUnlessAbsolute, Updated};

/// What becomes of it if its thread slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asleep {
    /// It had done nothing: it is made again.
    Again,
    /// It may have moved a part of its bytes: the rest is moved.
    InParts,
}

/// What becomes of it if its thread ran, or had been woken and was to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    /// It is made again: twice is as good as once.
    Repeats,
    /// It is made again, and what it had done is done twice: said.
    Twice,
    /// The wake-up must not be lost: it returns 0, as to a spurious one.
    WokenZero,
    /// The same, by EAGAIN.
    WokenAgain,
}

/// Where a timeout of its own is, that counts from its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timeout {
    /// It has none, or it is a point in time, which stays the same.
    None,
    /// Milliseconds in this argument; less than 0 for ever, 0 does not wait.
    Millis(usize),
    /// This argument points to a `struct timespec`; null for ever.
    Timespec(usize),
    /// The same, unless argument 1 has TIMER_ABSTIME.
    TimespecUnlessAbsolute(usize),
    /// The same, of those of futex's operations that count from their begin.
    FutexOp(usize),
    /// This argument points to a time in which the kernel itself leaves what is left, in so many
    /// parts of a second; null for ever.
    Updated(usize, i64),
    /// It starts anew: it is the socket's (SO_RCVTIMEO, SO_SNDTIMEO), or is kept where it is not
    /// found.
    Anew,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub number: u64,
    pub asleep: Asleep,
    pub running: Running,
    pub timeout: Timeout,
}

const fn row(number: u64, asleep: Asleep, running: Running, timeout: Timeout) -> Policy {
    Policy {
        number,
        asleep,
        running,
        timeout,
    }
}

const MILLION: i64 = 1_000_000;
const BILLION: i64 = 1_000_000_000;

/// By number. x86-64.
#[rustfmt::skip]
pub(super) const TABLE: [Policy; 73] = [
    row(0, InParts, Twice, Anew),                        // read: with SO_RCVLOWAT
    row(1, InParts, Twice, Anew),                        // write
    row(2, Again, Repeats, Timeout::None),               // open: of a FIFO
    row(7, Again, Repeats, Millis(2)),             // poll
    row(16, Again, Repeats, Timeout::None),              // ioctl: KVM_RUN among others
    row(17, Again, Repeats, Timeout::None),              // pread64
    row(18, Again, Repeats, Timeout::None),              // pwrite64
    row(19, InParts, Twice, Anew),                       // readv: the same
    row(20, InParts, Twice, Anew),                       // writev
    row(23, Again, Repeats, Updated(4, MILLION)),        // select
    row(34, Again, Repeats, Timeout::None),              // pause
    row(35, Again, Repeats, Timespec(0)),                // nanosleep
    row(40, InParts, Twice, Anew),                       // sendfile
    row(42, Again, Twice, Anew),                         // connect
    row(43, Again, Twice, Anew),                         // accept
    row(44, InParts, Twice, Anew),                       // sendto
    row(45, InParts, Twice, Anew),                       // recvfrom: with MSG_WAITALL
    row(46, InParts, Twice, Anew),                       // sendmsg
    row(47, InParts, Twice, Anew),                       // recvmsg: with MSG_WAITALL
    row(56, Again, Twice, Timeout::None),                // clone
    row(57, Again, Twice, Timeout::None),                // fork
    row(58, Again, Twice, Timeout::None),                // vfork
    row(59, Again, Twice, Timeout::None),                // execve
    row(61, Again, Twice, Timeout::None),                // wait4
    row(62, Again, Twice, Timeout::None),                // kill
    row(65, Again, Twice, Timeout::None),                // semop
    row(69, Again, Twice, Timeout::None),                // msgsnd
    row(70, Again, Twice, Timeout::None),                // msgrcv
    row(72, Again, Repeats, Timeout::None),              // fcntl: F_SETLKW
    row(73, Again, Repeats, Timeout::None),              // flock
    row(74, Again, Repeats, Timeout::None),              // fsync
    row(75, Again, Repeats, Timeout::None),              // fdatasync
    row(128, Again, Repeats, Timespec(2)),               // rt_sigtimedwait
    row(130, Again, Repeats, Timeout::None),             // rt_sigsuspend
    row(162, Again, Repeats, Timeout::None),             // sync
    row(200, Again, Twice, Timeout::None),               // tkill
    row(202, Again, WokenZero, FutexOp(3)),              // futex
    row(208, Again, Twice, Timespec(4)),                 // io_getevents
    row(209, Again, Repeats, Timeout::None),             // io_submit: see docs/disks.md
    row(220, Again, Twice, Timespec(3)),                 // semtimedop
    row(230, Again, Repeats, TimespecUnlessAbsolute(2)), // clock_nanosleep
    row(232, Again, Repeats, Millis(3)),           // epoll_wait
    row(234, Again, Twice, Timeout::None),               // tgkill
    row(242, Again, Twice, Timeout::None),               // mq_timedsend: until a point in time
    row(243, Again, Twice, Timeout::None),               // mq_timedreceive: the same
    row(247, Again, Twice, Timeout::None),               // waitid
    row(257, Again, Repeats, Timeout::None),             // openat: of a FIFO
    row(270, Again, Repeats, Updated(4, BILLION)),       // pselect6
    row(271, Again, Repeats, Updated(2, BILLION)),       // ppoll
    row(275, InParts, Twice, Timeout::None),             // splice
    row(276, Again, Twice, Timeout::None),               // tee
    row(278, Again, Twice, Timeout::None),             // vmsplice: waits for room before it does anything
    row(281, Again, Repeats, Millis(3)),           // epoll_pwait
    row(285, Again, Repeats, Timeout::None),             // fallocate
    row(288, Again, Twice, Anew),                        // accept4
    row(295, Again, Repeats, Timeout::None),             // preadv
    row(296, Again, Repeats, Timeout::None),             // pwritev
    row(299, InParts, Twice, Anew),                      // recvmmsg
    row(306, Again, Repeats, Timeout::None),             // syncfs
    row(307, InParts, Twice, Anew),                      // sendmmsg
    row(318, Again, Repeats, Timeout::None),             // getrandom
    row(322, Again, Twice, Timeout::None),               // execveat
    row(326, InParts, Twice, Timeout::None),             // copy_file_range
    row(327, InParts, Twice, Timeout::None),             // preadv2: as readv
    row(328, InParts, Twice, Timeout::None),             // pwritev2
    row(333, Again, Twice, Timespec(4)),                 // io_pgetevents
    row(426, Again, Twice, Timeout::None),               // io_uring_enter: refused, see docs/disks.md
    row(434, Again, Repeats, Timeout::None),             // pidfd_open
    row(435, Again, Twice, Timeout::None),               // clone3
    row(437, Again, Repeats, Timeout::None),             // openat2: of a FIFO
    row(441, Again, Repeats, Timespec(3)),               // epoll_pwait2
    row(449, Again, WokenAgain, Timeout::None),          // futex_waitv: until a point in time
    row(455, Again, WokenAgain, Timeout::None),          // futex_wait: until a point in time
];

/// The policy for a call.
pub(super) fn of(number: u64) -> Policy {
    match TABLE.binary_search_by_key(&number, |row| row.number) {
        Ok(at) => TABLE[at],
        Err(_) => row(number, Again, Repeats, Timeout::None),
    }
}

impl Timeout {
    /// Whether a call with these arguments ends by itself after a time that counts from its begin.
    pub fn runs(self, args: &[u64; 6]) -> bool {
        const TIMER_ABSTIME: u64 = 1;
        // An int: of the register's upper half nothing is known.
        let positive = |v: u64| v & 0xffff_ffff != 0 && v & 0x8000_0000 == 0;
        let arg = |i: usize| args.get(i).copied().unwrap_or(0);
        match self {
            Timeout::None | Anew => false,
            Millis(i) => positive(arg(i)),
            Timespec(i) | Updated(i, _) => arg(i) != 0,
            TimespecUnlessAbsolute(i) => arg(i) != 0 && arg(1) & TIMER_ABSTIME == 0,
            // FUTEX_WAIT's is relative; those of FUTEX_WAIT_BITSET, FUTEX_LOCK_PI and
            // FUTEX_WAIT_REQUEUE_PI are not, and others have none.
            FutexOp(i) => arg(1) & 0x7f == 0 && arg(i) != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::syscall_names;
    use super::*;

    #[test]
    fn the_table_is_in_order_and_every_call_has_a_name() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].number < pair[1].number, "{pair:?}");
        }
        for row in &TABLE {
            assert_ne!(syscall_names::name(row.number), "", "{row:?}");
            assert_eq!(of(row.number).number, row.number);
        }
        assert_eq!(of(39).running, Repeats, "getpid");
    }

    #[test]
    fn timeouts_that_count_from_the_begin() {
        let with = |i: usize, value: u64| {
            let mut args = [0; 6];
            args[i] = value;
            args
        };
        assert!(of(7).timeout.runs(&with(2, 1000)));
        assert!(!of(7).timeout.runs(&with(2, 0xffff_ffff)), "for ever");
        assert!(!of(7).timeout.runs(&with(2, 0)), "not at all");
        assert!(of(35).timeout.runs(&with(0, 0x7ffc_0000)));
        assert!(of(202).timeout.runs(&with(3, 0x7ffc_0000)));
        let mut absolute = with(3, 0x7ffc_0000);
        absolute[1] = 0x189; // FUTEX_WAIT_BITSET by CLOCK_REALTIME
        assert!(!of(202).timeout.runs(&absolute));
        let mut absolute = with(2, 0x7ffc_0000);
        assert!(of(230).timeout.runs(&absolute));
        absolute[1] = 1;
        assert!(!of(230).timeout.runs(&absolute));
    }

    /// The words of docs/syscalls.md for a row.
    fn line(row: &Policy) -> String {
        let asleep = match row.asleep {
            Again => "made again",
            InParts => "the rest is made",
        };
        let running = match row.running {
            Repeats => "made again",
            Twice => "made again, said",
            WokenZero => "returns 0",
            WokenAgain => "returns EAGAIN",
        };
        let timeout = match row.timeout {
            Timeout::None => "",
            Millis(_) | Timespec(_) | TimespecUnlessAbsolute(_) | FutexOp(_) => "goes on",
            Updated(..) => "goes on, in the caller's memory",
            Anew => "the socket's, anew",
        };
        let name = syscall_names::name(row.number);
        format!(
            "| {name} | {} | {asleep} | {running} | {timeout} |",
            row.number
        )
    }

    #[test]
    fn the_document_says_what_the_table_says() {
        let text = include_str!("../../docs/syscalls.md");
        let told: Vec<&str> = text
            .lines()
            .filter(|l| {
                l.starts_with("| ")
                    && l.split('|')
                        .nth(2)
                        .is_some_and(|n| n.trim().parse::<u64>().is_ok())
            })
            .collect();
        let wanted: Vec<String> = TABLE.iter().map(line).collect();
        let missing: Vec<&String> = wanted
            .iter()
            .filter(|w| !told.contains(&w.as_str()))
            .collect();
        assert!(missing.is_empty(), "docs/syscalls.md lacks:\n{missing:#?}");
        assert_eq!(
            told.len(),
            wanted.len(),
            "docs/syscalls.md has further calls"
        );
    }
}
