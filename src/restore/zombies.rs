//! Children that had ended and not been waited for end once more.

use super::error::Context;
use super::inject::Tracee;
use super::stub::Family;
use super::{Errno, RestoreError, Syscalls, calls};
use crate::dataset::{Fidelity, Zombie};
use crate::sys::ptrace::{self, Stop};
use crate::sys::task_control;

/// In a wait status: a core was left.
const CORE: i32 = 0x80;

/// Ends every zombie of a family. Their parents' dispositions are set behind
/// it: a parent that ignores SIGCHLD would have no zombies.
///
/// # Errors
/// One of them did not end.
pub fn end_all(family: &mut Family<'_>, notes: &mut Vec<Fidelity>) -> Result<(), RestoreError> {
    let zombies = std::mem::take(&mut family.zombies);
    let parents: Vec<usize> = family
        .stubs
        .iter()
        .enumerate()
        .filter(|(_, stub)| zombies.iter().any(|(z, _)| z.ppid == stub.process.pid))
        .map(|(at, _)| at)
        .collect();
    for at in &parents {
        attend(family, *at, libc::SIG_DFL)?;
    }
    let mut left = zombies.into_iter();
    let mut result = Ok(());
    for (zombie, mut tracee) in left.by_ref() {
        result = end(zombie, &mut tracee, notes);
        if result.is_err() {
            super::stub::reap(&[tracee.tid]);
            break;
        }
    }
    // Those that were not reached go with the family.
    family.zombies.extend(left);
    result?;
    for at in parents {
        // What told of their end is forgotten: it was told before the crash,
        // or is among the pending signals.
        attend(family, at, libc::SIG_IGN)?;
    }
    Ok(())
}

/// What a stub does about its children's ends.
fn attend(family: &mut Family<'_>, at: usize, handler: usize) -> Result<(), RestoreError> {
    let pid = family.process(at)?.pid;
    let sys = family.leader(at)?;
    let words = [handler as u64, 0, 0, 0];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let number = i64::from(libc::SIGCHLD).cast_unsigned();
    calls::put(sys, &bytes)
        .and_then(|act| calls::plain(sys, libc::SYS_rt_sigaction, [number, act, 0, 8]))
        .during(pid, || "rt_sigaction(SIGCHLD)".into())
        .map(drop)
}

fn end(
    zombie: &Zombie,
    tracee: &mut Tracee,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let pid = zombie.pid;
    let mut name: Vec<u8> = zombie.comm.bytes().take(15).collect();
    name.push(0);
    calls::prctl_bytes(tracee, libc::PR_SET_NAME, &name)
        .during(pid, || "prctl(PR_SET_NAME)".into())?;
    let uid = u64::from(zombie.uid);
    calls::plain(tracee, libc::SYS_setresuid, [uid, uid, uid])
        .during(pid, || "setresuid".into())?;
    // No core is to be left by its second end.
    calls::prctl(tracee, libc::PR_SET_DUMPABLE, [0])
        .during(pid, || "prctl(PR_SET_DUMPABLE)".into())?;
    let signal = zombie.status & 0x7f;
    let ended = match signal {
        0 => by_itself(tracee, zombie.status >> 8 & 0xff),
        libc::SIGKILL => {
            task_control::kill(tracee.tid, libc::SIGKILL).during(pid, || "kill".into())?;
            gone(tracee.tid, None)
        }
        signal => {
            by_signal(tracee, signal).during(pid, || format!("end it by signal {signal}"))?;
            gone(tracee.tid, Some(signal))
        }
    };
    if !ended {
        return Err(RestoreError::Lost {
            pid,
            how: format!("did not end with status {:#x}", zombie.status),
        });
    }
    if zombie.status & CORE != 0 {
        notes.push(Fidelity::reconstructed(
            format!("pid {}", zombie.ppid),
            format!("status of its dead child {pid}"),
            format!("signal {signal}, without the word that it left a core"),
        ));
    }
    Ok(())
}

fn by_itself(tracee: &mut Tracee, code: i32) -> bool {
    let code = i64::from(code).cast_unsigned();
    let call = tracee.syscall(libc::SYS_exit_group, [code, 0, 0, 0, 0, 0]);
    matches!(call, Err(Errno(libc::ESRCH)))
}

/// Sends it the signal, which it neither blocks nor handles.
fn by_signal(tracee: &mut Tracee, signal: i32) -> std::io::Result<()> {
    task_control::kill(tracee.tid, signal)?;
    ptrace::set_signal_mask(tracee.tid, 0)?;
    ptrace::resume_to_syscall(tracee.tid)
}

/// Waits for its end; what it is told about on its way, it gets.
fn gone(tid: i32, signal: Option<i32>) -> bool {
    for _ in 0..64 {
        match ptrace::wait(tid) {
            Ok(Stop::Gone(_)) => return true,
            Ok(Stop::Signal(got)) if Some(got) == signal => {
                if ptrace::resume_with(tid, got).is_err() {
                    return false;
                }
            }
            Ok(_) => {
                if ptrace::resume_to_syscall(tid).is_err() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    false
}
