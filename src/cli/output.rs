//! Data to stdout.

use super::exit::Failure;
use serde::Serialize;
use std::io::Write;

/// Prints one JSON document.
///
/// # Errors
/// When stdout cannot be written to.
pub fn print_json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document).map_err(std::io::Error::from)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}
