//! Many whole pages at once, decoded on all CPUs, past the page cache: the way guest memory goes.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::codec::Decoder;
use super::image::{Image, ImageError};
use super::kdump::{KdumpMemory, Rank, Stored};
use super::{Dump, Memory, Missing, PAGE_SIZE, PageFailure, ReadError};

const PAGE: usize = PAGE_SIZE as usize;
/// Pages that a thread takes at once: 1 MiB of memory.
const BATCH: usize = 256;
/// Stored pages this close together are read in one go.
const MAX_GAP: u64 = 4096;

/// Reads `pfns[i]` into `out[i * 4096..]`.
pub(super) fn read_pages(dump: &Dump, pfns: &[u64], out: &mut [u8]) -> Vec<PageFailure> {
    let failures = Mutex::new(Vec::new());
    let batches = Mutex::new(
        pfns.chunks(BATCH)
            .zip(out.chunks_mut(BATCH * PAGE))
            .enumerate(),
    );
    let work = || {
        let mut worker = Worker::new();
        loop {
            let next = batches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next();
            let Some((batch, (pfns, out))) = next else {
                break;
            };
            worker.read_batch(dump, pfns, out);
            if !worker.failures.is_empty() {
                let mut all = failures.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend(worker.failures.drain(..).map(|mut failure| {
                    failure.index += batch * BATCH;
                    failure
                }));
            }
        }
    };
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 1..cpus.min(pfns.len().div_ceil(BATCH)) {
            // Where no thread can be had, the others do its work.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    failures.sort_unstable_by_key(|failure| failure.index);
    failures
}

/// What a thread needs, kept from batch to batch.
struct Worker {
    decoder: Decoder,
    rank: Rank,
    /// Where the pages of the batch stand, and their index in it.
    stored: Vec<(Stored, usize)>,
    bytes: Vec<u8>,
    failures: Vec<PageFailure>,
}

impl Worker {
    fn new() -> Worker {
        Worker {
            decoder: Decoder::new(),
            rank: Rank::default(),
            stored: Vec::with_capacity(BATCH),
            bytes: Vec::new(),
            failures: Vec::new(),
        }
    }

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
        self.stored.clear();
        for (index, &pfn) in pfns.iter().enumerate() {
            match memory.locate(image, &mut self.rank, pfn) {
                Ok(stored) => self.stored.push((stored, index)),
                Err(error) => self.failures.push(PageFailure { index, error }),
            }
        }
        self.stored
            .sort_unstable_by_key(|(stored, index)| (stored.offset, *index));
        let stored = std::mem::take(&mut self.stored);
        for group in
            stored.chunk_by(|(a, _), (b, _)| b.offset <= a.offset + a.size as u64 + MAX_GAP)
        {
            self.decode_group(image, group, pfns, out);
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
        self.bytes.resize((end - start) as usize, 0);
        let together = image.read_at(start, &mut self.bytes).is_ok();
        let mut previous: Option<(Stored, usize)> = None;
        for &(stored, index) in group {
            if let Some((same, decoded)) = previous.filter(|(same, _)| *same == stored) {
                debug_assert_eq!(same.offset, stored.offset);
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
