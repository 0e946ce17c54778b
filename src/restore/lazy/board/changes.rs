//! What processes do with their memory while it arrives: events of userfaultfds.

use super::store::Bits;
use super::{Area, Board, PAGE};
use crate::sys::userfaultfd::{Event, Uffd};
use std::collections::BTreeMap;

impl Board<'_> {
    /// Applies an event of a space. A fork's child is a new space, whose index is given.
    pub fn apply(&mut self, space: usize, event: Event) -> Option<usize> {
        match event {
            Event::Fault(_) => None,
            Event::Fork(uffd) => Some(self.fork(space, uffd)),
            Event::Remove { start, end } => {
                self.remove(space, start, end);
                None
            }
            Event::Unmap { start, end } => {
                self.remove(space, start, end);
                self.take(space, start, end);
                None
            }
            Event::Remap { from, to, len } => {
                let moved = self.take(space, from, from.saturating_add(len));
                self.take(space, to, to.saturating_add(len));
                for (start, area) in moved {
                    let start = to + (start - from);
                    let end = to + (area.end - from);
                    self.add_area(space, start, end, area.store, area.first);
                }
                None
            }
        }
    }

    /// An address space has ended: nothing is to be delivered to it any more.
    pub fn bury(&mut self, space: usize) {
        let Some(space) = self.spaces.get_mut(space) else {
            return;
        };
        space.uffd = None;
        for area in std::mem::take(&mut space.areas).values() {
            // Shared memory may be others' as well.
            if let Some(store) = self.stores.get_mut(area.store).filter(|s| !s.shared) {
                self.done += if area.store < self.own {
                    store.left()
                } else {
                    0
                };
                store.pending = Bits::default();
            }
        }
    }

    /// Cuts a range out of a space's areas, and gives what was in it.
    pub(super) fn take(&mut self, space: usize, start: u64, end: u64) -> Vec<(u64, Area)> {
        let Some(space) = self.spaces.get_mut(space) else {
            return Vec::new();
        };
        let touched: Vec<(u64, Area)> = space
            .areas
            .range(..end)
            .filter(|(_, area)| area.end > start)
            .map(|(at, area)| (*at, *area))
            .collect();
        let mut taken = Vec::new();
        for (at, area) in touched {
            space.areas.remove(&at);
            let (low, high) = (at.max(start), area.end.min(end));
            let cut = |from: u64, end: u64| Area {
                end,
                store: area.store,
                first: area.first + (from - at) / PAGE,
            };
            if at < low {
                space.areas.insert(at, cut(at, low));
            }
            if high < area.end {
                space.areas.insert(high, cut(high, area.end));
            }
            taken.push((low, cut(low, high)));
        }
        taken
    }

    /// Private pages that were given back are zeros from now on. Of shared ones see `discard`.
    fn remove(&mut self, space: usize, start: u64, end: u64) {
        for (store, first, count) in self.parts(space, start, end, false) {
            self.discard(store, first, count);
        }
    }

    fn fork(&mut self, parent: usize, uffd: Uffd) -> usize {
        let areas = self
            .spaces
            .get(parent)
            .map(|s| s.areas.clone())
            .unwrap_or_default();
        let child = self.add_space(uffd);
        let mut own: BTreeMap<usize, usize> = BTreeMap::new();
        for (start, area) in areas {
            let Some(store) = self.stores.get(area.store) else {
                continue;
            };
            if store.wiped_on_fork {
                continue;
            }
            let at = match (store.shared, own.get(&area.store)) {
                (true, _) => area.store,
                (false, Some(at)) => *at,
                (false, None) => {
                    let copy = store.clone();
                    self.stores.push(copy);
                    own.insert(area.store, self.stores.len() - 1);
                    self.stores.len() - 1
                }
            };
            self.add_area(child, start, area.end, at, area.first);
        }
        child
    }
}
