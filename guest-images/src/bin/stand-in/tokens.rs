//! Eventfds, each with at most one value on its way: a value that is lost
//! stops its eventfd for ever, one that comes twice or changed is seen.

use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmrestore_guest_images::pattern::mix;

use crate::watch::now;

/// A set of eventfds.
pub struct Tokens {
    pub fds: Vec<EventFd>,
    /// The value on its way; 0: none.
    values: Vec<AtomicU64>,
    since: Vec<AtomicU64>,
    started: AtomicU64,
    taken: AtomicU64,
    wrong: AtomicU64,
}

impl Tokens {
    /// `count` eventfds.
    pub fn new(count: usize) -> std::io::Result<Self> {
        let zeros = || (0..count).map(|_| AtomicU64::new(0)).collect();
        let fds: std::io::Result<Vec<EventFd>> =
            (0..count).map(|_| EventFd::new(EFD_NONBLOCK)).collect();
        Ok(Self {
            fds: fds?,
            values: zeros(),
            since: zeros(),
            started: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
        })
    }

    /// Sends a value by one of them, chosen by `seed`, unless it is under way.
    pub fn send(&self, seed: u64) {
        let index = (mix(seed, 1) % self.fds.len() as u64) as usize;
        let value = 1 + mix(seed, 2) % 1000;
        if self.values[index].load(Ordering::SeqCst) != 0 {
            return;
        }
        self.since[index].store(now(), Ordering::SeqCst);
        self.values[index].store(value, Ordering::SeqCst);
        self.started.fetch_add(1, Ordering::SeqCst);
        if self.fds[index].write(value).is_err() {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Takes what has come by one of them.
    pub fn take(&self, index: usize) {
        let sent = self.values[index].load(Ordering::SeqCst);
        match self.fds[index].read() {
            Ok(value) if value == sent => {}
            _ => {
                self.wrong.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.values[index].store(0, Ordering::SeqCst);
    }
}

/// `ok:taken:started:oldest`, the last being for how many milliseconds the
/// oldest value has been on its way.
impl std::fmt::Display for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match self.wrong.load(Ordering::SeqCst) {
            0 => "ok".to_owned(),
            wrong => format!("BAD{wrong}"),
        };
        let oldest = self.values.iter().zip(&self.since);
        let oldest = oldest
            .filter(|(value, _)| value.load(Ordering::SeqCst) != 0)
            .map(|(_, since)| now().saturating_sub(since.load(Ordering::SeqCst)))
            .max()
            .unwrap_or(0);
        let taken = self.taken.load(Ordering::SeqCst);
        let started = self.started.load(Ordering::SeqCst);
        write!(f, "{state}:{taken}:{started}:{}", oldest / 1_000_000)
    }
}
