//! Many whole pages at once, decoded on all CPUs, past the page cache: the way guest memory goes.
//!
//! The list of pages is cut into batches that the threads take one after another. Of a batch, the
//! descriptors are read in strides, the stored pages in the order of the file and up to 128 KiB of
//! them at once, so that they are decoded out of the CPU's cache, each straight into its place.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use super::codec::{Codec, Decoder};
use super::image::{Image, ImageError};
use super::kdump::{KdumpMemory, Locator, Stored};
use super::{Dump, Memory, Missing, PAGE_SIZE, PageFailure, ReadError};

const PAGE: usize = PAGE_SIZE as usize;
/// Pages that a thread takes at once, at most (1 MiB of memory) and at least.
const LARGEST_BATCH: usize = 256;
const SMALLEST_BATCH: usize = 16;
/// Pages for which a thread is worth starting, which costs as much as to decode some ten.
const PAGES_PER_THREAD: usize = 64;
/// Stored pages this close together are read in one go.
const MAX_GAP: u64 = 4096;
/// Bytes read in one go, at most.
const MAX_READ: u64 = 128 << 10;

/// What bulk reads of a dump share.
#[derive(Default)]
pub(super) struct Bulk {
    /// Threads that are at it now. Several callers at once do not start a thread for each CPU each.
    busy: AtomicUsize,
    /// Workers that rest: one for each CPU at most.
    workers: Mutex<Vec<Worker>>,
}

/// Reads `pfns[i]` into `out[i * 4096..]`.
pub(super) fn read_pages(dump: &Dump, pfns: &[u64], out: &mut [u8]) -> Vec<PageFailure> {
    let cpus = cpus();
    // Sixteen for each thread: when one is done, the others soon are.
    let batch = (pfns.len() / (16 * cpus)).clamp(SMALLEST_BATCH, LARGEST_BATCH);
    let failures = Mutex::new(Vec::new());
    let batches = Mutex::new(
        pfns.chunks(batch)
            .zip(out.chunks_mut(batch * PAGE))
            .enumerate(),
    );
    let bulk = &dump.bulk;
    let work = || {
        let mut worker = bulk.worker();
        loop {
            let next = batches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next();
            let Some((number, (pfns, out))) = next else {
                break;
            };
            worker.read_batch(dump, pfns, out);
            if !worker.failures.is_empty() {
                let mut all = failures.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend(worker.failures.drain(..).map(|mut failure| {
                    failure.index += number * batch;
                    failure
                }));
            }
        }
        bulk.rest(worker, cpus);
    };
    let busy = bulk.busy.fetch_add(1, Ordering::Relaxed) + 1;
    thread::scope(|scope| {
        let wanted = pfns.len() / PAGES_PER_THREAD;
        for _ in 1..wanted.min(cpus.saturating_sub(busy) + 1) {
            // Where no thread can be had, the others do its work.
            let _ = thread::Builder::new().spawn_scoped(scope, || {
                bulk.busy.fetch_add(1, Ordering::Relaxed);
                work();
                bulk.busy.fetch_sub(1, Ordering::Relaxed);
            });
        }
        work();
    });
    bulk.busy.fetch_sub(1, Ordering::Relaxed);
    let mut failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    failures.sort_unstable_by_key(|failure| failure.index);
    failures
}

/// CPUs that this process may use. Asking reads several files of /proc and /sys, so once.
fn cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
}

impl Bulk {
    fn worker(&self) -> Worker {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.pop().unwrap_or_default()
    }

    fn rest(&self, worker: Worker, most: usize) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if workers.len() < most {
            workers.push(worker);
        }
    }
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk")
            .field("busy", &self.busy)
            .finish_non_exhaustive()
    }
}

/// What a thread needs, kept from batch to batch: 512 KiB at most.
#[derive(Default)]
struct Worker {
    decoder: Decoder,
    locator: Locator,
    /// Where the pages of the batch stand, and their index in it.
    stored: Vec<(Stored, usize)>,
    /// Grows to [`MAX_READ`] and a page; never shrinks, so that it is zeroed once.
    bytes: Vec<u8>,
    failures: Vec<PageFailure>,
}

impl Worker {
    fn read_batch(&mut self, dump: &Dump, pfns: &[u64], out: &mut [u8]) {
        match &dump.memory {
            Memory::Elf(_) => self.read_plain(dump, pfns, out),
            Memory::Kdump(memory) => self.read_stored(&dump.image, memory, pfns, out),
        }
        for failure in &self.failures {
            out[failure.index * PAGE..][..PAGE].fill(0);
        }
    }

    /// Runs of neighbours in one read each; if that fails, page by page.
    fn read_plain(&mut self, dump: &Dump, pfns: &[u64], out: &mut [u8]) {
        let mut start = 0;
        for run in pfns.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let out = &mut out[start * PAGE..][..run.len() * PAGE];
            if dump.read_uncached(run[0], out).is_err() {
                for (i, (&pfn, page)) in run.iter().zip(out.chunks_exact_mut(PAGE)).enumerate() {
                    if let Err(error) = dump.read_uncached(pfn, page) {
                        self.failures.push(PageFailure {
                            index: start + i,
                            error,
                        });
                    }
                }
            }
            start += run.len();
        }
    }

    /// Stored pages in the order of the file, neighbours in one read, each decoded once.
    fn read_stored(&mut self, image: &Image, memory: &KdumpMemory, pfns: &[u64], out: &mut [u8]) {
        let (stored, failures) = (&mut self.stored, &mut self.failures);
        stored.clear();
        memory.locate_all(image, &mut self.locator, pfns, |index, found| match found {
            Ok(place) => stored.push((place, index)),
            Err(error) => failures.push(PageFailure { index, error }),
        });
        stored.sort_unstable_by_key(|(stored, index)| (stored.offset, *index));
        let stored = std::mem::take(&mut self.stored);
        let mut rest = &stored[..];
        while !rest.is_empty() {
            let plain = plain_run(rest);
            if plain > 1 {
                let (run, others) = rest.split_at(plain);
                let (place, index) = run[0];
                let pages = &mut out[index * PAGE..][..plain * PAGE];
                if image.read_at(place.offset, pages).is_ok() {
                    rest = others;
                    continue;
                }
            }
            let (group, others) = rest.split_at(group_len(rest));
            self.decode_group(image, group, pfns, out);
            rest = others;
        }
        self.stored = stored;
    }

    fn decode_group(
        &mut self,
        image: &Image,
        group: &[(Stored, usize)],
        pfns: &[u64],
        out: &mut [u8],
    ) {
        let start = group[0].0.offset;
        let end = group
            .iter()
            .map(|(s, _)| s.offset + s.size as u64)
            .max()
            .unwrap_or(start);
        let len = (end - start) as usize;
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        let together = image.read_at(start, &mut self.bytes[..len]).is_ok();
        let mut previous: Option<(Stored, usize)> = None;
        for &(stored, index) in group {
            if let Some((_, decoded)) = previous.filter(|(same, _)| *same == stored) {
                // All zero pages share one stored page.
                out.copy_within(decoded * PAGE..(decoded + 1) * PAGE, index * PAGE);
                continue;
            }
            let page = &mut out[index * PAGE..][..PAGE];
            let addr = pfns[index].saturating_mul(PAGE_SIZE);
            let bytes = &mut self.bytes[(stored.offset - start) as usize..][..stored.size];
            // A gap that cannot be read must not cost its neighbours.
            let read = if together {
                Ok(())
            } else {
                image.read_at(stored.offset, bytes)
            };
            let done = read
                .map_err(|e| match e {
                    ImageError::Absent(_) => ReadError::Missing {
                        addr,
                        why: Missing::Truncated,
                    },
                    ImageError::Io(e) => ReadError::Io {
                        addr,
                        offset: stored.offset,
                        source: e.into(),
                    },
                })
                .and_then(|()| decode(&mut self.decoder, stored, addr, bytes, page));
            match done {
                Ok(()) => previous = Some((stored, index)),
                Err(error) => self.failures.push(PageFailure { index, error }),
            }
        }
    }
}

/// How many pages at the front are uncompressed and follow each other both in the file and in the
/// list, so that they can be read to where they belong.
fn plain_run(stored: &[(Stored, usize)]) -> usize {
    let is_plain = |stored: &Stored| stored.codec == Codec::Raw && stored.size == PAGE;
    let Some((first, at)) = stored.first().filter(|(first, _)| is_plain(first)) else {
        return 0;
    };
    stored
        .iter()
        .enumerate()
        .take_while(|(i, (stored, index))| {
            is_plain(stored)
                && stored.offset == first.offset + (i * PAGE) as u64
                && *index == at + i
        })
        .count()
}

/// How many pages at the front are to be read together.
fn group_len(stored: &[(Stored, usize)]) -> usize {
    let start = stored.first().map_or(0, |(first, _)| first.offset);
    let mut end = start;
    stored
        .iter()
        .take_while(|(next, _)| {
            let last = next.offset + next.size as u64;
            let near = end == start || (next.offset <= end + MAX_GAP && last - start <= MAX_READ);
            end = if near { end.max(last) } else { end };
            near
        })
        .count()
}

/// Decodes one stored page.
pub(super) fn decode(
    decoder: &mut Decoder,
    stored: Stored,
    addr: u64,
    bytes: &[u8],
    page: &mut [u8],
) -> Result<(), ReadError> {
    decoder
        .decode(stored.codec, bytes, page)
        .map_err(|what| ReadError::Corrupt {
            addr,
            offset: stored.offset,
            what,
        })
}
