//! A process's memory and registers as an ELF core, as the kernel would have
//! written it: what gdb opens.
//!
//! A segment for each mapping, in pieces where some of it has no bytes in the
//! core: pages of files that were in no page cache (gdb takes them from those
//! files, which the notes name), what was never touched, and what is missing
//! from the dump. Pages of zeros are holes in the file.

use super::contents::Contents;
use super::elf::{Segment, head};
use super::process_notes;
use super::unfinished::Unfinished;
use super::{CoreError, PAGE};
use crate::dataset::{
    Dataset, MappingKind, ObjectId, PageContent, PageRun, PageSource, Process, Thread, Vma,
};
use crate::sys::interrupt;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Longer stretches that nobody ever touched take no room even as a hole: a
/// file has its limits. Bytes.
const LONGEST_HOLE: u64 = 1 << 30;

/// Pages of files that the dead kernel's page cache had, by offset.
pub type CachedFiles = HashMap<ObjectId, Vec<PageRun>>;

/// What was written.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ProcessWritten {
    /// Of the process's memory. Bytes.
    pub memory_bytes: u64,
    /// Of these, zeros, which take no space.
    pub zero_bytes: u64,
    /// In files that it had mapped, and not in the core. Bytes.
    pub in_files_bytes: u64,
    /// Missing from the dump, by reason. Bytes.
    pub missing: Vec<(String, u64)>,
    /// Threads whose registers are in it.
    pub threads: usize,
    /// IDs of those whose FPU registers are older than the rest.
    pub stale_fpu: Vec<i32>,
}

/// What a piece of a mapping holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    Pages {
        run: PageRun,
        first: u64,
    },
    Zero,
    InFile,
    Missing(&'static str),
    /// Nothing that a core has: devices, the kernel's own pages.
    Nothing,
}

/// A piece of a mapping. Bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    start: u64,
    len: u64,
    content: Content,
}

impl Piece {
    fn in_core(&self) -> bool {
        matches!(self.content, Content::Pages { .. } | Content::Zero)
    }
}

/// Writes the core. Into a file beside `path` first, which takes its name when
/// it is whole and on the disk. `replace`: a file of that name goes.
///
/// # Errors
/// See [`CoreError`]. Nothing is left of what was not finished.
pub fn write_process(
    dataset: &Dataset,
    process: &Process,
    cached: &CachedFiles,
    pages: &dyn PageSource,
    path: &Path,
    replace: bool,
    guard: &interrupt::Guard,
) -> Result<ProcessWritten, CoreError> {
    if !replace && path.symlink_metadata().is_ok() {
        return Err(CoreError::Exists { path: path.into() });
    }
    let stale = |thread: &&Thread| thread.fpu_stale;
    let mut written = ProcessWritten {
        memory_bytes: 0,
        zero_bytes: 0,
        in_files_bytes: 0,
        missing: Vec::new(),
        threads: process.threads.len(),
        stale_fpu: process
            .threads
            .iter()
            .filter(stale)
            .map(|t| t.tid)
            .collect(),
    };
    let mut missing = BTreeMap::new();
    let mut segments: Vec<Segment> = Vec::new();
    let mut all = Vec::new();
    for vma in &process.mm.vmas {
        let pieces = pieces(dataset, vma, cached);
        for piece in &pieces {
            match piece.content {
                Content::InFile => add(&mut written.in_files_bytes, piece.len),
                Content::Missing(why) => add(missing.entry(why).or_default(), piece.len),
                Content::Pages { .. } | Content::Zero => add(&mut written.memory_bytes, piece.len),
                Content::Nothing => {}
            }
        }
        extend(&mut segments, vma, &pieces);
        all.extend(pieces.into_iter().filter(Piece::in_core));
    }
    written.missing = missing
        .into_iter()
        .map(|(why, len): (&str, u64)| (why.to_owned(), len))
        .collect();
    let head = head(&segments, &process_notes::notes(dataset, process));
    let unfinished = Unfinished::create(path)?;
    written.zero_bytes = fill(&unfinished, &head, &all, pages, guard)?;
    unfinished.finish(replace)?;
    Ok(written)
}

fn add(to: &mut u64, len: u64) {
    *to = to.saturating_add(len);
}

/// Segments of a mapping: neighbours that are both in the core, or both not, are one.
fn extend(segments: &mut Vec<Segment>, vma: &Vma, pieces: &[Piece]) {
    let mut last = None;
    for piece in pieces {
        let in_core = piece.in_core();
        let in_file = if in_core { piece.len } else { 0 };
        match segments.last_mut().filter(|_| last == Some(in_core)) {
            Some(segment) => {
                segment.len = segment.len.saturating_add(piece.len);
                segment.in_file = segment.in_file.saturating_add(in_file);
            }
            None => segments.push(Segment {
                virtual_address: piece.start,
                physical_address: 0,
                // VM_READ, VM_WRITE, VM_EXEC are the same bits the other way round.
                flags: [4, 2, 1]
                    .iter()
                    .zip(0..)
                    .filter(|(_, bit)| vma.flags >> bit & 1 != 0)
                    .map(|(flag, _)| flag)
                    .sum(),
                in_file,
                len: piece.len,
                align: PAGE,
            }),
        }
        last = Some(in_core);
    }
}

/// Pages with the address at which a mapping shows them.
#[derive(Clone, Copy)]
struct Placed {
    address: u64,
    run: PageRun,
}

/// A mapping from end to end.
fn pieces(dataset: &Dataset, vma: &Vma, cached: &CachedFiles) -> Vec<Piece> {
    let own: Vec<Placed> = vma
        .pages
        .iter()
        .map(|run| Placed {
            address: run.start,
            run: *run,
        })
        .collect();
    let at_offset = |runs: &[PageRun], offset: u64| -> Vec<Placed> {
        let placed = |run: &PageRun| {
            // What lies before the mapping's begin is cut off.
            let skip = offset
                .saturating_sub(run.start)
                .div_ceil(PAGE)
                .min(run.count);
            let run = part(run, skip, run.count - skip)?;
            Some(Placed {
                address: vma.start.checked_add(run.start.checked_sub(offset)?)?,
                run,
            })
        };
        runs.iter().filter_map(placed).collect()
    };
    let mut clean = Vec::new();
    let (below, rest) = match &vma.kind {
        MappingKind::Anonymous { .. } if vma.pages.is_empty() => (Vec::new(), Content::Nothing),
        MappingKind::Anonymous { .. } => (Vec::new(), Content::Zero),
        MappingKind::Shared { memory, offset } => {
            let memory = dataset.shared_memory.iter().find(|m| m.id == *memory);
            let runs = memory.map_or(&[][..], |m| &m.pages);
            (at_offset(runs, *offset), Content::Zero)
        }
        MappingKind::File { inode, offset, .. } => {
            clean = at_offset(cached.get(inode).map_or(&[][..], Vec::as_slice), *offset);
            let runs = dataset.inode(*inode).map_or(&[][..], |i| &i.dirty);
            (at_offset(runs, *offset), Content::InFile)
        }
        _ => (Vec::new(), Content::Nothing),
    };
    let mut out = Vec::new();
    lay(&mut out, vma.start, vma.end, &[&own, &below, &clean], rest);
    out
}

/// Some pages of a run.
fn part(run: &PageRun, first: u64, count: u64) -> Option<PageRun> {
    if count == 0 {
        return None;
    }
    let content = match run.content {
        PageContent::Frame(pfn) => PageContent::Frame(pfn.checked_add(first)?),
        PageContent::Stored(at) => PageContent::Stored(at.checked_add(first.checked_mul(PAGE)?)?),
        PageContent::Swap { area, offset } => PageContent::Swap {
            area,
            offset: offset.checked_add(first)?,
        },
        other => other,
    };
    Some(PageRun {
        start: run.start.checked_add(first.checked_mul(PAGE)?)?,
        count,
        content,
    })
}

/// Fills a range from the layers, the upper one first, and where none has anything with `rest`.
fn lay(out: &mut Vec<Piece>, start: u64, end: u64, layers: &[&[Placed]], rest: Content) {
    let Some((upper, lower)) = layers.split_first() else {
        if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
            let content = match rest {
                Content::Zero if len > LONGEST_HOLE => Content::Nothing,
                other => other,
            };
            out.push(Piece {
                start,
                len,
                content,
            });
        }
        return;
    };
    let mut at = start;
    for placed in *upper {
        // Runs that lie otherwise than they should are a damaged dump's.
        let skip = at.saturating_sub(placed.address).div_ceil(PAGE);
        let first = placed.address.saturating_add(skip.saturating_mul(PAGE));
        let Some(left) = placed.run.count.checked_sub(skip) else {
            continue;
        };
        let room = end.saturating_sub(first) / PAGE;
        let count = left.min(room);
        if count == 0 {
            continue;
        }
        lay(out, at, first, lower, rest);
        out.push(Piece {
            start: first,
            len: count * PAGE,
            content: content(&placed.run, skip),
        });
        at = first + count * PAGE;
    }
    lay(out, at, end, lower, rest);
}

fn content(run: &PageRun, first: u64) -> Content {
    match run.content {
        PageContent::Zero => Content::Zero,
        PageContent::Filtered => Content::Missing("makedumpfile left it out"),
        PageContent::Truncated => Content::Missing("the dump ends before it"),
        PageContent::Corrupt => Content::Missing("it is damaged"),
        PageContent::OutOfReach => Content::Missing("it was swapped out, out of reach"),
        _ => Content::Pages { run: *run, first },
    }
}

/// Writes everything; how many bytes were zeros.
fn fill(
    file: &Unfinished<'_>,
    head: &[u8],
    pieces: &[Piece],
    pages: &dyn PageSource,
    guard: &interrupt::Guard,
) -> Result<u64, CoreError> {
    file.write(head, 0)?;
    let (mut at, mut zeros) = (head.len() as u64, 0);
    let mut contents = Contents::new(file, pages, guard);
    for piece in pieces {
        let Content::Pages { run, first } = piece.content else {
            add(&mut zeros, piece.len);
            add(&mut at, piece.len);
            continue;
        };
        let copied = contents.copy(&run, first, piece.len / PAGE, at)?;
        add(&mut zeros, copied);
        add(&mut at, piece.len);
    }
    file.set_len(at)?;
    Ok(zeros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u64, content: PageContent) -> PageRun {
        PageRun {
            start,
            count,
            content,
        }
    }

    fn placed(address: u64, count: u64, content: PageContent) -> Placed {
        Placed {
            address,
            run: run(address, count, content),
        }
    }

    fn kinds(pieces: &[Piece]) -> Vec<(u64, u64, char)> {
        let kind = |piece: &Piece| match piece.content {
            Content::Pages { .. } => 'p',
            Content::Zero => '0',
            Content::InFile => 'f',
            Content::Missing(_) => 'm',
            Content::Nothing => ' ',
        };
        let piece = |p: &Piece| (p.start, p.len / PAGE, kind(p));
        pieces.iter().map(piece).collect()
    }

    #[test]
    fn layers_lie_over_each_other() {
        let upper = [placed(0x3000, 1, PageContent::Frame(7))];
        let lower = [
            placed(0x2000, 3, PageContent::Frame(20)),
            placed(0x6000, 9, PageContent::Filtered),
        ];
        let mut out = Vec::new();
        lay(&mut out, 0x1000, 0x8000, &[&upper, &lower], Content::InFile);
        assert_eq!(
            kinds(&out),
            [
                (0x1000, 1, 'f'),
                (0x2000, 1, 'p'),
                (0x3000, 1, 'p'),
                (0x4000, 1, 'p'),
                (0x5000, 1, 'f'),
                (0x6000, 2, 'm'),
            ]
        );
        // The part behind the upper page is the lower run's third page.
        assert!(matches!(out[3].content, Content::Pages { first: 2, .. }));
    }

    #[test]
    fn a_damaged_order_of_runs_does_no_harm() {
        let bad = [
            placed(0x3000, u64::MAX, PageContent::Frame(1)),
            placed(0x2000, 1, PageContent::Frame(2)),
            placed(u64::MAX - 0xfff, 1, PageContent::Frame(3)),
        ];
        let mut out = Vec::new();
        lay(&mut out, 0x1000, 0x5000, &[&bad], Content::Zero);
        assert_eq!(kinds(&out), [(0x1000, 2, '0'), (0x3000, 2, 'p')]);
    }

    #[test]
    fn a_run_is_cut() {
        let cut = |first, count| part(&run(0, 9, PageContent::Stored(0x5000)), first, count);
        assert_eq!(cut(2, 3), Some(run(0x2000, 3, PageContent::Stored(0x7000))));
        assert_eq!(cut(2, 0), None);
    }
}
