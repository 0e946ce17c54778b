//! How a thread that was in a system call goes on.
//!
//! Nobody interrupted it: `ax` is -ENOSYS as the entry put it there, or the
//! result if the call was over. The rule is to make the call again, which is
//! exact for a thread that slept in a call that had done nothing yet. The
//! exceptions are in the table of `syscall_policy`; what they come to with
//! what is known of the thread, here.

use crate::dataset::{FidelityLevel, InFlightSyscall, SyscallResume, UserRegs};

use super::moved::{Beside, Moved};
use super::syscall_names;
use super::syscall_policy::{self, Asleep, Running, Timeout};
use super::sysv::Waits;

const ENOSYS: i64 = 38;
const EAGAIN: i64 = 11;
const EIDRM: i64 = 43;
/// ERESTARTSYS to ERESTART_RESTARTBLOCK: the call would be made again.
const RESTART_CODES: std::ops::RangeInclusive<i64> = 512..=516;
/// Bit of the number of an x32 call.
const X32: u64 = 1 << 30;

const POLL: u64 = 7;
const NANOSLEEP: u64 = 35;
const CLONE: u64 = 56;
const VFORK: u64 = 58;
const FUTEX: u64 = 202;
const RESTART_SYSCALL: u64 = 219;
const CLOCK_NANOSLEEP: u64 = 230;
const CLONE3: u64 = 435;

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
    /// What it had moved of its bytes, of a call that may move a part.
    pub moved: Moved,
    /// How it waits for System V semaphores or messages.
    pub waits: Waits,
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
    /// What else is another by what was moved.
    pub beside: Option<Beside>,
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
        beside: None,
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
    let policy = syscall_policy::of(number);
    let args = decision.syscall.as_ref().map_or([0; 6], |call| call.args);
    if facts.waits == Waits::Removed {
        decision.resume = SyscallResume::Return { value: -EIDRM };
        return decision;
    }
    // Nothing has been done for who stands in the line.
    let running = facts.running && facts.waits != Waits::InLine;
    match policy.running {
        Running::WokenZero if running && futex_waits(regs.rsi) => {
            // It may have been woken, and the wake-up must not be lost; a
            // spurious one is what every waiter must bear.
            decision.resume = SyscallResume::Return { value: 0 };
            decision.report =
                rebuilt("it may have been woken from its futex: the call returns as if it was");
            return decision;
        }
        Running::WokenAgain if running => {
            decision.resume = SyscallResume::Return { value: -EAGAIN };
            decision.report =
                rebuilt("it may have been woken: it is told to look at its futexes again");
            return decision;
        }
        Running::Twice if running => {
            decision.report = rebuilt(
                "it was under way in this call, which is made again: what it had done of it is done twice",
            );
            return decision;
        }
        _ => {}
    }
    if matches!(number, CLONE | VFORK | CLONE3)
        && let Some(child) = facts.vfork_child
    {
        decision.resume = SyscallResume::Return {
            value: i64::from(child),
        };
        decision.report = rebuilt("it no longer waits for its vforked child to execute");
    } else if policy.asleep == Asleep::InParts {
        match &facts.moved {
            Moved::Nothing | Moved::Harmless => {}
            Moved::Part(part) => {
                decision.resume = part.resume.clone();
                decision.report = part.said.as_deref().and_then(rebuilt);
                decision.beside = part.beside;
            }
            Moved::Unknown(why) => {
                decision.report = rebuilt(&format!(
                    "it waited in the middle of this call, which is made again: {why}"
                ));
            }
        }
    } else if policy.timeout.runs(&args) {
        match facts.sleeps_ns.filter(|_| !running) {
            Some(left) => decision.resume = with_time_left(policy.timeout, args, left),
            None => {
                decision.report = rebuilt("its timeout starts anew: what was left is not known");
            }
        }
    }
    decision
}

/// A call whose timeout goes on with what was left of it. Nanoseconds.
fn with_time_left(timeout: Timeout, mut args: [u64; 6], left: i64) -> SyscallResume {
    const BILLION: i64 = 1_000_000_000;
    // One that is due must not be taken for one that is not wanted.
    let left = left.max(1);
    let in_memory = |at: usize, args| SyscallResume::Rest {
        args,
        timespec: Some((
            u8::try_from(at).unwrap_or(0),
            left / BILLION,
            left % BILLION,
        )),
        moved: 0,
        memory: None,
    };
    match timeout {
        Timeout::Millis(at) => {
            // Not less than was left.
            let milliseconds = left.saturating_add(999_999) / 1_000_000;
            if let Some(arg) = args.get_mut(at) {
                *arg = milliseconds.min(i64::from(i32::MAX)).cast_unsigned();
            }
            SyscallResume::Rest {
                args,
                timespec: None,
                moved: 0,
                memory: None,
            }
        }
        Timeout::Timespec(at) | Timeout::TimespecUnlessAbsolute(at) | Timeout::FutexOp(at) => {
            in_memory(at, args)
        }
        Timeout::Updated(at, parts) => SyscallResume::ReissueLeft {
            at: args.get(at).copied().unwrap_or(0),
            seconds: left / BILLION,
            // Not less than was left, and not nothing.
            fraction: (left % BILLION)
                .div_euclid(BILLION / parts)
                .max(i64::from(left < BILLION)),
        },
        Timeout::None | Timeout::Anew => SyscallResume::Reissue,
    }
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

#[cfg(test)]
mod tests;
