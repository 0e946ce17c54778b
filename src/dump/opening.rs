//! From paths to an open dump: one file, the parts of a split dump, or a directory that holds it.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::Dump;
use super::error::OpenError;
use super::image::{Image, ImageError, MAX_PARTS, PART_SHIFT, Source};
use super::recognise::{self, Kind};
use super::refusal::Refusal;
use super::spool;

/// How to open a dump.
///
/// ```no_run
/// # use vmrestore::dump::Opening;
/// let dump = Opening::of("/var/crash/vmcore.1").part("/mnt/vmcore.2").open()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Opening<'a> {
    paths: Vec<PathBuf>,
    spool_directory: Option<PathBuf>,
    progress: Option<Box<dyn FnMut(u64) + 'a>>,
}

impl<'a> Opening<'a> {
    /// A dump's file, any part of a split one, or a directory that holds exactly one dump (or all
    /// parts of one). `-` is standard input. What comes through a pipe is first read to its end into
    /// a temporary file without a name, for pages are looked up at random.
    pub fn of(path: impl Into<PathBuf>) -> Opening<'a> {
        Opening {
            paths: vec![path.into()],
            spool_directory: None,
            progress: None,
        }
    }

    /// Where the temporary file for a pipe goes; else `$TMPDIR`, or `/var/tmp`.
    #[must_use]
    pub fn spool_directory(mut self, directory: impl Into<PathBuf>) -> Opening<'a> {
        self.spool_directory = Some(directory.into());
        self
    }

    /// Is told, about once for each MiB, how many bytes have come through a pipe.
    #[must_use]
    pub fn on_progress(mut self, progress: impl FnMut(u64) + 'a) -> Opening<'a> {
        self.progress = Some(Box::new(progress));
        self
    }

    /// A further part, in any order. With more than one part given, missing ones are no error: their
    /// pages are [`Missing::Truncated`](super::Missing::Truncated), and [`Dump::incomplete`] names
    /// them.
    #[must_use]
    pub fn part(mut self, path: impl Into<PathBuf>) -> Opening<'a> {
        self.paths.push(path.into());
        self
    }

    /// Opens it: reads headers, notes and bitmaps, and no page.
    pub fn open(self) -> Result<Dump, OpenError> {
        let mut alone = self.paths.len() == 1;
        let paths = match <[PathBuf; 1]>::try_from(self.paths) {
            Ok([directory]) if directory.is_dir() => {
                alone = false;
                dumps_in(&directory)?
            }
            Ok([path]) => vec![path],
            Err(paths) => paths,
        };
        if paths.len() > MAX_PARTS {
            let what = format!("is one of more than {MAX_PARTS} parts");
            return Err(Refusal::part(0, None, what).at(&paths));
        }
        let directory = self
            .spool_directory
            .unwrap_or_else(spool::default_directory);
        let mut progress = self.progress.unwrap_or_else(|| Box::new(|_| {}));
        let mut sources = Vec::with_capacity(paths.len());
        for path in &paths {
            let source = open_source(path, &directory, &mut progress)
                .map_err(|e| e.at(std::slice::from_ref(path)))?;
            // /proc/kcore says that it is longer than all that can be addressed.
            if paths.len() > 1 && source.len() >= 1 << PART_SHIFT {
                let what = format!("is {} bytes long; no part is", source.len());
                return Err(Refusal::part(sources.len(), None, what).at(&paths));
            }
            sources.push(source);
        }
        let dump = Dump::from_sources(sources, &paths)?;
        match dump.lone_part() {
            Some((pfns, max_pfn)) if alone => Err(OpenError::OnePart {
                path: paths.into_iter().next().unwrap_or_default(),
                pfns,
                max_pfn,
            }),
            _ => Ok(dump),
        }
    }
}

fn open_source(
    path: &Path,
    spool_directory: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Source, Refusal> {
    if path == Path::new("-") {
        // A file as standard input is read in place.
        let file = io::stdin().as_fd().try_clone_to_owned();
        let file = File::from(file.map_err(Refusal::Io)?);
        return source_of(file, spool_directory, progress);
    }
    let metadata = std::fs::metadata(path).map_err(Refusal::Io)?;
    if metadata.is_dir() {
        return Err(Refusal::not_a_dump(
            "it is a directory",
            "name the parts of a split dump one by one, or their directory alone",
        ));
    }
    let file = File::open(path).map_err(Refusal::Io)?;
    source_of(file, spool_directory, progress)
}

fn source_of(
    file: File,
    spool_directory: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Source, Refusal> {
    let kind = file.metadata().map_err(Refusal::Io)?.file_type();
    if kind.is_char_device() && file.is_terminal() {
        return Err(Refusal::not_a_dump(
            "it is a terminal",
            "`-` reads a dump from a pipe: ssh HOST cat DUMP | vmrestore list -",
        ));
    }
    if kind.is_fifo() || kind.is_socket() {
        return spool::spool(file, spool_directory, progress);
    }
    Ok(Source::new(file).map_err(Refusal::Io)?.unfold()?)
}

/// The kind of dump that a source is, by its first bytes.
pub(super) fn recognise(image: &Image, source: usize) -> Result<Kind, Refusal> {
    let begin = Image::part_begin(source);
    let len = image
        .readable(begin, recognise::HEAD as u64)
        .last()
        .map_or(0, |(at, len)| at + len - begin);
    let mut head = vec![0; len as usize];
    image.read_padded(begin, &mut head).or_else(|e| match e {
        // A flattened stream that does not write its first byte: zeros.
        ImageError::Absent(_) => Ok(()),
        ImageError::Io(e) => Err(Refusal::Io(e)),
    })?;
    recognise::recognise(&head)
}

/// The dump in a directory: a file, or all parts of a split one. kdump leaves its dump in a directory
/// of its own, beside the kernel's messages and its own log.
fn dumps_in(directory: &Path) -> Result<Vec<PathBuf>, OpenError> {
    /// More files than beside any dump.
    const MAX_FILES: usize = 4096;
    let io = |source| OpenError::Io {
        path: directory.to_path_buf(),
        source,
    };
    let mut dumps: Vec<(PathBuf, bool)> = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io)?.take(MAX_FILES) {
        let path = entry.map_err(io)?.path();
        if !std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let file = File::open(&path).map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
        if let Some(is_part) = begins_like_a_dump(&file) {
            dumps.push((path, is_part));
        }
    }
    dumps.sort();
    let (parts, whole): (Vec<_>, Vec<_>) = dumps.into_iter().partition(|(_, is_part)| *is_part);
    let paths = |dumps: Vec<(PathBuf, bool)>| dumps.into_iter().map(|(path, _)| path);
    match (parts.len(), whole.len()) {
        (0, 0) => Err(OpenError::NotADump {
            path: directory.to_path_buf(),
            what: "it is a directory, and no file in it is one".into(),
            hint: "name the dump file, or the directory that holds it",
        }),
        (_, 0) => Ok(paths(parts).collect()),
        (0, 1) => Ok(paths(whole).collect()),
        _ => Err(OpenError::SeveralDumps {
            path: directory.to_path_buf(),
            dumps: paths(parts)
                .chain(paths(whole))
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .collect(),
        }),
    }
}

/// Whether a file begins like a dump, and whether like a part of a split one.
fn begins_like_a_dump(file: &File) -> Option<bool> {
    let source = Source::new(file.try_clone().ok()?).ok()?;
    let image = Image::One(source.unfold().ok()?);
    match recognise(&image, 0).ok()? {
        Kind::Elf => {
            // A core, not one of the programs beside it.
            let mut kind = [0; 2];
            image.read_at(16, &mut kind).ok()?;
            (u16::from_le_bytes(kind) == 4).then_some(false)
        }
        Kind::Kdump => {
            let mut split = [0; 4];
            let sub_header = 4096;
            image.read_padded(sub_header + 12, &mut split).ok()?;
            Some(u32::from_le_bytes(split) != 0)
        }
    }
}
