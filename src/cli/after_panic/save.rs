//! The dump for the kernel's developers, saved while guests run.

use super::RUN;
use super::log::Log;
use crate::cli::check::kdump_config;
use crate::cli::prepare::initramfs::MAKEDUMPFILE;
use crate::cli::prepare::plan::Plan;
use crate::cli::table::utc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{SystemTime, UNIX_EPOCH};

/// kdump-tools' configuration.
const DEFAULTS: &str = "/etc/default/kdump-tools";

/// By whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// A command of kdump's, which reads kdump's configuration.
    Command(String),
    /// makedumpfile, by the plan.
    Plan,
    /// Nobody.
    Not,
}

/// Saves it. `all_run`: no guest needs to come back from it. Gives whether it is saved, or none was
/// wanted.
pub fn save(plan: &Plan, how: &How, all_run: bool, log: &mut Log) -> bool {
    let done = match how {
        How::Not => return true,
        How::Plan if plan.save.directory.is_none() => return true,
        How::Command(line) => by_command(line, all_run, log),
        How::Plan => by_plan(plan, all_run, log),
    };
    match done {
        Ok(status) if status.success() => {
            log.say("the dump is saved");
            true
        }
        Ok(status) => {
            log.say(format!("the dump could not be saved: {status}"));
            false
        }
        Err(error) => {
            log.say(format!("the dump could not be saved: {error}"));
            false
        }
    }
}

/// The level: guests' memory is left out where all of them run. Where one does not, it may come back
/// from this dump; what the others run in is in it then, as it is at that moment, and is not read.
fn level(all_run: bool) -> u32 {
    match all_run {
        true => 31,
        false => kdump_config::GOOD_LEVEL,
    }
}

/// Lets kdump-tools save it, with the level that this moment asks for: for the command alone, its
/// configuration has one more line.
fn by_command(line: &str, all_run: bool, log: &mut Log) -> io::Result<ExitStatus> {
    let text = fs::read_to_string(DEFAULTS).unwrap_or_default();
    let args = kdump_config::makedump_args(&text, level(all_run));
    log.say(format!("saving the dump: {line}, MAKEDUMP_ARGS=\"{args}\""));
    let copy = Path::new(RUN).join("kdump-tools");
    fs::create_dir_all(RUN)?;
    fs::write(&copy, format!("{text}\nMAKEDUMP_ARGS=\"{args}\"\n"))?;
    let mut words = line.split_whitespace();
    let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
    let words: Vec<&str> = words.collect();
    // A thread with mounts of its own, and what it starts: nobody else sees them.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none)?;
            if Path::new(DEFAULTS).exists() {
                mount(Some(&copy), DEFAULTS, none, MsFlags::MS_BIND, none)?;
            }
            let mut command = Command::new(program);
            command.args(&words).env("MAKEDUMP_ARGS", &args).status()
        });
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the thread that was to save it died")))
    })
}

/// As kdump-tools would: a directory for each dump, and its name only when it is whole.
fn by_plan(plan: &Plan, all_run: bool, log: &mut Log) -> io::Result<ExitStatus> {
    let directory = plan
        .save
        .directory
        .as_deref()
        .ok_or(io::ErrorKind::InvalidInput)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |n| i64::try_from(n.as_secs()).unwrap_or(0));
    // "202611221631", of "2026-11-22 16:31:00 UTC".
    let stamp: String = utc(now)
        .chars()
        .filter(char::is_ascii_digit)
        .take(12)
        .collect();
    let directory = directory.join(&stamp);
    fs::create_dir_all(&directory)?;
    let options = match all_run {
        true => &plan.save.options,
        false => &plan.save.options_for_the_rest,
    };
    let (unfinished, whole) = (
        directory.join("dump-incomplete"),
        directory.join(format!("dump.{stamp}")),
    );
    log.say(format!(
        "saving the dump: makedumpfile {options} to {}",
        whole.display()
    ));
    let status = Command::new(MAKEDUMPFILE)
        .args(options.split_whitespace())
        .arg("/proc/vmcore")
        .arg(&unfinished)
        .status()?;
    if status.success() {
        File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, &whole)?;
        File::open(&directory)?.sync_all()?;
    }
    Ok(status)
}
