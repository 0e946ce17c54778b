//! `vmrestore guests`, `process` and `restore`: one path for all of them (what
//! `extract` wrote comes from `stored`).
//!
//! For each process: read it, see that a restore is safe, build it, and only
//! when all of it stands, write its unwritten file data, note it in the
//! journal, and let it run. One that fails is taken down; the others go on.

use super::args::{DumpArgs, RestoreArgs, SetArgs};
use super::arriving;
use super::catch_up;
use super::exit::{Exit, Failure};
use super::in_place;
use super::open;
use super::report::{self, Line, Member, Verdict};
use super::select;
use super::this_host;
use super::{list, pick, sets, stored};
use crate::dataset::{Dataset, Fidelity, FidelityLevel, PageSource, REGISTERS};
use crate::extract::DeadHost;
use crate::phases;
use crate::restore;
use crate::restore::container::{self, Container};
use crate::restore::disks::{self, DiskError, Markers, Overrides};
use crate::restore::journal::{Journal, JournalError};
use crate::task::ProcessSummary;
use std::sync::Arc;
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
    if stored::is_given(dump) && !options.in_place {
        return stored::guests(dump, selectors, options, json);
    }
    let dead = match options.in_place {
        true => open::dead_host_in_place(dump)?,
        false => open::dead_host(dump)?,
    };
    let all = dead.guests()?;
    phases::done("guests found");
    if all.is_empty() {
        return Err(Failure::new(
            Exit::NoMatch,
            "no guest ran on this host",
            "`vmrestore list DUMP` shows the processes; `vmrestore process` restores them",
        ));
    }
    let mut guests = select::guests(&all, selectors)?;
    if let Some(plan) = &options.plan {
        in_place::order(plan, &mut guests);
    }
    let chosen: Vec<(Vec<i32>, String)> = guests
        .into_iter()
        .map(|g| {
            let name = g.name.clone().unwrap_or_else(|| g.vmm.clone());
            (vec![g.pid], name)
        })
        .collect();
    from_dump(&dead, chosen, options, json)
}

/// Restores processes of a dump: those that belong together as one.
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
    if stored::is_given(dump) {
        return stored::processes(dump, selectors, which, options, json);
    }
    let named = sets::is_named(selectors, which);
    if !named && !pick::is_possible(json) {
        return Err(nobody_named(dump));
    }
    let dead = open::dead_host(dump)?;
    let all = dead.processes()?;
    if !named {
        return pick::run(&dead, &all, |pids| {
            restore_sets(&dead, &all, pids, options, false)
        });
    }
    let choice = sets::chosen(&all, selectors, which)?;
    let exit = restore_sets(&dead, &all, &choice.pids, options, json)?;
    Ok(match exit {
        Exit::Done | Exit::WithLosses if !choice.missed.is_empty() => Exit::Partly,
        other => other,
    })
}

/// Without a terminal there is nobody to ask: what there is, is shown.
fn nobody_named(dump: &DumpArgs) -> Failure {
    if let Err(failure) = list::run(dump, false, false) {
        failure.print();
    }
    Failure::new(
        Exit::Usage,
        "no process is named, and there is no terminal on which to choose",
        "name some: pid:N, a command name, --tree, --unit, --cgroup, --all-of-user, --selectors",
    )
}

fn restore_sets(
    dead: &DeadHost,
    all: &[ProcessSummary],
    pids: &[i32],
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    // Of one alone nothing has to be found out; of several, who belongs to whom.
    let together = match pids {
        [_] => Vec::new(),
        _ => dead.together()?,
    };
    let name = |pid: i32| {
        let process = all.iter().find(|p| p.pid == pid);
        process.map_or_else(String::new, |p| p.comm.clone())
    };
    let chosen = sets::apart(all, &together, pids)
        .into_iter()
        .map(|pids| {
            let name = name(pids.first().copied().unwrap_or(0));
            (pids, name)
        })
        .collect();
    from_dump(dead, chosen, options, json)
}

fn from_dump(
    dead: &DeadHost,
    mut chosen: Vec<(Vec<i32>, String)>,
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    // A VMM with several VMs is one process.
    let mut seen = std::collections::BTreeSet::new();
    chosen.retain(|(pids, _)| seen.insert(pids.clone()));
    let crash = dead.dump().identity().to_string();
    let journal = Journal::open(&options.state_dir, &crash)?;
    dead.dump().set_in_use(journal.frames_in_use()?);
    let pages = dead.pages();
    if options.in_place {
        let chosen_pids = chosen.iter().filter_map(|(pids, _)| pids.first());
        in_place::say_cpus(dead, &chosen_pids.copied().collect::<Vec<_>>());
    }
    let mut lines: Vec<Line> = chosen
        .iter()
        .map(|(pids, name)| {
            let first = pids.first().copied().unwrap_or(0);
            attempt(name, first, &journal, options, || {
                let dataset = match options.in_place {
                    true => in_place::dataset(dead, pids)?,
                    false => dead.dataset(pids)?,
                };
                Ok((dataset, &pages))
            })
        })
        .collect();
    // Another restore from the same crash need not wait for memory to arrive.
    drop(journal);
    arriving::wait(&mut lines);
    report::finish(&crash, &lines, json)
}

/// A dataset's name in the report: its guest's, or its command.
pub(super) fn name_of(dataset: &Dataset) -> String {
    let guest = dataset.vms.iter().find_map(|vm| vm.name.clone());
    guest
        .or_else(|| dataset.processes.first().map(|p| p.comm.clone()))
        .unwrap_or_else(|| "nothing".into())
}

/// One process, from reading to running; a failure is a line of the report.
pub(super) fn attempt<'a, P: PageSource + 'a>(
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
        processes: Vec::new(),
        vcpus: 0,
        verdict: Verdict::Failed,
        written_back_bytes: 0,
        milliseconds: 0,
        memory: None,
        fidelity: Vec::new(),
        error: None,
        hint: None,
        pager: None,
        exit: Exit::Done,
    };
    let not_in_place = journal.refuse_in_place(pid).map_err(Failure::from);
    let result = not_in_place
        .and_then(|()| read())
        .and_then(|(mut dataset, pages)| {
            disks::rename_devices(&mut dataset);
            let lacking = this_host::refuse(&dataset, options)?;
            dataset.fidelity.extend(lacking);
            catch_up::apply(&mut dataset, options.clock)?;
            let container = enter(&mut dataset, options)?;
            line.fidelity.clone_from(&dataset.fidelity);
            line.processes = dataset.processes.iter().map(Member::of).collect();
            line.vcpus = dataset.vms.iter().map(|vm| vm.vcpus.len()).sum();
            if !options.in_place {
                return bring_back(&dataset, pages, journal, options, container, &mut line);
            }
            let frames = in_place::check(&dataset)?;
            if !options.dry_run {
                // Before anything of KVM's is written to them.
                journal.claim(pid, &frames)?;
                pages.set_in_use(&frames);
            }
            bring_back(&dataset, pages, journal, options, container, &mut line).inspect_err(|_| {
                if journal.check(pid).is_ok() {
                    in_place::forget(journal, pid);
                }
            })
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

/// Finds the namespaces that a set comes into, and lets its paths lead there.
fn enter(dataset: &mut Dataset, options: &RestoreArgs) -> Result<Option<Arc<Container>>, Failure> {
    let into = options.into.clone().unwrap_or_default();
    let found = container::find(dataset, &into)?;
    container::set_clocks(dataset);
    if let Some(found) = &found {
        found.look_into(dataset);
        eprintln!("into {}", found.found);
    }
    Ok(found.map(Arc::new))
}

fn bring_back(
    dataset: &Dataset,
    pages: &dyn PageSource,
    journal: &Journal,
    options: &RestoreArgs,
    container: Option<Arc<Container>>,
    line: &mut Line,
) -> Result<(), Failure> {
    refuse_unsafe(dataset, journal, options)?;
    phases::done("disks checked");
    eprintln!("{} (pid {}): building", line.name, line.pid);
    let settings = restore::Options {
        paused: options.paused,
        dry_run: options.dry_run,
        strict: options.strict,
        force: options.force,
        tcp: options.tcp.into(),
        memory: arriving::wanted(options, dataset),
        container,
        in_place: options.in_place,
        ..restore::Options::default()
    };
    let prepared = restore::prepare(dataset, pages, &settings)?;
    line.memory = Some(arriving::said(prepared.arriving()));
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
    phases::done("prepared");
    let written = disks::write_back(dataset, pages, journal, overrides(options))?;
    line.written_back_bytes = written.bytes;
    if written.rescued > 0 {
        line.fidelity.push(Fidelity::reconstructed(
            name_of(dataset),
            format!("{} bytes written past the page cache", written.rescued),
            "taken from where they lay on the disk: the crash had freed their blocks, and no file has them",
        ));
    }
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
            disks::about_to_run(dataset, journal)
                .map_err(Failure::from)
                .and_then(|()| {
                    prepared.resume_at_once(|| {
                        pids.iter()
                            .try_for_each(|(old, now)| journal.record_resumed(*old, *now))
                            .map_err(Failure::from)
                    })
                })
                .inspect_err(|_| markers.remove(journal))
        });
    match resumed {
        Ok((restored, pager)) => {
            phases::done("it runs");
            line.pager = pager;
            line.new_pid = restored
                .iter()
                .find(|r| r.old_pid == line.pid)
                .map(|r| r.pid);
            for (member, restored) in line.processes.iter_mut().zip(&restored) {
                member.new_pid = Some(restored.pid);
            }
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
        journal.refuse_in_place(process.pid)?;
        match journal.check(process.pid) {
            Err(JournalError::AlreadyRestored { .. }) if options.force => {}
            other => other?,
        }
    }
    if !options.force {
        refuse_lost_registers(dataset)?;
    }
    match disks::check(dataset, Some(journal), overrides(options)) {
        Ok(overridden) => {
            for wrong in overridden {
                let by = match wrong {
                    DiskError::LostBlocks { .. } => "--rescue-blocks",
                    _ => "--force",
                };
                eprintln!("warning: overridden by {by}: {wrong}");
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

fn overrides(options: &RestoreArgs) -> Overrides {
    Overrides {
        force: options.force,
        rescue_blocks: options.rescue_blocks,
    }
}

/// A guest or thread whose general registers are older than its memory would
/// run on into its own destruction, and its disks'.
pub(super) fn refuse_lost_registers(dataset: &Dataset) -> Result<(), Failure> {
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
