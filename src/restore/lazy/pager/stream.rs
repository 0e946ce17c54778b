//! What arrives without being asked for, behind the faults.

use super::{PATIENCE, PLACES, Pager, locked};
use crate::restore::lazy::board::{Delivered, Order, PAGE};
use crate::restore::lazy::status::Count;
use std::os::unix::process::parent_id;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pages that the stream brings at once. A fault waits for as long as it takes to put them into place.
const STREAMED: u64 = 128;

/// Pages behind those around a fault that the stream brings next.
const NEAR: u64 = 512;

/// How long the stream rests for a fault, at most: a guest that never stops faulting would have it starve.
const REST: Duration = Duration::from_millis(5);

impl Pager<'_, '_> {
    /// One thread of the stream.
    pub(super) fn stream(&self) {
        let mut buffer = Vec::new();
        let mut refused: Option<Instant> = None;
        while !self.over.load(Ordering::Acquire) {
            // Killed right after it had let them go, vmrestore could not say so.
            if self.status.get(Count::Go) == 0 && parent_id() == self.restorer {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            self.rest();
            let Some(order) = self.next() else {
                self.over.store(true, Ordering::Release);
                return;
            };
            match self.bring(&order, &mut buffer) {
                Delivered::All => refused = None,
                Delivered::Refused(at, errno) => {
                    if refused.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        let error = std::io::Error::from_raw_os_error(errno);
                        self.fail(format!("there is no room for the page at {at:#x}: {error}"));
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                _ => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Rests while faults wait.
    fn rest(&self) {
        let begin = Instant::now();
        while self.waiting.load(Ordering::Acquire) > 0 && begin.elapsed() < REST {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// What comes next: what is near the faults, then all from the beginning on.
    fn next(&self) -> Option<Order> {
        let mut board = locked(&self.board);
        loop {
            let place = locked(&self.places).pop_front();
            let Some((space, from)) = place else { break };
            let near = board.next(space, from, STREAMED);
            if let Some(order) = near.filter(|order| order.at < from + NEAR * PAGE) {
                let next = order.at + order.count * PAGE;
                let mut places = locked(&self.places);
                if next < from + NEAR * PAGE / 2 && places.len() < PLACES {
                    places.push_back((space, next));
                }
                return Some(order);
            }
        }
        board.streamed(STREAMED)
    }
}
