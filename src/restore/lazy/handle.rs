//! A hold of the pager: it is started, waited for, and sent away when what it was for never runs.

use super::board::PAGE;
use super::guardian::{self, Watch};
use super::pager::Load;
use super::status::{Count, State, Status};
use super::{choice, huge, pager};
use crate::dataset::{Dataset, PageSource};
use crate::restore::RestoreError;
use crate::restore::error::Context;
use crate::restore::stub::Family;
use crate::sys::{child, task_control};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long the pager may take to be there.
const BIRTH: Duration = Duration::from_secs(10);

/// Starts the pager of what is on the board.
///
/// # Errors
/// It could not be started.
pub(super) fn spawn(
    dataset: &Dataset,
    family: &Family<'_>,
    load: Load<'_>,
    pages: &dyn PageSource,
) -> Result<Pager, RestoreError> {
    let pid = family.stubs.first().map_or(0, |s| s.process.pid);
    let status = Status::new().during(pid, || "map a page to share with the pager".into())?;
    status.set(Count::Total, load.board.left() + load.board.done);
    let lazy = family.stubs.iter().flat_map(|stub| {
        let vmas = stub.process.mm.vmas.iter().filter(|v| choice::is_lazy(v));
        vmas.flat_map(huge::ranges)
            .map(|(start, end)| (stub.pid, start, end))
    });
    let watch = Watch {
        pids: family.stubs.iter().map(|stub| stub.pid).collect(),
        name: name(dataset, family),
        huge: lazy.collect(),
    };
    let status = Rc::new(status);
    let page = Rc::clone(&status);
    let total = load.board.left();
    let processes = watch.pids.iter().map(|pid| child::pidfd(*pid));
    let processes = processes.collect::<Result<Vec<_>, _>>();
    let processes = processes.during(pid, || "pidfd_open, of itself".into())?;
    let watched = watch.clone();
    let child = child::fork(move || pager::live(load, pages, &page, &watched))
        .during(pid, || "fork, for the pager".into())?;
    let pager = Pager {
        child,
        status,
        watch,
        processes,
        bytes: total * PAGE,
        begin: Instant::now(),
        left: false,
    };
    let begin = Instant::now();
    while pager.status.state() == State::Starting {
        if child::ended(child, false).is_some() || begin.elapsed() > BIRTH {
            return Err(RestoreError::Lost {
                pid,
                how: "has no pager for its memory: that could not be started".into(),
            });
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(pager)
}

fn name(dataset: &Dataset, family: &Family<'_>) -> String {
    let stub = family.stubs.first();
    let (pid, comm) = stub.map_or((0, ""), |s| (s.pid, s.process.comm.as_str()));
    let comm: String = comm.chars().filter(|c| !c.is_control()).collect();
    let vm = dataset.vms.iter().find_map(|vm| vm.name.as_deref());
    match vm {
        Some(vm) => {
            let vm: String = vm.chars().filter(|c| !c.is_control()).collect();
            format!("guest {vm} (pid {pid}, {comm})")
        }
        None => format!("pid {pid} ({comm})"),
    }
}

/// The pager of processes that are being restored, or run. Dropped before they ran, it goes; they do not
/// run then. Afterwards it does its work whether anybody waits for it or not.
#[derive(Debug)]
pub struct Pager {
    child: i32,
    status: Rc<Status>,
    watch: Watch,
    processes: Vec<OwnedFd>,
    /// To arrive, when it began.
    pub bytes: u64,
    begin: Instant,
    /// The processes run.
    left: bool,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// All memory is there.
    Resident,
    /// The processes have ended by themselves.
    Ended,
    /// They were ended, for this reason.
    Stopped(String),
    /// The wait was broken off; it goes on.
    Waiting,
}

/// What a pager has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Bytes that have arrived, of all.
    pub done: u64,
    pub total: u64,
    /// Faults answered; of them those for zeros.
    pub faults: u64,
    pub zeros: u64,
    pub mean: Duration,
    pub p99: Duration,
    /// Since it began.
    pub time: Duration,
}

impl Pager {
    /// The processes run now: memory may stream in, and whoever restored them may go.
    pub(in crate::restore) fn go(&mut self) {
        self.left = true;
        self.status.set(Count::Go, 1);
    }

    /// PID of the pager.
    pub fn pid(&self) -> i32 {
        self.child
    }

    /// PID of the guardian.
    pub fn guardian(&self) -> i32 {
        i32::try_from(self.status.get(Count::Guardian)).unwrap_or(0)
    }

    /// Why it could not go on.
    pub(super) fn trouble(&self) -> Option<String> {
        match self.status.state() {
            State::Failed => Some(self.status.message()),
            State::Serving if child::ended(self.child, false).is_some() => {
                Some("its pager was killed".into())
            }
            _ => None,
        }
    }

    /// What it has done so far.
    pub fn figures(&self) -> Figures {
        let get = |count| self.status.get(count);
        let faults = get(Count::Faults);
        Figures {
            done: get(Count::Done) * PAGE,
            total: get(Count::Total) * PAGE,
            faults,
            zeros: get(Count::Zeros),
            mean: Duration::from_nanos(get(Count::Waited) / faults.max(1)),
            p99: self.status.quantile(0.99),
            time: self.begin.elapsed(),
        }
    }

    /// Waits until all memory is there. `on` is asked several times a second whether to go on waiting.
    pub fn wait(&self, mut on: impl FnMut(&Figures) -> bool) -> Arrival {
        loop {
            let code = child::ended(self.child, false);
            match (self.status.state(), code) {
                (State::Resident, _) => return Arrival::Resident,
                (State::Ended, _) => return Arrival::Ended,
                (State::Failed, Some(_)) => return Arrival::Stopped(self.status.message()),
                (_, Some(code)) if code < 0 => {
                    self.see_that_they_end();
                    return Arrival::Stopped(format!(
                        "its pager (pid {}) was killed by signal {} before all of its memory was there",
                        self.child, -code
                    ));
                }
                (_, Some(_)) => {
                    self.see_that_they_end();
                    return Arrival::Stopped("its pager ended before its time".into());
                }
                _ => {}
            }
            if !on(&self.figures()) {
                return Arrival::Waiting;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The pager has gone before its time: what the guardian would do, if it has gone, too. Until then
    /// they wait, each at the next page that is not there.
    fn see_that_they_end(&self) {
        let guardian = child::pidfd(self.guardian());
        let lives = guardian.is_ok_and(|guardian| child::poll(&[guardian.as_fd()], 0) != [true]);
        if !lives {
            guardian::end_all(&self.status, &self.watch, &self.processes);
        }
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if self.left {
            // It ends when its work is done; its parent may end before.
            child::ended(self.child, false);
            return;
        }
        // What it served never runs: the guardian must not say anything else.
        self.status.set_state(State::GivenUp);
        let _ = task_control::kill(self.child, libc::SIGKILL);
        child::ended(self.child, true);
    }
}
