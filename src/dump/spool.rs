//! A dump that comes through a pipe: `ssh host cat dump | vmrestore list -`.
//!
//! Pages are looked up at random, and a pipe gives each byte once. So the stream is written once into
//! a temporary file that has no name: nothing is left of it when this process ends, however it ends.
//! A flattened stream is unfolded on the way and so needs no index; runs of zeros take no space.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::flattened::{BLOCK_HEADER, Block, Coverage, HEADER_SIZE, is_flattened};
use super::image::Source;
use super::recognise;
use super::refusal::Refusal;

/// Bytes taken out of the pipe at once.
const CHUNK: usize = 1 << 20;
/// Zeros are left out in pieces of this size.
const PIECE: usize = 64 << 10;
/// Runs of blocks that are not joined; a handful in any real stream.
const MAX_RANGES: usize = 1 << 16;

/// Where a pipe is spooled when nothing is said: `$TMPDIR`, or `/var/tmp`. Not `/tmp`, which is
/// memory on many machines.
pub(super) fn default_directory() -> PathBuf {
    std::env::var_os("TMPDIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Reads a whole stream into a file without a name in `directory`. `progress` is told now and then
/// how many bytes have come.
pub(super) fn spool(
    stream: impl Read,
    directory: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Source, Refusal> {
    let mut input = Input {
        stream,
        ahead: Vec::new(),
        used: 0,
        taken: 0,
        progress,
    };
    input.look_ahead(recognise::HEAD)?;
    let flattened = is_flattened(&input.ahead)?;
    if !flattened {
        // Before hundreds of gigabytes of something else are written. A flattened stream may go back
        // and write its begin last.
        recognise::recognise(&input.ahead[..input.ahead.len().min(recognise::HEAD)])?;
    }
    let file = unnamed(directory).map_err(|source| Refusal::Spool {
        directory: directory.to_path_buf(),
        written: 0,
        source,
    })?;
    let mut output = Output { file, written: 0 };
    let result = match flattened {
        true => unfold(&mut input, &mut output),
        false => copy(&mut input, &mut output),
    };
    let (covered, ended) = result.map_err(|error| match error {
        Trouble::Stream(refusal) => refusal,
        Trouble::Spool(source) => Refusal::Spool {
            directory: directory.to_path_buf(),
            written: output.written,
            source,
        },
    })?;
    (input.progress)(input.taken);
    match covered {
        Some(covered) => Ok(Source::unfolded(output.file, covered, ended)),
        None => Source::new(output.file).map_err(Refusal::Io),
    }
}

/// A file that no directory lists.
fn unnamed(directory: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory);
    match file {
        // A file system (NFS, some overlays) or kernel that does not know O_TMPFILE.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let path = directory.join(format!("vmrestore-spool-{}", std::process::id()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        other => other,
    }
}

enum Trouble {
    /// On the side of the pipe.
    Stream(Refusal),
    /// On the side of the temporary file.
    Spool(io::Error),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        Trouble::Stream(refusal)
    }
}

struct Input<'p, R> {
    stream: R,
    ahead: Vec<u8>,
    /// Bytes of `ahead` that have been used.
    used: usize,
    /// Bytes used in all.
    taken: u64,
    progress: &'p mut dyn FnMut(u64),
}

impl<R: Read> Input<'_, R> {
    /// Makes sure that `len` bytes are there unused, unless the stream ends before.
    fn look_ahead(&mut self, len: usize) -> Result<&[u8], Refusal> {
        if self.ahead.len() - self.used < len {
            self.ahead.drain(..self.used);
            self.used = 0;
            (self.progress)(self.taken);
            let mut filled = self.ahead.len();
            self.ahead.resize(len.max(CHUNK), 0);
            while filled < len {
                match self.stream.read(&mut self.ahead[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(Refusal::Io(e)),
                }
            }
            self.ahead.truncate(filled);
        }
        Ok(&self.ahead[self.used..])
    }

    fn skip(&mut self, len: usize) {
        self.used += len;
        self.taken += len as u64;
    }
}

struct Output {
    file: File,
    written: u64,
}

impl Output {
    /// Writes bytes at an offset. Zeros are left out where `fresh` says that nothing was written
    /// before.
    fn write(&mut self, offset: u64, bytes: &[u8], fresh: bool) -> Result<(), Trouble> {
        for (at, piece) in (offset..).step_by(PIECE).zip(bytes.chunks(PIECE)) {
            if fresh && piece.iter().all(|&b| b == 0) {
                continue;
            }
            self.file.write_all_at(piece, at).map_err(Trouble::Spool)?;
            self.written += piece.len() as u64;
        }
        Ok(())
    }
}

type Spooled = (Option<Coverage>, bool);

fn copy(input: &mut Input<'_, impl Read>, output: &mut Output) -> Result<Spooled, Trouble> {
    let mut offset = 0;
    loop {
        let bytes = input.look_ahead(1)?;
        let len = bytes.len();
        if len == 0 {
            // Zeros at the end are part of it.
            output.file.set_len(offset).map_err(Trouble::Spool)?;
            return Ok((None, true));
        }
        output.write(offset, bytes, true)?;
        offset += len as u64;
        input.skip(len);
    }
}

fn unfold(input: &mut Input<'_, impl Read>, output: &mut Output) -> Result<Spooled, Trouble> {
    input.skip(HEADER_SIZE as usize);
    let mut ranges = Ranges::default();
    let ended = loop {
        let at = input.taken;
        let Some(header) = input.look_ahead(BLOCK_HEADER as usize)?.get(..16) else {
            break false;
        };
        let (mut offset, mut left) = match Block::parse(header, at).map_err(Refusal::from)? {
            Block::Bytes { offset, size } => (offset, size),
            Block::End => {
                input.skip(BLOCK_HEADER as usize);
                break true;
            }
            Block::Lost => break false,
        };
        input.skip(BLOCK_HEADER as usize);
        let start = offset;
        let fresh = !ranges.overlap(start, start + left);
        while left > 0 {
            let bytes = input.look_ahead(1)?;
            let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if len == 0 {
                break;
            }
            output.write(offset, &bytes[..len], fresh)?;
            input.skip(len);
            offset += len as u64;
            left -= len as u64;
        }
        ranges.add(start, offset, at)?;
    };
    let covered = Coverage::of(ranges.0.iter().map(|(&start, &end)| start..end));
    output.file.set_len(covered.end()).map_err(Trouble::Spool)?;
    Ok((Some(covered), ended))
}

/// Disjoint ranges of the image that have been written: start and end.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn overlap(&self, start: u64, end: u64) -> bool {
        let before = self.0.range(..end).next_back();
        before.is_some_and(|(_, &its_end)| its_end > start)
    }

    fn add(&mut self, mut start: u64, mut end: u64, at: u64) -> Result<(), Refusal> {
        if start >= end {
            return Ok(());
        }
        while let Some((&its_start, &its_end)) = self.0.range(..=end).next_back()
            && its_end >= start
        {
            self.0.remove(&its_start);
            start = start.min(its_start);
            end = end.max(its_end);
        }
        self.0.insert(start, end);
        match self.0.len() {
            0..=MAX_RANGES => Ok(()),
            _ => Err(Refusal::damaged(
                "makedumpfile_data_header",
                "offset",
                at,
                "is of one of more blocks in disorder than any dump has",
            )),
        }
    }
}
