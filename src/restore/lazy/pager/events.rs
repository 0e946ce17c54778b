//! What has happened in the address spaces: faults, and what processes do with their memory.

use super::{Fault, Pager, locked};
use crate::restore::lazy::advice::Call;
use crate::restore::lazy::board::{Board, PAGE};
use crate::restore::lazy::discard::Verdict;
use crate::sys::child;
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
        // With shared memory one by one: what gives of that back is looked at while it waits.
        let careful = board.shares(space);
        for _ in 0..if careful { AT_ONCE } else { 1 } {
            // Linux gives faults first, then events in their order. So what is read is a fault, or an
            // event that was there at the first look: its call is heard of at the second.
            let read = match careful {
                true if child::poll(&[uffd.as_fd()], 0) != [true] => return,
                true => {
                    self.before_it_is_read(&board, space);
                    uffd.read_one(&mut events)
                }
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
                            self.shared_given_back(&mut board, space, (start, end));
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

    /// Hears of the calls that give memory of a space back, and does what must be done while they wait.
    fn before_it_is_read(&self, board: &Board<'_>, space: usize) {
        let Some(advice) = &self.advice else { return };
        let mut advice = locked(advice);
        advice.listen(|start, end| board.has_shared(start, end));
        for call in advice.that(|call| self.is_in(space, call)) {
            for (store, first, count) in board.parts(space, call.start, call.end, true) {
                if let Some(backing) = self.backings.get(&store) {
                    locked(backing).before(call, first * PAGE, count * PAGE);
                }
            }
        }
    }

    /// A call may be one of this space.
    fn is_in(&self, space: usize, call: &Call) -> bool {
        match self.pids.get(space) == Some(&call.pid) {
            true => true,
            // Of a child that was forked nobody says the PID; and all others of this host are heard, too.
            false if self.pids.contains(&call.pid) => false,
            false => {
                let mut backings = self.backings.values();
                backings.any(|b| locked(b).is_mapped(call.pid, (call.start, call.end)))
            }
        }
    }

    /// A range of a space was given back: what of it is shared may be zeros from now on.
    fn shared_given_back(&self, board: &mut Board<'_>, space: usize, (start, end): (u64, u64)) {
        let parts = board.parts(space, start, end, true);
        if parts.is_empty() {
            return;
        }
        let is = |call: &Call| self.is_in(space, call);
        let advice = self.advice.as_ref();
        let call = advice.and_then(|advice| locked(advice).told((start, end), is));
        for (store, first, count) in parts {
            let backing = self.backings.get(&store);
            match backing.zip(call).map(|(b, call)| locked(b).verdict(&call)) {
                Some(Verdict::Zeros) => board.discard(store, first, count),
                Some(Verdict::Same) => {}
                None => self.fail(format!(
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
