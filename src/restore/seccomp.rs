//! Seccomp filters, thread by thread.

use super::error::Context;
use super::inject::Tracee;
use super::{RestoreError, Syscalls, calls, confinement};
use crate::dataset::{Dataset, Fidelity, SeccompState, Thread};
use crate::sys::ptrace;

/// `SECCOMP_SET_MODE_FILTER`, and bytes of a `struct sock_filter`.
const SET_MODE_FILTER: u64 = 1;
const FILTER_LEN: usize = 8;
/// `task.seccomp.mode`: strict, by filters.
const STRICT: u32 = 1;
const BY_FILTERS: u32 = 2;

/// Refuses threads whose filters are not known: without them they could do
/// what they had given up, and nobody would see it.
///
/// # Errors
/// The first such thread.
pub fn check(dataset: &Dataset) -> Result<(), RestoreError> {
    for (process, thread) in dataset
        .processes
        .iter()
        .flat_map(|p| p.threads.iter().map(move |t| (p, t)))
    {
        if let Some(why) = unknown(&thread.seccomp) {
            let what = "seccomp filters";
            return Err(confinement::refused(
                process,
                thread,
                what,
                why,
                confinement::LOOSER,
            ));
        }
    }
    Ok(())
}

/// Why a thread's filters are not known.
fn unknown(seccomp: &SeccompState) -> Option<String> {
    let lost = seccomp.mode == BY_FILTERS && seccomp.filters.is_empty();
    let why = || "they are not in the dataset".to_owned();
    (lost || seccomp.refused.is_some()).then(|| seccomp.refused.clone().unwrap_or_else(why))
}

/// Installs a thread's filters, the oldest first. They bind nobody until the
/// tracee is let go: PTRACE_O_SUSPEND_SECCOMP.
///
/// # Errors
/// What was refused.
pub fn install(
    thread: &Thread,
    subject: &str,
    tracee: &mut Tracee,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let (tid, seccomp) = (thread.tid, &thread.seccomp);
    if seccomp.mode == 0 {
        return Ok(());
    }
    // Forced: `check` would have refused.
    if let Some(why) = unknown(seccomp) {
        notes.push(Fidelity::lost(
            subject,
            "seccomp filters",
            format!("{why}: it lives on without"),
        ));
        return Ok(());
    }
    if !ptrace::suspend_seccomp(tracee.tid) {
        return Err(RestoreError::Unsupported {
            pid: tid,
            what: "its seccomp filters".into(),
            why: "this kernel or container refuses PTRACE_O_SUSPEND_SECCOMP".into(),
        });
    }
    if seccomp.mode == STRICT {
        return calls::prctl(tracee, libc::PR_SET_SECCOMP, [1])
            .during(tid, || "prctl(PR_SET_SECCOMP)".into())
            .map(drop);
    }
    let (at, _) = tracee.scratch();
    let flags = seccomp.flags.iter().copied().chain(std::iter::repeat(0));
    for (program, flags) in seccomp.filters.iter().zip(flags) {
        let count = u16::try_from(program.0.len() / FILTER_LEN).unwrap_or(u16::MAX);
        // struct sock_fprog, then the program.
        let mut bytes = u64::from(count).to_ne_bytes().to_vec();
        bytes.extend((at + 16).to_ne_bytes());
        bytes.extend(&program.0);
        calls::put(tracee, &bytes)
            .and_then(|at| {
                calls::plain(
                    tracee,
                    libc::SYS_seccomp,
                    [SET_MODE_FILTER, flags.into(), at],
                )
            })
            .during(tid, || format!("seccomp filter of {count} instructions"))?;
    }
    Ok(())
}
