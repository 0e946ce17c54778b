//! Opens the dump that the command line names, for every command alike.

use super::args::{DumpArgs, SourceArgs};
use super::exit::Failure;
use crate::dump::{Dump, Opening};
use crate::extract::{DeadHost, ExtractError};
use std::path::Path;
use std::sync::Arc;

/// Opens a dump.
///
/// # Errors
/// When it is none, or one that is not read.
pub fn dump(path: &Path, source: &SourceArgs) -> Result<Arc<Dump>, Failure> {
    let opening = source.parts.iter().fold(Opening::of(path), Opening::part);
    let dump = opening.open().map_err(ExtractError::from)?;
    Ok(Arc::new(dump))
}

/// Opens a dump and finds the kernel in it. That the dump is not whole is said before anything else.
///
/// # Errors
/// When it is none, or its kernel cannot be read.
pub fn host(args: &DumpArgs) -> Result<DeadHost, Failure> {
    let dump = dump(&args.dump, &args.source)?;
    if let Some(why) = dump.incomplete() {
        eprintln!("warning: the dump is not whole: {why}");
    }
    Ok(DeadHost::of(dump)?)
}
