//! `vmrestore guests DUMP SELECTOR --bare`: a look at a guest, alone.
//!
//! The guest's serial port is on the terminal: what it prints goes to stdout
//! and nothing else does. No file of the guest's is opened, and no journal is
//! written.

use super::args::{BareArgs, DumpArgs, RestoreArgs};
use super::bring_back::refuse_lost_registers;
use super::catch_up;
use super::exit::{Exit, Failure};
use super::open;
use super::output::print_json;
use super::report::printable;
use super::select;
use super::this_host;
use crate::bare::{BareError, Counts, Machine, Outcome, Output, Settings, standard_input};
use crate::dataset::{Dataset, Fidelity, FidelityLevel, Vm};
use crate::extract::DeadHost;
use crate::guest::GuestSummary;
use crate::sys::interrupt;
use crate::sys::terminal::RawMode;
use serde::Serialize;
use std::io::IsTerminal;
use std::time::Duration;

/// The JSON document.
#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    crash_id: &'a str,
    exit_code: u8,
    name: &'a str,
    pid: i32,
    vcpus: usize,
    ending: &'static str,
    ending_text: String,
    milliseconds: u64,
    /// By vCPU.
    exits: &'a [u64],
    #[serde(flatten)]
    counts: &'a Counts,
    fidelity: &'a [Fidelity],
}

/// Runs one guest of a dump bare.
///
/// # Errors
/// When it cannot be read, or made here; nothing has run then.
pub fn guest(
    dump: &DumpArgs,
    selectors: &[String],
    bare: &BareArgs,
    options: &RestoreArgs,
    json: bool,
) -> Result<Exit, Failure> {
    let dead = open::dead_host(dump)?;
    let guests = dead.guests()?;
    let chosen = one_of(&guests, selectors)?;
    let name = chosen.name.as_deref().unwrap_or(&chosen.vmm);
    eprintln!("{} (pid {}): reading", printable(name), chosen.pid);
    let (mut dataset, vm) = read(&dead, chosen)?;
    if !options.force {
        refuse_lost_registers(&dataset)?;
    }
    let lacking = this_host::refuse(&dataset, options)?;
    dataset.fidelity.extend(lacking);
    catch_up::apply(&mut dataset, options.clock)?;
    let vm = dataset.vms.first().cloned().unwrap_or(vm);

    let guard = interrupt::Guard::install();
    let mut machine = Machine::build(&dataset, &vm, &dead.pages(), options.force, &guard)?;
    let mut fidelity = std::mem::take(&mut dataset.fidelity);
    fidelity.append(&mut machine.fidelity);
    let losses = fidelity.iter().any(|f| f.level == FidelityLevel::Lost);
    fidelity.splice(0..0, std::mem::take(&mut machine.absent));
    if !json {
        print_fidelity(&fidelity);
    }

    let outcome = run(machine, name, bare, json, &guard);
    let exit = match &outcome.ending {
        ending if ending.is_failure() => Exit::Failed,
        _ if losses => Exit::WithLosses,
        _ => Exit::Done,
    };
    if json {
        print_json(&Document {
            schema_version: super::SCHEMA_VERSION,
            crash_id: &dead.dump().identity().to_string(),
            exit_code: exit as u8,
            name,
            pid: chosen.pid,
            vcpus: outcome.exits.len(),
            ending: outcome.ending.word(),
            ending_text: outcome.ending.to_string(),
            milliseconds: u64::try_from(outcome.ran.as_millis()).unwrap_or(u64::MAX),
            exits: &outcome.exits,
            counts: &outcome.counts,
            fidelity: &fidelity,
        })?;
    } else {
        print_outcome(name, &outcome);
    }
    Ok(exit)
}

/// The one guest that is meant.
pub(super) fn one_of<'g>(
    guests: &'g [GuestSummary],
    selectors: &[String],
) -> Result<&'g GuestSummary, Failure> {
    match select::guests(guests, selectors)?.as_slice() {
        [] => Err(Failure::new(
            Exit::NoMatch,
            "no guest ran on this host",
            "`vmrestore list DUMP` shows the processes",
        )),
        [one] => Ok(one),
        many => Err(Failure::new(
            Exit::Usage,
            format!("{} guests are meant, and it can be one only", many.len()),
            "`vmrestore list DUMP` shows their names; name one of them",
        )),
    }
}

/// The guest alone: of what is known of its VMM, only the memory is of use.
pub(super) fn read(dead: &DeadHost, guest: &GuestSummary) -> Result<(Dataset, Vm), Failure> {
    let mut dataset = dead.dataset(&[guest.pid])?;
    dataset.vms.retain(|vm| vm.id.0 == guest.vm);
    dataset.fidelity.retain(|f| f.subject.starts_with("vm "));
    match dataset.vms.first().cloned() {
        Some(vm) => Ok((dataset, vm)),
        None => Err(Failure::new(
            Exit::Unreadable,
            format!(
                "the VM at {:#x} is not among the descriptors of pid {}",
                guest.vm, guest.pid
            ),
            "its VMM was ending when the host died",
        )),
    }
}

fn run(
    machine: Machine,
    name: &str,
    bare: &BareArgs,
    json: bool,
    guard: &interrupt::Guard,
) -> Outcome {
    let terminal = std::io::stdin().is_terminal();
    let hint = if terminal { "ctrl-a x" } else { "Ctrl-C" };
    eprintln!(
        "{}: running bare; {hint} ends it, and no trace of it is left",
        printable(name)
    );
    let output: Output = match json {
        true => Box::new(std::io::sink()),
        false => Box::new(std::io::stdout()),
    };
    let settings = Settings {
        limit: bare.for_seconds.map(Duration::from_secs),
        output,
        keys: Some(standard_input()),
        escape: terminal,
    };
    let raw = RawMode::of_stdin();
    let outcome = machine.run(settings, guard);
    drop(raw);
    outcome
}

fn print_fidelity(fidelity: &[Fidelity]) {
    for level in [FidelityLevel::Lost, FidelityLevel::Reconstructed] {
        let word = match level {
            FidelityLevel::Lost => "lost",
            _ => "reconstructed",
        };
        for f in fidelity.iter().filter(|f| f.level == level) {
            eprintln!(
                "  {word}: {}: {}: {}",
                printable(&f.subject),
                printable(&f.what),
                printable(&f.how)
            );
        }
    }
}

/// To stderr: stdout is the guest's.
fn print_outcome(name: &str, outcome: &Outcome) {
    eprintln!();
    eprintln!(
        "{}: ended after {:.1} s: {}",
        printable(name),
        outcome.ran.as_secs_f64(),
        outcome.ending
    );
    let exits: Vec<String> = outcome.exits.iter().map(u64::to_string).collect();
    eprintln!(
        "  exits by vCPU: {}; bytes from the serial port: {}",
        exits.join(" "),
        outcome.counts.serial_bytes
    );
    for (place, access) in &outcome.counts.absent_devices {
        eprintln!(
            "  no device at {place}: {} reads, {} writes",
            access.reads, access.writes
        );
    }
}

impl From<BareError> for Failure {
    fn from(e: BareError) -> Self {
        let (exit, hint) = match &e {
            BareError::NoOwner { .. } | BareError::Slot { .. } => (
                Exit::Unreadable,
                "`vmrestore check DUMP` says what is damaged",
            ),
            BareError::Missing { .. } => (
                Exit::Refused,
                "--force runs it with zeros there; `vmrestore check DUMP` says which pages are missing",
            ),
            BareError::Page(_) => (
                Exit::Refused,
                "`vmrestore check DUMP` says which pages are damaged",
            ),
            BareError::Memory { .. } => (Exit::HostCannot, "free some memory"),
            BareError::Kvm(_) => (
                Exit::HostCannot,
                "`vmrestore check DUMP` compares this host with the guest",
            ),
            BareError::Interrupted => (Exit::Failed, "nothing of it is left"),
        };
        Self::from_error(exit, hint.to_owned(), e)
    }
}
