//! Who holds the userfaultfds when nobody else does: the restored threads themselves.
//!
//! When the last descriptor of a userfaultfd is closed, the kernel takes missing pages for zeros. The
//! pager and the guardian have descriptors; both may be killed in the same instant. So each process has
//! an io_uring, of which it has neither a descriptor nor a mapping: its threads keep it, as they keep
//! rings that a program registers with itself (IORING_REGISTER_RING_FDS, Linux 5.18), and the ring
//! keeps the userfaultfds. With everybody else gone, a thread that touches a missing page waits.
//!
//! When all has arrived the pager empties the rings. An empty ring, some KiB of the kernel's memory, goes
//! with the thread that keeps it.

use super::super::stub::Stub;
use crate::restore::{Errno, calls};
use crate::sys::io_uring::{self, Ring};
use crate::sys::pidfd;
use crate::sys::userfaultfd::Uffd;

/// Userfaultfds that a ring can keep: as many children may be forked and live at the same time.
const SLOTS: usize = 512;

/// Threads of a process that keep its ring, at most.
const KEEPERS: usize = 32;

/// The rings of all processes that are restored together.
#[derive(Debug, Default)]
pub struct Hold {
    rings: Vec<Ring>,
    /// The space whose userfaultfd is in a slot, the same in all rings.
    slots: Vec<Option<usize>>,
}

impl Hold {
    /// Has a process make a ring, which its threads keep. Why not.
    pub fn add_process(&mut self, stub: &mut Stub<'_>) -> Result<(), String> {
        let leader = stub.leader().map_err(|e| e.to_string())?;
        let ring = calls::put(leader, &[0; io_uring::PARAMS])
            .and_then(|at| calls::make_fd(leader, libc::SYS_io_uring_setup, [1, at]))
            .map_err(|errno| format!("io_uring_setup: {errno}"))?;
        let made = pidfd::take(leader.tid, ring).and_then(|fd| Ring::with_slots(fd, SLOTS));
        let made = made.map_err(|error| format!("its slots: {error}"));
        let mut kept = Err(Errno(libc::ESRCH));
        for thread in stub.threads.iter_mut().take(KEEPERS) {
            let keep = calls::put(thread, &io_uring::keep_argument(ring)).and_then(|at| {
                let fd = u64::from(ring.cast_unsigned());
                let call = [fd, io_uring::KEEP_RING, at, 1];
                calls::plain(thread, libc::SYS_io_uring_register, call)
            });
            // One that keeps it is enough while that one lives.
            kept = kept.or(keep);
        }
        let leader = stub.leader().map_err(|e| e.to_string())?;
        calls::close(leader, ring).map_err(|errno| format!("close: {errno}"))?;
        kept.map_err(|errno| format!("IORING_REGISTER_RING_FDS: {errno}"))?;
        self.rings.push(made?);
        Ok(())
    }

    /// Keeps the userfaultfd of a space. When there is no slot left, the pager and the guardian alone
    /// have it.
    pub fn add(&mut self, space: usize, uffd: &Uffd) {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        if slot >= SLOTS {
            return;
        }
        for ring in &self.rings {
            // Refused for want of memory alone.
            let _ = ring.put(slot, Some(uffd.as_fd()));
        }
        match self.slots.get_mut(slot) {
            Some(place) => *place = Some(space),
            None => self.slots.push(Some(space)),
        }
    }

    /// The address space has gone.
    pub fn forget(&mut self, space: usize) {
        for (slot, place) in self.slots.iter_mut().enumerate() {
            if *place == Some(space) {
                *place = None;
                for ring in &self.rings {
                    let _ = ring.put(slot, None);
                }
            }
        }
    }

    /// All has arrived: nobody is to wait any more.
    pub fn end(&mut self) {
        for ring in self.rings.drain(..) {
            let _ = ring.let_go();
        }
    }
}
