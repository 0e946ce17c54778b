//! A dump, from what is known at once to what takes reading.

use super::findings::Findings;
use super::guests::{self, GuestReport, Guests};
use super::kdump_config::{HARMFUL_BITS, Tool};
use super::pages::{self, Pages, Row, percent};
use super::{Document, crash, print_advice, reading, verdict};
use crate::cli::args::SourceArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::open;
use crate::cli::output::print_json;
use crate::dump::{Dump, Scan};
use crate::extract::{Crash, DeadHost};
use serde::Serialize;
use std::path::Path;

/// What the file says of itself.
#[derive(Serialize)]
pub(super) struct Facts {
    format: String,
    crash_id: String,
    /// makedumpfile's `-d`; null when the format does not say.
    level: Option<u32>,
    /// Why it is not whole, if it is not.
    incomplete: Option<String>,
}

/// Checks a dump against this host.
pub(super) fn run(
    path: &Path,
    source: &SourceArgs,
    quick: bool,
    json: bool,
) -> Result<Exit, Failure> {
    let dump = open::dump(path, source)?;
    let mut findings = Findings::default();
    let print = |findings: &mut Findings, title: &str| {
        if !json {
            findings.print(title);
        }
    };

    // What is known at once.
    let mut opened = DeadHost::of(dump.clone());
    let crash = match &opened {
        Ok(dead) => Crash::of_kernel(dead.kernel()),
        Err(_) => Crash::at_first_look(&dump),
    };
    if !json {
        crash::print(&crash, dump.is_live());
    }
    check_file(&dump, &mut findings);
    if dump.is_live() {
        let found = "runs on: nothing in it is brought back, for it is not dead";
        findings.note("its kernel", found);
    }
    print(&mut findings, "\nTHE DUMP");
    let mut guests = Guests::default();
    if let Ok(dead) = &opened {
        check_this_host(dead.kernel().release(), &mut guests, &mut findings);
        print(&mut findings, "\nTHIS HOST");
    }

    // What takes reading.
    let scan = match quick {
        true => None,
        false => reading::read_all(&dump),
    };
    check_pages(scan.as_ref(), quick, &mut findings);
    print(&mut findings, "\nITS PAGES");
    let mut pages = Pages::from(dump.page_counts());
    if let Some(scan) = scan {
        pages = Pages::from(scan.states);
        if let Ok(dead) = &mut opened {
            dead.learn(scan);
        }
    }

    let mut unreadable = None;
    let checked = opened.and_then(|dead| guests::check(&dead, &mut findings, &mut guests));
    if let Err(error) = checked {
        let why = error.to_string();
        let failure = Failure::from(error);
        // What the hint of any other command would be is this one.
        let hint = match failure.hint.contains("vmrestore check") {
            true => "see the dump's completeness and pages above",
            false => &failure.hint,
        };
        findings.bad(failure.exit, "dead kernel", failure.chain(), hint);
        unreadable = Some(match pages.truncated {
            1.. if !why.contains("cut short") => format!("the dump was cut short, and {why}"),
            _ => why,
        });
    }
    if !json {
        println!();
        let mut rows = vec![Row::of_dump(&pages)];
        rows.extend(guests.list.iter().flat_map(GuestReport::rows));
        pages::print(&rows);
    }
    let title = match unreadable {
        Some(_) => "\nTHE KERNEL",
        None => "\nTHE GUESTS",
    };
    print(&mut findings, title);

    let release = crash.release.as_deref().unwrap_or("");
    let version = crash.version.as_deref().unwrap_or("");
    let filtered = dump.dump_level().is_some_and(|l| l & HARMFUL_BITS != 0) || guests.filtered();
    let advice = match filtered {
        true => super::advice_for(Tool::of_kernel(release, version)),
        false => Vec::new(),
    };
    let verdict = match unreadable {
        Some(why) => format!("Nothing can be brought back from this dump: {why}."),
        None if dump.is_live() => {
            "The kernel is alive: its guests and processes run on, and nothing is brought back."
                .into()
        }
        None => verdict::sentence(&guests, path),
    };
    let exit = findings.exit;
    if json {
        print_json(&Document {
            schema_version: crate::cli::SCHEMA_VERSION,
            verdict: Some(verdict),
            crash: Some(crash),
            dump: Some(Facts {
                format: dump.format().to_string(),
                crash_id: dump.identity().to_string(),
                level: dump.dump_level(),
                incomplete: dump.incomplete().map(str::to_owned),
            }),
            pages: Some(pages),
            guests: Some(guests.list),
            processes: Some(guests.processes),
            advice,
            findings: &findings.list,
            exit_code: exit as u8,
        })?;
    } else {
        print_advice(&advice, "so that the dump holds all guests and processes");
        println!("\n{verdict}");
    }
    Ok(exit)
}

fn check_file(dump: &Dump, findings: &mut Findings) {
    findings.good("format", dump.format().to_string());
    findings.good("crash", dump.identity().to_string());
    match dump.dump_level() {
        Some(l) if l & 8 != 0 => findings.bad(
            Exit::Refused,
            "dump level",
            format!("{l}: the memory of guests and processes was left out"),
            "this dump cannot bring them back; level 17 keeps them (docs/kdump.md)",
        ),
        Some(l) if l & HARMFUL_BITS != 0 => findings.bad(
            Exit::Refused,
            "dump level",
            format!("{l}: page cache was left out: shared memory and unwritten file data are gone"),
            "level 17 keeps them (docs/kdump.md)",
        ),
        Some(l) => findings.good("dump level", format!("{l}: guests and processes are in it")),
        None => findings.good(
            "dump level",
            "the format does not say; what of the guests is in it, see below",
        ),
    }
    let counts = dump.page_counts();
    if counts.truncated > 0 || dump.incomplete().is_some() {
        let why = dump.incomplete().unwrap_or("the file ends too early");
        findings.bad(
            Exit::Refused,
            "completeness",
            format!("{why}; {} pages are missing", counts.truncated),
            "copy the dump again, or see why the capture kernel could not finish it (disk full?)",
        );
    } else {
        findings.good("completeness", "whole");
    }
}

/// What reading every page showed; `None` when they were not read.
fn check_pages(scan: Option<&Scan>, quick: bool, findings: &mut Findings) {
    const WHAT: &str = "pages";
    match scan {
        None if quick => findings.note(
            WHAT,
            "not read (--quick): damaged ones among them are not known",
        ),
        None => findings.bad(
            Exit::Failed,
            WHAT,
            "not all read, as it was interrupted: damaged ones among them are not known",
            "run it again, or with --quick",
        ),
        Some(scan) if scan.states.corrupt == 0 => {
            let n = scan.states.present;
            findings.good(WHAT, format!("read: all {n} are good"));
        }
        Some(scan) => {
            let (bad, of) = (scan.states.corrupt, scan.states.present);
            let all = bad.saturating_add(of);
            let found = format!("read: {bad} of {all} are damaged ({})", percent(bad, all));
            let hint = "copy the dump again if the original is still there; see whether the disk is failing";
            findings.bad(Exit::Refused, WHAT, found, hint);
            for example in &scan.examples {
                findings.note("", example.clone());
            }
        }
    }
}

fn check_this_host(release: &str, guests: &mut Guests, findings: &mut Findings) {
    let here = nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    if here == release {
        findings.good("kernel", format!("{here}: the same"));
    } else {
        // What this one's KVM lacks is found guest by guest.
        findings.note(
            "kernel",
            format!("{here}, the dead one was {release}: no obstacle by itself"),
        );
    }
    if nix::unistd::geteuid().is_root() {
        findings.good("rights", "root");
    } else {
        guests.obstacle("restoring needs root".into());
        findings.bad(
            Exit::HostCannot,
            "rights",
            "not root",
            "restoring needs root",
        );
    }
}
