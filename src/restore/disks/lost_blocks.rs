//! Data that was written past the page cache, into blocks that the crash has
//! taken from the file again.
//!
//! The file had them when the host died, and its writer had been told so. A
//! guest that goes on would read zeros, or older data, where it had written.

use super::DiskError;
use super::Rescued;
use crate::dataset::{BlockRun, Inode, PageRun};
use crate::sys::file_facts::{self, Extent};
use crate::sys::fs_map;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const PAGE: u64 = 4096;

/// Most bytes of all files that are taken from where they lay: they are held in
/// memory while the files are given new blocks, which may be the very same.
const MOST: u64 = 256 << 20;

/// How much has been taken, or would be, of all files.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: u64,
}

impl Held {
    /// Takes so much more into memory, or says that it is too much.
    fn add(&mut self, bytes: u64) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MOST {
            return Err(format!(
                "with what other files have lost they are more than {} MiB",
                MOST >> 20
            ));
        }
        Ok(())
    }
}

/// Refuses a file that has not every block that it had, other than those whose
/// content comes from the dump.
pub(super) fn refuse(inode: &Inode, file: &File, held: &mut Held) -> Result<(), DiskError> {
    find(inode, file, held).and_then(|Lost { freed, .. }| {
        let bytes = sum(&freed);
        if bytes == 0 {
            return Ok(());
        }
        Err(DiskError::LostBlocks {
            path: inode.path.clone(),
            bytes,
            rescue: are_free(inode, file, &freed),
        })
    })
}

fn sum(ranges: &[BlockRun]) -> u64 {
    ranges
        .iter()
        .fold(0, |sum, range| sum.saturating_add(range.len))
}

/// Whether all lie where nobody has anything now; else, why they cannot be
/// taken from there.
fn are_free(inode: &Inode, file: &File, ranges: &[BlockRun]) -> Result<(), String> {
    if !inode.writable {
        return Err("the processes may not write to it".into());
    }
    for range in ranges {
        match fs_map::is_free(file, range.place, range.len) {
            Ok(true) => {}
            Ok(false) => return Err("something else has the blocks by now".into()),
            Err(e) => return Err(format!("the file system does not say what is free: {e}")),
        }
    }
    Ok(())
}

/// Reads what a file had and lacks. To be done before anything is written to
/// the file system, which may give its free blocks away.
pub(super) fn rescue(
    inode: &Inode,
    file: &File,
    freed_too: bool,
    held: &mut Held,
) -> Result<Rescued, DiskError> {
    let Lost { own, freed } = find(inode, file, held)?;
    let bytes = sum(&freed);
    if bytes > 0 {
        let rescue = are_free(inode, file, &freed);
        if rescue.is_err() || !freed_too {
            return Err(DiskError::LostBlocks {
                path: inode.path.clone(),
                bytes,
                rescue,
            });
        }
    }
    if own.is_empty() && freed.is_empty() {
        return Ok(Rescued::default());
    }
    let io = |what, source| DiskError::Io {
        what,
        path: inode.path.clone(),
        source,
    };
    let device = device_of(file).map_err(|e| io("open the device of", e))?;
    let parts = own.iter().chain(&freed);
    let parts = parts
        .map(|range| {
            let mut bytes = vec![0; usize::try_from(range.len).unwrap_or(0)];
            device
                .read_exact_at(&mut bytes, range.place)
                .map_err(|e| io("read from the device the lost blocks of", e))?;
            Ok((range.start, bytes))
        })
        .collect::<Result<_, DiskError>>()?;
    Ok(Rescued {
        parts,
        freed: bytes,
    })
}

/// The block device of the file system that a file is on.
fn device_of(file: &File) -> std::io::Result<File> {
    let number = file.metadata()?.dev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="));
    let device = File::open(Path::new("/dev").join(name.unwrap_or_default()))?;
    if device.metadata()?.rdev() == number {
        return Ok(device);
    }
    let why = format!("no node in /dev is the device {major}:{minor}");
    Err(std::io::Error::new(std::io::ErrorKind::NotFound, why))
}

/// Parts of the file of which no page is known, and that are not where they
/// were.
struct Lost {
    /// Where they were is still the file's: the crash took back that it was
    /// written to, and nobody else can have written there.
    own: Vec<BlockRun>,
    /// Where they were is the file's no more.
    freed: Vec<BlockRun>,
}

/// What is lost, if there is room for it in memory.
fn find(inode: &Inode, file: &File, held: &mut Held) -> Result<Lost, DiskError> {
    if inode.blocks.is_empty() {
        return Ok(Lost {
            own: Vec::new(),
            freed: Vec::new(),
        });
    }
    let now = file_facts::extents(file).map_err(|source| DiskError::Io {
        what: "ask for the blocks of",
        path: inode.path.clone(),
        source,
    })?;
    let written = |extent: &Extent| extent.written;
    let kept = |extent: &Extent| extent.written || extent.reserved;
    let lost = |counts: &dyn Fn(&Extent) -> bool, then: &[BlockRun]| {
        let now: Vec<Extent> = now.iter().filter(|e| counts(e)).cloned().collect();
        lost(then, &now, &inode.dirty, &inode.uncommitted, inode.size)
    };
    let freed = lost(&kept, &inode.blocks);
    let mut own = lost(&written, &inode.blocks);
    // What is left of them without the freed ones.
    own = own
        .iter()
        .flat_map(|range| without(range, &freed))
        .collect();
    let bytes = sum(&own).saturating_add(sum(&freed));
    held.add(bytes).map_err(|why| DiskError::LostBlocks {
        path: inode.path.clone(),
        bytes,
        rescue: Err(why),
    })?;
    Ok(Lost { own, freed })
}

/// A range without the parts of it that are in `taken`, which is in order.
fn without(range: &BlockRun, taken: &[BlockRun]) -> Vec<BlockRun> {
    let end = range.start.saturating_add(range.len);
    let mut at = range.start;
    let mut out = Vec::new();
    let mut keep = |from: u64, to: u64| {
        if from < to {
            out.push(BlockRun {
                start: from,
                len: to - from,
                place: range.place.saturating_add(from - range.start),
            });
        }
    };
    for other in taken {
        let behind = other.start.saturating_add(other.len);
        if behind > at && other.start < end {
            keep(at, other.start.min(end));
            at = behind;
        }
    }
    keep(at, end);
    out
}

/// What of the file, up to `end`, was in the blocks `then` and is in others, or
/// in none, `now`, and of which no page is known.
fn lost(
    then: &[BlockRun],
    now: &[Extent],
    dirty: &[PageRun],
    clean: &[PageRun],
    end: u64,
) -> Vec<BlockRun> {
    let mut known: Vec<(u64, u64)> = now
        .iter()
        .flat_map(|extent| same_place(then, extent))
        .chain(dirty.iter().chain(clean).map(|run| {
            let len = run.count.saturating_mul(PAGE);
            (run.start, run.start.saturating_add(len))
        }))
        .collect();
    known.sort_unstable();
    let mut lost = Vec::new();
    for run in then {
        let until = run.start.saturating_add(run.len).min(end);
        let mut at = run.start;
        let mut take = |from: u64, to: u64| {
            if from < to {
                lost.push(BlockRun {
                    start: from,
                    len: to - from,
                    place: run.place.saturating_add(from - run.start),
                });
            }
        };
        let first = known.partition_point(|(_, to)| *to <= at);
        for (from, to) in known.get(first..).unwrap_or_default() {
            if *from >= until || at >= until {
                break;
            }
            take(at, *from);
            at = at.max(*to);
        }
        take(at, until);
    }
    lost
}

/// Parts of the file that are where they were.
fn same_place(then: &[BlockRun], now: &Extent) -> Vec<(u64, u64)> {
    let end = now.start.saturating_add(now.len);
    let first = then.partition_point(|run| run.start.saturating_add(run.len) <= now.start);
    then.get(first..)
        .unwrap_or_default()
        .iter()
        .take_while(|run| run.start < end)
        .filter(|run| {
            // The same distance between file and disk.
            run.place.wrapping_sub(run.start) == now.place.wrapping_sub(now.start)
        })
        .map(|run| {
            let to = run.start.saturating_add(run.len).min(end);
            (run.start.max(now.start), to)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::PageContent;

    fn then(start: u64, len: u64, place: u64) -> BlockRun {
        BlockRun { start, len, place }
    }

    fn now(start: u64, len: u64, place: u64) -> Extent {
        Extent {
            start,
            len,
            place,
            written: true,
            reserved: false,
        }
    }

    fn bytes(
        then: &[BlockRun],
        now: &[Extent],
        dirty: &[PageRun],
        clean: &[PageRun],
        end: u64,
    ) -> u64 {
        let ranges = lost(then, now, dirty, clean, end);
        ranges.iter().map(|range| range.len).sum()
    }

    #[test]
    fn what_is_where_it_was_is_not_lost() {
        let file = [then(0, 0x4000, 0x10000), then(0x8000, 0x2000, 0x90000)];
        let same = [now(0, 0x4000, 0x10000), now(0x8000, 0x2000, 0x90000)];
        assert_eq!(bytes(&file, &same, &[], &[], u64::MAX), 0);
        // One extent now, two in the dead kernel's tree.
        let two = [then(0, 0x1000, 0x10000), then(0x1000, 0x3000, 0x11000)];
        assert_eq!(bytes(&two, &same[..1], &[], &[], u64::MAX), 0);
        // A hole, a block that was never written to, another block.
        assert_eq!(bytes(&file, &same[..1], &[], &[], u64::MAX), 0x2000);
        assert_eq!(bytes(&file, &same[..1], &[], &[], 0x8800), 0x800);
        let moved = [now(0, 0x4000, 0x20000), same[1].clone()];
        assert_eq!(bytes(&file, &moved, &[], &[], u64::MAX), 0x4000);
    }

    #[test]
    fn what_is_lost_lay_somewhere() {
        let file = [then(0, 0x4000, 0x10000)];
        let there = [now(0x1000, 0x1000, 0x11000)];
        assert_eq!(
            lost(&file, &there, &[], &[], u64::MAX),
            [then(0, 0x1000, 0x10000), then(0x2000, 0x2000, 0x12000)]
        );
    }

    #[test]
    fn what_is_left_without_others() {
        let range = then(0x1000, 0x4000, 0x11000);
        assert_eq!(without(&range, &[]), std::slice::from_ref(&range));
        let others = [then(0, 0x2000, 0), then(0x3000, 0x1000, 0)];
        assert_eq!(
            without(&range, &others),
            [then(0x2000, 0x1000, 0x12000), then(0x4000, 0x1000, 0x14000)]
        );
        assert_eq!(without(&range, &[then(0, 0x9000, 0)]), []);
    }

    #[test]
    fn what_the_dump_has_is_not_lost() {
        let file = [then(0, 0x4000, 0x10000)];
        let page = |start, count| PageRun {
            start,
            count,
            content: PageContent::Frame(1),
        };
        assert_eq!(
            bytes(&file, &[], &[page(0, 1)], &[page(0x2000, 1)], u64::MAX),
            0x2000
        );
        assert_eq!(
            bytes(&file, &[], &[page(0, 2)], &[page(0x2000, 2)], u64::MAX),
            0
        );
    }
}
