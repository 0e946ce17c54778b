//! Inodes: which file on which disk, and what of it never got there.

use super::page_cache::{self, CachePlace, Wanted};
use super::page_frame::Frames;
use super::swap::SwapReader;
use crate::dataset::{Inode, InodeKind, ObjectId, PageContent, PageRun};
use crate::kernel::{KernelError, Object};

/// Bytes in a page.
const PAGE: u64 = 4096;

/// What an inode number's file is, from `i_mode`.
pub(super) fn kind(mode: u32) -> InodeKind {
    match mode & 0o170_000 {
        0o100_000 => InodeKind::Regular,
        0o040_000 => InodeKind::Directory,
        0o020_000 | 0o060_000 => InodeKind::Device,
        0o010_000 => InodeKind::Fifo,
        0o140_000 => InodeKind::Socket,
        _ => InodeKind::Other,
    }
}

/// `i_mode`.
pub(super) fn mode(inode: &Object<'_>) -> Result<u32, KernelError> {
    Ok(u32::try_from(inode.u("i_mode")?).unwrap_or(0))
}

/// `i_rdev` as major and minor. Linux include/linux/kdev_t.h.
pub(super) fn device_number(inode: &Object<'_>) -> Result<(u32, u32), KernelError> {
    let dev = u32::try_from(inode.u("i_rdev")?).unwrap_or(0);
    Ok((dev >> 20, dev & 0xf_ffff))
}

/// The type of the file system that an inode is on.
pub(super) fn fs_type(inode: &Object<'_>) -> Result<String, KernelError> {
    let kind = inode.follow("i_sb")?.follow("s_type")?;
    inode.kernel().read_cstr(kind.ptr("name")?, 64)
}

/// The file system keeps its files in memory alone: what is not carried over
/// is gone with the host.
pub(super) fn lives_in_memory(fs_type: &str) -> bool {
    matches!(
        fs_type,
        "tmpfs" | "ramfs" | "rootfs" | "devtmpfs" | "hugetlbfs"
    )
}

/// Everything of an inode but the pages.
pub(super) fn identity(inode: &Object<'_>, path: String) -> Result<Inode, KernelError> {
    let sb = inode.follow("i_sb")?;
    let mode = mode(inode)?;
    let id = |field| {
        inode
            .u(field)
            .ok()
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or(0)
    };
    Ok(Inode {
        id: ObjectId(inode.addr()),
        path,
        device: sb.get("s_id").and_then(|s| s.string())?,
        fs_uuid: uuid(&sb.get("s_uuid")?.bytes()?),
        fs_type: fs_type(inode)?,
        number: inode.u("i_ino")?,
        generation: inode.u("i_generation").ok().map(|g| g as u32),
        kind: kind(mode),
        mode,
        uid: id("i_uid.val"),
        gid: id("i_gid.val"),
        links: u32::try_from(inode.u("i_nlink")?).unwrap_or(0),
        size: inode.u("i_size")?,
        mtime_ns: time(inode, "mtime")?,
        ctime_ns: time(inode, "ctime")?,
        writable: false,
        dirty: Vec::new(),
        uncommitted: Vec::new(),
        blocks: Vec::new(),
        block: None,
        newborn: false,
    })
}

fn uuid(b: &[u8]) -> Option<String> {
    if b.len() != 16 || b.iter().all(|x| *x == 0) {
        return None;
    }
    let hex: Vec<String> = b.iter().map(|x| format!("{x:02x}")).collect();
    Some(
        [
            &hex[0..4],
            &hex[4..6],
            &hex[6..8],
            &hex[8..10],
            &hex[10..16],
        ]
        .map(<[String]>::concat)
        .join("-"),
    )
}

/// A time of the inode. Nanoseconds since 1970.
fn time(inode: &Object<'_>, which: &str) -> Result<i64, KernelError> {
    // Seconds and nanoseconds apart since Linux commit 3aa63a569c64 ("fs: switch
    // timespec64 fields in inode to discrete integers") (in v6.11); a struct,
    // for some versions with underscores before it, earlier.
    let split = format!("i_{which}_sec");
    let (sec, nsec) = if inode.has(&split) {
        (
            inode.i(&split)?,
            // Bit 31 marks a multigrain time that was queried.
            inode.u(&format!("i_{which}_nsec"))? & 0x3fff_ffff,
        )
    } else {
        let name = format!("__i_{which}");
        let time = if inode.has(&name) {
            inode.get(&name)?
        } else {
            inode.get(&format!("i_{which}"))?
        };
        (time.i("tv_sec")?, time.u("tv_nsec")?)
    };
    Ok(sec
        .saturating_mul(1_000_000_000)
        .saturating_add(i64::try_from(nsec).unwrap_or(0)))
}

/// The order of a hugetlbfs's pages, 0 on other file systems.
pub(super) fn huge_order(inode: &Object<'_>) -> u32 {
    let order = || -> Result<u64, KernelError> {
        let info = inode.follow("i_sb")?.ptr("s_fs_info")?;
        let info = inode.kernel().object("hugetlbfs_sb_info", info)?;
        info.follow("hstate")?.u("order")
    };
    if fs_type(inode).is_ok_and(|t| t == "hugetlbfs") {
        order()
            .ok()
            .and_then(|o| u32::try_from(o).ok())
            .unwrap_or(9)
    } else {
        0
    }
}

/// Bytes of a hugetlbfs's pages, 0 on other file systems.
pub(super) fn huge_page(inode: &Object<'_>) -> u64 {
    match huge_order(inode) {
        0 => 0,
        order => PAGE.checked_shl(order).unwrap_or(0),
    }
}

/// Pages of an `address_space` as runs by byte offset, none beyond `size`.
pub(super) fn cached_runs(
    frames: &Frames<'_>,
    swap: &SwapReader<'_, '_>,
    mapping: &Object<'_>,
    wanted: Wanted,
    huge_order: u32,
    size: u64,
) -> Result<Vec<PageRun>, KernelError> {
    let mut runs = Runs::default();
    for pages in page_cache::pages(frames, mapping, wanted, huge_order)? {
        for i in 0..pages.count {
            let Some(start) = pages.index.checked_add(i).and_then(|n| n.checked_mul(PAGE)) else {
                break;
            };
            if start >= size {
                break;
            }
            let content = match pages.place {
                CachePlace::Frame(pfn) => frames.content(pfn.wrapping_add(i)),
                CachePlace::Swap { area, offset } => swap.slot(area, offset.wrapping_add(i)),
            };
            runs.push(start, content);
        }
    }
    Ok(runs.0)
}

/// Runs under construction: what goes on where the last one ended is added to
/// it.
#[derive(Default)]
pub(super) struct Runs(pub Vec<PageRun>);

impl Runs {
    /// Adds one page.
    pub fn push(&mut self, start: u64, content: PageContent) {
        self.push_many(start, 1, content);
    }

    /// Adds `count` pages whose content is `content` and what follows it.
    pub fn push_many(&mut self, start: u64, count: u64, content: PageContent) {
        if let Some(last) = self.0.last_mut()
            && last
                .count
                .checked_mul(PAGE)
                .and_then(|len| last.start.checked_add(len))
                == Some(start)
            && follows(last, content)
        {
            last.count = last.count.saturating_add(count);
            return;
        }
        self.0.push(PageRun {
            start,
            count,
            content,
        });
    }
}

/// `content` is what the page behind `run` has.
fn follows(run: &PageRun, content: PageContent) -> bool {
    match (run.content, content) {
        (PageContent::Frame(first), PageContent::Frame(next)) => {
            first.checked_add(run.count) == Some(next)
        }
        (
            PageContent::Swap { area, offset },
            PageContent::Swap {
                area: next_area,
                offset: next,
            },
        ) => area == next_area && offset.checked_add(run.count) == Some(next),
        (PageContent::Stored(_) | PageContent::Packed { .. }, _) => false,
        (a, b) => a == b,
    }
}

/// Joins two sets of runs of one file; where both have a page, `first` counts.
///
/// By runs and not by pages: what is missing of a sparse file may be a run of petabytes.
pub(super) fn merge(mut first: Vec<PageRun>, mut second: Vec<PageRun>) -> Vec<PageRun> {
    if second.is_empty() {
        return first;
    }
    first.sort_by_key(|r| r.start);
    second.sort_by_key(|r| r.start);
    let mut out = Runs::default();
    let (mut a, mut b) = (first.into_iter(), second.into_iter());
    let (mut next_a, mut next_b) = (a.next(), b.next());
    // All pages below are told.
    let mut at = 0;
    loop {
        let (run, until) = match (next_a, next_b) {
            (None, None) => return out.0,
            (Some(x), None) => (x, u64::MAX),
            (None, Some(y)) => (y, u64::MAX),
            (Some(x), Some(y)) if x.start <= y.start => (x, u64::MAX),
            (Some(x), Some(y)) => (y, x.start),
        };
        let from_a = next_a.is_some_and(|x| next_b.is_none_or(|y| x.start <= y.start));
        let piece = behind(run, at);
        let count = piece.count.min(until.saturating_sub(piece.start) / PAGE);
        if count > 0 {
            out.push_many(piece.start, count, piece.content);
            at = piece.start.saturating_add(count.saturating_mul(PAGE));
        }
        let rest = Some(behind(piece, at)).filter(|rest| rest.count > 0 && count > 0);
        if from_a {
            next_a = rest.or_else(|| a.next());
        } else {
            next_b = rest.or_else(|| b.next());
        }
    }
}

/// What of a run stands from byte offset `at` on.
fn behind(run: PageRun, at: u64) -> PageRun {
    let skipped = (at.saturating_sub(run.start)).div_ceil(PAGE).min(run.count);
    PageRun {
        start: run.start.saturating_add(skipped.saturating_mul(PAGE)),
        count: run.count - skipped,
        content: match run.content {
            PageContent::Frame(pfn) => PageContent::Frame(pfn.wrapping_add(skipped)),
            PageContent::Swap { area, offset } => PageContent::Swap {
                area,
                offset: offset.wrapping_add(skipped),
            },
            other => other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, count: u64, pfn: u64) -> PageRun {
        PageRun {
            start,
            count,
            content: PageContent::Frame(pfn),
        }
    }

    #[test]
    fn a_page_known_twice_is_listed_once() {
        let tagged = vec![run(0x1000, 2, 0x10), run(0x8000, 1, 0x80)];
        let mapped = vec![run(0x3000, 1, 0x12), run(0x2000, 1, 0x11)];
        let merged = merge(tagged, mapped);
        assert_eq!(merged, [run(0x1000, 3, 0x10), run(0x8000, 1, 0x80)]);
    }

    #[test]
    fn runs_that_overlap_are_cut_and_not_counted() {
        let missing = PageRun {
            start: 0,
            count: 1 << 50,
            content: PageContent::Filtered,
        };
        let merged = merge(
            vec![run(0x3000, 2, 0x30), run(0x8000, 1, 0x80)],
            vec![missing],
        );
        let starts: Vec<(u64, u64)> = merged.iter().map(|r| (r.start, r.count)).collect();
        assert_eq!(
            starts,
            [
                (0, 3),
                (0x3000, 2),
                (0x5000, 3),
                (0x8000, 1),
                (0x9000, (1 << 50) - 9)
            ]
        );
        // Pages that several runs of one set have are told once, as the first has them.
        let twice = vec![run(0x1000, 4, 0x10), run(0x2000, 4, 0x90)];
        let merged = merge(Vec::new(), twice);
        assert_eq!(merged, [run(0x1000, 4, 0x10), run(0x5000, 1, 0x93)]);
    }

    #[test]
    fn runs_join_only_where_frames_follow() {
        let mut runs = Runs::default();
        runs.push(0, PageContent::Frame(7));
        runs.push(0x1000, PageContent::Frame(8));
        runs.push(0x2000, PageContent::Frame(10));
        runs.push(0x4000, PageContent::Frame(11));
        runs.push_many(0x5000, 3, PageContent::Filtered);
        runs.push_many(0x8000, 2, PageContent::Filtered);
        assert_eq!(
            runs.0,
            [
                run(0, 2, 7),
                run(0x2000, 1, 10),
                run(0x4000, 1, 11),
                PageRun {
                    start: 0x5000,
                    count: 5,
                    content: PageContent::Filtered
                }
            ]
        );
    }

    #[test]
    fn uuid_text() {
        let bytes: Vec<u8> = (0..16).collect();
        assert_eq!(
            uuid(&bytes).as_deref(),
            Some("00010203-0405-0607-0809-0a0b0c0d0e0f")
        );
        assert_eq!(uuid(&[0; 16]), None);
    }
}
