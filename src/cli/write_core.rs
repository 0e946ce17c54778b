//! `vmrestore extract --core`: a guest or a process as an ELF core.

use super::args::DumpArgs;
use super::bare;
use super::exit::{Exit, Failure};
use super::open;
use super::output::print_json;
use super::select;
use super::table::bytes;
use crate::dataset::{Dataset, PageSource};
use crate::extract::DeadHost;
use crate::extract::core::{self, CoreError, ProcessWritten};
use crate::restore::swap;
use crate::sys::interrupt;
use crate::task::ProcessSummary;
use serde::Serialize;
use std::path::Path;

/// The JSON document.
#[derive(Serialize)]
struct Document<'a, W> {
    schema_version: u32,
    crash_id: String,
    exit_code: u8,
    name: Option<&'a str>,
    pid: i32,
    core: &'a Path,
    #[serde(flatten)]
    written: &'a W,
}

/// Where to, and how.
struct Order<'a> {
    output: &'a Path,
    force: bool,
    json: bool,
}

/// Writes the memory and registers of one guest, or of one process, as an ELF
/// core.
///
/// # Errors
/// When the dump cannot be read, not exactly one guest or process matches, there
/// is a file of that name, or it cannot be written; then nothing of it is left.
pub fn run(
    dump: &DumpArgs,
    selectors: &[String],
    output: &Path,
    force: bool,
    json: bool,
) -> Result<Exit, Failure> {
    let order = Order {
        output,
        force,
        json,
    };
    let dead = open::dead_host(dump)?;
    let guests = dead.guests()?;
    let guest = match bare::one_of(&guests, selectors) {
        Ok(guest) => guest,
        Err(_) if selectors.is_empty() && guests.is_empty() => {
            return Err(Failure::new(
                Exit::Usage,
                "nothing is named to write out",
                "`vmrestore list DUMP` shows what there is",
            ));
        }
        Err(no_guest) if selectors.is_empty() => return Err(no_guest),
        Err(no_guest) => {
            let all = dead.processes()?;
            return match select::processes(&all, selectors)?.as_slice() {
                [one] => process(&dead, one, &order),
                _ => Err(match no_guest.exit {
                    Exit::NoMatch => Failure::new(
                        Exit::Usage,
                        "several processes are named, and a core is one's",
                        "write each to a file of its own",
                    ),
                    _ => no_guest,
                }),
            };
        }
    };
    let (dataset, vm) = bare::read(&dead, guest)?;
    let guard = interrupt::Guard::install();
    let written = core::write(&dataset, &vm, &dead.pages(), output, force, &guard)?;
    let exit = match written.missing.as_slice() {
        [] => Exit::Done,
        _ => Exit::WithLosses,
    };
    if json {
        say_json(
            &dead,
            exit,
            (guest.name.as_deref(), guest.pid),
            &order,
            &written,
        )?;
        return Ok(exit);
    }
    println!(
        "{}: {} of memory ({} of it zeros), registers of {} vCPUs",
        output.display(),
        bytes(written.memory_bytes),
        bytes(written.zero_bytes),
        written.vcpus
    );
    match &written.kernel {
        Some(release) => println!("  with the VMCOREINFO note of its kernel {release}"),
        None => println!("  without a VMCOREINFO note: none was found in its memory"),
    }
    print_missing(&written.missing);
    Ok(exit)
}

fn process(dead: &DeadHost, chosen: &ProcessSummary, order: &Order<'_>) -> Result<Exit, Failure> {
    let mut dataset = dead.dataset(&[chosen.pid])?;
    let pages = dead.pages();
    let guard = interrupt::Guard::install();
    let written = match swap::open(&dataset, &pages, false) {
        Ok(with_swap) => {
            let written = write(dead, &dataset, chosen.pid, &with_swap, (order, &guard))?;
            if let Err(changed) = with_swap.still_untouched(chosen.pid) {
                let _ = std::fs::remove_file(order.output);
                return Err(changed.into());
            }
            written
        }
        // What is in memory is worth a look without it.
        Err(error) => {
            eprintln!("note: {}", Failure::from(error).chain());
            dataset.forget_swapped();
            write(dead, &dataset, chosen.pid, &pages, (order, &guard))?
        }
    };
    let exit = match (written.missing.as_slice(), written.stale_fpu.as_slice()) {
        ([], []) => Exit::Done,
        _ => Exit::WithLosses,
    };
    if order.json {
        say_json(
            dead,
            exit,
            (Some(&chosen.comm), chosen.pid),
            order,
            &written,
        )?;
        return Ok(exit);
    }
    println!(
        "{}: {} of memory ({} of it zeros), registers of {} threads",
        order.output.display(),
        bytes(written.memory_bytes),
        bytes(written.zero_bytes),
        written.threads
    );
    if written.in_files_bytes > 0 {
        println!(
            "  not in it: {} of files that it had mapped, and no page cache had; gdb reads them where they are",
            bytes(written.in_files_bytes)
        );
    }
    print_missing(&written.missing);
    if !written.stale_fpu.is_empty() {
        let threads: Vec<String> = written.stale_fpu.iter().map(i32::to_string).collect();
        println!(
            "  FPU registers of {} are older than the rest: they were in the CPU",
            threads.join(", ")
        );
    }
    Ok(exit)
}

fn write(
    dead: &DeadHost,
    dataset: &Dataset,
    pid: i32,
    pages: &dyn PageSource,
    (order, guard): (&Order<'_>, &interrupt::Guard),
) -> Result<ProcessWritten, Failure> {
    let process = dataset.process(pid).ok_or_else(|| {
        Failure::new(
            Exit::Unreadable,
            format!("pid {pid} is not in what was read of it"),
            "`vmrestore check DUMP` says what is damaged",
        )
    })?;
    let (output, force) = (order.output, order.force);
    let cached = dead.cached_files(dataset);
    Ok(core::write_process(
        dataset, process, &cached, pages, output, force, guard,
    )?)
}

fn say_json<W: Serialize>(
    dead: &DeadHost,
    exit: Exit,
    (name, pid): (Option<&str>, i32),
    order: &Order<'_>,
    written: &W,
) -> Result<(), Failure> {
    print_json(&Document {
        schema_version: super::SCHEMA_VERSION,
        crash_id: dead.dump().identity().to_string(),
        exit_code: exit as u8,
        name,
        pid,
        core: order.output,
        written,
    })
}

fn print_missing(missing: &[(String, u64)]) {
    for (why, missing) in missing {
        println!("  missing: {} ({why})", bytes(*missing));
    }
}

impl From<CoreError> for Failure {
    fn from(e: CoreError) -> Self {
        let (exit, hint) = match &e {
            CoreError::Exists { .. } => (Exit::Refused, "--force replaces it"),
            CoreError::Io { .. } => (
                Exit::Failed,
                "nothing is left of it; mend the cause and run it again",
            ),
            CoreError::Page(_) => (
                Exit::Refused,
                "`vmrestore check DUMP` says which pages are damaged",
            ),
            CoreError::NoOwner => (
                Exit::Unreadable,
                "`vmrestore check DUMP` says what is damaged",
            ),
            CoreError::Pieces { .. } => (
                Exit::Refused,
                "docs/kdump.md says how the next dump keeps guests whole",
            ),
            CoreError::Interrupted => (Exit::Failed, "nothing is left of it"),
        };
        Self::from_error(exit, hint.to_owned(), e)
    }
}
