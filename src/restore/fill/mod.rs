//! Page contents, from wherever they are into the stub, by several threads.

mod direct;
mod pieces;

use super::RestoreError;
use super::address_space::is_filled;
use super::error::Context;
use super::huge_pages::Mapped;
use super::lazy::Plan;
use super::stub::Stub;
use crate::dataset::{MappingKind, PageContent, PageRun, PageSource, Process, SharedMemory};
use crate::sys::interrupt;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use pieces::{BATCH, Piece, split};
use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PAGE: usize = 4096;

/// How far the filling of memory has come. Bytes.
#[derive(Debug, Default)]
pub struct Progress {
    /// Read and written so far.
    pub done: AtomicU64,
    /// Of so many.
    pub total: AtomicU64,
}

/// Where pages go to.
enum Sink<'a> {
    /// Private memory of a process on this host.
    Process(i32),
    /// A memory file.
    File(&'a File),
    /// A memory file in huge pages.
    Mapped(Mapped),
}

/// Why the dump has not got a run's content; `None`: it has.
pub fn missing(run: &PageRun) -> Option<&'static str> {
    match run.content {
        PageContent::Filtered => Some("filtered"),
        PageContent::Truncated => Some("truncated"),
        PageContent::Corrupt => Some("corrupt"),
        PageContent::OutOfReach => Some("out of reach"),
        _ => None,
    }
}

/// Bytes that [`process`] will move.
pub fn bytes_of(process: &Process, later: &Plan) -> u64 {
    process
        .mm
        .vmas
        .iter()
        .filter(|v| is_filled(v) && !later.has(process, v))
        .flat_map(|v| &v.pages)
        .filter(|run| !matches!(run.content, PageContent::Zero | PageContent::InPlace(_)))
        .map(|run| run.count.saturating_mul(PAGE as u64))
        .sum()
}

/// Fills the private memory of a stub, but for what arrives later.
///
/// # Errors
/// A page that cannot be read or written; Ctrl-C.
pub fn process(
    stub: &mut Stub<'_>,
    later: &Plan,
    pages: &dyn PageSource,
    guard: &interrupt::Guard,
    progress: Option<&Progress>,
) -> Result<(), RestoreError> {
    let process = stub.process;
    let pieces = || {
        let vmas = process.mm.vmas.iter();
        let runs = vmas
            .filter(|v| is_filled(v) && !later.has(process, v))
            .flat_map(|vma| {
                let zero_already = matches!(vma.kind, MappingKind::Anonymous { .. });
                vma.pages.iter().map(move |run| (run, zero_already))
            });
        split(runs)
    };
    let direct = direct::fill(stub, pieces(), pages, guard, progress)?;
    run(
        process.pid,
        pieces().filter(|piece| !direct || !direct::takes(piece, pages)),
        &Sink::Process(stub.pid),
        pages,
        guard,
        progress,
    )
}

/// Fills a shared memory.
///
/// # Errors
/// As [`process`].
pub fn memory(
    pid: i32,
    memory: &SharedMemory,
    file: &File,
    pages: &dyn PageSource,
    guard: &interrupt::Guard,
    progress: Option<&Progress>,
) -> Result<(), RestoreError> {
    let runs = memory.pages.iter().map(|run| (run, true));
    let sink = match is_huge(file) {
        true => Sink::Mapped(Mapped::new(file, memory.size).during(pid, || {
            format!("map the memory {:?}, which is in huge pages", memory.name)
        })?),
        false => Sink::File(file),
    };
    run(pid, split(runs), &sink, pages, guard, progress)
}

/// Fills a shared memory page by page, through a mapping: its file keeps the
/// length that it has, and what is behind that in its last page is filled too.
///
/// # Errors
/// As [`process`].
pub fn whole_pages(
    pid: i32,
    memory: &SharedMemory,
    file: &File,
    pages: &dyn PageSource,
    guard: &interrupt::Guard,
    progress: Option<&Progress>,
) -> Result<(), RestoreError> {
    let page = memory.huge_page.max(PAGE as u64);
    let size = memory.size.checked_next_multiple_of(page).unwrap_or(0);
    let mapped =
        Mapped::new(file, size).during(pid, || format!("map the memory {:?}", memory.name))?;
    let runs = memory.pages.iter().map(|run| (run, true));
    run(
        pid,
        split(runs),
        &Sink::Mapped(mapped),
        pages,
        guard,
        progress,
    )
}

/// A file in huge pages.
fn is_huge(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.blksize() > PAGE as u64)
}

fn run<'a>(
    pid: i32,
    pieces: impl Iterator<Item = Piece<'a>> + Send,
    sink: &Sink<'_>,
    pages: &dyn PageSource,
    guard: &interrupt::Guard,
    progress: Option<&Progress>,
) -> Result<(), RestoreError> {
    let queue = Mutex::new(pieces.peekable());
    let failure: Mutex<Option<RestoreError>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(16));
    let fail = |e| {
        stop.store(true, Ordering::Relaxed);
        if let Ok(mut slot) = failure.lock() {
            slot.get_or_insert(e);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut buffer = vec![0u8; BATCH as usize * PAGE];
                while !stop.load(Ordering::Relaxed) {
                    if guard.interrupted() {
                        return fail(RestoreError::Interrupted);
                    }
                    let mut batch = Vec::new();
                    let mut total = 0;
                    if let Ok(mut queue) = queue.lock() {
                        while let Some(piece) = queue.next_if(|p| total + p.count <= BATCH) {
                            total += piece.count;
                            batch.push(piece);
                        }
                    }
                    if batch.is_empty() {
                        return;
                    }
                    let moved = match batch.as_slice() {
                        [one] => one.parts().try_for_each(|part| {
                            move_batch(pid, &[part], &mut buffer, sink, pages)
                        }),
                        all => move_batch(pid, all, &mut buffer, sink, pages),
                    };
                    if let Err(e) = moved {
                        return fail(e);
                    }
                    if let Some(progress) = progress {
                        progress
                            .done
                            .fetch_add(total * PAGE as u64, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(e)) => Err(e),
        _ => Ok(()),
    }
}

/// Reads a batch and writes it, without the pages that are zero already.
fn move_batch(
    pid: i32,
    batch: &[Piece<'_>],
    buffer: &mut [u8],
    sink: &Sink<'_>,
    pages: &dyn PageSource,
) -> Result<(), RestoreError> {
    let mut from = 0;
    for piece in batch {
        let len = piece.count as usize * PAGE;
        let Some(part) = buffer.get_mut(from..from + len) else {
            break;
        };
        pages
            .read_pages(piece.run, piece.first, piece.count, part)
            .map_err(|source| RestoreError::Page { pid, source })?;
        from += len;
    }
    // Stretches (offset in the buffer, address there, bytes) to be written.
    let mut stretches: Vec<(usize, u64, usize)> = Vec::new();
    let mut from = 0;
    for piece in batch {
        for page in 0..piece.count {
            let to = piece.run.start + (piece.first + page) * PAGE as u64;
            let bytes = buffer.get(from..from + PAGE).unwrap_or_default();
            if !(piece.zero_already && is_zero(bytes)) {
                match stretches.last_mut() {
                    Some((at, address, len))
                        if *at + *len == from && *address + *len as u64 == to =>
                    {
                        *len += PAGE;
                    }
                    _ => stretches.push((from, to, PAGE)),
                }
            }
            from += PAGE;
        }
    }
    if stretches.is_empty() {
        return Ok(());
    }
    match sink {
        Sink::File(file) => {
            for (at, offset, len) in stretches {
                let bytes = buffer.get(at..at + len).unwrap_or_default();
                file.write_all_at(bytes, offset)
                    .map_err(|source| RestoreError::Host {
                        pid,
                        what: format!("write shared memory at {offset:#x}"),
                        source,
                    })?;
            }
        }
        Sink::Mapped(memory) => {
            for (at, offset, len) in stretches {
                let bytes = buffer.get(at..at + len).unwrap_or_default();
                memory.write(bytes, offset).during(pid, || {
                    format!("write shared memory in huge pages at {offset:#x}")
                })?;
            }
        }
        Sink::Process(live_pid) => {
            let local: Vec<IoSlice<'_>> = stretches
                .iter()
                .map(|(at, _, len)| IoSlice::new(buffer.get(*at..at + len).unwrap_or_default()))
                .collect();
            let remote: Vec<RemoteIoVec> = stretches
                .iter()
                .map(|(_, base, len)| RemoteIoVec {
                    base: usize::try_from(*base).unwrap_or(0),
                    len: *len,
                })
                .collect();
            let total: usize = stretches.iter().map(|s| s.2).sum();
            let written = process_vm_writev(Pid::from_raw(*live_pid), &local, &remote);
            if written != Ok(total) {
                let source = match written {
                    Err(errno) => errno.into(),
                    Ok(n) => std::io::Error::other(format!("{n} of {total} bytes were taken")),
                };
                let first = stretches.first().map_or(0, |s| s.1);
                return Err(RestoreError::Host {
                    pid,
                    what: format!("write its memory at {first:#x} (out of memory?)"),
                    source,
                });
            }
        }
    }
    Ok(())
}

fn is_zero(page: &[u8]) -> bool {
    // Chunks of words: the compiler makes vector instructions of it.
    page.chunks(64)
        .all(|chunk| chunk.iter().fold(0u8, |acc, b| acc | b) == 0)
}
