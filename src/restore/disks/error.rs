//! What is wrong with files, whether the operator may answer for it, and what to
//! do about it.

use super::Overrides;
use crate::dataset::PageSourceError;
use crate::restore::journal::JournalError;

/// Why the files are not fit for a restore.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file is not there.
    #[error("{path} (inode {inode} on {device}) cannot be opened")]
    Missing {
        /// Its path.
        path: String,
        /// Inode number in the dead host.
        inode: u64,
        /// Device it was on.
        device: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file is not the one of the crash any more.
    #[error("{path} is not what it was at the crash: {what} was {then} and is {now}")]
    Changed {
        /// Its path.
        path: String,
        /// Which property.
        what: &'static str,
        /// At the crash.
        then: String,
        /// Now.
        now: String,
    },
    /// Unwritten pages that the dump has not got.
    #[error(
        "{path}: {pages} pages that the dead host had not written to the disk are not in the dump"
    )]
    LostPages {
        /// Its path.
        path: String,
        /// How many 4 KiB pages.
        pages: u64,
    },
    /// Data that is neither on the disk any more nor in the dump.
    #[error(
        "{path}: {bytes} bytes that had been written to it past the page cache (O_DIRECT) are in no block of it any more: the file system's journal had not committed them"
    )]
    LostBlocks {
        /// Its path.
        path: String,
        /// How many.
        bytes: u64,
        /// They lie where nobody has anything by now, and can be taken from
        /// there; else, why not.
        rescue: Result<(), String>,
    },
    /// A block device of which it is not proven that it is the one of then.
    #[error("{path} is a block device that cannot be told to be the guest's: {why}")]
    BlockDevice {
        /// Its path.
        path: String,
        /// What is not known.
        why: String,
    },
    /// Somebody else has a guest's disk in hand.
    #[error("{path} is in use: {how}")]
    InUse {
        /// Its path.
        path: String,
        /// By whom, and how.
        how: String,
    },
    /// A marker on a guest's disk says that it was let run on already.
    #[error(
        "{path} was resumed already: a guest of crash {crash} was restored onto it on host {host}, at {when} (Unix time)"
    )]
    Marked {
        /// Its path.
        path: String,
        /// Identity of the crash that it was restored from.
        crash: String,
        /// Name of the host that did it.
        host: String,
        /// Seconds since 1970.
        when: u64,
    },
    /// No room for the unwritten pages.
    #[error("{path}: {needed} bytes of unwritten data need room, its file system has {free}")]
    NoSpace {
        /// Its path.
        path: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// Writing failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation.
        what: &'static str,
        /// On which path.
        path: String,
        /// Its error.
        source: std::io::Error,
    },
    /// A page could not be read from the dump.
    #[error("unwritten data of {path}")]
    Page {
        /// Its path.
        path: String,
        /// Why.
        source: PageSourceError,
    },
    /// The journal cannot be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl DiskError {
    /// Whether the operator answers for it.
    pub(super) fn is_overridden(&self, overrides: Overrides) -> bool {
        match self {
            Self::Changed { .. }
            | Self::BlockDevice { .. }
            | Self::InUse { .. }
            | Self::Marked { .. } => overrides.force,
            Self::LostBlocks { rescue, .. } => overrides.rescue_blocks && rescue.is_ok(),
            _ => false,
        }
    }

    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing { .. } => {
                "mount the file system that holds it where it was mounted, then run the same command again"
            }
            Self::Changed { .. } => {
                "somebody has used the file since the crash; bring back its old state, or say --force if you know that the guest can go on with it as it is"
            }
            Self::LostPages { .. } => {
                "makedumpfile left out page cache: set its level to 17 (docs/kdump.md), so that the next crash loses nothing"
            }
            Self::LostBlocks { rescue: Ok(()), .. } => {
                "they are where they lay, and no file has them: --rescue-blocks takes them from there, which is right unless something was written to that file system and removed again since the crash; or bring the guest up anew"
            }
            Self::LostBlocks { .. } => {
                "bring the guest up anew: to it this is a disk that forgot its last seconds; images whose blocks are all written (no holes, preallocated in full) do not lose them"
            }
            Self::BlockDevice { .. } => {
                "see that the path names the guest's device and that nobody has used it, then say --force: what was not written is written to it first"
            }
            Self::InUse { .. } => {
                "stop whoever uses it first: two writers destroy a disk; --force only if you know that they do not"
            }
            Self::Marked { .. } => {
                "the guest, or what has become of it, is newer than this dump; --force only if the disk was brought back to its state at the crash"
            }
            Self::NoSpace { .. } => {
                "make room on that file system, then run the same command again"
            }
            Self::Io { .. } | Self::Page { .. } | Self::Journal(_) => {
                "nothing was resumed; mend the cause and run the same command again"
            }
        }
    }
}
