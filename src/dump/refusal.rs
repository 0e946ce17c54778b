//! Why a format's reader does not take a file, before the file's name is put to it.

use std::io;
use std::path::PathBuf;

use super::error::OpenError;
use super::flattened::FlatError;
use super::image::{ImageError, PART_SHIFT};

#[derive(Debug)]
pub(super) enum Refusal {
    Io(io::Error),
    NotADump {
        what: String,
        hint: &'static str,
    },
    Unsupported {
        what: String,
        hint: &'static str,
    },
    Damaged {
        structure: &'static str,
        field: &'static str,
        offset: u64,
        problem: String,
    },
    /// One of several files does not fit to the others. `{}` in `what` stands for the other's name.
    Part {
        part: usize,
        other: Option<usize>,
        what: String,
    },
    /// The temporary file for a pipe could not be made or filled.
    Spool {
        directory: PathBuf,
        written: u64,
        source: io::Error,
    },
    /// What is wrong with one of several files.
    InPart(usize, Box<Refusal>),
}

impl Refusal {
    pub fn damaged(
        structure: &'static str,
        field: &'static str,
        offset: u64,
        problem: impl Into<String>,
    ) -> Refusal {
        Refusal::Damaged {
            structure,
            field,
            offset,
            problem: problem.into(),
        }
    }

    pub fn unsupported(what: impl Into<String>, hint: &'static str) -> Refusal {
        Refusal::Unsupported {
            what: what.into(),
            hint,
        }
    }

    pub fn part(part: usize, other: Option<usize>, what: impl Into<String>) -> Refusal {
        Refusal::Part {
            part,
            other,
            what: what.into(),
        }
    }

    pub fn in_part(self, part: usize) -> Refusal {
        match self {
            already @ (Refusal::InPart(..) | Refusal::Part { .. }) => already,
            other => Refusal::InPart(part, Box::new(other)),
        }
    }

    pub fn not_a_dump(what: impl Into<String>, hint: &'static str) -> Refusal {
        Refusal::NotADump {
            what: what.into(),
            hint,
        }
    }

    /// For a read of `structure` that did not succeed.
    pub fn unreadable(structure: &'static str, offset: u64, error: ImageError) -> Refusal {
        match error {
            ImageError::Io(e) => Refusal::Io(e),
            ImageError::Absent(at) => Refusal::damaged(
                structure,
                "",
                offset,
                format!("is not all there: the file ends at {at:#x} (cut short?)"),
            ),
        }
    }

    /// The error for a dump of these files.
    pub fn at(self, paths: &[PathBuf]) -> OpenError {
        let name = |part: usize| {
            paths
                .get(part)
                .or(paths.first())
                .cloned()
                .unwrap_or_default()
        };
        let path = name(0);
        match self {
            Refusal::InPart(part, refusal) => refusal.at(&[name(part)]),
            Refusal::Part { part, other, what } => OpenError::WrongPart {
                path: name(part),
                what: match other {
                    Some(other) => what.replace("{}", &name(other).display().to_string()),
                    None => what,
                },
            },
            Refusal::Spool {
                directory,
                written,
                source,
            } => OpenError::Spool {
                path,
                directory,
                written,
                source,
            },
            Refusal::Io(source) => OpenError::Io { path, source },
            Refusal::NotADump { what, hint } => OpenError::NotADump { path, what, hint },
            Refusal::Unsupported { what, hint } => OpenError::Unsupported { path, what, hint },
            Refusal::Damaged {
                structure,
                field,
                offset,
                problem,
            } => OpenError::Damaged {
                path,
                structure,
                field,
                offset: offset % (1 << PART_SHIFT),
                problem,
            },
        }
    }
}

impl From<FlatError> for Refusal {
    fn from(error: FlatError) -> Refusal {
        match error {
            FlatError::Io(e) => Refusal::Io(e),
            FlatError::Version { kind, version } => Refusal::unsupported(
                format!("a flattened dump of type {kind}, version {version}"),
                "only type 1, version 1 is known; unfold it with `makedumpfile -R`",
            ),
            FlatError::Block { at, problem } => Refusal::damaged(
                "makedumpfile_data_header",
                "offset, buf_size",
                at,
                format!("is {problem}"),
            ),
        }
    }
}
