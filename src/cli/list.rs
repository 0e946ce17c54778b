//! `vmrestore list`: what was running, and whether it can come back.

use super::args::DumpArgs;
use super::exit::{Exit, Failure};
use super::open;
use super::output::print_json;
use super::sets;
use super::table::{Table, bytes};
use crate::dump::PAGE_SIZE;
use crate::extract::coverage::{Coverage, State};
use crate::guest::GuestSummary;
use crate::task::{ProcessSummary, Together};
use serde::Serialize;

/// The JSON document.
#[derive(Serialize)]
struct Listing<'a> {
    schema_version: u32,
    crash_id: &'a str,
    kernel: &'a str,
    guests: Vec<GuestLine>,
    processes: Vec<ProcessLine>,
    /// Which of them share what: restored without each other, they are cut apart.
    together: &'a [Together],
}

#[derive(Serialize)]
struct GuestLine {
    number: usize,
    #[serde(flatten)]
    guest: GuestSummary,
    state: State,
    memory_in_dump: Coverage,
}

#[derive(Serialize)]
struct ProcessLine {
    #[serde(flatten)]
    process: ProcessSummary,
    state: State,
}

/// Lists guests and processes (`all`: kernel threads too).
///
/// # Errors
/// When the dump or the dead kernel cannot be read.
pub fn run(dump: &DumpArgs, all: bool, json: bool) -> Result<Exit, Failure> {
    let dead = open::host(dump)?;
    let processes = dead.processes()?;
    let guests: Vec<GuestLine> = dead
        .guests()?
        .into_iter()
        .enumerate()
        .map(|(index, guest)| {
            let task = processes
                .iter()
                .find(|p| p.pid == guest.pid)
                .map(|p| p.task);
            let coverage = task
                .and_then(|t| dead.guest_coverage(guest.vm, t))
                .map(|c| c.all());
            GuestLine {
                number: index + 1,
                state: guest_state(&guest, coverage),
                memory_in_dump: coverage.unwrap_or_default(),
                guest,
            }
        })
        .collect();
    let processes: Vec<ProcessLine> = processes
        .into_iter()
        .filter(|p| all || !p.kernel_thread)
        .map(|process| {
            // A VMM's memory was gone through as its guest's, and that takes the most time.
            let vmm = guests.iter().find(|g| g.guest.pid == process.pid);
            let known = vmm.map(|g| g.memory_in_dump).filter(|m| m.total() > 0);
            let state = known.map(|m| m.state()).unwrap_or_else(|| {
                let coverage = dead.coverage(process.task);
                coverage.map_or(State::Unreadable, |c| c.state())
            });
            ProcessLine { state, process }
        })
        .collect();
    // What cannot be read ties nobody.
    let together = dead.together().unwrap_or_default();
    if json {
        let document = Listing {
            schema_version: super::SCHEMA_VERSION,
            crash_id: dead.dump().identity().as_str(),
            kernel: dead.kernel().release(),
            guests,
            processes,
            together: &together,
        };
        print_json(&document)?;
    } else {
        print_guests(&guests);
        print_processes(&processes, &together);
    }
    Ok(Exit::Done)
}

fn guest_state(guest: &GuestSummary, coverage: Option<Coverage>) -> State {
    if guest.unsupported.is_some() {
        return State::Unsupported;
    }
    coverage.map_or(State::Unreadable, |c| c.state())
}

fn print_guests(guests: &[GuestLine]) {
    if guests.is_empty() {
        println!("no guests\n");
        return;
    }
    let mut table = Table::new(&[
        ("GUEST", true),
        ("NAME", false),
        ("VMM", false),
        ("PID", true),
        ("VCPUS", true),
        ("MEMORY", true),
        ("STATE", false),
    ]);
    for line in guests {
        let g = &line.guest;
        table.row(vec![
            line.number.to_string(),
            g.name.clone().unwrap_or_else(|| "-".into()),
            g.vmm.clone(),
            g.pid.to_string(),
            g.vcpus.to_string(),
            bytes(g.memory_bytes),
            line.state.to_string(),
        ]);
    }
    table.print();
    println!();
}

/// The first few numbers.
fn few(pids: &std::collections::BTreeSet<i32>) -> String {
    const MOST: usize = 5;
    let mut words: Vec<String> = pids.iter().take(MOST).map(i32::to_string).collect();
    if pids.len() > MOST {
        words.push("…".into());
    }
    words.join(" ")
}

fn print_processes(processes: &[ProcessLine], together: &[Together]) {
    let mut table = Table::new(&[
        ("PID", true),
        ("PPID", true),
        ("UID", true),
        ("THREADS", true),
        ("RSS", true),
        ("STATE", false),
        ("COMMAND", false),
        ("TOGETHER WITH", false),
    ]);
    let ties = sets::by_process(together);
    for line in processes {
        let p = &line.process;
        let comm = if p.kernel_thread {
            format!("[{}]", p.comm)
        } else {
            p.comm.clone()
        };
        table.row(vec![
            p.pid.to_string(),
            p.ppid.to_string(),
            p.uid.to_string(),
            p.threads.to_string(),
            bytes(p.rss_pages.saturating_mul(PAGE_SIZE)),
            line.state.to_string(),
            comm,
            ties.get(&p.pid).map_or_else(String::new, few),
        ]);
    }
    table.print();
}
