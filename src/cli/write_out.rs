//! `vmrestore extract`: guests or processes as files.

use super::args::DumpArgs;
use super::exit::{Exit, Failure};
use super::open;
use super::output::print_json;
use super::show;
use super::table::bytes;
use crate::extract::directory;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Serialize)]
struct Document {
    schema_version: u32,
    crash_id: String,
    datasets: Vec<Written>,
}

#[derive(Serialize)]
struct Written {
    pid: i32,
    directory: PathBuf,
    memory_bytes: u64,
}

/// Writes each process (with its guests) to a directory of its own below
/// `output`, named `pid-N`.
///
/// # Errors
/// When the dump cannot be read, nothing matches, or the files cannot be
/// written; then nothing of that process is left.
pub fn run(
    dump: &DumpArgs,
    selectors: &[String],
    output: &Path,
    json: bool,
) -> Result<Exit, Failure> {
    let dead = open::dead_host(dump)?;
    let mut pids = Vec::new();
    for selector in selectors {
        let pid = show::find(&dead, selector)?;
        if !pids.contains(&pid) {
            pids.push(pid);
        }
    }
    let pages = dead.pages();
    let mut datasets = Vec::new();
    for pid in pids {
        let dataset = dead.dataset(&[pid])?;
        let directory = output.join(format!("pid-{pid}"));
        let memory_bytes = directory::write(&dataset, &pages, &directory).inspect_err(|_| {
            // Only if this run made it, and nothing else is in it.
            let _ = std::fs::remove_dir(output);
        })?;
        if !json {
            println!(
                "pid {pid}: {} in {}",
                bytes(memory_bytes),
                directory.display()
            );
        }
        datasets.push(Written {
            pid,
            directory,
            memory_bytes,
        });
    }
    if json {
        print_json(&Document {
            schema_version: super::SCHEMA_VERSION,
            crash_id: dead.dump().identity().to_string(),
            datasets,
        })?;
    }
    Ok(Exit::Done)
}
