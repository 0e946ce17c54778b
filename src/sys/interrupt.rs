//! Ctrl-C while a restore is under way: note it, clean up, then go.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// While this lives, SIGINT and SIGTERM set a flag instead of ending the
/// program at once; their former dispositions come back when it is dropped.
pub struct Guard {
    former: Vec<(i32, libc::sigaction)>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guard(interrupted: {})", self.interrupted())
    }
}

/// A signal has come since the last [`Guard::install`].
pub(super) fn pending() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

impl Guard {
    /// Takes over SIGINT and SIGTERM and clears the flag.
    pub fn install() -> Self {
        INTERRUPTED.store(false, Ordering::Relaxed);
        let handler = note as extern "C" fn(libc::c_int);
        let former = [libc::SIGINT, libc::SIGTERM]
            .into_iter()
            .filter_map(|signal| {
                // SAFETY: made of integers; zero is a value of each. Without
                // SA_RESTART: a wait for a tracee that hangs must end.
                let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
                action.sa_sigaction = handler as *const () as usize;
                let mut old = action;
                // SAFETY: the handler only stores to an atomic; both live.
                let done = unsafe { libc::sigaction(signal, &raw const action, &raw mut old) };
                (done == 0).then_some((signal, old))
            })
            .collect();
        Self { former }
    }

    /// A signal has come.
    pub fn interrupted(&self) -> bool {
        pending()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for (signal, old) in self.former.drain(..) {
            // SAFETY: `old` is what the kernel gave for this signal.
            unsafe { libc::sigaction(signal, &raw const old, std::ptr::null_mut()) };
        }
    }
}
