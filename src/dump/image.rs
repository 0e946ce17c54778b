//! The dump as one run of bytes: the file itself, what a flattened file unfolds to, or the parts of
//! a split dump, each with a range of offsets of its own.
//!
//! A flattened file is read in place, through an index of its blocks; nothing is copied.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use super::flattened::{Coverage, FlatError, FlatIndex, is_flattened};

/// Why bytes of the image cannot be had.
#[derive(Debug)]
pub(super) enum ImageError {
    /// The image ends before, or the flattened stream has no block for this offset.
    Absent(u64),
    Io(io::Error),
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
    form: Form,
}

/// How the file holds the bytes.
#[derive(Debug)]
enum Form {
    /// As they are.
    Plain,
    /// In the blocks of a flattened stream.
    Flattened(FlatIndex),
    /// As they are, unfolded from a flattened stream that came through a pipe. What the stream did
    /// not write is not there, and no zeros.
    Unfolded { covered: Coverage, ended: bool },
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

    /// Takes every offset for readable: /proc/kcore has no length that means anything.
    pub fn believe_no_length(&mut self) {
        if let Image::One(source) = self
            && matches!(source.form, Form::Plain)
        {
            source.len = u64::MAX;
        }
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
            form: Form::Plain,
        })
    }

    /// A file into which a flattened stream was unfolded.
    pub fn unfolded(file: File, covered: Coverage, ended: bool) -> Source {
        Source {
            file,
            len: covered.end(),
            form: Form::Unfolded { covered, ended },
        }
    }

    /// If the file is flattened, turns it into what it unfolds to.
    pub fn unfold(self) -> Result<Source, FlatError> {
        let mut head = [0u8; 32];
        match self.read_at(0, &mut head) {
            Ok(()) => {}
            Err(ImageError::Absent(_)) => return Ok(self),
            Err(ImageError::Io(e)) => return Err(FlatError::Io(e)),
        }
        if !is_flattened(&head)? {
            return Ok(self);
        }
        let index = FlatIndex::build(&self.file, self.len)?;
        Ok(Source {
            len: index.covered().end(),
            form: Form::Flattened(index),
            ..self
        })
    }

    /// Bytes from the first to one past the last that there is.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_flattened(&self) -> bool {
        !matches!(self.form, Form::Plain)
    }

    pub fn is_cut(&self) -> bool {
        match &self.form {
            Form::Plain => false,
            Form::Flattened(index) => !index.has_ended(),
            Form::Unfolded { ended, .. } => !ended,
        }
    }

    /// Which bytes there are; `None` when it is all up to the length.
    fn covered(&self) -> Option<&Coverage> {
        match &self.form {
            Form::Plain => None,
            Form::Flattened(index) => Some(index.covered()),
            Form::Unfolded { covered, .. } => Some(covered),
        }
    }

    pub fn has(&self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else {
            return false;
        };
        match self.covered() {
            None => end <= self.len,
            Some(covered) => len == 0 || covered.has(offset, end),
        }
    }

    pub fn readable(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let end = offset.saturating_add(len);
        match self.covered() {
            None if offset < self.len => vec![(offset, end.min(self.len) - offset)],
            None => Vec::new(),
            Some(covered) => covered.within(offset, end),
        }
    }

    pub fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), ImageError> {
        let Form::Flattened(index) = &self.form else {
            if !self.has(offset, buf.len() as u64) {
                return Err(ImageError::Absent(self.len.max(offset)));
            }
            return self.read_file(offset, buf);
        };
        let mut cursor = None;
        while !buf.is_empty() {
            let (file, together) = index
                .find(&self.file, offset, &mut cursor)
                .map_err(ImageError::Io)?
                .ok_or(ImageError::Absent(offset))?;
            let n = together.min(buf.len() as u64);
            let (head, rest) = buf.split_at_mut(n as usize);
            self.read_file(file, head)?;
            offset += n;
            buf = rest;
        }
        Ok(())
    }

    /// See [`Image::read_padded`].
    pub fn read_padded(&self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        if !self.is_flattened() || !self.has(offset, 1) {
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
