//! The pager: a process that answers the faults of restored processes and has the rest of their
//! memory stream in behind them, until all is there.
//!
//! One thread reads what the kernel reports and answers it. It reads under the same lock under which
//! pages are put into place: a process that has given memory back goes on only when that was read,
//! so no thread can still be putting old pages there. Others stream, and rest while a fault waits.

mod events;
mod stream;

use super::advice::Advice;
use super::board::{Board, Delivered, Order, PAGE};
use super::discard::{Backing, Quiet};
use super::guardian::{self, Watch};
use super::hold::Hold;
use super::status::{Count, State, Status};
use super::{content, huge};
use crate::dataset::PageSource;
use crate::sys::{child, task_control};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pages around a fault that are delivered with it.
const AROUND: u64 = 16;

/// Places where there was a fault that the stream still has to go to, at most.
const PLACES: usize = 64;

/// Threads of the stream, at most.
const STREAMS: usize = 4;

/// Who answers faults gets the CPU before others. The stream has as much of it as a guest: the sooner it has
/// come to its end, the sooner nothing depends on it.
const NICE: i32 = -10;

/// Descriptors that the pager may have: what `fs.nr_open` allows everywhere.
const DESCRIPTORS: u64 = 1 << 20;

/// How often it is looked whose memory has gone, when one of the processes has ended.
const BURY: Duration = Duration::from_millis(20);

/// What memory there must be (ENOMEM) or come (EAGAIN) before a page is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is to arrive, and all that is needed for it.
pub struct Load<'d> {
    pub board: Board<'d>,
    /// Addresses in spaces to begin with.
    pub first: Vec<(usize, u64)>,
    pub hold: Hold,
    /// What is behind the shared stores.
    pub backings: BTreeMap<usize, Backing>,
    /// PIDs on this host of the processes that are the first spaces.
    pub pids: Vec<i32>,
    /// PID of vmrestore, which lets them run.
    pub restorer: u32,
}

/// What the pager serves.
pub struct Pager<'a, 'd> {
    board: Mutex<Board<'d>>,
    hold: Mutex<Hold>,
    backings: BTreeMap<usize, Mutex<Backing>>,
    /// Where there is shared memory.
    advice: Option<Mutex<Advice>>,
    pids: Vec<i32>,
    restorer: u32,
    pages: &'a dyn PageSource,
    status: &'a Status,
    /// Faults that have been read and not answered.
    waiting: AtomicUsize,
    /// Addresses in spaces to which the stream goes first.
    places: Mutex<VecDeque<(usize, u64)>>,
    /// Nothing is left to be streamed, or it is no use.
    over: AtomicBool,
    processes: Vec<OwnedFd>,
}

/// A fault that waits.
struct Fault {
    space: usize,
    address: u64,
    since: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The life of the pager, in a process of its own.
pub fn live(load: Load<'_>, pages: &dyn PageSource, status: &Status, watch: &Watch) {
    child::stay_behind(c"vmrestore-pager");
    child::keep_files_only();
    // Each process that is forked meanwhile is a descriptor more.
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let _ = task_control::set_limit(own, libc::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS);
    let processes = watch.pids.iter().map(|pid| child::pidfd(*pid));
    let Ok(processes) = processes.collect::<Result<Vec<_>, _>>() else {
        return;
    };
    let advice = match load.backings.is_empty() {
        true => None,
        false => match Advice::hear() {
            Ok(advice) => Some(Mutex::new(advice)),
            Err(error) => {
                status.say(&format!(
                    "it cannot hear of calls of madvise any more: {error}"
                ));
                return;
            }
        },
    };
    let Some(mut guardian) = guardian::start(status, watch) else {
        return;
    };
    status.set_state(State::Serving);
    let pager = Pager {
        board: Mutex::new(load.board),
        hold: Mutex::new(load.hold),
        backings: load
            .backings
            .into_iter()
            .map(|(store, backing)| (store, Mutex::new(backing)))
            .collect(),
        advice,
        pids: load.pids,
        restorer: load.restorer,
        pages,
        status,
        waiting: AtomicUsize::new(0),
        places: Mutex::new(load.first.into()),
        over: AtomicBool::new(false),
        processes,
    };
    let end = std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        for _ in 0..cpus.saturating_sub(1).clamp(1, STREAMS) {
            scope.spawn(|| pager.stream());
        }
        child::be_nice(NICE);
        let end = pager.serve(&mut guardian, watch);
        pager.over.store(true, Ordering::Release);
        end
    });
    if end == State::Resident {
        // What children had still to get went with them.
        status.set(Count::Done, status.get(Count::Total));
    }
    status.set_state(end);
    if end == State::Failed {
        // The guardian hears of that. It has the same descriptors: they must not be closed here.
        child::end(1);
    }
    // Nothing depends on it any more.
    locked(&pager.hold).end();
    guardian.dismiss();
    drop(pager);
    if end == State::Resident {
        huge::join(&watch.huge);
    }
}

impl Pager<'_, '_> {
    /// Answers faults until all memory is there, or nobody wants it.
    fn serve(&self, guardian: &mut guardian::Guardian, watch: &Watch) -> State {
        let mut faults: VecDeque<Fault> = VecDeque::new();
        let mut has_ended = false;
        let mut buried: Option<Instant> = None;
        loop {
            let spaces: Vec<_> = {
                let board = locked(&self.board);
                let spaces = board.spaces.iter().enumerate();
                spaces
                    .filter_map(|(at, space)| Some((at, space.uffd.clone()?)))
                    .collect()
            };
            if self.status.state() == State::Failed {
                return State::Failed;
            }
            if spaces.is_empty() {
                return State::Ended;
            }
            if self.over.load(Ordering::Acquire) && faults.is_empty() {
                return State::Resident;
            }
            let mut polled: Vec<_> = spaces.iter().map(|(_, uffd)| uffd.as_fd()).collect();
            // Of one that has ended nothing more is to be heard, but its memory may take a moment.
            if !has_ended {
                polled.extend(self.processes.iter().map(AsFd::as_fd));
            }
            let ready = child::poll(&polled, if faults.is_empty() { 50 } else { 1 });
            let now = Instant::now();
            for ((space, _), _) in spaces.iter().zip(&ready).filter(|(_, ready)| **ready) {
                self.take_events(*space, now, &mut faults);
            }
            has_ended |= ready.iter().skip(spaces.len()).any(|ended| *ended);
            // Of a child that was forked nobody is told that it has ended.
            let look = has_ended || spaces.len() > watch.pids.len();
            if look && buried.is_none_or(|at| now.duration_since(at) > BURY) {
                self.bury(&spaces);
                buried = Some(now);
            }
            self.waiting.store(faults.len(), Ordering::Release);
            for _ in 0..faults.len() {
                let Some(fault) = faults.pop_front() else {
                    break;
                };
                if self.answer(&fault) {
                    self.status.answered(fault.since.elapsed());
                } else if fault.since.elapsed() > PATIENCE {
                    self.fail(format!(
                        "the page at {:#x} could not be put into place",
                        fault.address
                    ));
                } else {
                    faults.push_back(fault);
                }
                self.waiting.store(faults.len(), Ordering::Release);
            }
            self.status.set(Count::Done, locked(&self.board).done);
            guardian.see_that_it_lives(self.status, watch);
        }
    }

    /// Answers a fault; `false`: not yet.
    fn answer(&self, fault: &Fault) -> bool {
        let board = locked(&self.board);
        let space = board.spaces.get(fault.space);
        let Some(uffd) = space.and_then(|space| space.uffd.clone()) else {
            return true;
        };
        let Some(order) = board.around(fault.space, fault.address, AROUND) else {
            // It has no content to come: it was given back, or never was.
            let (at, size) = board.page_at(fault.space, fault.address);
            self.status.add(Count::Zeros, 1);
            let result = match size {
                PAGE => uffd.zero(at, size),
                _ => {
                    uffd.copy(at, &vec![0; usize::try_from(size).unwrap_or(0)])
                        .1
                }
            };
            return match result.map_err(|e| e.raw_os_error().unwrap_or(0)) {
                Ok(()) => true,
                Err(libc::EAGAIN | libc::ENOMEM) => false,
                Err(_) => {
                    let _ = uffd.wake(at, size);
                    true
                }
            };
        };
        drop(board);
        let mut buffer = Vec::new();
        let done = self.bring(&order, &mut buffer) == Delivered::All;
        // The page may have been delivered before its fault was read.
        if done {
            let _ = uffd.wake(order.at, order.count * PAGE);
            let mut places = locked(&self.places);
            if places.len() < PLACES {
                places.push_back((order.space, order.at + order.count * PAGE));
            }
        }
        done
    }

    /// Reads pages and puts them into place.
    fn bring(&self, order: &Order, buffer: &mut Vec<u8>) -> Delivered {
        let place = locked(&self.board)
            .stores
            .get(order.store)
            .map(content::place);
        let Some((runs, start)) = place else {
            return Delivered::All;
        };
        if let Err(error) = content::read(runs, start, order, self.pages, buffer) {
            self.fail(format!("its memory cannot be read: {error}"));
            return Delivered::Again;
        }
        // What was read before a change is right; whether this was, only a look behind it tells.
        if let Err(why) = self.pages.still_whole() {
            self.fail(why);
            return Delivered::Again;
        }
        let mut board = locked(&self.board);
        // Of what it cannot tell any more nothing is put into place until the guardian has ended it.
        if self.status.state() == State::Failed {
            return Delivered::Again;
        }
        if let Some(backing) = self.backings.get(&order.store) {
            match locked(backing).quiet() {
                Quiet::Yes => {}
                Quiet::NotYet => return Delivered::Again,
                Quiet::Never => {
                    self.fail(
                        "pages of its shared memory were given back, or written, by a descriptor \
                         before they had arrived, and it cannot be told which"
                            .into(),
                    );
                    return Delivered::Again;
                }
            }
        }
        let delivered = board.deliver(order, buffer);
        drop(board);
        match delivered {
            Delivered::Foreign(at) => self.fail(format!(
                "somebody has written, past its mappings, to the page at {at:#x} of its shared \
                 memory, which had not arrived"
            )),
            Delivered::Refused(at, errno) if errno != libc::ENOMEM => self.fail(format!(
                "the page at {at:#x} could not be put into place: {}",
                std::io::Error::from_raw_os_error(errno)
            )),
            _ => {}
        }
        delivered
    }

    fn fail(&self, message: String) {
        if self.status.state() != State::Failed {
            self.status.say(&message);
            self.status.set_state(State::Failed);
        }
        self.over.store(true, Ordering::Release);
    }
}
