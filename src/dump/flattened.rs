//! The flattened format: what makedumpfile -F and QEMU write, who cannot go back in a pipe.
//!
//! A header of one page, then blocks of (offset, size, bytes), then an end mark. Where two blocks
//! overlap, the later counts: makedumpfile writes its header again at the end.
//!
//! [`FlatIndex`] finds a byte of the image in the stream, in memory that is bounded whatever the
//! stream's length. QEMU's blocks are 16 KiB, so the dump of a 1 TiB machine has some 60 million.
//! But they go on, each where another ended: a few *lanes* (headers, descriptors, pages) run side by
//! side through the stream. So it is enough to know the lanes, and of each a *point* here and there:
//! from the last point before a byte, the stream's own headers lead to it. The more blocks, the
//! farther apart the points are.

mod building;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::extents::{ExtentMap, Target};
use building::{Building, TooMuchDisorder};

/// `makedumpfile_header`: signature of 16 bytes, type and version as big-endian i64; padded to one
/// page. makedumpfile.h, `MAX_SIZE_MDF_HEADER`.
pub(super) const HEADER_SIZE: u64 = 4096;
const SIGNATURE: &[u8; 16] = b"makedumpfile\0\0\0\0";
const TYPE: i64 = 1;
const VERSION: i64 = 1;
/// `makedumpfile_data_header`: offset and size as big-endian i64, before each block.
pub(super) const BLOCK_HEADER: u64 = 16;
/// In both fields of the header after the last block.
const END: i64 = -1;

/// 16 bytes each.
const MAX_POINTS: usize = 1 << 20;
/// Lanes, and blocks that overlap others: a handful in any real stream.
const MAX_DISORDER: usize = 1 << 16;
/// Bytes of the stream between the points of a lane when they are first thinned out.
const FIRST_STRIDE: u64 = 64 << 10;
/// Blocks that are smaller on average are read with their neighbours, larger ones are jumped over.
const SMALL_BLOCK: u64 = 128 << 10;
/// How much the system is told to read ahead.
const READ_AHEAD: u64 = 8 << 20;

/// Why a flattened stream cannot be used.
#[derive(Debug)]
pub(super) enum FlatError {
    Io(io::Error),
    /// Type or version that nobody has written yet.
    Version {
        kind: i64,
        version: i64,
    },
    /// A block header makes no sense.
    Block {
        at: u64,
        problem: String,
    },
}

/// Whether a file of which these are the first bytes is a flattened stream.
pub(super) fn is_flattened(head: &[u8]) -> Result<bool, FlatError> {
    if head.len() < 32 || &head[..16] != SIGNATURE {
        return Ok(false);
    }
    let (kind, version) = two_big_endian(&head[16..32]);
    match (kind, version) {
        (TYPE, VERSION) => Ok(true),
        _ => Err(FlatError::Version { kind, version }),
    }
}

/// What a block header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// `size` bytes of the image from `offset` on; they do not wrap around.
    Bytes {
        offset: u64,
        size: u64,
    },
    End,
    /// Nothing was written here: a hole of zeros (lost writes) looks like an empty block.
    Lost,
}

impl Block {
    /// Parses the header at `at` in the stream.
    pub fn parse(header: &[u8], at: u64) -> Result<Block, FlatError> {
        let (offset, size) = two_big_endian(header);
        if offset == END && size == END {
            return Ok(Block::End);
        }
        let bad = |problem| Err(FlatError::Block { at, problem });
        let (Ok(offset), Ok(size)) = (u64::try_from(offset), u64::try_from(size)) else {
            return bad(format!(
                "offset {offset} and size {size}, of which one is negative"
            ));
        };
        if size == 0 {
            return match offset {
                0 => Ok(Block::Lost),
                _ => bad(format!("an empty block for offset {offset:#x}")),
            };
        }
        if offset.checked_add(size).is_none() {
            return bad(format!("offset {offset:#x} + size {size:#x} wraps around"));
        }
        Ok(Block::Bytes { offset, size })
    }
}

/// Which bytes of the image there are.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    ranges: Vec<Range<u64>>,
}

impl Coverage {
    /// Merges ranges, which may overlap.
    pub fn of(ranges: impl IntoIterator<Item = Range<u64>>) -> Coverage {
        let mut all: Vec<Range<u64>> = ranges.into_iter().collect();
        all.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in all {
            match ranges.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        Coverage { ranges }
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    pub fn has(&self, offset: u64, end: u64) -> bool {
        let next = self.ranges.partition_point(|range| range.end < end);
        self.ranges
            .get(next)
            .is_some_and(|range| range.start <= offset)
    }

    /// The parts of `offset..end` that there are, as (offset, length).
    pub fn within(&self, offset: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self.ranges.partition_point(|range| range.end <= offset);
        self.ranges[first..]
            .iter()
            .take_while(|range| range.start < end)
            .map(|range| {
                let start = range.start.max(offset);
                (start, range.end.min(end) - start)
            })
            .collect()
    }
}

/// A block that begins a lane, or goes on with it.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// Offset in the image.
    start: u64,
    /// Where the block's header stands in the stream.
    header: u64,
}

/// Blocks of which each begins where the one before it ended.
#[derive(Clone, Copy, Debug)]
struct Lane {
    end: u64,
    /// A block that would have gone on here overlapped another lane; nothing goes on here any more,
    /// for a walk would take that block for it.
    closed: bool,
    /// The header of its last point.
    point: u64,
}

/// Bytes of the stream from this position on.
#[derive(Clone, Copy, Debug)]
struct Position(u64);

impl Target for Position {
    fn advance(self, by: u64) -> Self {
        Position(self.0 + by)
    }

    fn continues(self, len: u64, next: Self) -> bool {
        self.0 + len == next.0
    }
}

/// Where the bytes of the image stand in the stream.
#[derive(Debug)]
pub(super) struct FlatIndex {
    /// By their start; each lane begins with one.
    points: Vec<Point>,
    /// Start and end, by their start.
    lanes: Vec<Range<u64>>,
    /// What was written over bytes that were there already; it counts.
    over: ExtentMap<Position>,
    covered: Coverage,
    /// The stream had its end mark.
    ended: bool,
}

/// Where a read got to: the block behind the last one, if its lane goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    header: u64,
    start: u64,
    lane_end: u64,
}

impl FlatIndex {
    /// Follows the stream's headers from block to block. A stream that ends early gives an index of
    /// what is there.
    pub fn build(file: &File, len: u64) -> Result<FlatIndex, FlatError> {
        FlatIndex::build_with(file, len, MAX_POINTS)
    }

    fn build_with(file: &File, len: u64, most_points: usize) -> Result<FlatIndex, FlatError> {
        let mut building = Building::new(most_points);
        let mut at = HEADER_SIZE;
        let (mut blocks, mut advised, mut ended) = (0u64, 0, false);
        let mut header = [0; BLOCK_HEADER as usize];
        while at.saturating_add(BLOCK_HEADER) <= len {
            if at >= advised && at / (blocks + 1) < SMALL_BLOCK {
                // Advice only; what does not take it reads more slowly.
                let (from, ahead) = (at.cast_signed(), READ_AHEAD.cast_signed());
                let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
                let _ = posix_fadvise(file, from, ahead, advice);
                advised = at + READ_AHEAD / 2;
            }
            match file.read_exact_at(&mut header, at) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(e) => return Err(FlatError::Io(e)),
            }
            let (offset, size) = match Block::parse(&header, at)? {
                Block::Bytes { offset, size } => (offset, size),
                Block::End => {
                    ended = true;
                    break;
                }
                Block::Lost => break,
            };
            let there = size.min(len - at - BLOCK_HEADER);
            building
                .add(offset, there, at)
                .map_err(|TooMuchDisorder| FlatError::Block {
                    at,
                    problem: "one of more blocks in disorder than any dump has".into(),
                })?;
            blocks += 1;
            match at.checked_add(BLOCK_HEADER + size) {
                Some(next) => at = next,
                None => break,
            }
        }
        building.finish(ended).map_err(|_| FlatError::Block {
            at,
            problem: "the last of more blocks in disorder than any dump has".into(),
        })
    }

    pub fn covered(&self) -> &Coverage {
        &self.covered
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Where byte `offset` stands in the stream, and how many bytes stand together from there. `None`
    /// if there is no such byte, or the file is not what it was when the index was made.
    pub fn find(
        &self,
        file: &File,
        offset: u64,
        cursor: &mut Option<Cursor>,
    ) -> io::Result<Option<(u64, u64)>> {
        if let Some(piece) = self.over.find(offset) {
            return Ok(Some((piece.target.0, piece.len)));
        }
        let from = match *cursor {
            Some(from) if from.start == offset && offset < from.lane_end => from,
            _ => match self.point_before(offset) {
                Some(from) => from,
                None => return Ok(None),
            },
        };
        let Cursor {
            header: mut at,
            start: mut next,
            lane_end,
        } = from;
        let mut header = [0; BLOCK_HEADER as usize];
        loop {
            match file.read_exact_at(&mut header, at) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(e) => return Err(e),
            }
            let Ok(Block::Bytes {
                offset: start,
                size,
            }) = Block::parse(&header, at)
            else {
                return Ok(None);
            };
            let Some(behind) = at.checked_add(BLOCK_HEADER + size) else {
                return Ok(None);
            };
            if start == next {
                next = start + size;
                if offset < next {
                    *cursor = Some(Cursor {
                        header: behind,
                        start: next,
                        lane_end,
                    });
                    let mut together = next.min(lane_end) - offset;
                    if let Some(over) = self.over.within(offset, offset + together).next() {
                        together = over.start - offset;
                    }
                    return Ok(Some((at + BLOCK_HEADER + (offset - start), together)));
                }
            }
            at = behind;
        }
    }

    fn point_before(&self, offset: u64) -> Option<Cursor> {
        let lane = self.lanes.partition_point(|lane| lane.start <= offset);
        let lane = self.lanes.get(lane.checked_sub(1)?)?;
        if offset >= lane.end {
            return None;
        }
        let point = self.points.partition_point(|point| point.start <= offset);
        let point = self.points.get(point.checked_sub(1)?)?;
        Some(Cursor {
            header: point.header,
            start: point.start,
            lane_end: lane.end,
        })
    }
}

fn two_big_endian(bytes: &[u8]) -> (i64, i64) {
    let word = |at: usize| {
        let mut word = [0u8; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        i64::from_be_bytes(word)
    };
    (word(0), word(8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Streams of lanes side by side, with holes, blocks over others and small blocks, against an
    /// array into which every block is written; with few points allowed, so that most are walked to.
    #[test]
    fn an_index_of_few_points_finds_every_byte() {
        let mut seed = 7u64;
        let mut next = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let path = std::env::temp_dir().join(format!("vmrestore-flat-{}", std::process::id()));
        for round in 0..8 {
            let mut model: Vec<Option<u8>> = vec![None; 40_000];
            let mut stream = vec![0u8; HEADER_SIZE as usize];
            let mut ends: [u64; 4] = [0, 9_000, 17_000, 30_000];
            for _ in 0..700 {
                let lane = next(4) as usize;
                let size = 1 + next(40);
                // Mostly on where the lane ended; now and then a hole, or over what is there.
                let offset = match next(60) {
                    0 => next(39_000),
                    1 => ends[lane] + next(50),
                    _ => ends[lane],
                };
                if offset + size > 40_000 {
                    continue;
                }
                if offset >= ends[lane] {
                    ends[lane] = offset + size;
                }
                stream.extend_from_slice(&offset.to_be_bytes());
                stream.extend_from_slice(&size.to_be_bytes());
                for i in 0..size {
                    let byte = next(256) as u8;
                    stream.push(byte);
                    model[(offset + i) as usize] = Some(byte);
                }
            }
            if round % 2 == 0 {
                stream.extend_from_slice(&[0xff; 16]);
                stream.extend_from_slice(b"garbage behind the end mark");
            }
            File::create(&path).unwrap().write_all(&stream).unwrap();
            let file = File::open(&path).unwrap();
            // More lanes than points would be too much disorder for it.
            let index = FlatIndex::build_with(&file, stream.len() as u64, 200).unwrap();
            assert!(index.points.len() < 200);
            assert_eq!(index.has_ended(), round % 2 == 0);
            let mut cursor = None;
            let random: Vec<u64> = (0..2000).map(|_| next(41_000)).collect();
            for offset in (0..41_000).step_by(9).chain(random) {
                let expected = model.get(offset as usize).copied().flatten();
                let found = index.find(&file, offset, &mut cursor).unwrap();
                assert_eq!(found.is_some(), expected.is_some(), "at {offset}");
                assert_eq!(index.covered().has(offset, offset + 1), expected.is_some());
                if let Some((at, together)) = found {
                    assert!(together > 0);
                    assert_eq!(Some(stream[at as usize]), expected, "at {offset}");
                    let last = (offset + together - 1) as usize;
                    assert_eq!(Some(stream[(at + together - 1) as usize]), model[last]);
                }
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}
