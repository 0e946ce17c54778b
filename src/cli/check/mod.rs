//! `vmrestore check`: what happened, is the dump good, and can what ran be brought back here? And
//! without a dump: would the guests of this host survive a crash?
//!
//! The first thing that a person in trouble runs, so it says first what is known first, and it says
//! it at once: how the host died takes a few pages of the dump.

mod crash;
mod dump;
mod findings;
mod guests;
mod host;
pub(super) mod in_place;
pub(super) mod kdump_config;
mod pages;
mod plan;
mod reading;
mod verdict;

use super::args::SourceArgs;
use super::exit::{Exit, Failure};
use super::output::print_json;
use crate::extract::Crash;
use findings::{Finding, Findings};
use guests::GuestReport;
use kdump_config::{Advice, Tool};
use serde::Serialize;
use std::path::Path;

/// The JSON document.
#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crash: Option<Crash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dump: Option<dump::Facts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<pages::Pages>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guests: Option<Vec<GuestReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<guests::ProcessesReport>,
    /// What to write into the kdump configuration for the next crash.
    advice: Vec<Advice>,
    findings: &'a [Finding],
    exit_code: u8,
}

/// Checks a dump against this host, or this host alone. `quick`: without reading every page.
///
/// # Errors
/// When the dump cannot be read.
pub fn run(
    dump: Option<&Path>,
    source: &SourceArgs,
    quick: bool,
    json: bool,
) -> Result<Exit, Failure> {
    match dump {
        Some(path) => dump::run(path, source, quick, json),
        None => check_host(json),
    }
}

fn check_host(json: bool) -> Result<Exit, Failure> {
    let mut findings = Findings::default();
    let advice = host::check(&mut findings);
    if json {
        print_json(&Document {
            schema_version: super::SCHEMA_VERSION,
            verdict: None,
            crash: None,
            dump: None,
            pages: None,
            guests: None,
            processes: None,
            advice,
            findings: &findings.list,
            exit_code: findings.exit as u8,
        })?;
    } else {
        findings.print("");
        print_advice(&advice, "so that guests survive a crash of this host");
    }
    Ok(findings.exit)
}

/// The line for one distribution; each line where that is not known.
fn advice_for(tool: Option<Tool>) -> Vec<Advice> {
    match tool {
        Some(tool) => vec![tool.advice()],
        None => Tool::ALL.into_iter().map(Tool::advice).collect(),
    }
}

fn print_advice(advice: &[Advice], purpose: &str) {
    if advice.is_empty() {
        return;
    }
    println!("\nNEXT TIME, {purpose}:");
    for a in advice {
        println!("      in {}, then {}:", a.file, a.then);
        println!("      {}", a.line);
    }
}
