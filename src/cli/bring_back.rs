//! `vmrestore guests`, `process` and `restore`: one path for all of them.
//!
//! For each process: read it, see that a restore is safe, build it, and only
//! when all of it stands, write its unwritten file data, note it in the
//! journal, and let it run. One that fails is taken down; the others go on.

use super::args::{DumpArgs, RestoreArgs};
use super::exit::{Exit, Failure};
use super::open;
use super::report::{self, Line, Verdict};
use super::select;
use crate::dataset::{Dataset, Fidelity, FidelityLevel, PageSource};
use crate::extract::{DeadHost, REGISTERS, directory};
use crate::restore;
use crate::restore::disks::{self, Markers};
use crate::restore::journal::{Journal, JournalError};
use std::path::Path;
use std::time::Instant;

/// Restores guests of a dump.
///
/// # Errors
/// When nothing could be attempted; what became of each guest is in the report.
pub fn guests(
    dump: &DumpArgs,
    selectors: &[String],
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    let dead = open::dead_host(dump)?;
    let all = dead.guests()?;
    if all.is_empty() {
        return Err(Failure::new(
            Exit::NoMatch,
            "no guest ran on this host",
            "`vmrestore list DUMP` shows the processes; `vmrestore process` restores them",
        ));
    }
    let chosen: Vec<(i32, String)> = select::guests(&all, selectors)?
        .into_iter()
        .map(|g| (g.pid, g.name.clone().unwrap_or_else(|| g.vmm.clone())))
        .collect();
    from_dump(&dead, chosen, options, json)
}

/// Restores processes of a dump.
///
/// # Errors
/// As [`guests`].
pub fn processes(
    dump: &DumpArgs,
    selectors: &[String],
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    let dead = open::dead_host(dump)?;
    let all = dead.processes()?;
    let chosen: Vec<(i32, String)> = select::processes(&all, selectors)?
        .into_iter()
        .map(|p| (p.pid, p.comm.clone()))
        .collect();
    from_dump(&dead, chosen, options, json)
}

/// Restores what `extract` wrote.
///
/// # Errors
/// As [`guests`].
pub fn directory(dir: &Path, options: &RestoreArgs, json: bool) -> Result<Exit, Failure> {
    // All are read before the first is restored: what is wrong with the last
    // must not hide what became of the first.
    let datasets = directory::find(dir)?
        .iter()
        .map(|dir| directory::read(dir))
        .collect::<Result<Vec<_>, _>>()?;
    let mut lines = Vec::new();
    let mut crash = String::new();
    for (dataset, pages) in datasets {
        let journal = Journal::open(&options.state_dir, &dataset.crash_id)?;
        crash.clone_from(&dataset.crash_id);
        let name = name_of(&dataset);
        let pid = dataset.processes.first().map_or(0, |p| p.pid);
        lines.push(attempt(&name, pid, &journal, options, || {
            Ok((dataset, &pages))
        }));
    }
    report::finish(&crash, &lines, json)
}

fn from_dump(
    dead: &DeadHost,
    mut chosen: Vec<(i32, String)>,
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    // A VMM with several VMs is one process.
    let mut seen = std::collections::BTreeSet::new();
    chosen.retain(|(pid, _)| seen.insert(*pid));
    let crash = dead.dump().identity().to_string();
    let journal = Journal::open(&options.state_dir, &crash)?;
    let pages = dead.pages();
    let lines: Vec<Line> = chosen
        .iter()
        .map(|(pid, name)| {
            attempt(name, *pid, &journal, options, || {
                Ok((dead.dataset(&[*pid])?, &pages))
            })
        })
        .collect();
    report::finish(&crash, &lines, json)
}

/// A dataset's name in the report: its guest's, or its command.
fn name_of(dataset: &Dataset) -> String {
    let guest = dataset.vms.iter().find_map(|vm| vm.name.clone());
    guest
        .or_else(|| dataset.processes.first().map(|p| p.comm.clone()))
        .unwrap_or_else(|| "nothing".into())
}

/// One process, from reading to running; a failure is a line of the report.
fn attempt<'a, P: PageSource + 'a>(
    name: &str,
    pid: i32,
    journal: &Journal,
    options: &RestoreArgs,
    read: impl FnOnce() -> Result<(Dataset, &'a P), Failure>,
) -> Line {
    let start = Instant::now();
    eprintln!("{name} (pid {pid}): reading");
    let mut line = Line {
        name: name.to_owned(),
        pid,
        new_pid: None,
        vcpus: 0,
        verdict: Verdict::Failed,
        written_back_bytes: 0,
        milliseconds: 0,
        fidelity: Vec::new(),
        error: None,
        hint: None,
        exit: Exit::Done,
    };
    let result = read().and_then(|(dataset, pages)| {
        line.fidelity.clone_from(&dataset.fidelity);
        line.vcpus = dataset.vms.iter().map(|vm| vm.vcpus.len()).sum();
        bring_back(&dataset, pages, journal, options, &mut line)
    });
    if let Err(failure) = result {
        line.exit = failure.exit;
        line.verdict = match failure.exit {
            Exit::Failed => Verdict::Failed,
            _ => Verdict::Refused,
        };
        line.error = Some(failure.chain());
        line.hint = Some(failure.hint);
    }
    line.milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    line
}

fn bring_back(
    dataset: &Dataset,
    pages: &dyn PageSource,
    journal: &Journal,
    options: &RestoreArgs,
    line: &mut Line,
) -> Result<(), Failure> {
    refuse_unsafe(dataset, journal, options)?;
    eprintln!("{} (pid {}): building", line.name, line.pid);
    let settings = restore::Options {
        paused: options.paused,
        dry_run: options.dry_run,
        strict: options.strict,
        ..restore::Options::default()
    };
    let prepared = restore::prepare(dataset, pages, &settings)?;
    for process in prepared.processes() {
        line.fidelity.extend_from_slice(&process.fidelity);
    }
    if options.strict {
        refuse_inexact(&line.fidelity)?;
    }
    if options.dry_run {
        prepared.resume()?;
        line.verdict = Verdict::WouldRestore;
        return Ok(());
    }
    // From here on the disk is touched: with the bytes that the dead kernel
    // would have written. If it fails now, a second try writes them again.
    line.written_back_bytes = disks::write_back(dataset, pages, journal)?.bytes;
    let pids: Vec<(i32, i32)> = prepared
        .processes()
        .iter()
        .map(|p| (p.old_pid, p.pid))
        .collect();
    // A record of an earlier restore (--force) outlives a failure of this one.
    let new: Vec<i32> = pids
        .iter()
        .filter(|(old, _)| journal.check(*old).is_ok())
        .map(|(old, _)| *old)
        .collect();
    let resumed = pids
        .iter()
        .try_for_each(|(old, now)| journal.record_resuming(*old, *now))
        .map_err(Failure::from)
        .and_then(|()| Ok(Markers::set(dataset, journal)?))
        .and_then(|markers| {
            prepared.resume().map_err(|e| {
                markers.remove(journal);
                Failure::from(e)
            })
        });
    match resumed {
        Ok(restored) => {
            for (old, now) in pids {
                if let Err(error) = journal.record_resumed(old, now) {
                    // The record from before says the same as long as it lives.
                    tracing::warn!("pid {old} runs, but the journal could not note it: {error}");
                }
            }
            line.new_pid = restored.first().map(|r| r.pid);
            // Resuming itself may have had something to say.
            line.fidelity.truncate(dataset.fidelity.len());
            line.fidelity
                .extend(restored.into_iter().flat_map(|r| r.fidelity));
            line.verdict = if options.paused {
                Verdict::Paused
            } else {
                Verdict::Running
            };
            Ok(())
        }
        Err(failure) => {
            for pid in new {
                if let Err(error) = journal.forget_resumed(pid) {
                    tracing::warn!("the journal still says that pid {pid} was restored: {error}");
                }
            }
            Err(failure)
        }
    }
}

/// Everything that speaks against a restore, before anything is started.
fn refuse_unsafe(
    dataset: &Dataset,
    journal: &Journal,
    options: &RestoreArgs,
) -> Result<(), Failure> {
    for process in &dataset.processes {
        match journal.check(process.pid) {
            Err(JournalError::AlreadyRestored { .. }) if options.force => {}
            other => other?,
        }
    }
    if !options.force {
        refuse_lost_registers(dataset)?;
    }
    match disks::check(dataset, Some(journal), options.force) {
        Ok(overridden) => {
            for wrong in overridden {
                eprintln!("warning: overridden by --force: {wrong}");
            }
        }
        Err(mut wrong) => {
            for further in wrong.drain(1..) {
                Failure::from(further).print();
            }
            if let Some(first) = wrong.pop() {
                return Err(first.into());
            }
        }
    }
    if options.strict {
        refuse_inexact(&dataset.fidelity)?;
    }
    Ok(())
}

/// A guest or thread whose general registers are older than its memory would
/// run on into its own destruction, and its disks'.
fn refuse_lost_registers(dataset: &Dataset) -> Result<(), Failure> {
    let lost = dataset
        .fidelity
        .iter()
        .find(|f| f.level == FidelityLevel::Lost && f.what == REGISTERS);
    match lost {
        None => Ok(()),
        Some(f) => Err(Failure::new(
            Exit::Refused,
            format!(
                "{}: its registers are not in the dump: {}",
                f.subject, f.how
            ),
            "take the dump by kdump, from a panic; --force restores it with older registers, which corrupts it",
        )),
    }
}

fn refuse_inexact(fidelity: &[Fidelity]) -> Result<(), Failure> {
    match fidelity.iter().find(|f| f.level != FidelityLevel::Exact) {
        None => Ok(()),
        Some(f) => Err(Failure::new(
            Exit::Refused,
            format!("{}: {} is not exact: {}", f.subject, f.what, f.how),
            "without --strict it is restored, and what is not exact is reported",
        )),
    }
}
