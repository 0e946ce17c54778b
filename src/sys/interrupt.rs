//! Ctrl-C while a restore is under way: note it, clean up, then go.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// While this lives, SIGINT and SIGTERM set a flag instead of ending the
/// program at once; their former dispositions come back when it is dropped.
#[derive(Debug)]
pub struct Guard {
    former: Vec<(i32, libc::sighandler_t)>,
}

impl Guard {
    /// Takes over SIGINT and SIGTERM and clears the flag.
    pub fn install() -> Self {
        INTERRUPTED.store(false, Ordering::Relaxed);
        let handler = note as extern "C" fn(libc::c_int);
        let former = [libc::SIGINT, libc::SIGTERM]
            .into_iter()
            .filter_map(|signal| {
                // SAFETY: the handler only stores to an atomic.
                let old = unsafe { libc::signal(signal, handler as *const () as usize) };
                (old != libc::SIG_ERR).then_some((signal, old))
            })
            .collect();
        Self { former }
    }

    /// A signal has come.
    pub fn interrupted(&self) -> bool {
        INTERRUPTED.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for (signal, old) in self.former.drain(..) {
            // SAFETY: `old` is what the kernel gave for this signal.
            unsafe { libc::signal(signal, old) };
        }
    }
}
