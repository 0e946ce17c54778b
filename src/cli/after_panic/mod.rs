//! `vmrestore after-panic`: in the capture kernel of a host that panicked, what `prepare` planned.
//!
//! Guests go on first, in the order of the plan; then the dump is saved, while they run; then it waits
//! until they have been moved away. kdump-tools' hook calls it (scripts/kdump), and in the initramfs
//! that `prepare` made it is the first program (`init`). A guest that fails never keeps the dump from
//! being saved, and nothing else keeps a guest from going on.

mod disks;
mod guests;
pub mod init;
mod links;
mod log;
mod modules;
mod save;
mod wait;

use super::args::AfterPanicArgs;
use super::exit::{Exit, Failure};
use super::prepare::plan::Plan;
use crate::restore::in_place;
use log::Log;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where this process leaves word of what it does.
const RUN: &str = "/run/vmrestore";

/// What became of it.
struct Outcome {
    /// Guests went on.
    went_on: bool,
    /// The dump is on its disk, or none was wanted.
    saved: bool,
}

/// Does it on a host whose own root file system is there.
///
/// # Errors
/// This is no capture kernel.
pub fn run(args: &AfterPanicArgs) -> Result<Exit, Failure> {
    if !in_place::is_capture_kernel() {
        return Err(Failure::new(
            Exit::Refused,
            "this is not the capture kernel of a host that died",
            "kdump-tools' hook calls it there (docs/in-place.md); on a healthy host: vmrestore prepare",
        ));
    }
    let mut log = Log::new();
    let (plan, planned) = plan(&args.plan, &mut log);
    log.keep_in(&args.state_dir);
    modules::probe(&plan, &mut log);
    let save = args.save.clone().map_or(save::How::Not, save::How::Command);
    let path = planned.then_some(&args.plan);
    let outcome = go_on(&plan, path, &args.state_dir, &save, &mut log);
    Ok(match outcome {
        Outcome { went_on: false, .. } => Exit::NoMatch,
        Outcome { saved: false, .. } => Exit::Failed,
        _ => Exit::Done,
    })
}

/// The plan; without one guests go on in the order in which they are found.
fn plan(path: &Path, log: &mut Log) -> (Plan, bool) {
    match Plan::load(path) {
        Ok(Some(plan)) => (plan, true),
        Ok(None) => {
            log.say(format!(
                "no plan ({}): all guests, in no order",
                path.display()
            ));
            (Plan::default(), false)
        }
        Err(error) => {
            log.say(format!("{error}: all guests, in no order"));
            (Plan::default(), false)
        }
    }
}

/// Guests, dump, patience.
fn go_on(
    plan: &Plan,
    path: Option<&PathBuf>,
    state_dir: &Path,
    save: &save::How,
    log: &mut Log,
) -> Outcome {
    links::make(&plan.links, log);
    let resumed = guests::resume(path, state_dir, log);
    let running = wait::Running::of(&resumed.running, log);
    let went_on = !running.is_empty();
    let started: Vec<Child> = match went_on {
        true => plan
            .run
            .iter()
            .filter_map(|line| start(line, log))
            .collect(),
        false => Vec::new(),
    };
    // Without guests a dump is kdump's matter, where there is one.
    let saved = match (went_on, save) {
        (false, save::How::Command(_)) => true,
        _ => save::save(plan, save, resumed.all, log),
    };
    let limit = plan.reboot_after_minutes;
    wait::until_gone(
        running,
        limit.map(|m| Duration::from_secs(m.saturating_mul(60))),
        log,
    );
    drop(started);
    Outcome { went_on, saved }
}

/// Starts a command of the administrator's, which nobody waits for.
fn start(line: &str, log: &mut Log) -> Option<Child> {
    let mut words = line.split_whitespace();
    let child = Command::new(words.next()?)
        .args(words)
        .stdin(Stdio::null())
        .spawn();
    match child {
        Ok(child) => {
            log.say(format!("started {line}"));
            Some(child)
        }
        Err(error) => {
            log.say(format!("{line}: {error}"));
            None
        }
    }
}
