//! The dump as one run of bytes: the file itself, what a flattened file unfolds to, or the parts of
//! a split dump, each with a range of offsets of its own.
//!
//! A flattened file is read in place, through an index of its blocks; nothing is copied.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};

use super::flattened::{Coverage, FlatError, FlatIndex, is_flattened};
use super::windows::Windows;

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
    /// Of a regular file: its length, and when it was last written (seconds, nanoseconds).
    written: Option<(u64, i64, i64)>,
}

/// See [`Source::written`]. The files of procfs have lengths and times of their own kind.
fn written(file: &File) -> Option<(u64, i64, i64)> {
    let facts = file.metadata().ok().filter(|m| m.is_file())?;
    let in_procfs = nix::sys::statfs::fstatfs(file)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC);
    (!in_procfs).then(|| (facts.len(), facts.mtime(), facts.mtime_nsec()))
}

/// How the file holds the bytes.
#[derive(Debug)]
enum Form {
    /// As they are.
    Plain,
    /// As they are, in the memory itself: `/proc/vmcore`.
    Memory(Windows),
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

    /// It is one file of procfs.
    pub fn is_in_procfs(&self) -> bool {
        match self {
            Image::One(source) => is_of_procfs(&source.file),
            Image::Parts(_) => false,
        }
    }

    /// Nobody has written to its files since they were opened, or cut them.
    pub fn still_whole(&self) -> Result<(), String> {
        let mut sources = self.sources().iter();
        match sources
            .all(|source| source.written.is_none() || written(&source.file) == source.written)
        {
            true => Ok(()),
            false => Err("the dump was written to, or cut, while it was read".into()),
        }
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
            && matches!(source.form, Form::Plain | Form::Memory(_))
        {
            source.len = u64::MAX;
            source.form = Form::Plain;
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

    /// The regular file in which the bytes from `offset` on stand as they are, and where.
    pub fn plain(&self, offset: u64) -> Option<(&File, u64)> {
        let (source, offset, _) = self.source(offset)?;
        let plain = matches!(source.form, Form::Plain) && source.written.is_some();
        plain.then_some((&source.file, offset))
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

fn is_of_procfs(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

impl Source {
    /// The file as it stands. A block device has a length too; a pipe has none and fails here.
    pub fn new(mut file: File) -> io::Result<Source> {
        let len = file.seek(SeekFrom::End(0))?;
        let form = match is_of_procfs(&file) {
            true => Form::Memory(Windows::default()),
            false => Form::Plain,
        };
        Ok(Source {
            written: written(&file),
            file,
            len,
            form,
        })
    }

    /// A file into which a flattened stream was unfolded.
    pub fn unfolded(file: File, covered: Coverage, ended: bool) -> Source {
        Source {
            file,
            len: covered.end(),
            form: Form::Unfolded { covered, ended },
            // This program writes it itself.
            written: None,
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
        matches!(self.form, Form::Flattened(_) | Form::Unfolded { .. })
    }

    pub fn is_cut(&self) -> bool {
        match &self.form {
            Form::Plain | Form::Memory(_) => false,
            Form::Flattened(index) => !index.has_ended(),
            Form::Unfolded { ended, .. } => !ended,
        }
    }

    /// Which bytes there are; `None` when it is all up to the length.
    fn covered(&self) -> Option<&Coverage> {
        match &self.form {
            Form::Plain | Form::Memory(_) => None,
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
        if let Form::Memory(windows) = &self.form
            && windows.read(&self.file, self.len, offset, buf)
        {
            return Ok(());
        }
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| match e.kind() {
                // Shorter than it was when it was opened.
                io::ErrorKind::UnexpectedEof => ImageError::Absent(offset),
                _ => ImageError::Io(e),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn what_is_written_to_or_cut_is_not_whole() {
        let path = std::env::temp_dir().join(format!("vmrestore-whole-{}", std::process::id()));
        std::fs::write(&path, vec![7; 8192]).expect("a file");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let open = || Image::One(Source::new(File::open(&path).expect("opens")).expect("a length"));
        let first = open();
        assert_eq!(first.still_whole(), Ok(()));
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.write_at(&[8], 4097).expect("writes");
        assert!(
            first
                .still_whole()
                .is_err_and(|why| why.contains("written to"))
        );
        let third = open();
        file.set_len(4096).expect("cuts");
        assert!(third.still_whole().is_err());
        // One that is replaced, or has no name any more, is what it was.
        let last = open();
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(last.still_whole(), Ok(()));
    }
}
