//! How a thread that was in a system call goes on.
//!
//! Nobody interrupted it: `ax` is -ENOSYS as the entry put it there, or the
//! result if the call was over. The rule is to make the call again, which is
//! exact for a thread that slept in a call that had done nothing yet. The
//! exceptions are here, each with its reason.

use crate::dataset::{FidelityLevel, InFlightSyscall, SyscallResume, UserRegs};

use super::syscall_names;

const ENOSYS: i64 = 38;
const EAGAIN: i64 = 11;
/// ERESTARTSYS to ERESTART_RESTARTBLOCK: the call would be made again.
const RESTART_CODES: std::ops::RangeInclusive<i64> = 512..=516;
/// Bit of the number of an x32 call.
const X32: u64 = 1 << 30;

const READ: u64 = 0;
const WRITE: u64 = 1;
const POLL: u64 = 7;
const SELECT: u64 = 23;
const NANOSLEEP: u64 = 35;
const CLONE: u64 = 56;
const VFORK: u64 = 58;
const SEMTIMEDOP: u64 = 220;
const FUTEX: u64 = 202;
const RESTART_SYSCALL: u64 = 219;
const RT_SIGTIMEDWAIT: u64 = 128;
const CLOCK_NANOSLEEP: u64 = 230;
const EPOLL_WAIT: u64 = 232;
const PSELECT6: u64 = 270;
const PPOLL: u64 = 271;
const EPOLL_PWAIT: u64 = 281;
const IO_URING_ENTER: u64 = 426;
const CLONE3: u64 = 435;
const EPOLL_PWAIT2: u64 = 441;
const FUTEX_WAITV: u64 = 449;

/// What is known of a thread at the panic.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub regs: UserRegs,
    /// Its state was TASK_RUNNING: on a CPU, or waiting for one.
    pub running: bool,
    /// Name of `restart_block.fn`.
    pub restart_function: String,
    /// The child that a vfork waits for.
    pub vfork_child: Option<i32>,
    /// Time until the timer on its kernel stack wakes it. Nanoseconds.
    pub sleeps_ns: Option<i64>,
    /// It wrote the command that crashed the host.
    pub crashed_the_host: bool,
}

/// How it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub syscall: Option<InFlightSyscall>,
    pub resume: SyscallResume,
    /// The number of the call to make again, where it is not `orig_rax`.
    pub number: Option<u64>,
    /// What to report: the level, and why.
    pub report: Option<(FidelityLevel, String)>,
}

/// Decides.
pub(super) fn decide(facts: &Facts) -> Decision {
    let regs = &facts.regs;
    let mut decision = Decision {
        syscall: None,
        resume: SyscallResume::UserMode,
        number: None,
        report: None,
    };
    // Interrupts and exceptions leave -1.
    if regs.orig_rax.cast_signed() < 0 {
        return decision;
    }
    let mut number = regs.orig_rax & !X32;
    if number == RESTART_SYSCALL
        && let Some(original) = original_call(facts)
    {
        number = original;
        decision.number = Some(original);
    }
    decision.syscall = Some(InFlightSyscall {
        number,
        name: syscall_names::name(number).to_owned(),
        args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
    });
    let result = regs.rax.cast_signed();
    decision.resume = SyscallResume::Reissue;
    if result != -ENOSYS && !RESTART_CODES.contains(&-result) {
        decision.resume = SyscallResume::Return { value: result };
        return decision;
    }
    let rebuilt = |text: &str| Some((FidelityLevel::Reconstructed, text.to_owned()));
    if facts.crashed_the_host {
        // Made again it would crash this host too.
        decision.resume = SyscallResume::Return {
            value: regs.rdx.cast_signed(),
        };
        decision.report = rebuilt("it wrote the command that crashed the host; the call returns");
        return decision;
    }
    match number {
        FUTEX if facts.running && futex_waits(regs.rsi) => {
            // It may have been woken, and the wake-up must not be lost; a
            // spurious one is what every waiter must bear.
            decision.resume = SyscallResume::Return { value: 0 };
            decision.report =
                rebuilt("it may have been woken from its futex: the call returns as if it was");
        }
        FUTEX_WAITV if facts.running => {
            decision.resume = SyscallResume::Return { value: -EAGAIN };
            decision.report =
                rebuilt("it may have been woken: it is told to look at its futexes again");
        }
        CLONE | VFORK | CLONE3 if !facts.running && facts.vfork_child.is_some() => {
            let child = i64::from(facts.vfork_child.unwrap_or(0));
            decision.resume = SyscallResume::Return { value: child };
            decision.report = rebuilt("it no longer waits for its vforked child to execute");
        }
        _ if facts.running && unrepeatable(number) => {
            decision.report = rebuilt(
                "it was under way in this call, which is made again: what it had done of it is done twice",
            );
        }
        _ if !facts.running && writes_in_parts(number) => {
            decision.report = rebuilt(
                "it waited for room in this call, which is made again: what was accepted before is sent twice",
            );
        }
        _ if has_relative_timeout(number, regs) => {
            decision.report = Some((FidelityLevel::Reconstructed, restarted_timeout(facts)));
        }
        _ => {}
    }
    decision
}

/// The call that restart_syscall goes on with, by its restart function. Its
/// arguments are in the registers still. Linux include/linux/restart_block.h.
fn original_call(facts: &Facts) -> Option<u64> {
    let name = facts.restart_function.as_str();
    if name.starts_with("do_restart_poll") {
        Some(POLL)
    } else if name.starts_with("futex_wait_restart") {
        Some(FUTEX)
    } else if name.contains("nanosleep_restart") || name.contains("nsleep_restart") {
        // clock_nanosleep's first argument is a clock, nanosleep's a pointer.
        Some(if facts.regs.rdi.cast_signed() < 4096 {
            CLOCK_NANOSLEEP
        } else {
            NANOSLEEP
        })
    } else {
        None
    }
}

/// FUTEX_WAIT and FUTEX_WAIT_BITSET, private or not, by whichever clock.
fn futex_waits(op: u64) -> bool {
    matches!(op & 0x7f, 0 | 9)
}

/// A wait that counts from its own beginning, and that ends.
fn has_relative_timeout(number: u64, regs: &UserRegs) -> bool {
    const TIMER_ABSTIME: u64 = 1;
    // An int: of the register's upper half nothing is known.
    let positive = |v: u64| v & 0xffff_ffff != 0 && v & 0x8000_0000 == 0;
    match number {
        NANOSLEEP => true,
        CLOCK_NANOSLEEP => regs.rsi & TIMER_ABSTIME == 0,
        POLL => positive(regs.rdx),
        EPOLL_WAIT | EPOLL_PWAIT => positive(regs.r10),
        EPOLL_PWAIT2 | SEMTIMEDOP => regs.r10 != 0,
        SELECT | PSELECT6 => regs.r8 != 0,
        PPOLL | RT_SIGTIMEDWAIT => regs.rdx != 0,
        // FUTEX_WAIT's is relative, FUTEX_WAIT_BITSET's is not.
        FUTEX => regs.rsi & 0x7f == 0 && regs.r10 != 0,
        _ => false,
    }
}

fn restarted_timeout(facts: &Facts) -> String {
    match facts.sleeps_ns {
        Some(ns) => format!(
            "its timeout, of which {:.3} s were left, starts anew",
            ns.max(0) as f64 / 1e9
        ),
        None => "its timeout starts anew".to_owned(),
    }
}

/// Calls that do something each time they are made.
fn unrepeatable(number: u64) -> bool {
    const CALLS: [u64; 24] = [
        READ,
        WRITE,
        19, // readv
        20, // writev
        40, // sendfile
        42, // connect
        43, // accept
        44, // sendto
        45, // recvfrom
        46, // sendmsg
        47, // recvmsg
        CLONE,
        57, // fork
        VFORK,
        59,  // execve
        61,  // wait4
        65,  // semop
        69,  // msgsnd
        70,  // msgrcv
        247, // waitid
        275, // splice
        288, // accept4
        IO_URING_ENTER,
        CLONE3,
    ];
    const NEWER: [u64; 6] = [
        62,  // kill
        200, // tkill
        234, // tgkill
        299, // recvmmsg
        307, // sendmmsg
        322, // execveat
    ];
    CALLS.contains(&number) || NEWER.contains(&number)
}

/// Calls that sleep when a part of their data is accepted already.
fn writes_in_parts(number: u64) -> bool {
    matches!(number, WRITE | 20 | 40 | 44 | 46 | 275 | 307)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_call(number: u64) -> Facts {
        Facts {
            regs: UserRegs {
                orig_rax: number,
                rax: (-ENOSYS).cast_unsigned(),
                ..UserRegs::default()
            },
            ..Facts::default()
        }
    }

    #[test]
    fn interrupted_in_user_mode() {
        let decision = decide(&in_call(u64::MAX));
        assert_eq!(decision.resume, SyscallResume::UserMode);
        assert_eq!(decision.syscall, None);
    }

    #[test]
    fn a_sleeper_makes_its_call_again_exactly() {
        // ioctl, futex without timeout, read, epoll_wait without end
        for mut facts in [16, 202, 0, 232].map(in_call) {
            facts.regs.r10 = if facts.regs.orig_rax == 232 {
                u64::MAX
            } else {
                0
            };
            let decision = decide(&facts);
            assert_eq!(decision.resume, SyscallResume::Reissue);
            assert_eq!(decision.report, None, "{:?}", decision.syscall);
        }
    }

    #[test]
    fn a_result_that_is_there_is_returned() {
        let mut facts = in_call(0);
        facts.regs.rax = 512;
        assert_eq!(decide(&facts).resume, SyscallResume::Return { value: 512 });
        facts.regs.rax = (-11i64).cast_unsigned();
        assert_eq!(decide(&facts).resume, SyscallResume::Return { value: -11 });
        facts.regs.rax = (-516i64).cast_unsigned();
        assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
    }

    #[test]
    fn a_wake_up_is_not_lost() {
        let mut facts = in_call(202);
        facts.regs.rsi = 0x80; // FUTEX_WAIT_PRIVATE
        assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
        facts.running = true;
        assert_eq!(decide(&facts).resume, SyscallResume::Return { value: 0 });
        facts.regs.rsi = 0x81; // FUTEX_WAKE_PRIVATE
        assert_eq!(decide(&facts).resume, SyscallResume::Reissue);
    }

    #[test]
    fn restart_syscall_becomes_what_it_was() {
        let mut facts = in_call(219);
        facts.restart_function = "hrtimer_nanosleep_restart".into();
        facts.regs.rdi = 1;
        let decision = decide(&facts);
        assert_eq!(decision.number, Some(230));
        assert_eq!(
            decision.syscall.map(|s| s.name).as_deref(),
            Some("clock_nanosleep")
        );
        facts.regs.rdi = 0x7ffc_0000_0000;
        assert_eq!(decide(&facts).number, Some(35));
        facts.restart_function = "do_restart_poll".into();
        assert_eq!(decide(&facts).number, Some(7));
        facts.restart_function = "do_no_restart_syscall".into();
        assert_eq!(decide(&facts).number, None);
    }

    #[test]
    fn the_crash_is_not_repeated() {
        let mut facts = in_call(1);
        facts.running = true;
        facts.crashed_the_host = true;
        facts.regs.rdx = 2;
        assert_eq!(decide(&facts).resume, SyscallResume::Return { value: 2 });
    }

    #[test]
    fn an_infinite_poll_is_exact() {
        let mut facts = in_call(7);
        facts.regs.rdx = 0xffff_ffff; // -1 in 32 bits
        assert_eq!(decide(&facts).report, None);
        facts.regs.rdx = 1000;
        assert!(decide(&facts).report.is_some());
    }
}
