//! The dump as one run of bytes: the file itself, what a flattened file unfolds to, or the parts of
//! a split dump, each with a range of offsets of its own.
//!
//! makedumpfile -F and QEMU write to a pipe, and so cannot go back to write their headers last.
//! They write a *flattened* stream instead: a sequence of (offset, size, bytes) blocks. It is read
//! in place, through an index of its blocks; nothing is copied.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::extents::{BuildError, Builder, ExtentMap, Target};

/// `makedumpfile_header`: signature of 16 bytes, type and version as big-endian i64; padded to one
/// page. makedumpfile.h, `MAX_SIZE_MDF_HEADER`.
const FLAT_HEADER_SIZE: u64 = 4096;
const FLAT_SIGNATURE: &[u8; 16] = b"makedumpfile\0\0\0\0";
const FLAT_TYPE: i64 = 1;
const FLAT_VERSION: i64 = 1;
/// `makedumpfile_data_header`: offset and size as big-endian i64, before each block.
const FLAT_BLOCK_HEADER: u64 = 16;
/// In both fields of the header after the last block.
const FLAT_END: i64 = -1;

/// Why bytes of the image cannot be had.
#[derive(Debug)]
pub(super) enum ImageError {
    /// The image ends before, or the flattened stream has no block for this offset.
    Absent(u64),
    Io(io::Error),
}

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

/// Where a block of a flattened file stands, or a run of blocks of one size that follow each other
/// both in the file and in the image; 64 KiB blocks of a large dump fold into few runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockRun {
    /// File offset of the first block's bytes, just behind its header.
    file: u64,
    /// Bytes in each block.
    block: u64,
    /// Bytes of the first block to skip.
    skip: u64,
}

impl BlockRun {
    /// File offset of the run's first byte, and how many bytes stand together from there.
    fn locate(self) -> (u64, u64) {
        (self.file + self.skip, self.block - self.skip)
    }
}

impl Target for BlockRun {
    fn advance(self, by: u64) -> Self {
        let at = self.skip + by;
        let blocks = at / self.block;
        BlockRun {
            file: self.file + blocks * (self.block + FLAT_BLOCK_HEADER),
            skip: at % self.block,
            ..self
        }
    }

    fn continues(self, len: u64, next: Self) -> bool {
        let end = self.advance(len);
        end.skip == 0 && next.skip == 0 && end.file == next.file && next.block <= self.block
    }
}

/// In an image of several parts, part `n` has the offsets from `n << PART_SHIFT` on. No file system
/// holds a larger file, and 2¹⁵ parts are more than any dump is split into.
pub(super) const PART_SHIFT: u32 = 48;
/// Most parts that an image can have.
pub(super) const MAX_PARTS: usize = 1 << 10;

/// The bytes of a dump by their offset. Safe to read from many threads.
#[derive(Debug)]
pub(super) enum Image {
    One(Source),
    /// At least one; see [`PART_SHIFT`].
    Parts(Vec<Source>),
}

/// The bytes of one file.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    len: u64,
    flat: Option<FlatIndex>,
}

#[derive(Debug)]
struct FlatIndex {
    map: ExtentMap<BlockRun>,
    /// The stream had its end mark.
    ended: bool,
}

impl Image {
    /// The first offset of part `n`.
    pub fn part_begin(n: usize) -> u64 {
        (n as u64) << PART_SHIFT
    }

    /// The source that an offset belongs to, the offset in it, and what was taken off.
    fn source(&self, offset: u64) -> Option<(&Source, u64, u64)> {
        match self {
            Image::One(source) => Some((source, offset, 0)),
            Image::Parts(parts) => {
                let begin = offset >> PART_SHIFT << PART_SHIFT;
                let part = parts.get(usize::try_from(offset >> PART_SHIFT).ok()?)?;
                Some((part, offset - begin, begin))
            }
        }
    }

    fn sources(&self) -> &[Source] {
        match self {
            Image::One(source) => std::slice::from_ref(source),
            Image::Parts(parts) => parts,
        }
    }

    /// Bytes from the first to one past the last that there is; of all parts together.
    pub fn len(&self) -> u64 {
        self.sources().iter().map(Source::len).sum()
    }

    pub fn is_flattened(&self) -> bool {
        self.sources().iter().any(Source::is_flattened)
    }

    /// A flattened stream without its end mark: its writer, or its copy, was cut off.
    pub fn is_cut(&self) -> bool {
        self.sources().iter().any(Source::is_cut)
    }

    /// Whether all of `offset..offset + len` can be read.
    pub fn has(&self, offset: u64, len: u64) -> bool {
        self.source(offset)
            .is_some_and(|(source, offset, _)| source.has(offset, len))
    }

    /// The parts of `offset..offset + len` that can be read, as (offset, length), in order.
    pub fn readable(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let Some((source, offset, begin)) = self.source(offset) else {
            return Vec::new();
        };
        let mut parts = source.readable(offset, len);
        for (at, _) in &mut parts {
            *at += begin;
        }
        parts
    }

    /// Fills `buf` from `offset` on, or fails.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        match self.source(offset) {
            Some((source, offset, _)) => source.read_at(offset, buf),
            None => Err(ImageError::Absent(offset)),
        }
    }

    /// Like [`Image::read_at`], but what a flattened stream leaves out between its first byte here
    /// and its end is zeros: QEMU writes headers without their padding. Not for pages, where zeros
    /// would be a lie.
    pub fn read_padded(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        match self.source(offset) {
            Some((source, offset, _)) => source.read_padded(offset, buf),
            None => Err(ImageError::Absent(offset)),
        }
    }
}

impl Source {
    /// The file as it stands. A block device has a length too; a pipe has none and fails here.
    pub fn new(mut file: File) -> io::Result<Source> {
        let len = file.seek(SeekFrom::End(0))?;
        Ok(Source {
            file,
            len,
            flat: None,
        })
    }

    /// If the file is flattened, turns it into what it unfolds to.
    pub fn unfold(self) -> Result<Source, FlatError> {
        let mut head = [0u8; 32];
        match self.read_at(0, &mut head) {
            Ok(()) => {}
            Err(ImageError::Absent(_)) => return Ok(self),
            Err(ImageError::Io(e)) => return Err(FlatError::Io(e)),
        }
        if &head[..16] != FLAT_SIGNATURE {
            return Ok(self);
        }
        let (kind, version) = two_big_endian(&head[16..]);
        if (kind, version) != (FLAT_TYPE, FLAT_VERSION) {
            return Err(FlatError::Version { kind, version });
        }
        let index = FlatIndex::build(&self)?;
        Ok(Source {
            len: index.map.end(),
            flat: Some(index),
            ..self
        })
    }

    /// Bytes from the first to one past the last that there is.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_flattened(&self) -> bool {
        self.flat.is_some()
    }

    pub fn is_cut(&self) -> bool {
        self.flat.as_ref().is_some_and(|flat| !flat.ended)
    }

    pub fn has(&self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else {
            return false;
        };
        match &self.flat {
            None => end <= self.len,
            Some(flat) => {
                let mut at = offset;
                for piece in flat.map.within(offset, end) {
                    if piece.start != at {
                        return false;
                    }
                    at = piece.end();
                }
                at == end
            }
        }
    }

    pub fn readable(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let end = offset.saturating_add(len);
        match &self.flat {
            None if offset < self.len => vec![(offset, end.min(self.len) - offset)],
            None => Vec::new(),
            Some(flat) => {
                let mut parts: Vec<(u64, u64)> = Vec::new();
                for piece in flat.map.within(offset, end) {
                    match parts.last_mut() {
                        Some((start, len)) if *start + *len == piece.start => *len += piece.len,
                        _ => parts.push((piece.start, piece.len)),
                    }
                }
                parts
            }
        }
    }

    pub fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), ImageError> {
        let Some(flat) = &self.flat else {
            if offset
                .checked_add(buf.len() as u64)
                .is_none_or(|end| end > self.len)
            {
                return Err(ImageError::Absent(self.len.max(offset)));
            }
            return self.read_file(offset, buf);
        };
        while !buf.is_empty() {
            let piece = flat.map.find(offset).ok_or(ImageError::Absent(offset))?;
            let (file, together) = piece.target.locate();
            let n = together.min(piece.len).min(buf.len() as u64);
            let (head, rest) = buf.split_at_mut(n as usize);
            self.read_file(file, head)?;
            offset += n;
            buf = rest;
        }
        Ok(())
    }

    /// See [`Image::read_padded`].
    pub fn read_padded(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        if self.flat.is_none() || !self.has(offset, 1) {
            return self.read_at(offset, buf);
        }
        buf.fill(0);
        for (at, len) in self.readable(offset, buf.len() as u64) {
            let inside = (at - offset) as usize;
            self.read_at(at, &mut buf[inside..inside + len as usize])?;
        }
        Ok(())
    }

    fn read_file(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| match e.kind() {
                // Shorter than it was when it was opened.
                io::ErrorKind::UnexpectedEof => ImageError::Absent(offset),
                _ => ImageError::Io(e),
            })
    }
}

impl FlatIndex {
    /// Follows the stream's headers from block to block. A stream that ends early gives an index of
    /// what is there.
    fn build(raw: &Source) -> Result<FlatIndex, FlatError> {
        let mut builder = Builder::new();
        let mut at = FLAT_HEADER_SIZE;
        let mut header = [0u8; FLAT_BLOCK_HEADER as usize];
        let mut ended = false;
        while at
            .checked_add(FLAT_BLOCK_HEADER)
            .is_some_and(|end| end <= raw.len)
        {
            match raw.read_at(at, &mut header) {
                Ok(()) => {}
                Err(ImageError::Absent(_)) => break,
                Err(ImageError::Io(e)) => return Err(FlatError::Io(e)),
            }
            let (offset, size) = two_big_endian(&header);
            if offset == FLAT_END && size == FLAT_END {
                ended = true;
                break;
            }
            let bad = |problem: String| FlatError::Block { at, problem };
            let (Ok(offset), Ok(size)) = (u64::try_from(offset), u64::try_from(size)) else {
                return Err(bad(format!(
                    "offset {offset} and size {size}, of which one is negative"
                )));
            };
            if size == 0 {
                // Nobody writes empty blocks; a hole of zeros (lost writes) looks like one.
                if offset == 0 {
                    break;
                }
                return Err(bad(format!("an empty block for offset {offset:#x}")));
            }
            let data = at + FLAT_BLOCK_HEADER;
            let there = size.min(raw.len - data);
            builder
                .push(
                    offset,
                    there,
                    BlockRun {
                        file: data,
                        block: size,
                        skip: 0,
                    },
                )
                .map_err(|e| match e {
                    BuildError::Wraps => {
                        bad(format!("offset {offset:#x} + size {size:#x} wraps around"))
                    }
                    BuildError::TooMany => bad("more blocks in disorder than any dump has".into()),
                })?;
            match data.checked_add(size) {
                Some(next) => at = next,
                None => break,
            }
        }
        let map = builder.finish().map_err(|_| FlatError::Block {
            at,
            problem: "more blocks in disorder than any dump has".into(),
        })?;
        Ok(FlatIndex { map, ended })
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
