//! `vmrestore extract`: guests or processes as files.

use super::args::{DumpArgs, SetArgs};
use super::exit::{Exit, Failure};
use super::open;
use super::output::print_json;
use super::table::bytes;
use super::{select, sets};
use crate::extract::directory;
use crate::restore::swap;
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
    /// The first of the set.
    pid: i32,
    pids: Vec<i32>,
    directory: PathBuf,
    memory_bytes: u64,
}

/// Writes each set of processes (with its guests) to a directory of its own
/// below `output`, named `pid-N` by its first.
///
/// # Errors
/// When the dump cannot be read, nothing matches, or the files cannot be
/// written; then nothing of that process is left.
pub fn run(
    dump: &DumpArgs,
    selectors: &[String],
    which: &SetArgs,
    output: &Path,
    json: bool,
) -> Result<Exit, Failure> {
    if !sets::is_named(selectors, which) {
        return Err(Failure::new(
            Exit::Usage,
            "nothing is named to write out",
            "`vmrestore list DUMP` shows what there is",
        ));
    }
    let dead = open::dead_host(dump)?;
    let all = dead.processes()?;
    let guests = dead.guests()?;
    let mut pids = Vec::new();
    let mut others = Vec::new();
    for selector in selectors {
        match select::guests(&guests, std::slice::from_ref(selector)) {
            Ok(found) => pids.extend(found.iter().map(|g| g.pid)),
            Err(_) => others.push(selector.clone()),
        }
    }
    if sets::is_named(&others, which) {
        let choice = sets::chosen(&all, &others, which)?;
        pids.extend(choice.pids);
    }
    let mut seen = std::collections::BTreeSet::new();
    pids.retain(|pid| seen.insert(*pid));
    let together = match pids.as_slice() {
        [_] => Vec::new(),
        _ => dead.together()?,
    };
    let pages = dead.pages();
    let mut datasets = Vec::new();
    for set in sets::apart(&all, &together, &pids) {
        let pid = set.first().copied().unwrap_or(0);
        let mut dataset = dead.dataset(&set)?;
        let pages = swap::open(&dataset, &pages, false)?;
        // The directory has what was in them.
        dataset.fidelity.extend(pages.notes());
        let directory = output.join(format!("pid-{pid}"));
        let memory_bytes = directory::write(&dataset, &pages, &directory).inspect_err(|_| {
            // Only if this run made it, and nothing else is in it.
            let _ = std::fs::remove_dir(output);
        })?;
        pages.still_untouched(pid).inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&directory);
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
            pids: set,
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
