//! The madvise calls by which memory is given back, heard of as they begin.
//!
//! Whoever makes one waits until its word has been read from the userfaultfd; it was heard of before that.
//! So none of which a word is read is unknown. What the thread does could also be read from `/proc`, but not
//! while it is being woken for another's word, and not of a child that nobody knows.

use super::board::PAGE;
use crate::sys::tracepoint::{Calls, Entered};
use std::collections::BTreeMap;
use std::io;

/// `MADV_REMOVE`.
pub const REMOVE: u64 = 9;

/// The call, and MADV_DONTNEED, MADV_REMOVE, MADV_DONTNEED_LOCKED: userfaultfds tell of no other that shared
/// memory takes.
const CALL: (&str, &str) = (
    "madvise",
    "behavior == 4 || behavior == 9 || behavior == 24",
);

/// An madvise of a thread that waits, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub start: u64,
    pub end: u64,
    pub advice: u64,
    /// PID of the thread's process.
    pub pid: i32,
    time: u64,
}

/// The calls of which the word was not read, or not to its end.
#[derive(Debug)]
pub struct Advice {
    calls: Calls,
    /// By thread: each is in one call.
    open: BTreeMap<(i32, i32), Call>,
}

#[cfg(test)]
impl Call {
    pub fn heard(start: u64, end: u64, advice: u64) -> Self {
        Self {
            start,
            end,
            advice,
            pid: 0,
            time: 0,
        }
    }
}

/// Whether this host tells of such calls.
///
/// # Errors
/// Why not.
pub fn can_be_heard() -> io::Result<()> {
    Calls::can_be_heard(CALL.0, CALL.1)
}

impl Advice {
    /// Hears of the calls from now on.
    ///
    /// # Errors
    /// As [`can_be_heard`].
    pub fn hear() -> io::Result<Self> {
        Ok(Self {
            calls: Calls::hear(CALL.0, CALL.1)?,
            open: BTreeMap::new(),
        })
    }

    /// Takes in what has begun; `concerns` tells whether there is shared memory in a range.
    pub fn listen(&mut self, concerns: impl Fn(u64, u64) -> bool) {
        for entered in self.calls.take() {
            self.enter(&entered, &concerns);
        }
    }

    fn enter(&mut self, entered: &Entered, concerns: impl Fn(u64, u64) -> bool) {
        let [start, len, advice] = entered.args;
        let thread = (entered.pid, entered.tid);
        let end = len.checked_next_multiple_of(PAGE);
        match end.and_then(|len| start.checked_add(len)) {
            Some(end) if concerns(start, end) => {
                let call = Call {
                    start,
                    end,
                    advice: advice & u64::from(u32::MAX),
                    pid: entered.pid,
                    time: entered.time,
                };
                self.open.insert(thread, call);
            }
            // What the thread did before is over all the same.
            _ => drop(self.open.remove(&thread)),
        }
    }

    /// The calls for which a condition holds.
    pub fn that(&self, is: impl Fn(&Call) -> bool) -> impl Iterator<Item = &Call> {
        self.open.values().filter(move |call| is(call))
    }

    /// The call of which this is the word, of those for which a condition holds; that much of it is done
    /// with.
    pub fn told(&mut self, (start, end): (u64, u64), is: impl Fn(&Call) -> bool) -> Option<Call> {
        let covers = |call: &Call| call.start <= start && end <= call.end && is(call);
        // Words come in the order of the calls.
        let first = self.open.iter().filter(|(_, call)| covers(call));
        let (thread, call) = first.min_by_key(|(_, call)| call.time)?;
        let (thread, call) = (*thread, *call);
        match end < call.end {
            // Its word comes mapping by mapping, from the lowest on.
            true => drop(self.open.insert(thread, Call { start: end, ..call })),
            false => drop(self.open.remove(&thread)),
        }
        Some(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONTNEED: u64 = 4;

    fn entered(pid: i32, tid: i32, time: u64, args: [u64; 3]) -> Entered {
        Entered {
            time,
            pid,
            tid,
            args,
        }
    }

    fn advice() -> Option<Advice> {
        Advice::hear()
            .inspect_err(|error| eprintln!("SKIPPED: this host does not tell of calls: {error}"))
            .ok()
    }

    #[test]
    fn each_word_is_of_its_call() {
        let Some(mut advice) = advice() else { return };
        let mut enter = |pid, tid, time, args| {
            advice.enter(&entered(pid, tid, time, args), |start, _| start >= 0x1000);
        };
        // Two threads of one process, another with the same addresses, and what concerns nobody.
        enter(7, 7, 1, [0x1000, 0x4fff, REMOVE]);
        enter(7, 8, 2, [0x1000, 0x1000, DONTNEED]);
        enter(9, 9, 3, [0x1000, 0x1000, REMOVE]);
        enter(7, 10, 4, [0, 0x1000, REMOVE]);
        enter(7, 11, 5, [u64::MAX, u64::MAX, REMOVE]);
        assert_eq!(advice.that(|call| call.pid == 7).count(), 2);
        // Mapping by mapping, in their order.
        let mut told = |pid, range| {
            let call = advice.told(range, |call| call.pid == pid);
            call.map(|call| call.advice)
        };
        assert_eq!(told(7, (0x1000, 0x2000)), Some(REMOVE));
        assert_eq!(told(7, (0x1000, 0x2000)), Some(DONTNEED));
        assert_eq!(told(7, (0x3000, 0x6000)), Some(REMOVE));
        assert_eq!(told(7, (0x3000, 0x6000)), None);
        assert_eq!(told(9, (0x1000, 0x2000)), Some(REMOVE));
        assert_eq!(told(9, (0x1000, 0x2000)), None);
    }

    /// What a thread began before it begins something else has ended.
    #[test]
    fn a_thread_is_in_one_call() {
        let Some(mut advice) = advice() else { return };
        for args in [[0x1000, 0x1000, REMOVE], [0x1000, 0x1000, DONTNEED]] {
            advice.enter(&entered(7, 7, 1, args), |_, _| true);
        }
        let told = advice.told((0x1000, 0x2000), |_| true);
        assert_eq!(told.map(|call| call.advice), Some(DONTNEED));
        advice.enter(&entered(7, 7, 1, [0x1000, 0x1000, REMOVE]), |_, _| true);
        advice.enter(&entered(7, 7, 2, [0, 0x1000, REMOVE]), |_, _| false);
        assert_eq!(advice.told((0x1000, 0x2000), |_| true), None);
    }
}
