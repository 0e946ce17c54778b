//! The guests: is their memory in the dump, are their disks as they were, can this host run them?

use super::findings::Findings;
use super::pages::Row;
use crate::cli::exit::{Exit, Failure};
use crate::cli::this_host::join;
use crate::extract::coverage::{Coverage, State};
use crate::extract::{DeadHost, ExtractError, GuestCoverage};
use crate::guest::GuestSummary;
use crate::restore::{disks, kvm, outside, swap};
use crate::task::ProcessSummary;
use serde::Serialize;
use std::collections::BTreeSet;

/// One guest, as the JSON document has it.
#[derive(Debug, Serialize)]
pub(super) struct GuestReport {
    pub number: usize,
    pub name: Option<String>,
    pub pid: i32,
    pub vmm: String,
    pub state: State,
    /// Pages of its VMM: the guest's memory, the rest, and both.
    pub ram: Coverage,
    pub vmm_memory: Coverage,
    pub memory: Coverage,
    /// Nothing here speaks against restoring it.
    pub restorable: bool,
    /// What does, the first of it.
    pub obstacle: Option<String>,
}

impl GuestReport {
    /// "guest g1".
    fn title(&self) -> String {
        let number = self.number.to_string();
        format!("guest {}", self.name.as_deref().unwrap_or(&number))
    }

    /// Its lines in the table of pages.
    pub fn rows(&self) -> [Row; 2] {
        let title = self.title();
        [
            Row::of_process(title.clone(), &self.ram),
            Row::of_process(format!("{title}, its VMM"), &self.vmm_memory),
        ]
    }
}

/// How many processes have all of their memory in the dump.
#[derive(Debug, Default, Serialize)]
pub(super) struct ProcessesReport {
    pub whole: usize,
    pub total: usize,
}

/// What was found of all guests.
#[derive(Debug, Default)]
pub(super) struct Guests {
    pub list: Vec<GuestReport>,
    pub processes: ProcessesReport,
    /// What of this host is in the way of every restore.
    pub host_obstacle: Option<String>,
}

impl Guests {
    /// Something of this host is in the way of all.
    pub fn obstacle(&mut self, what: String) {
        self.host_obstacle.get_or_insert(what);
    }

    /// The filter took pages from some guest.
    pub fn filtered(&self) -> bool {
        self.list.iter().any(|g| g.memory.filtered > 0)
    }
}

/// Checks each guest, and counts the processes that are whole.
pub(super) fn check(
    dead: &DeadHost,
    findings: &mut Findings,
    out: &mut Guests,
) -> Result<(), ExtractError> {
    let processes = dead.processes()?;
    for (index, guest) in dead.guests()?.iter().enumerate() {
        let task = processes
            .iter()
            .find(|p| p.pid == guest.pid)
            .map(|p| p.task);
        let coverage = task.and_then(|t| dead.guest_coverage(guest.vm, t));
        let report = check_guest(dead, index + 1, guest, coverage, findings);
        out.list.push(report);
    }
    count_processes(dead, &processes, findings, out);
    Ok(())
}

fn count_processes(
    dead: &DeadHost,
    processes: &[ProcessSummary],
    findings: &mut Findings,
    out: &mut Guests,
) {
    let user: Vec<&ProcessSummary> = processes.iter().filter(|p| !p.kernel_thread).collect();
    let whole = user
        .iter()
        .filter(|p| {
            dead.coverage(p.task)
                .is_some_and(|c| c.state() == State::Whole)
        })
        .count();
    out.processes = ProcessesReport {
        whole,
        total: user.len(),
    };
    findings.note(
        "processes",
        format!(
            "{whole} of {} have all of their memory in the dump",
            user.len()
        ),
    );
}

fn check_guest(
    dead: &DeadHost,
    number: usize,
    guest: &GuestSummary,
    coverage: Option<GuestCoverage>,
    findings: &mut Findings,
) -> GuestReport {
    let split = coverage.unwrap_or_default();
    let memory = split.all();
    let mut report = GuestReport {
        number,
        name: guest.name.clone(),
        pid: guest.pid,
        vmm: guest.vmm.clone(),
        state: coverage.map_or(State::Unreadable, |_| memory.state()),
        ram: split.ram,
        vmm_memory: split.vmm,
        memory,
        restorable: false,
        obstacle: None,
    };
    let name = report.title();
    if let Some(why) = guest.unsupported.clone() {
        report.state = State::Unsupported;
        report.obstacle = Some(why.clone());
        findings.bad(
            Exit::Refused,
            name,
            why,
            "this kind of guest cannot be restored",
        );
        return report;
    }
    if coverage.is_none() {
        let why = "its memory map cannot be read";
        report.obstacle = Some(why.into());
        findings.bad(Exit::Unreadable, name, why, "");
        return report;
    }
    let found = format!(
        "{}: {} of {} pages are in the dump",
        report.state,
        memory.present,
        memory.total()
    );
    // What is on a swap area can be had, if that was not used since.
    let only_swapped = report.state == State::Partial && memory.elsewhere == 0;
    if report.state != State::Whole && !only_swapped {
        report.obstacle = Some(found.clone());
        let hint = "see the dump's level, completeness and pages above";
        findings.bad(Exit::Refused, name, found, hint);
        return report;
    }
    findings.good(&name, found);
    report.obstacle = check_restorable(dead, guest.pid, &name, findings);
    report.restorable = report.obstacle.is_none();
    report
}

/// The guest's disks and what it needs of KVM; the first obstacle.
fn check_restorable(
    dead: &DeadHost,
    pid: i32,
    name: &str,
    findings: &mut Findings,
) -> Option<String> {
    let mut dataset = match dead.dataset(&[pid]) {
        Ok(dataset) => dataset,
        Err(e) => {
            let failure = Failure::from(e);
            findings.bad(failure.exit, name, failure.chain(), &failure.hint);
            return Some(failure.chain());
        }
    };
    let mut obstacle = None;
    if !dataset.swap.is_empty() {
        let what = format!("{name}: swap");
        match swap::open(&dataset, &dead.pages(), false) {
            Ok(opened) => {
                for note in opened.notes() {
                    findings.good(&what, format!("{}: {}", note.what, note.how));
                }
            }
            Err(e) => {
                obstacle = Some(e.to_string());
                findings.bad(Exit::Refused, what, e.to_string(), e.hint());
            }
        }
    }
    let what = format!("{name}: disks");
    disks::rename_devices(&mut dataset);
    match disks::check(&dataset, None, disks::Overrides::default()) {
        Ok(_) => findings.good(what, "as they were at the crash"),
        Err(wrong) => {
            for e in wrong {
                obstacle.get_or_insert_with(|| e.to_string());
                findings.bad(Exit::Refused, what.clone(), e.to_string(), e.hint());
            }
        }
    }
    let missing = outside::missing(&dataset);
    if !missing.is_empty() {
        let missing = missing.join("; ");
        obstacle.get_or_insert_with(|| missing.clone());
        let hint = "without what serves it the guest would see that device fail";
        findings.bad(Exit::Refused, format!("{name}: devices"), missing, hint);
    }
    let what = format!("{name}: KVM");
    match kvm::preflight(&dataset.vms) {
        Ok(problems) => {
            // What one vCPU lacks, all of them lack.
            let texts = |fatal| -> BTreeSet<&str> {
                let of = problems.iter().filter(|p| p.fatal == fatal);
                of.map(|p| p.what.as_str()).collect()
            };
            let lacks = texts(true);
            if lacks.is_empty() {
                findings.good(&what, "this host has what it needs");
            } else {
                let lacks = join(&lacks);
                obstacle.get_or_insert_with(|| lacks.clone());
                let hint = "restore it on a host whose CPU and KVM have this";
                findings.bad(Exit::HostCannot, &what, lacks, hint);
            }
            if !texts(false).is_empty() {
                findings.note(&what, join(&texts(false)));
            }
        }
        Err(e) => {
            obstacle.get_or_insert_with(|| e.to_string());
            let hint = "load the kvm_amd module, and run as root";
            findings.bad(Exit::HostCannot, what, e.to_string(), hint);
        }
    }
    obstacle
}
