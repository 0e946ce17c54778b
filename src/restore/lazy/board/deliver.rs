//! Pages put into place, as the kernel takes them.

use super::{Board, Order, PAGE};

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// It is there, or not wanted any more.
    All,
    /// An event has to be read first.
    Again,
    /// Somebody has made a page of shared memory that was still to come, at this address.
    Foreign(u64),
    /// The kernel does not take the page at this address; its error number.
    Refused(u64, i32),
}

/// What became of a part of it.
enum Copied {
    /// It is there up to this page.
    To(u64),
    /// Its first page is not mapped, or not registered, any more.
    NotMapped,
    /// The address space has ended.
    Gone,
    End(Delivered),
}

impl Board<'_> {
    /// Whether an order is what it was: nothing was moved or unmapped since.
    fn still_there(&self, order: &Order) -> bool {
        let last = order.at + (order.count * PAGE).saturating_sub(1);
        self.area_at(order.space, order.at)
            .is_some_and(|(start, area)| {
                area.store == order.store
                    && last < area.end
                    && area.first + (order.at - start) / PAGE == order.first
            })
    }

    /// Delivers what was ordered, less what is no longer pending.
    pub fn deliver(&mut self, order: &Order, bytes: &[u8]) -> Delivered {
        if !self.still_there(order) {
            return match self.spaces.get(order.space) {
                // What has moved is found again, at its new place.
                Some(space) if space.uffd.is_some() => Delivered::Again,
                _ => Delivered::All,
            };
        }
        let Some(granule) = self.stores.get(order.store).map(|s| s.granule) else {
            return Delivered::All;
        };
        let mut page = 0;
        while page < order.count {
            let pending = |board: &Self, page: u64| {
                board
                    .stores
                    .get(order.store)
                    .is_some_and(|store| store.is_pending(order.first + page))
            };
            if !pending(self, page) {
                page += granule;
                continue;
            }
            let mut end = page + granule;
            while end < order.count && pending(self, end) {
                end += granule;
            }
            match self.copy(order, page, end, bytes) {
                Copied::To(to) => page = to,
                Copied::NotMapped => {
                    let at = order.at + page * PAGE;
                    self.take(order.space, at, at + granule * PAGE);
                    if let Some(store) = self.stores.get_mut(order.store).filter(|s| !s.shared) {
                        let settled = store.settle(order.first + page);
                        self.done += if order.store < self.own { settled } else { 0 };
                    }
                    page += granule;
                }
                Copied::Gone => {
                    self.bury(order.space);
                    return Delivered::All;
                }
                Copied::End(what) => return what,
            }
        }
        Delivered::All
    }

    /// Delivers the pages `page..end` of an order, or the first of them.
    fn copy(&mut self, order: &Order, page: u64, end: u64, bytes: &[u8]) -> Copied {
        let (Some(space), Some(store)) = (
            self.spaces.get_mut(order.space),
            self.stores.get_mut(order.store),
        ) else {
            return Copied::End(Delivered::All);
        };
        let Some(uffd) = space.uffd.as_ref() else {
            return Copied::End(Delivered::All);
        };
        let part = |page: u64| usize::try_from(page * PAGE).unwrap_or(usize::MAX);
        let Some(stretch) = bytes.get(part(page)..part(end)) else {
            return Copied::End(Delivered::All);
        };
        let (copied, result) = uffd.copy(order.at + page * PAGE, stretch);
        let mut to = page;
        while to < page + copied / PAGE {
            let settled = store.settle(order.first + to);
            self.done += if order.store < self.own { settled } else { 0 };
            to += store.granule;
        }
        let Err(error) = result else {
            return Copied::To(end);
        };
        let there = order.at + to * PAGE;
        match error.raw_os_error().unwrap_or(0) {
            libc::EAGAIN if to > page => Copied::To(to),
            libc::EAGAIN => Copied::End(Delivered::Again),
            libc::EEXIST => {
                // Whoever waits for it does not know yet.
                let _ = uffd.wake(there, store.granule * PAGE);
                if store.shared && store.is_pending(order.first + to) {
                    return Copied::End(Delivered::Foreign(there));
                }
                let settled = store.settle(order.first + to);
                self.done += if order.store < self.own { settled } else { 0 };
                Copied::To(to + store.granule)
            }
            // What lies in two VMAs is not taken in one piece.
            libc::ENOENT if end - page > store.granule => {
                let granules = (end - page) / store.granule;
                let half = page + granules.div_ceil(2) * store.granule;
                // Of an odd piece of a huge page nothing is asked for.
                let half = half.min(end - store.granule);
                self.copy(order, page, half, bytes)
            }
            libc::ENOENT => Copied::NotMapped,
            libc::ESRCH => Copied::Gone,
            errno => Copied::End(Delivered::Refused(there, errno)),
        }
    }
}
