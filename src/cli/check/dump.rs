//! A dump, from what is known at once to what takes reading.

use super::findings::Findings;
use super::guests::{self, Guests};
use super::kdump_config::{HARMFUL_BITS, Tool};
use super::{Document, crash, print_advice, verdict};
use crate::cli::args::SourceArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::open;
use crate::cli::output::print_json;
use crate::cli::table::bytes;
use crate::dump::{Dump, PAGE_SIZE, PageCounts};
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
pub(super) fn run(path: &Path, source: &SourceArgs, json: bool) -> Result<Exit, Failure> {
    let dump = open::dump(path, source)?;
    let mut findings = Findings::default();
    let opened = DeadHost::of(dump.clone());
    let crash = match &opened {
        Ok(dead) => Crash::of_kernel(dead.kernel()),
        Err(_) => Crash::at_first_look(&dump),
    };
    if !json {
        crash::print(&crash);
    }

    check_file(&dump, &mut findings);
    let counts = dump.page_counts();
    check_pages(&dump, counts, &mut findings);
    if !json {
        findings.print("\nTHE DUMP");
    }

    let mut guests = Guests::default();
    let mut unreadable = None;
    match opened {
        Ok(dead) => {
            check_this_host(dead.kernel().release(), &mut guests, &mut findings);
            if !json {
                findings.print("\nTHIS HOST");
            }
            if let Err(error) = guests::check(&dead, &mut findings, &mut guests) {
                unreadable = Some(error.to_string());
                let failure = Failure::from(error);
                let hint = "see the dump's completeness above";
                findings.bad(failure.exit, "guests", failure.chain(), hint);
            }
        }
        Err(error) => {
            unreadable = Some(error.to_string());
            let failure = Failure::from(error);
            findings.bad(failure.exit, "dead kernel", failure.chain(), &failure.hint);
        }
    }
    if !json {
        let title = match unreadable {
            Some(_) => "\nTHE KERNEL",
            None => "\nTHE GUESTS",
        };
        findings.print(title);
    }

    let release = crash.release.as_deref().unwrap_or("");
    let version = crash.version.as_deref().unwrap_or("");
    let filtered = dump.dump_level().is_some_and(|l| l & HARMFUL_BITS != 0) || guests.filtered();
    let advice = match filtered {
        true => super::advice_for(Tool::of_kernel(release, version)),
        false => Vec::new(),
    };
    let verdict = match unreadable {
        Some(why) => format!("Nothing can be brought back from this dump: {why}."),
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
            pages: Some(counts),
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
}

fn check_pages(dump: &Dump, counts: PageCounts, findings: &mut Findings) {
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
    let all = counts.present + counts.filtered + counts.truncated;
    let percent = |part: u64| format!("{:.1} %", part as f64 * 100.0 / all.max(1) as f64);
    findings.good(
        "pages",
        format!(
            "{} in the dump, {} left out, of {}",
            percent(counts.present),
            percent(counts.filtered),
            bytes(all.saturating_mul(PAGE_SIZE))
        ),
    );
}

fn check_this_host(release: &str, guests: &mut Guests, findings: &mut Findings) {
    let here = nix::sys::utsname::uname()
        .map(|u| u.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    if here == release {
        findings.good("kernel", format!("{here}: the same"));
    } else {
        guests.obstacle(format!("boot kernel {release} first, this one is {here}"));
        findings.bad(
            Exit::HostCannot,
            "kernel",
            format!("{here}, the dead one was {release}"),
            "boot the same kernel; on another one a restore is tried, with the old vDSO led to the new one, but this is not proven",
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
