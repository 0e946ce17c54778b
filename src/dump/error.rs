//! What can go wrong with a dump: on opening it ([`OpenError`]) and on reading a page ([`ReadError`]).

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::Missing;

/// Why a file cannot be used as a crash dump. [`OpenError::hint`] says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else, or nothing that is known.
    #[error("{} is not a crash dump: {what}", path.display())]
    NotADump {
        /// The file as it was named.
        path: PathBuf,
        /// What it looks like, e.g. "it is empty", "it is a text file".
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A crash dump, but of a kind that is not read.
    #[error("{} is {what}, which is not supported", path.display())]
    Unsupported {
        /// The file as it was named.
        path: PathBuf,
        /// The kind by name, e.g. "a 32-bit ELF core", "a LiME memory image".
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// One part of a split dump, without the others.
    #[error("{} is one part of a split dump: it holds page frames {:#x} to {:#x} of {max_pfn:#x}", path.display(), pfns.start, pfns.end)]
    OnePart {
        /// The file as it was named.
        path: PathBuf,
        /// The page frames that it holds.
        pfns: Range<u64>,
        /// One past the last page frame of the whole dump.
        max_pfn: u64,
    },
    /// A file that was given as part of a split dump and does not fit to the others.
    #[error("{} {what}", path.display())]
    WrongPart {
        /// The file as it was named.
        path: PathBuf,
        /// What is wrong with it, e.g. "is the same part as vmcore.1".
        what: String,
    },
    /// The temporary file that a pipe is written to could not be made or filled.
    #[error("{} comes through a pipe and is kept in a temporary file in {}, which failed after {written} bytes", path.display(), directory.display())]
    Spool {
        /// The pipe as it was named; `-` is standard input.
        path: PathBuf,
        /// Where the temporary file is.
        directory: PathBuf,
        /// Bytes that it had taken; zeros take none.
        written: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A directory with several dumps in it, which are not the parts of one.
    #[error("{} has more than one dump in it: {}", path.display(), dumps.join(", "))]
    SeveralDumps {
        /// The directory as it was named.
        path: PathBuf,
        /// The names of the files.
        dumps: Vec<String>,
    },
    /// A crash dump whose headers contradict themselves or the file's length.
    #[error("{} is damaged: {structure}{} at offset {offset:#x} {problem}", path.display(), dotted(field))]
    Damaged {
        /// The file as it was named.
        path: PathBuf,
        /// The on-disk structure, e.g. `disk_dump_header`.
        structure: &'static str,
        /// Its field; empty for all of it.
        field: &'static str,
        /// Where the structure stands in the (unflattened) file, in bytes.
        offset: u64,
        /// What is wrong with it, with expected and actual value and the likely cause.
        problem: String,
    },
}

fn dotted(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!(".{field}")
    }
}

impl OpenError {
    /// One line that says what the reader of the message can do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            OpenError::Io { .. } => {
                "check the path and its permissions; dumps are usually readable by root alone"
            }
            OpenError::NotADump { hint, .. } | OpenError::Unsupported { hint, .. } => hint,
            OpenError::OnePart { .. } => {
                "give the other parts with it, in any order (--part FILE for each), or name a directory that holds all parts and no other dump"
            }
            OpenError::WrongPart { .. } => {
                "give the parts that one run of makedumpfile --split wrote, each once"
            }
            OpenError::Spool { .. } => {
                "name a directory with room for the whole dump (--spool-dir DIR, or TMPDIR), or save the dump to a file and name that"
            }
            OpenError::SeveralDumps { .. } => "name one of them",
            OpenError::Damaged { .. } => {
                "the dump was cut short or altered while it was written or copied; compare its size and checksum with the original"
            }
        }
    }
}

/// Why bytes of physical memory cannot be had from the dump.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The dump does not hold these bytes; they are not zero, they are unknown.
    #[error("physical address {addr:#x} is not in the dump: {why}")]
    Missing {
        /// First physical address that is missing.
        addr: u64,
        /// The reason.
        why: Missing,
    },
    /// The dump holds the page, but what it holds is wrong.
    #[error("page of physical address {addr:#x} is corrupt at file offset {offset:#x}: {what}")]
    Corrupt {
        /// Physical address that was asked for.
        addr: u64,
        /// Where the bad bytes stand in the (unflattened) file.
        offset: u64,
        /// What is wrong with them.
        what: String,
    },
    /// The system could not read the file.
    #[error("cannot read the dump for physical address {addr:#x}, file offset {offset:#x}")]
    Io {
        /// Physical address that was asked for.
        addr: u64,
        /// Where in the (unflattened) file.
        offset: u64,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl ReadError {
    /// The same error, for the address that was asked for instead of its page's.
    pub(super) fn at(mut self, asked: u64) -> ReadError {
        match &mut self {
            ReadError::Missing { addr, .. }
            | ReadError::Corrupt { addr, .. }
            | ReadError::Io { addr, .. } => *addr = asked,
        }
        self
    }

    /// The reason, when the page is simply not in the dump.
    #[must_use]
    pub fn missing(&self) -> Option<Missing> {
        match self {
            ReadError::Missing { why, .. } => Some(*why),
            _ => None,
        }
    }
}
