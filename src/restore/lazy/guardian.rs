//! The guardian: sees to it that nobody runs on with wrong memory when the pager dies.
//!
//! When the last descriptor of a userfaultfd is closed, the kernel takes missing pages for zeros. So
//! the guardian shares the pager's descriptor table: with the pager gone, faults wait for ever instead.
//! It then ends the processes that would wait, and those that they have forked, and says why. It
//! lives in their cgroup: whoever kills that with all that is in it kills them, too.

use super::status::{Count, State, Status};
use crate::sys::{child, task_control};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Whom it guards.
#[derive(Clone, Debug)]
pub struct Watch {
    /// PIDs on this host.
    pub pids: Vec<i32>,
    /// How they are called when there is something to say of them.
    pub name: String,
    /// Ranges that were, or would be, in transparent huge pages: the process's PID here, and addresses.
    pub huge: Vec<(i32, u64, u64)>,
}

/// The pager's hold of its guardian.
#[derive(Debug)]
pub struct Guardian {
    pid: i32,
    end: OwnedFd,
    looked: Instant,
}

/// How often the pager looks after its guardian.
const LOOK: Duration = Duration::from_millis(500);

/// Starts the guardian of the calling process.
pub fn start(status: &Status, watch: &Watch) -> Option<Guardian> {
    let pager = child::pidfd(i32::try_from(std::process::id()).ok()?).ok()?;
    let processes = watch.pids.iter().map(|pid| child::pidfd(*pid).ok());
    let processes: Vec<OwnedFd> = processes.collect::<Option<_>>()?;
    let pid = child::sharing_files(|| guard(status, watch, &pager, &processes)).ok()?;
    // These descriptors are the guardian's, too: they stay open.
    std::mem::forget((pager, processes));
    join_cgroup(pid, watch);
    status.set(Count::Guardian, u64::try_from(pid).unwrap_or(0));
    Some(Guardian {
        pid,
        end: child::pidfd(pid).ok()?,
        looked: Instant::now(),
    })
}

impl Guardian {
    /// Another one takes its place should it have been killed.
    pub fn see_that_it_lives(&mut self, status: &Status, watch: &Watch) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        if child::poll(&[self.end.as_fd()], 0) != [true] {
            return;
        }
        child::ended(self.pid, true);
        if let Some(next) = start(status, watch) {
            *self = next;
        }
    }

    /// There is nothing left to guard.
    pub fn dismiss(self) {
        let _ = task_control::kill(self.pid, libc::SIGKILL);
        child::ended(self.pid, true);
    }
}

/// Moves the guardian to where those are whom it guards.
fn join_cgroup(guardian: i32, watch: &Watch) {
    let Some(pid) = watch.pids.first() else {
        return;
    };
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) {
        // Refused where processes may not be: then it stays where it is.
        let file = format!("/sys/fs/cgroup{path}/cgroup.procs");
        let _ = fs::write(file, guardian.to_string());
    }
}

/// Its life.
fn guard(status: &Status, watch: &Watch, pager: &OwnedFd, processes: &[OwnedFd]) {
    child::stay_behind(c"vmrestore-guard");
    while child::poll(&[pager.as_fd()], -1) != [true] {}
    if matches!(
        status.state(),
        State::Resident | State::Ended | State::GivenUp
    ) {
        return;
    }
    end_all(status, watch, processes);
    // Until they have ended, and for those that nobody found, the descriptors stay open.
    for process in processes {
        while child::poll(&[process.as_fd()], -1) != [true] {}
    }
    while still_lives() {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Ends whom the pager served, and those whom they have forked, and says so in the kernel's log.
pub fn end_all(status: &Status, watch: &Watch, processes: &[OwnedFd]) {
    let all = descendants(&watch.pids);
    for process in processes {
        let _ = child::signal(process, libc::SIGKILL);
    }
    // Who was born meanwhile is a child of one of those.
    for pid in all.iter().copied().chain(descendants(&all)) {
        let _ = task_control::kill(pid, libc::SIGKILL);
    }
    let why = match status.message() {
        empty if empty.is_empty() => "its pager has ended before all of it was there".to_owned(),
        message => message,
    };
    let _ = fs::write(
        "/dev/kmsg",
        format!(
            "<3>vmrestore: {} was ended: the rest of its memory cannot be had: {why}\n",
            watch.name
        ),
    );
}

/// Processes that descend from any of these, and these.
fn descendants(pids: &[i32]) -> Vec<i32> {
    let mut family: BTreeSet<i32> = pids.iter().copied().collect();
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?;
            Some((pid, parent.parse().ok()?))
        })
        .collect();
    // Children have mostly higher PIDs than their parents, but not always.
    loop {
        let before = family.len();
        for (pid, parent) in &parents {
            if family.contains(parent) {
                family.insert(*pid);
            }
        }
        if family.len() == before {
            return family.into_iter().collect();
        }
    }
}

/// An address space whose pages will never come still exists: a process that nobody found waits for them.
fn still_lives() -> bool {
    let own = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let mut fds = own.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let is_one = target.to_str()?.starts_with("anon_inode:[userfaultfd]");
        let fd: i32 = entry.file_name().to_str()?.parse().ok()?;
        is_one.then_some(fd)
    });
    fds.any(crate::sys::userfaultfd::lives_by_number)
}
