//! `vmrestore guests /proc/vmcore --in-place`: what is asked before anything starts, and which memory
//! stays where it lies.

use super::exit::{Exit, Failure};
use super::prepare::plan::Plan;
use super::table::bytes;
use crate::dataset::{Dataset, Fidelity};
use crate::dump::Dump;
use crate::extract::DeadHost;
use crate::extract::in_place::{self, Policy};
use crate::guest::GuestSummary;
use crate::restore;
use crate::restore::journal::Journal;
use std::ops::Range;
use std::path::Path;

/// Bytes in a page.
const PAGE: u64 = 4096;

/// Refuses where the memory of the dead host does not stand around this kernel.
///
/// # Errors
/// The dump is a file, or this is no capture kernel.
pub fn refuse_elsewhere(dump: &Dump) -> Result<(), Failure> {
    let why = if !dump.is_where_it_lay() {
        "this is a copy of the dead host's memory: nothing can go on in it where it lay"
    } else if !restore::in_place::is_capture_kernel() {
        "this is not the capture kernel of a host that died"
    } else {
        return Ok(());
    };
    Err(Failure::new(
        Exit::Refused,
        format!("--in-place: {why}"),
        "in kdump's capture kernel: vmrestore guests /proc/vmcore --in-place (docs/in-place.md); \
         without --in-place guests come back from any dump",
    ))
}

/// Says when the guests have more vCPUs than this kernel has CPUs.
pub fn say_cpus(dead: &DeadHost, pids: &[i32]) {
    let Ok(guests) = dead.guests() else {
        return;
    };
    let chosen = guests.iter().filter(|g| pids.contains(&g.pid));
    let vcpus: u64 = chosen.map(|g| u64::from(g.vcpus)).sum();
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    if vcpus > cpus {
        eprintln!(
            "note: {vcpus} vCPUs share {cpus} of this kernel's CPUs; load the capture kernel with \
             nr_cpus=N disable_cpu_apicid=X for more (docs/in-place.md)"
        );
    }
}

/// Puts guests into the order of a plan. Without one they keep theirs: that the plan cannot be read must
/// not cost a guest its life.
pub fn order(plan: &Path, guests: &mut [&GuestSummary]) {
    match Plan::load(plan) {
        Ok(Some(plan)) => {
            guests.sort_by_key(|g| plan.rank(g.name.as_deref(), g.uuid.as_deref()));
        }
        Ok(None) => eprintln!(
            "warning: {} is not there: guests in no order",
            plan.display()
        ),
        Err(error) => eprintln!("warning: {error}: guests in no order"),
    }
}

/// Reads guests for a restore in place: of their memory, what can stay does.
///
/// # Errors
/// When they cannot be read, or there is no room for what must be copied.
pub fn dataset(dead: &DeadHost, pids: &[i32]) -> Result<Dataset, Failure> {
    let mut dataset = dead.dataset(pids)?;
    let read_error = |e| Failure::from(crate::extract::ExtractError::Task(e));
    let policy = Policy {
        taken: restore::in_place::listed(pids.first().copied().unwrap_or(0))?,
        ..Policy::default()
    };
    let mut chosen = in_place::choose(dead, &mut dataset, &policy).map_err(read_error)?;
    if restore::in_place::check_room(&dataset).is_err() && chosen.scattered > 0 {
        // Where memory is short, page by page rather than not at all.
        dataset = dead.dataset(pids)?;
        let every = Policy {
            shortest: 1,
            ..policy
        };
        chosen = in_place::choose(dead, &mut dataset, &every).map_err(read_error)?;
    }
    let size = |pages: u64| bytes(pages.saturating_mul(PAGE));
    let mut how = format!(
        "{} in {} pieces stay where they lie; {} are copied",
        size(chosen.in_place),
        chosen.pieces,
        size(chosen.scattered + chosen.shared + chosen.taken)
    );
    if chosen.untouched > 0 {
        how += &format!(
            "; {} were never touched: this kernel gives them when they are",
            size(chosen.untouched)
        );
    }
    let name = super::bring_back::name_of(&dataset);
    eprintln!("{name}: {how}");
    let line = Fidelity::exact(name, "memory in place", how);
    dataset.fidelity.push(line);
    restore::in_place::without_direct_io(&mut dataset);
    crate::phases::done("memory in place chosen");
    Ok(dataset)
}

/// The frames that a dataset uses in place, if nothing speaks against them.
///
/// # Errors
/// They are this kernel's, or a guest's that runs here already, or twice in the dataset; there is no
/// room for the rest.
pub fn check(dataset: &Dataset) -> Result<Vec<Range<u64>>, Failure> {
    let pid = dataset.processes.first().map_or(0, |p| p.pid);
    let frames = restore::in_place::frames(dataset)?;
    restore::in_place::check_frames(pid, &frames)?;
    restore::in_place::check_unmapped(pid, &frames)?;
    restore::in_place::check_room(dataset)?;
    Ok(frames)
}

/// Takes a claim back after a failure.
pub fn forget(journal: &Journal, pid: i32) {
    if let Err(error) = journal.forget_claim(pid) {
        tracing::warn!("the journal still says that pid {pid} is in place: {error}");
    }
}
