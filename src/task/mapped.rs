//! Pages as a mapping has them: parts of page table entries, and a file's pages by address.

use super::inode::Runs;
use super::page_frame::Frames;
use crate::dataset::{PageContent, PageRun};
use crate::dump::Missing;
use crate::kernel::{KernelError, Mapping};

/// Bytes in a page.
const PAGE: u64 = 4096;

/// The part of a page table entry that is within `start..end`: its first
/// address, its pages, and how many of the entry's pages stand before it.
pub(super) fn clip(mapping: &Mapping, start: u64, end: u64) -> Option<(u64, u64, u64)> {
    let first = mapping.va.max(start);
    let last = mapping.va.saturating_add(mapping.len).min(end);
    (first < last).then(|| (first, (last - first) / PAGE, (first - mapping.va) / PAGE))
}

pub(super) fn push_frames(runs: &mut Runs, frames: &Frames<'_>, at: u64, count: u64, first: u64) {
    let mut done = 0;
    while done < count {
        let (content, same) = frames.contents(first.wrapping_add(done), count - done);
        runs.push_many(at.wrapping_add(done * PAGE), same, content);
        done += same;
    }
}

/// Pages next to each other whose frames are, too: what is to be known of them is asked once.
#[derive(Default)]
pub(super) struct Together {
    va: u64,
    count: u64,
    first: u64,
}

impl Together {
    /// Takes `count` pages at `va` in, whose frames begin at `first`; those before them, if they do not
    /// come right behind, go to the runs.
    pub fn add(
        &mut self,
        runs: &mut Runs,
        frames: &Frames<'_>,
        (va, count, first): (u64, u64, u64),
    ) {
        let behind = self.va.wrapping_add(self.count.wrapping_mul(PAGE)) == va
            && self.first.wrapping_add(self.count) == first;
        if self.count > 0 && behind {
            self.count = self.count.saturating_add(count);
        } else {
            self.push(runs, frames);
            *self = Self { va, count, first };
        }
    }

    /// Puts them to the runs, and has none then.
    pub fn push(&mut self, runs: &mut Runs, frames: &Frames<'_>) {
        push_frames(runs, frames, self.va, self.count, self.first);
        self.count = 0;
    }
}

/// Why a page table's pages have no content.
pub(super) fn unreadable(error: &KernelError) -> PageContent {
    match error {
        KernelError::Memory { source, .. } => match source.missing() {
            Some(Missing::Truncated) => PageContent::Truncated,
            Some(_) => PageContent::Filtered,
            None => PageContent::Corrupt,
        },
        _ => PageContent::Corrupt,
    }
}

/// Runs by file offset as runs by address of a mapping of `offset` at `start`.
pub(super) fn shift(runs: &[PageRun], offset: u64, start: u64, end: u64) -> Vec<PageRun> {
    let mut out = Vec::new();
    for run in runs {
        let run_end = run.start.saturating_add(run.count.saturating_mul(PAGE));
        let first = run.start.max(offset);
        let last = run_end.min(offset.saturating_add(end - start));
        if first >= last {
            continue;
        }
        let skipped = (first - run.start) / PAGE;
        out.push(PageRun {
            start: start.wrapping_add(first - offset),
            count: (last - first) / PAGE,
            content: match run.content {
                PageContent::Frame(pfn) => PageContent::Frame(pfn.wrapping_add(skipped)),
                PageContent::Swap { area, offset } => PageContent::Swap {
                    area,
                    offset: offset.wrapping_add(skipped),
                },
                other => other,
            },
        });
    }
    out
}
