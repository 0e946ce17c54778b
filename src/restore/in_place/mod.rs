//! Guests that go on where their memory lies: in kdump's capture kernel, whose own memory is a small
//! reserve, all that the dead kernel had still stands. What the dataset says is
//! [`PageContent::InPlace`] is mapped from `/dev/mem`, writable, and neither read nor copied.
//!
//! `host` says whether this kernel leaves that memory alone, `map` puts it into a stub, `room` says
//! whether there is memory for the rest, `direct_io` what such memory cannot be used for.

mod direct_io;
mod host;
mod map;
mod room;

pub use direct_io::without_direct_io;
pub use host::{check_frames, check_unmapped, is_capture_kernel, listed, mapped};
pub(super) use map::map;
pub use room::{check_room, copied};

use super::RestoreError;
use crate::dataset::{Dataset, PageContent, PageRun};
use std::ops::Range;

/// Bytes in a page.
const PAGE: u64 = 4096;

/// All page frames that a dataset uses in place, in order.
///
/// # Errors
/// One of them is used twice.
pub fn frames(dataset: &Dataset) -> Result<Vec<Range<u64>>, RestoreError> {
    let mut found: Vec<Range<u64>> = runs(dataset).map(|(_, frames)| frames).collect();
    found.sort_unstable_by_key(|frames| frames.start);
    let twice = found.windows(2).find(|pair| match pair {
        [first, second] => second.start < first.end,
        _ => false,
    });
    match twice {
        Some(pair) => Err(RestoreError::Malformed {
            pid: dataset.processes.first().map_or(0, |p| p.pid),
            what: format!("page frame {:#x}", pair[1].start),
            why: "it is in place twice".into(),
        }),
        None => Ok(found),
    }
}

/// Refuses frames in place where nobody has asked for that: what says so may be a file from anywhere.
///
/// # Errors
/// There are some.
pub(super) fn refuse_unasked(dataset: &Dataset) -> Result<(), RestoreError> {
    match runs(dataset).next() {
        None => Ok(()),
        Some((run, _)) => Err(RestoreError::Malformed {
            pid: dataset.processes.first().map_or(0, |p| p.pid),
            what: format!("the pages at {:#x} (+{})", run.start, run.count),
            why: "they are in place, in the memory of another host".into(),
        }),
    }
}

fn runs(dataset: &Dataset) -> impl Iterator<Item = (PageRun, Range<u64>)> {
    let vmas = dataset.processes.iter().flat_map(|p| &p.mm.vmas);
    vmas.flat_map(|vma| &vma.pages)
        .chain(dataset.shared_memory.iter().flat_map(|m| &m.pages))
        .filter_map(|run| match run.content {
            PageContent::InPlace(pfn) => Some((*run, pfn..pfn.saturating_add(run.count))),
            _ => None,
        })
}
