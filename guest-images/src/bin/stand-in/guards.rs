//! Seccomp filters that differ from thread to thread, and probes that show
//! that each thread has its own: two harmless calls fail with an error number
//! that no kernel would give.

use std::collections::BTreeMap;
use std::io::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// The error numbers: EXDEV for `getppid`, ENOTNAM for `getpgrp`.
const FIRST: u32 = 18;
const SECOND: u32 = 118;

/// How a thread is guarded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// No filter, as Cloud Hypervisor's first thread.
    None,
    /// One filter.
    Vcpu,
    /// Two filters, one after the other.
    Api,
}

impl Guard {
    /// Takes the calling thread under guard, for ever. It has no_new_privs then.
    pub fn enter(self) {
        let programs: &[(i64, u32)] = match self {
            Self::None => &[],
            Self::Vcpu => &[(libc::SYS_getppid, FIRST)],
            Self::Api => &[(libc::SYS_getppid, FIRST), (libc::SYS_getpgrp, SECOND)],
        };
        for (call, errno) in programs {
            let program = program(*call, *errno).expect("a filter of one rule");
            apply_filter(&program).expect("seccomp");
        }
    }

    /// What [`Probe::look`] finds where the guard holds.
    const fn expected(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Vcpu => FIRST as u64,
            Self::Api => (SECOND as u64) << 8 | FIRST as u64,
        }
    }
}

fn program(call: i64, errno: u32) -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(call, vec![])]);
    let (others, this) = (SeccompAction::Allow, SeccompAction::Errno(errno));
    SeccompFilter::new(rules, others, this, TargetArch::x86_64)?.try_into()
}

/// Counts looks of threads at their own guard, and those that found another.
#[derive(Default)]
pub struct Probe {
    looks: AtomicU64,
    wrong: AtomicU64,
}

impl Probe {
    /// Makes the two calls and compares what they say.
    pub fn look(&self, guard: Guard) {
        // Not by glibc, which knows that these calls cannot fail.
        let errno = |call| -> u64 {
            // SAFETY: both calls take no arguments and change nothing.
            match unsafe { libc::syscall(call) } {
                -1 => Error::last_os_error().raw_os_error().unwrap_or(0) as u64,
                _ => 0,
            }
        };
        let found = errno(libc::SYS_getpgrp) << 8 | errno(libc::SYS_getppid);
        self.looks.fetch_add(1, Ordering::SeqCst);
        if found != guard.expected() {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let looks = self.looks.load(Ordering::SeqCst);
        match self.wrong.load(Ordering::SeqCst) {
            0 => write!(f, "ok:{looks}"),
            wrong => write!(f, "BAD{wrong}:{looks}"),
        }
    }
}
