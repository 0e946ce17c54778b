//! Patience: the machine is not reset while guests run on it.

use super::RUN;
use super::log::Log;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_secs(1);
/// Between two words that guests run still.
const REMINDER: Duration = Duration::from_secs(600);

/// VMMs that run.
#[derive(Debug, Default)]
pub struct Running(Vec<Vmm>);

#[derive(Debug)]
struct Vmm {
    name: String,
    pid: i32,
    /// When it began: another process may get its number.
    began: u64,
}

impl Running {
    /// Those of these that live, noted for whoever comes after us.
    pub fn of(all: &[(String, i32)], log: &mut Log) -> Self {
        let vmm = |(name, pid): &(String, i32)| {
            Some(Vmm {
                name: name.clone(),
                pid: *pid,
                began: began(*pid)?,
            })
        };
        let running: Vec<Vmm> = all.iter().filter_map(vmm).collect();
        let pids: String = running.iter().map(|v| format!("{}\n", v.pid)).collect();
        let path = Path::new(RUN).join("running");
        if !running.is_empty()
            && let Err(error) = fs::write(&path, pids)
        {
            log.say(format!("{}: {error}", path.display()));
        }
        Self(running)
    }

    /// No guest went on.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|v| v.name.as_str()).collect();
        names.join(", ")
    }
}

/// Waits until all have ended, or been moved away; or until the limit.
pub fn until_gone(mut running: Running, limit: Option<Duration>, log: &mut Log) {
    if running.is_empty() {
        return;
    }
    log.say(format!(
        "in this capture kernel: {}. Move guests away (by their VMM's live migration); the machine is \
         reset when all have ended{}",
        running.names(),
        limit.map_or_else(String::new, |l| format!(
            ", and at the latest in {} minutes",
            l.as_secs() / 60
        ))
    ));
    let begin = Instant::now();
    let mut said = begin;
    while !running.is_empty() {
        bury();
        running.0.retain(|vmm| {
            let lives = began(vmm.pid) == Some(vmm.began);
            if !lives {
                log.say(format!("{} is not here any more", vmm.name));
            }
            lives
        });
        if let Some(limit) = limit
            && begin.elapsed() >= limit
            && !running.is_empty()
        {
            log.say(format!(
                "the time is over: the machine is reset, and {} with it",
                running.names()
            ));
            return;
        }
        if said.elapsed() >= REMINDER {
            said = Instant::now();
            log.say(format!("here still: {}", running.names()));
        }
        if !running.is_empty() {
            std::thread::sleep(STEP);
        }
    }
    log.say("no guest is here any more");
    let _ = fs::remove_file(Path::new(RUN).join("running"));
}

/// As PID 1: takes in what has ended.
fn bury() {
    if std::process::id() != 1 {
        return;
    }
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// When a process began, in ticks since the boot; `None`: it is none any more.
fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    match words.next()? {
        "Z" | "X" => None,
        // Field 22 of proc(5), the state being 3.
        _ => words.nth(18)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn it_waits_for_those_that_live_and_no_longer_than_it_may() {
        let mut child = Command::new("sleep").arg("1.5").spawn().expect("sleeps");
        let pid = child.id().cast_signed();
        let mut log = Log::new();
        let both = [("here".to_owned(), pid), ("gone".to_owned(), i32::MAX)];
        let vmm = |(name, pid): &(String, i32)| {
            Some(Vmm {
                name: name.clone(),
                pid: *pid,
                began: began(*pid)?,
            })
        };
        let some = || Running(both.iter().filter_map(vmm).collect());
        assert_eq!(some().names(), "here");
        until_gone(some(), Some(Duration::ZERO), &mut log);
        assert!(began(pid).is_some(), "it did not wait for it");
        // A zombie until this thread takes it in, which is as good as gone.
        until_gone(some(), None, &mut log);
        assert_eq!(began(pid), None);
        child.wait().expect("ended");
    }
}
