//! Memory and registers as an ELF core: of a guest, for what reads a machine's
//! dump, and of a process, for gdb.

mod contents;
mod elf;
mod guest;
mod guest_notes;
mod guest_view;
mod process;
mod process_notes;
mod unfinished;

pub use guest::{Written, write};
pub use process::{CachedFiles, ProcessWritten, write_process};

use crate::dataset::PageSourceError;
use std::io;
use std::path::PathBuf;

const PAGE: u64 = 4096;
/// Pages that are moved at once.
const BATCH: u64 = 1024;

/// Why there is no core.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CoreError {
    /// There is a file of that name.
    #[error("{} is there already", path.display())]
    Exists { path: PathBuf },
    /// It could not be written; nothing of it is left.
    #[error("{}: {what}", path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// A page of the dump cannot be read.
    #[error("its memory cannot be read")]
    Page(#[source] PageSourceError),
    /// The VMM's mappings are not in the dataset.
    #[error("the process that the VM belonged to is not there")]
    NoOwner,
    /// Memory is missing here and there, in more places than a core can name.
    #[error("its memory is in {count} pieces: too much of it is missing from the dump")]
    Pieces { count: usize },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}
