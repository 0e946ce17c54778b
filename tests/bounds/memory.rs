//! An allocator that counts: bytes alive, the most there were, and the largest single request.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Counts what it hands on to the system's allocator.
pub struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

impl Counting {
    fn taken(size: usize) {
        LARGEST.fetch_max(size, Relaxed);
        let alive = ALIVE.fetch_add(size, Relaxed) + size;
        if alive > PEAK.load(Relaxed) {
            PEAK.fetch_max(alive, Relaxed);
        }
    }

    fn given_back(size: usize) {
        ALIVE.fetch_sub(size, Relaxed);
    }
}

// SAFETY: every call is handed on to `System` unchanged; beside that only atomics are touched, so
// nothing here allocates or unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::taken(layout.size());
        // SAFETY: the caller keeps the contract, which is System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Counting::taken(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Counting::given_back(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are alive while the bytes move.
        Counting::taken(size);
        // SAFETY: as above.
        let moved = unsafe { System.realloc(at, layout, size) };
        Counting::given_back(layout.size());
        moved
    }
}

/// What was taken since [`watch`].
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The largest single allocation, in bytes.
    pub largest: usize,
    /// The most bytes alive at once, above those alive at the begin.
    pub peak: usize,
}

/// Starts to watch, anew.
pub fn watch() -> Watch {
    let alive = ALIVE.load(Relaxed);
    LARGEST.store(0, Relaxed);
    PEAK.store(alive, Relaxed);
    Watch { alive }
}

/// Since when is watched.
#[derive(Clone, Copy)]
pub struct Watch {
    alive: usize,
}

impl Watch {
    /// What was taken so far.
    pub fn taken(&self) -> Taken {
        Taken {
            largest: LARGEST.load(Relaxed),
            peak: PEAK.load(Relaxed).saturating_sub(self.alive),
        }
    }
}
