//! What has happened in the address spaces: faults, and what processes do with their memory.

use super::{Fault, Pager, locked};
use crate::restore::lazy::board::{Board, PAGE};
use crate::restore::lazy::discard::{self, Verdict};
use crate::restore::lazy::guardian;
use crate::sys::userfaultfd::{Event, Uffd};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Faults and events of a space that are read one by one in one turn, at most.
const AT_ONCE: usize = 64;

impl Pager<'_, '_> {
    /// Reads what has happened in a space, and takes account of it, in one step.
    pub(super) fn take_events(&self, space: usize, now: Instant, faults: &mut VecDeque<Fault>) {
        let mut board = locked(&self.board);
        let Some(uffd) = board.spaces.get(space).and_then(|s| s.uffd.clone()) else {
            return;
        };
        let mut events = Vec::new();
        // With shared memory one by one: who gives of that back is looked at while it waits.
        let careful = board.shares(space);
        for _ in 0..if careful { AT_ONCE } else { 1 } {
            let calls = match careful && uffd.is_changing() {
                true => self.calls_before(&board, space),
                false => Vec::new(),
            };
            let read = match careful {
                true => uffd.read_one(&mut events),
                false => uffd.read(&mut events),
            };
            if let Err(error) = read {
                self.fail(format!("its faults cannot be read: {error}"));
                return;
            }
            if events.is_empty() {
                return;
            }
            for event in events.drain(..) {
                match event {
                    Event::Fault(address) => faults.push_back(Fault {
                        space,
                        address,
                        since: now,
                    }),
                    other => {
                        if let Event::Remove { start, end } = other {
                            self.shared_given_back(&mut board, space, &calls, (start, end));
                        }
                        if let Some(child) = board.apply(space, other) {
                            let uffd = board.spaces.get(child).and_then(|s| s.uffd.clone());
                            if let Some(uffd) = uffd {
                                locked(&self.hold).add(child, &uffd);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The calls that give memory of a space back, before the word of it is read, and what must be done
    /// while they wait.
    fn calls_before(&self, board: &Board<'_>, space: usize) -> Vec<discard::Call> {
        let calls = match self.pids.get(space) {
            Some(pid) => discard::calls(&[*pid]),
            // Of a child that was forked nobody says the PID.
            None => discard::calls(&guardian::descendants(&self.pids)),
        };
        for call in &calls {
            for (store, first, count) in board.parts(space, call.start, call.end, true) {
                if let Some(backing) = self.backings.get(&store) {
                    locked(backing).before(call, first * PAGE, count * PAGE);
                }
            }
        }
        calls
    }

    /// A range of a space was given back: what of it is shared may be zeros from now on.
    fn shared_given_back(
        &self,
        board: &mut Board<'_>,
        space: usize,
        calls: &[discard::Call],
        (start, end): (u64, u64),
    ) {
        let call = calls.iter().find(|c| c.start <= start && end <= c.end);
        for (store, first, count) in board.parts(space, start, end, true) {
            let verdict = match self.backings.get(&store) {
                Some(backing) => locked(backing).verdict(call, first * PAGE, count * PAGE),
                None => Verdict::Unknown,
            };
            match verdict {
                Verdict::Zeros => board.discard(store, first, count),
                Verdict::Same => {}
                Verdict::Unknown => self.fail(format!(
                    "it cannot be told what became of its shared memory at {start:#x}-{end:#x}, of \
                     which it gave pages back that had not arrived"
                )),
            }
        }
    }

    /// Takes account of address spaces that have gone. One with nothing pending would not be noticed else.
    pub(super) fn bury(&self, spaces: &[(usize, Arc<Uffd>)]) {
        for (at, uffd) in spaces {
            if !uffd.lives() {
                locked(&self.board).bury(*at);
                locked(&self.hold).forget(*at);
            }
        }
    }
}
