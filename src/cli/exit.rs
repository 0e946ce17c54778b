//! Exit codes, and how a failure becomes one, with its cause chain and a hint.

use crate::dump::ReadError;
use crate::extract::ExtractError;
use crate::extract::directory::DirectoryError;
use crate::guest::GuestError;
use crate::restore::RestoreError;
use crate::restore::disks::DiskError;
use crate::restore::journal::JournalError;

/// What the command's end means to a script. Documented in docs/exit-codes.md.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// All that was asked for was done.
    #[default]
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line was wrong.
    Usage = 2,
    /// The dump (or dataset) cannot be read.
    Unreadable = 3,
    /// Nothing in the dump matches what was asked for.
    NoMatch = 4,
    /// The dump is incomplete or a restore would be unsafe: refused.
    Refused = 5,
    /// This host cannot do it.
    HostCannot = 6,
    /// Some were restored, some not.
    Partly = 7,
    /// Restored, with losses, which are named.
    WithLosses = 8,
}

/// A failure on its way to the user.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// The cause chain.
    pub error: anyhow::Error,
    /// What can be done about it.
    pub hint: String,
}

impl Failure {
    /// A failure that a command states itself.
    pub fn new(exit: Exit, error: impl std::fmt::Display, hint: impl Into<String>) -> Self {
        Self {
            exit,
            error: anyhow::anyhow!("{error}"),
            hint: hint.into(),
        }
    }

    /// The whole cause chain in one line.
    pub fn chain(&self) -> String {
        let mut text = String::new();
        for cause in self.error.chain() {
            let cause = cause.to_string();
            // A wrapper that only passes its source's text on says nothing new.
            if !text.ends_with(&cause) {
                if !text.is_empty() {
                    text.push_str(": ");
                }
                text.push_str(&cause);
            }
        }
        text
    }

    /// Writes `error: …` and `hint: …` to stderr.
    pub fn print(&self) {
        eprintln!("error: {}", self.chain());
        if !self.hint.is_empty() {
            eprintln!("hint: {}", self.hint);
        }
    }

    pub(super) fn from_error(exit: Exit, hint: String, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            error: error.into(),
            hint,
        }
    }
}

impl From<ExtractError> for Failure {
    fn from(e: ExtractError) -> Self {
        let exit = match &e {
            ExtractError::Guest(GuestError::Unsupported { .. }) => Exit::Refused,
            _ => Exit::Unreadable,
        };
        Self::from_error(exit, e.hint().to_owned(), e)
    }
}

impl From<DirectoryError> for Failure {
    fn from(e: DirectoryError) -> Self {
        let (exit, hint) = match &e {
            DirectoryError::NotEmpty { .. } => (Exit::Refused, "name a new directory with -o"),
            DirectoryError::Io { what, .. } if ["open", "read", "list"].contains(what) => (
                Exit::Unreadable,
                "`vmrestore extract DUMP SELECTOR -o DIR` writes such a directory",
            ),
            DirectoryError::Damaged { .. } => (
                Exit::Unreadable,
                "copy it again, or extract it anew from the dump: what is in it cannot be trusted",
            ),
            DirectoryError::Io { .. } => (
                Exit::Failed,
                "nothing is left of it; mend the cause and run it again",
            ),
            DirectoryError::NotADataset { .. } | DirectoryError::Version { .. } => (
                Exit::Unreadable,
                "`vmrestore extract DUMP SELECTOR -o DIR` writes such a directory",
            ),
            DirectoryError::Page { .. } => (
                Exit::Refused,
                "`vmrestore check DUMP` says which pages are missing; docs/kdump.md says how the next dump keeps them",
            ),
        };
        Self::from_error(exit, hint.to_owned(), e)
    }
}

impl From<JournalError> for Failure {
    fn from(e: JournalError) -> Self {
        let (exit, hint) = match &e {
            JournalError::AlreadyRestored { .. } => (
                Exit::Refused,
                "two copies on one disk destroy it; if the first one is gone for good and you know its disk is fit, say --force",
            ),
            JournalError::InPlace { .. } => (
                Exit::Refused,
                "it goes on, or went on, in the capture kernel; if it is gone for good, start it anew from its disk",
            ),
            JournalError::FrameTaken { .. } => (
                Exit::Refused,
                "no two guests run in one page of memory: of the two only the first can go on",
            ),
            JournalError::Busy { .. } => (Exit::Refused, "wait until it has finished"),
            JournalError::BadIdentity { .. } => (Exit::Refused, "the dump's headers are damaged"),
            JournalError::Io { .. } => (
                Exit::HostCannot,
                "vmrestore needs root and a directory for its journal; name another with --state-dir",
            ),
        };
        Self::from_error(exit, hint.to_owned(), e)
    }
}

impl From<DiskError> for Failure {
    fn from(e: DiskError) -> Self {
        let exit = match &e {
            DiskError::Io { .. } => Exit::Failed,
            _ => Exit::Refused,
        };
        Self::from_error(exit, e.hint().to_owned(), e)
    }
}

impl From<RestoreError> for Failure {
    fn from(e: RestoreError) -> Self {
        let exit = match &e {
            RestoreError::PagesMissing { .. }
            | RestoreError::FileChanged { .. }
            | RestoreError::Unsupported { .. }
            | RestoreError::Refused { .. }
            | RestoreError::NotExact { .. } => Exit::Refused,
            RestoreError::Vdso { .. } | RestoreError::PidTaken { .. } => Exit::HostCannot,
            _ => Exit::Failed,
        };
        Self::from_error(exit, e.hint().to_owned(), e)
    }
}

impl From<ReadError> for Failure {
    fn from(e: ReadError) -> Self {
        Self::from_error(
            Exit::Unreadable,
            "`vmrestore check DUMP` says what is missing".into(),
            e,
        )
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self::from_error(Exit::Failed, String::new(), e)
    }
}
