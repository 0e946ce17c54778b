//! What `extract` wrote, in the place of a dump: `vmrestore restore DIR`, and
//! `guests DIR` and `process DIR`, which name some of it.

use super::args::{DumpArgs, RestoreArgs, SetArgs};
use super::arriving;
use super::bring_back::{attempt, name_of};
use super::exit::{Exit, Failure};
use super::report;
use super::sets;
use crate::dataset::Dataset;
use crate::extract::directory::{self, StoredPages};
use crate::restore::journal::Journal;
use std::path::Path;

/// A set of processes as it was written.
type Stored = (Dataset, StoredPages);

/// The path of the dump is a directory of `extract`.
pub fn is_given(dump: &DumpArgs) -> bool {
    directory::is_one(&dump.dump)
}

/// Restores all of a directory.
///
/// # Errors
/// When something in it cannot be read: then nothing is attempted. What became of each set is in
/// the report.
pub fn all(dir: &Path, options: &RestoreArgs, json: bool) -> Result<Exit, Failure> {
    restore(read(dir)?, options, json)
}

/// Restores the guests of a directory, or those named.
///
/// # Errors
/// As [`all`], and when there is none, or none of that name.
pub fn guests(
    dump: &DumpArgs,
    selectors: &[String],
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    let mut all = read(&dump.dump)?;
    all.retain(|(dataset, _)| !dataset.vms.is_empty());
    if all.is_empty() {
        return Err(Failure::new(
            Exit::NoMatch,
            "there is no guest in this directory",
            "`vmrestore restore DIR` restores whatever is in it",
        ));
    }
    restore(chosen(all, selectors)?, options, json)
}

/// Restores the sets of processes of a directory, or those with the processes named.
///
/// # Errors
/// As [`guests`].
pub fn processes(
    dump: &DumpArgs,
    selectors: &[String],
    which: &SetArgs,
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    if which.tree || sets::is_named(&[], which) {
        return Err(Failure::new(
            Exit::Usage,
            "what belongs together was settled when it was extracted",
            "name a process of the set (pid:N, or a command name), or nothing to restore all",
        ));
    }
    restore(chosen(read(&dump.dump)?, selectors)?, options, json)
}

fn read(dir: &Path) -> Result<Vec<Stored>, Failure> {
    // All are read before the first is restored: what is wrong with the last
    // must not hide what became of the first.
    let found = directory::find(dir)?;
    let read = found.iter().map(|dir| directory::read(dir));
    Ok(read.collect::<Result<Vec<_>, _>>()?)
}

/// Those that a selector speaks of; all, when there is none.
fn chosen(all: Vec<Stored>, selectors: &[String]) -> Result<Vec<Stored>, Failure> {
    let nobody = selectors
        .iter()
        .find(|s| !all.iter().any(|(dataset, _)| speaks_of(s, dataset)));
    if let Some(selector) = nobody {
        return Err(Failure::new(
            Exit::NoMatch,
            format!("nothing in this directory matches {selector:?}"),
            "name a guest (name or UUID), pid:N, or a command name",
        ));
    }
    Ok(all
        .into_iter()
        .filter(|(dataset, _)| {
            selectors.is_empty() || selectors.iter().any(|s| speaks_of(s, dataset))
        })
        .collect())
}

fn speaks_of(selector: &str, dataset: &Dataset) -> bool {
    let pid: Option<i32> = selector
        .strip_prefix("pid:")
        .unwrap_or(selector)
        .parse()
        .ok();
    let process = dataset
        .processes
        .iter()
        .any(|p| pid == Some(p.pid) || p.comm == selector);
    let guest = |vm: &crate::dataset::Vm| {
        let uuid = vm.uuid.as_deref();
        vm.name.as_deref() == Some(selector)
            || uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case(selector))
    };
    process || dataset.vms.iter().any(guest)
}

fn restore(stored: Vec<Stored>, options: &RestoreArgs, json: bool) -> Result<Exit, Failure> {
    let mut lines = Vec::new();
    let mut crash = String::new();
    for (dataset, pages) in stored {
        let journal = Journal::open(&options.state_dir, &dataset.crash_id)?;
        crash.clone_from(&dataset.crash_id);
        let name = name_of(&dataset);
        let pid = dataset.processes.first().map_or(0, |p| p.pid);
        lines.push(attempt(&name, pid, &journal, options, || {
            Ok((dataset, &pages))
        }));
    }
    arriving::wait(&mut lines);
    report::finish(&crash, &lines, json)
}
