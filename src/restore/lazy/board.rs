//! Which pages are still to be delivered, and where they belong by now.
//!
//! A *store* is memory as the dead host had it: a VMA, or a shared memory. A
//! *space* is an address space of today, and its *areas* say where in it
//! stretches of stores are. A process that unmaps, moves or gives back memory
//! changes its areas and what is pending; one that forks gets a second space,
//! with stores of its own but for what is shared.
//!
//! This is bookkeeping alone; `pager` holds it under one lock.

mod changes;
mod deliver;
mod store;

use crate::sys::userfaultfd::Uffd;
pub use deliver::Delivered;
use std::collections::BTreeMap;
use std::sync::Arc;
pub use store::Store;

pub const PAGE: u64 = 4096;

/// A part of a store in an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Area {
    /// First address behind it.
    end: u64,
    store: usize,
    /// The store's page at its first address.
    first: u64,
}

/// An address space.
#[derive(Debug)]
pub struct Space {
    /// `None`: it has ended.
    pub uffd: Option<Arc<Uffd>>,
    /// By first address.
    areas: BTreeMap<u64, Area>,
    /// Where the stream is. Address.
    cursor: u64,
    /// It has, or had, shared memory.
    shares: bool,
}

/// Pages next to each other that are to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub space: usize,
    /// Address of the first.
    pub at: u64,
    pub store: usize,
    /// The store's page there.
    pub first: u64,
    pub count: u64,
}

/// All stores and spaces.
#[derive(Debug, Default)]
pub struct Board<'d> {
    pub stores: Vec<Store<'d>>,
    pub spaces: Vec<Space>,
    /// Pages delivered so far, but for those of forked children.
    pub done: u64,
    /// Stores that there were before anybody forked.
    pub own: usize,
}

impl<'d> Board<'d> {
    /// Adds an address space.
    pub fn add_space(&mut self, uffd: Uffd) -> usize {
        self.spaces.push(Space {
            uffd: Some(Arc::new(uffd)),
            areas: BTreeMap::new(),
            cursor: 0,
            shares: false,
        });
        self.spaces.len() - 1
    }

    /// Adds a part of a store to a space.
    pub fn add_area(&mut self, space: usize, start: u64, end: u64, store: usize, first: u64) {
        if let Some(space) = self.spaces.get_mut(space) {
            space.areas.insert(start, Area { end, store, first });
            space.shares |= self.stores.get(store).is_some_and(|store| store.shared);
        }
    }

    /// Pages to be delivered.
    pub fn left(&self) -> u64 {
        self.stores.iter().map(Store::left).sum()
    }

    /// A space has, or had, shared memory.
    pub fn shares(&self, space: usize) -> bool {
        self.spaces.get(space).is_some_and(|space| space.shares)
    }

    /// There is shared memory in a range of some space.
    pub fn has_shared(&self, start: u64, end: u64) -> bool {
        let shares =
            |space: usize| self.shares(space) && !self.parts(space, start, end, true).is_empty();
        (0..self.spaces.len()).any(shares)
    }

    /// What of shared stores, or of the others, is in a range of a space: the store, its first page
    /// there, how many.
    pub fn parts(
        &self,
        space: usize,
        start: u64,
        end: u64,
        shared: bool,
    ) -> Vec<(usize, u64, u64)> {
        let areas = self.spaces.get(space).map(|space| &space.areas);
        let areas = areas.into_iter().flat_map(|areas| areas.range(..end));
        areas
            .filter(|(_, area)| area.end > start)
            .filter(|(_, area)| {
                self.stores
                    .get(area.store)
                    .is_some_and(|s| s.shared == shared)
            })
            .map(|(at, area)| {
                let (low, high) = ((*at).max(start), area.end.min(end));
                let first = area.first + (low - at) / PAGE;
                (area.store, first, (high - low) / PAGE)
            })
            .collect()
    }

    /// Pages of a store are zeros from now on, for all who have it.
    pub fn discard(&mut self, store: usize, first: u64, count: u64) {
        let own = store < self.own;
        let Some(store) = self.stores.get_mut(store) else {
            return;
        };
        for page in first..first + count {
            let cleared = u64::from(store.pending.clear(page));
            self.done += if own { cleared } else { 0 };
        }
    }

    fn area_at(&self, space: usize, address: u64) -> Option<(u64, Area)> {
        let space = self.spaces.get(space)?;
        let (start, area) = space.areas.range(..=address).next_back()?;
        (address < area.end).then_some((*start, *area))
    }

    /// Bytes that a fault at an address is answered with, aligned: an ordinary or a huge page.
    pub fn page_at(&self, space: usize, address: u64) -> (u64, u64) {
        let granule = self
            .area_at(space, address)
            .and_then(|(_, area)| self.stores.get(area.store))
            .map_or(1, |store| store.granule);
        let size = granule * PAGE;
        (address / size * size, size)
    }

    /// The pending pages around an address: not more than `most`, none when its own is not pending.
    pub fn around(&self, space: usize, address: u64, most: u64) -> Option<Order> {
        let (start, area) = self.area_at(space, address)?;
        let store = self.stores.get(area.store)?;
        let most = most.max(store.granule);
        let page_of = |address: u64| area.first + (address - start) / PAGE;
        let page = page_of(address);
        if !store.is_pending(page) {
            return None;
        }
        let (own, own_end) = store.granule_of(page);
        let lowest = (page / most * most).max(area.first);
        let highest = (page / most * most + most).min(page_of(area.end));
        let mut first = own;
        while first >= lowest + store.granule && store.is_pending(first - 1) {
            first -= store.granule;
        }
        let mut end = own_end;
        while end < highest && store.is_pending(end) {
            end += store.granule;
        }
        Some(self.order(space, start, area, first, end))
    }

    fn order(&self, space: usize, start: u64, area: Area, first: u64, end: u64) -> Order {
        Order {
            space,
            at: start + first.saturating_sub(area.first) * PAGE,
            store: area.store,
            first,
            count: end - first,
        }
    }

    /// The next pending pages of a space at or behind an address, not more than `most`.
    pub fn next(&self, space: usize, from: u64, most: u64) -> Option<Order> {
        let areas = &self.spaces.get(space)?.areas;
        let begin = self.area_at(space, from).map_or(from, |(start, _)| start);
        for (start, area) in areas.range(begin..) {
            let store = self.stores.get(area.store)?;
            let most = most.max(store.granule);
            let behind = area.first + (area.end - start) / PAGE;
            let skip = from.saturating_sub(*start) / PAGE;
            let Some(page) = store.pending.next(area.first + skip, behind) else {
                continue;
            };
            let (first, mut end) = store.granule_of(page);
            while end < behind && end - first < most && store.is_pending(end) {
                end += store.granule;
            }
            return Some(self.order(space, *start, *area, first, end));
        }
        None
    }

    /// What the stream is to bring next: each space in turn from its beginning to its end, once more
    /// for what was moved or could not be brought then.
    pub fn streamed(&mut self, most: u64) -> Option<Order> {
        for space in 0..self.spaces.len() {
            let cursor = self.spaces.get(space).map_or(0, |s| s.cursor);
            let found = self
                .next(space, cursor, most)
                .or_else(|| self.next(space, 0, most));
            if let Some(order) = found {
                if let Some(space) = self.spaces.get_mut(space) {
                    space.cursor = order.at + order.count * PAGE;
                }
                return Some(order);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
