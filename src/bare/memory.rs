//! A guest's memory in this process: mapped afresh, filled from the dump by
//! all CPUs. Pages of zeros are not touched, so they take no memory here.

use super::BareError;
use crate::dataset::{Area, GuestMemory, PageRun, PageSource, StretchContent};
use crate::sys::interrupt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

const PAGE: usize = 4096;
/// Pages that are read at once.
const BATCH: u64 = 512;

/// Maps memory for each area; nothing of it is there yet.
///
/// # Errors
/// This host has not got the address space.
pub fn map(memory: &GuestMemory<'_>) -> Result<Vec<MmapRegion>, BareError> {
    memory
        .areas
        .iter()
        .map(|area| {
            let too_large = |why: String| BareError::Memory {
                bytes: area.len,
                why,
            };
            let len = usize::try_from(area.len).map_err(|e| too_large(e.to_string()))?;
            MmapRegion::new(len).map_err(|e| too_large(e.to_string()))
        })
        .collect()
}

/// A part of a run, and where it goes to.
struct Piece<'d> {
    run: &'d PageRun,
    first: u64,
    count: u64,
    area: usize,
    offset: u64,
}

/// Fills the areas; what is missing stays zero.
///
/// # Errors
/// A page that cannot be read; Ctrl-C.
pub fn fill(
    memory: &GuestMemory<'_>,
    regions: &[MmapRegion],
    pages: &dyn PageSource,
    guard: &interrupt::Guard,
) -> Result<(), BareError> {
    let queue = Mutex::new(
        memory
            .areas
            .iter()
            .enumerate()
            .flat_map(|(n, a)| split(n, a)),
    );
    let failure: Mutex<Option<BareError>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(16));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut buffer = vec![0; BATCH as usize * PAGE];
                while !stop.load(Ordering::Relaxed) {
                    let Some(piece) = queue.lock().ok().and_then(|mut queue| queue.next()) else {
                        return;
                    };
                    let moved = match guard.interrupted() {
                        true => Err(BareError::Interrupted),
                        false => move_piece(&piece, regions, pages, &mut buffer),
                    };
                    if let Err(error) = moved {
                        stop.store(true, Ordering::Relaxed);
                        if let Ok(mut slot) = failure.lock() {
                            slot.get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

/// The pieces of an area, each of a batch at most.
fn split<'d>(area: usize, of: &'d Area<'d>) -> impl Iterator<Item = Piece<'d>> + Send {
    of.stretches.iter().flat_map(move |stretch| {
        let (run, first) = match stretch.content {
            StretchContent::Pages { run, first } => (Some(run), first),
            _ => (None, 0),
        };
        let pages = stretch.len / PAGE as u64;
        run.into_iter().flat_map(move |run| {
            (0..pages).step_by(BATCH as usize).map(move |at| Piece {
                run,
                first: first + at,
                count: BATCH.min(pages - at),
                area,
                offset: stretch.at + at * PAGE as u64,
            })
        })
    })
}

fn move_piece(
    piece: &Piece<'_>,
    regions: &[MmapRegion],
    pages: &dyn PageSource,
    buffer: &mut [u8],
) -> Result<(), BareError> {
    let buffer = buffer
        .get_mut(..piece.count as usize * PAGE)
        .unwrap_or_default();
    pages
        .read_pages(piece.run, piece.first, piece.count, buffer)
        .map_err(BareError::Page)?;
    for (page, offset) in buffer.chunks(PAGE).zip((piece.offset..).step_by(PAGE)) {
        if page.iter().all(|byte| *byte == 0) {
            continue;
        }
        let place: Option<VolatileSlice<'_>> = regions
            .get(piece.area)
            .zip(usize::try_from(offset).ok())
            .and_then(|(region, offset)| region.get_slice(offset, PAGE).ok());
        if let Some(place) = place {
            place.copy_from(page);
        }
    }
    Ok(())
}
