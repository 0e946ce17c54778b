//! Every page of the dump, read and decoded: is it good?
//!
//! An index can say that a page is in the dump; only reading it says that it can be had.

use std::num::NonZero;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::Serialize;

use super::frame_set::FrameSet;
use super::{Dump, Memory, Missing, PAGE_SIZE, PageKind, PhysicalMemory, ReadError};

/// Pages that a thread takes at once: 1 MiB of memory.
const BATCH: u64 = 256;
/// Each thread takes 1 MiB for its pages.
const MAX_THREADS: usize = 64;
/// Corrupt pages whose error is kept, for people to read.
const EXAMPLES: usize = 3;

/// How many pages of the dead machine are in which state, all of them read. In page frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PageStates {
    /// In the dump, and decoded without an error.
    pub present: u64,
    /// Of these, pages of zeros that were not stored on their own.
    pub zero: u64,
    /// Left out by the filter.
    pub filtered: u64,
    /// Not memory.
    pub not_ram: u64,
    /// Beyond the end of a truncated file, or never written.
    pub truncated: u64,
    /// In the dump, but damaged, or on a medium that cannot be read.
    pub corrupt: u64,
}

/// What reading every page showed.
#[derive(Debug, Default)]
pub struct Scan {
    /// All pages by their state.
    pub states: PageStates,
    /// The corrupt ones.
    pub corrupt: FrameSet,
    /// What was wrong with the first few.
    pub examples: Vec<String>,
    /// Pages that the index says are beyond the end of the file.
    not_stored: u64,
}

/// How far a scan has come. Pages.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Read.
    pub done: u64,
    /// To be read in all.
    pub total: u64,
}

impl Dump {
    /// Reads and decodes every page on all CPUs, in memory that does not depend on the dump's size:
    /// 1 MiB and some for each thread. `progress` is asked now and then, by one thread at a time;
    /// when it breaks off, the result is `None`.
    pub fn scan(&self, progress: impl FnMut(Progress) -> ControlFlow<()> + Send) -> Option<Scan> {
        let counts = self.page_counts();
        let common = Mutex::new(Common {
            next: 0,
            done: 0,
            total: counts.present + counts.truncated,
            scan: Scan::default(),
            progress,
        });
        let stopped = AtomicBool::new(false);
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        let work = || worker(self, &common, &stopped);
        thread::scope(|scope| {
            for _ in 1..cpus.min(MAX_THREADS) {
                // Where no thread can be had, the others do its work.
                let _ = thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        if stopped.into_inner() {
            return None;
        }
        let common = common.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut scan = common.scan;
        // Bitmaps and segments say this exactly.
        scan.states.filtered = counts.filtered;
        scan.states.not_ram = counts.not_ram;
        match self.memory {
            Memory::Elf(_) => scan.states.truncated += counts.truncated,
            // Descriptor by descriptor: data may stand in any order.
            Memory::Kdump(_) => scan.states.truncated += scan.not_stored,
        }
        Some(scan)
    }

    /// The next page frames from `from` on that the dump has; of a kdump-compressed one also those
    /// that it would have if it were not cut.
    fn next_present(&self, from: u64) -> Option<Range<u64>> {
        match &self.memory {
            Memory::Elf(memory) => memory.next_data(from),
            Memory::Kdump(memory) => memory.next_dumped(&self.image, from),
        }
    }
}

/// What the threads share.
struct Common<P> {
    /// The next page frame to look at.
    next: u64,
    done: u64,
    total: u64,
    scan: Scan,
    progress: P,
}

fn worker<P>(dump: &Dump, common: &Mutex<Common<P>>, stopped: &AtomicBool)
where
    P: FnMut(Progress) -> ControlFlow<()>,
{
    let mut pfns = Vec::with_capacity(BATCH as usize);
    let mut out = vec![0; (BATCH * PAGE_SIZE) as usize];
    let mut batch = Batch::default();
    loop {
        {
            let mut common = common.lock().unwrap_or_else(PoisonError::into_inner);
            common.scan.take(&mut batch);
            common.done += pfns.len() as u64;
            let progress = Progress {
                done: common.done,
                total: common.total,
            };
            if (common.progress)(progress).is_break() {
                stopped.store(true, Ordering::Relaxed);
            }
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            pfns.clear();
            while let Some(room) = BATCH.checked_sub(pfns.len() as u64).filter(|r| *r > 0)
                && let Some(run) = dump.next_present(common.next)
            {
                let end = run.end.min(run.start.saturating_add(room));
                pfns.extend(run.start..end);
                common.next = end;
            }
        }
        if pfns.is_empty() {
            return;
        }
        batch.read(dump, &pfns, &mut out);
    }
}

/// What a thread found out about the pages that it took.
#[derive(Default)]
struct Batch {
    states: PageStates,
    not_stored: u64,
    corrupt: Vec<(u64, Option<String>)>,
}

impl Batch {
    fn read(&mut self, dump: &Dump, pfns: &[u64], out: &mut [u8]) {
        let mut stored = Vec::with_capacity(pfns.len());
        for &pfn in pfns {
            match dump.page_kind(pfn) {
                PageKind::Zero => {
                    self.states.present += 1;
                    self.states.zero += 1;
                }
                // Counted by the bitmaps.
                PageKind::Missing(Missing::Filtered | Missing::NotRam | Missing::InUse) => {}
                PageKind::Missing(Missing::Truncated) => self.not_stored += 1,
                // What is wrong with it, reading says.
                PageKind::Stored | PageKind::Damaged => stored.push(pfn),
            }
        }
        let bytes = stored.len() * PAGE_SIZE as usize;
        let failures = dump.read_pages(&stored, &mut out[..bytes]);
        self.states.present += (stored.len() - failures.len()) as u64;
        for failure in failures {
            match failure.error {
                ReadError::Missing {
                    why: Missing::Truncated,
                    ..
                } => self.states.truncated += 1,
                error => {
                    self.states.corrupt += 1;
                    let text = (self.corrupt.len() < EXAMPLES).then(|| error.to_string());
                    self.corrupt.push((stored[failure.index], text));
                }
            }
        }
    }
}

impl Scan {
    fn take(&mut self, batch: &mut Batch) {
        let (all, new) = (&mut self.states, batch.states);
        all.present += new.present;
        all.zero += new.zero;
        all.truncated += new.truncated;
        all.corrupt += new.corrupt;
        self.not_stored += std::mem::take(&mut batch.not_stored);
        batch.states = PageStates::default();
        for (pfn, text) in batch.corrupt.drain(..) {
            self.corrupt.insert(pfn);
            if let Some(text) = text.filter(|_| self.examples.len() < EXAMPLES) {
                self.examples.push(text);
            }
        }
    }
}
