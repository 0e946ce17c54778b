//! What can be known to fail before anything is made.

use super::address_space::is_filled;
use super::error::Context;
use super::maps::TASK_SIZE;
use super::{RestoreError, aio, disks, fill, vma_flags, volatile_files};
use crate::dataset::{
    Dataset, Fidelity, FidelityLevel, Inode, InodeKind, MappingKind, PageContent, PageRun, Process,
};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const PAGE: u64 = 4096;

/// Checks a dataset against itself and this host's files.
///
/// # Errors
/// The first thing that makes a restore impossible.
pub fn check(dataset: &Dataset) -> Result<(), RestoreError> {
    for memory in &dataset.shared_memory {
        let pid = dataset.processes.first().map_or(0, |p| p.pid);
        let end = memory.size.checked_next_multiple_of(PAGE).unwrap_or(0);
        within(pid, &memory.pages, 0, end)?;
        refuse_missing(pid, memory.pages.iter())?;
    }
    for inode in volatile_files::of(dataset) {
        let pid = dataset.processes.first().map_or(0, |p| p.pid);
        let end = inode.size.checked_next_multiple_of(PAGE).unwrap_or(0);
        within(pid, &inode.dirty, 0, end)?;
        refuse_missing(pid, inode.dirty.iter())?;
    }
    for process in &dataset.processes {
        shape(process)?;
        arrived(process)?;
        aio::check(process)?;
        refuse_missing(
            process.pid,
            process
                .mm
                .vmas
                .iter()
                .filter(|v| is_filled(v))
                .flat_map(|v| &v.pages),
        )?;
        mapped_files(dataset, process)?;
    }
    Ok(())
}

/// Under `strict`: refuses what is not exact.
///
/// # Errors
/// The first line that is not.
pub fn exact(lines: &[Fidelity]) -> Result<(), RestoreError> {
    match lines.iter().find(|f| f.level != FidelityLevel::Exact) {
        None => Ok(()),
        Some(line) => Err(RestoreError::NotExact {
            subject: line.subject.clone(),
            what: line.what.clone(),
            how: line.how.clone(),
        }),
    }
}

/// What was still to be delivered by somebody else's userfaultfd, a pager of vmrestore's before all,
/// is in no dump of the host that died meanwhile: it would read as zeros.
fn arrived(process: &Process) -> Result<(), RestoreError> {
    let mut vmas = process.mm.vmas.iter();
    match vmas.find(|vma| vma.flags & vma_flags::bit::UFFD_MISSING != 0) {
        None => Ok(()),
        Some(vma) => Err(RestoreError::Refused {
            pid: process.pid,
            what: format!("its memory at {:#x}-{:#x}", vma.start, vma.end),
            why: "pages of it were still to be delivered, by a userfaultfd, when the host died"
                .into(),
            hint: "had it been restored with --memory lazy, the rest is in the dump that it came \
                   from; its disks have gone on since",
        }),
    }
}

fn shape(process: &Process) -> Result<(), RestoreError> {
    let pid = process.pid;
    let malformed = |what: String, why: &str| {
        Err(RestoreError::Malformed {
            pid,
            what,
            why: why.into(),
        })
    };
    if process.threads.first().map(|t| t.tid) != Some(pid) {
        return malformed("the list of threads".into(), "the leader is not its first");
    }
    let mut free = 0;
    for vma in &process.mm.vmas {
        let what = || format!("the mapping {:#x}-{:#x}", vma.start, vma.end);
        if vma.start < free {
            return malformed(what(), "it overlaps the one before");
        }
        if vma.start >= vma.end || vma.end > TASK_SIZE || (vma.start | vma.end) % PAGE != 0 {
            return malformed(what(), "no process can have such a range");
        }
        free = vma.end;
        within(pid, &vma.pages, vma.start, vma.end)?;
    }
    let mut numbers = HashSet::new();
    match process
        .fds
        .iter()
        .find(|f| f.fd < 0 || f.fd > 1 << 19 || !numbers.insert(f.fd))
    {
        Some(bad) => malformed(
            format!("the descriptor {}", bad.fd),
            "it is negative, too large, or there twice",
        ),
        None => Ok(()),
    }
}

/// Runs lie in their range, in order.
fn within(pid: i32, runs: &[PageRun], start: u64, end: u64) -> Result<(), RestoreError> {
    let mut free = start;
    for run in runs {
        let behind = run
            .count
            .checked_mul(PAGE)
            .and_then(|len| run.start.checked_add(len))
            .filter(|behind| *behind <= end && run.start >= free && run.start % PAGE == 0);
        match behind {
            Some(behind) => free = behind,
            None => {
                return Err(RestoreError::Malformed {
                    pid,
                    what: format!("the pages at {:#x} (+{})", run.start, run.count),
                    why: format!("they do not lie in {start:#x}-{end:#x}, or not in order"),
                });
            }
        }
    }
    Ok(())
}

fn refuse_missing<'a>(
    pid: i32,
    runs: impl Iterator<Item = &'a PageRun> + Clone,
) -> Result<(), RestoreError> {
    let gone = || runs.clone().filter(|run| fill::missing(run).is_some());
    let Some(first) = gone().next() else {
        return Ok(());
    };
    Err(RestoreError::PagesMissing {
        pid,
        pages: gone().map(|run| run.count).sum(),
        of: runs
            .clone()
            .filter(|r| r.content != PageContent::Zero)
            .map(|r| r.count)
            .sum(),
        first: first.start,
        why: fill::missing(first).unwrap_or_default(),
    })
}

/// Executables and libraries must be the very files: parts of them are in the
/// process's memory, relocated and patched.
fn mapped_files(dataset: &Dataset, process: &Process) -> Result<(), RestoreError> {
    let mut seen = HashSet::new();
    for vma in &process.mm.vmas {
        let MappingKind::File { inode, .. } = vma.kind else {
            continue;
        };
        // Files that were open for writing have a check of their own (disks).
        let Some(inode) = dataset
            .inode(inode)
            .filter(|i| seen.insert(i.id) && !i.writable && i.kind == InodeKind::Regular)
            .filter(|i| !disks::lives_in_memory(&i.fs_type) && !disks::is_to_be_made(i))
        else {
            continue;
        };
        same_file(process, inode)?;
    }
    Ok(())
}

fn same_file(process: &Process, inode: &Inode) -> Result<(), RestoreError> {
    let pid = process.pid;
    let path = Path::new(&inode.path);
    let now = std::fs::metadata(path).during(pid, || {
        format!("look at {}, which it had mapped", path.display())
    })?;
    let changed = |what, then: String, now: String| RestoreError::FileChanged {
        pid,
        path: inode.path.clone(),
        what,
        then,
        now,
    };
    if now.size() != inode.size {
        return Err(changed(
            "its size",
            inode.size.to_string(),
            now.size().to_string(),
        ));
    }
    let mtime = now
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(now.mtime_nsec());
    if inode.mtime_ns != 0 && mtime != inode.mtime_ns {
        return Err(changed(
            "its time of modification",
            format!("{} ns", inode.mtime_ns),
            format!("{mtime} ns"),
        ));
    }
    Ok(())
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

    #[test]
    fn runs_beyond_their_mapping_are_refused() {
        let bad = [
            run(0x1000, u64::MAX, PageContent::Zero),
            run(0x1000, 3, PageContent::Zero),
            run(0x0, 1, PageContent::Zero),
            run(0x1800, 1, PageContent::Zero),
        ];
        for bad in bad {
            assert!(within(1, &[bad], 0x1000, 0x3000).is_err(), "{bad:?}");
        }
        assert!(within(1, &[run(0x1000, 2, PageContent::Zero)], 0x1000, 0x3000).is_ok());
    }

    #[test]
    fn missing_pages_are_counted() {
        let runs = [
            run(0x1000, 2, PageContent::Frame(5)),
            run(0x3000, 4, PageContent::Filtered),
            run(0x9000, 1, PageContent::Truncated),
        ];
        match refuse_missing(7, runs.iter()) {
            Err(RestoreError::PagesMissing {
                pages, of, first, ..
            }) => assert_eq!((pages, of, first), (5, 7, 0x3000)),
            other => panic!("{other:?}"),
        }
    }
}
