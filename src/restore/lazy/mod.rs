//! Memory that arrives while the process runs (docs/memory.md).
//!
//! ```text
//! vmrestore ──fork──▶ pager ──clone──▶ guardian      of each set that is restored
//!   builds, resumes,    answers faults,   outlives the pager, and ends
//!   waits if it likes   streams the rest  whom it served if it died early
//! ```
//!
//! What may arrive later is chosen (`choice`), each stub makes a userfaultfd of
//! its own, and its memory is registered before anything can touch it. From
//! then on the pager serves: also the kernel, which KVM has write into guest
//! memory while its state is set. All else of the processes is filled eagerly.

mod advice;
mod board;
mod choice;
mod content;
mod discard;
mod guardian;
mod handle;
mod hold;
mod huge;
mod pager;
mod plan;
mod status;
mod touch;

use super::error::Context;
use super::objects::Objects;
use super::stub::Family;
use super::{RestoreError, Syscalls, calls};
use crate::dataset::{
    Dataset, ObjectId, PageContent, PageRun, PageSource, Process, SharedMemory, Vma,
};
use crate::sys::pidfd;
use crate::sys::userfaultfd::{self, Uffd};
use board::{Board, Delivered, Order, PAGE, Store};
use discard::Backing;
pub use handle::{Arrival, Figures, Pager};
use hold::Hold;
use pager::Load;
pub use plan::{Memory, Plan};
use std::collections::BTreeMap;
use std::fs::OpenOptions;

/// Has the stub make a userfaultfd, and takes it.
fn open(sys: &mut super::inject::Tracee, pid: i32) -> Result<Uffd, RestoreError> {
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned().into();
    let fd = match calls::make_fd(sys, libc::SYS_userfaultfd, [flags]) {
        Ok(fd) => fd,
        // Without CAP_SYS_PTRACE on the host, by a file that it may have been given.
        Err(errno) => open_device(sys, flags)
            .map_err(|_| errno)
            .during(pid, || "userfaultfd".into())?,
    };
    let uffd = pidfd::take(sys.tid, fd).during(pid, || "take its userfaultfd".into());
    calls::close(sys, fd).during(pid, || "close".into())?;
    let uffd = Uffd::from(uffd?);
    uffd.agree().during(pid, || {
        "agree with the kernel on userfaultfd's events".into()
    })?;
    Ok(uffd)
}

fn open_device(sys: &mut dyn Syscalls, flags: u64) -> Result<i32, super::Errno> {
    let device = calls::open_of_host(sys, "/dev/userfaultfd", libc::O_RDWR | libc::O_CLOEXEC)?;
    let fd = sys.ioctl_value(device, userfaultfd::IOC_NEW, flags);
    calls::close(sys, device)?;
    fd.and_then(|fd| i32::try_from(fd).map_err(|_| super::Errno(libc::EBADF)))
}

/// What was decided, and who sees to it.
#[derive(Debug, Default)]
pub struct Arriving {
    /// Brings what is not there yet; `None`: all is there.
    pub pager: Option<Pager>,
    /// Why all is there, or some of it, although it might have come later.
    pub why_not: Option<String>,
}

impl Arriving {
    /// Why a step of the restore failed: for a page that could not be had, perhaps, which has ended
    /// the stub in the middle of a call.
    pub(super) fn cause(&self, dataset: &Dataset, error: RestoreError) -> RestoreError {
        match self.pager.as_ref().and_then(Pager::trouble) {
            Some(why) => RestoreError::Arrival {
                pid: dataset.processes.first().map_or(0, |p| p.pid),
                why,
            },
            None => error,
        }
    }
}

/// Registers what arrives later and starts the pager.
///
/// # Errors
/// Registering was refused; no pager could be started.
pub fn start(
    dataset: &Dataset,
    plan: Plan,
    family: &mut Family<'_>,
    objects: &Objects,
    pages: &dyn PageSource,
) -> Result<Arriving, RestoreError> {
    let mut arriving = Arriving {
        pager: None,
        why_not: plan.why_not.clone(),
    };
    if plan.is_empty() {
        return Ok(arriving);
    }
    let mut board = Board::default();
    let mut hold = Hold::default();
    let mut pids = Vec::new();
    let mut shared: BTreeMap<ObjectId, usize> = BTreeMap::new();
    let mut first = Vec::new();
    let mut own: Vec<(usize, &Process)> = Vec::new();
    for at in 0..family.stubs.len() {
        let process = family.process(at)?;
        let lazy = |vma: &&Vma| {
            plan.has(process, vma)
                || choice::of(vma).is_some_and(|(id, _)| plan.memories.contains(&id))
        };
        if !process.mm.vmas.iter().any(|vma| lazy(&vma)) {
            continue;
        }
        let uffd = open(family.leader(at)?, process.pid)?;
        let space = board.add_space(uffd);
        if let Some(stub) = family.stubs.get_mut(at) {
            pids.push(stub.pid);
            if let Err(why) = hold.add_process(stub) {
                tracing::info!(
                    "pid {}: its pager and its guardian alone hold its userfaultfd: {why}",
                    process.pid
                );
            }
        }
        for vma in process.mm.vmas.iter().filter(lazy) {
            match choice::of(vma) {
                None => private(&mut board, space, process.pid, vma)?,
                Some((id, offset)) => {
                    let memory = dataset.shared_memory.iter().find(|m| m.id == id);
                    let Some(memory) = memory else { continue };
                    let store = *shared.entry(id).or_insert_with(|| {
                        board.stores.push(store_of(memory));
                        board.stores.len() - 1
                    });
                    mapped(&mut board, space, process.pid, vma, (store, offset), memory)?;
                }
            }
        }
        let looked_at = touch::of_guests(dataset, process, pages);
        first.extend(looked_at.into_iter().map(|address| (space, address)));
        own.push((space, process));
    }
    board.own = board.stores.len();
    at_once(&mut board, &own, pages)?;
    if board.left() > 0 {
        for (space, uffd) in board.spaces.iter().map(|s| s.uffd.as_ref()).enumerate() {
            if let Some(uffd) = uffd {
                hold.add(space, uffd);
            }
        }
        let load = Load {
            backings: backings(family, &shared, objects)?,
            board,
            first,
            hold,
            pids,
            restorer: std::process::id(),
        };
        arriving.pager = Some(handle::spawn(dataset, family, load, pages)?);
    }
    Ok(arriving)
}

/// The files behind the shared stores.
fn backings(
    family: &mut Family<'_>,
    shared: &BTreeMap<ObjectId, usize>,
    objects: &Objects,
) -> Result<BTreeMap<usize, Backing>, RestoreError> {
    let mut backings = BTreeMap::new();
    for (id, holder) in objects.memories() {
        let Some(store) = shared.get(&id) else {
            continue;
        };
        let pid = family.process(holder.stub)?.pid;
        let path = format!("/proc/{}/fd/{}", family.leader(holder.stub)?.tid, holder.fd);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.during(pid, || format!("open {path}"))?;
        backings.insert(*store, Backing::new(file));
    }
    Ok(backings)
}

/// A private VMA: its ranges with content.
fn private<'d>(
    board: &mut Board<'d>,
    space: usize,
    pid: i32,
    vma: &'d Vma,
) -> Result<(), RestoreError> {
    let pages = vma.len() / PAGE;
    let mut store = Store::new(&vma.pages, vma.start, pages, |run| {
        run.content != PageContent::Zero
    });
    store.wiped_on_fork = vma.flags & super::vma_flags::bit::WIPEONFORK != 0;
    let at = board.stores.len();
    board.stores.push(store);
    for (start, end) in choice::ranges(vma, &vma.pages, vma.start) {
        register(
            board,
            space,
            pid,
            (start, end),
            at,
            (start - vma.start) / PAGE,
        )?;
    }
    Ok(())
}

fn store_of(memory: &SharedMemory) -> Store<'_> {
    let pages = memory.size.div_ceil(PAGE);
    let mut store = Store::new(&memory.pages, 0, pages, |run| {
        run.content != PageContent::Zero
    });
    store.shared = true;
    store
}

/// A mapping of a shared memory.
fn mapped<'d>(
    board: &mut Board<'d>,
    space: usize,
    pid: i32,
    vma: &'d Vma,
    (store, offset): (usize, u64),
    memory: &'d SharedMemory,
) -> Result<(), RestoreError> {
    for (start, end) in choice::ranges(vma, &memory.pages, offset) {
        let first = (start - vma.start + offset) / PAGE;
        register(board, space, pid, (start, end), store, first)?;
    }
    Ok(())
}

fn register(
    board: &mut Board<'_>,
    space: usize,
    pid: i32,
    (start, end): (u64, u64),
    store: usize,
    first: u64,
) -> Result<(), RestoreError> {
    let Some(uffd) = board.spaces.get(space).and_then(|s| s.uffd.clone()) else {
        return Ok(());
    };
    let huge = uffd.register(start, end - start).during(pid, || {
        format!("register {start:#x}-{end:#x} with its userfaultfd")
    })?;
    if let Some(store) = board.stores.get_mut(store).filter(|_| huge) {
        store.granule = choice::HUGE / PAGE;
    }
    board.add_area(space, start, end, store, first);
    Ok(())
}

/// What cannot wait: pages of swap areas, which this host may write to by and by, and those where the
/// kernel does not wait for a fault.
fn at_once(
    board: &mut Board<'_>,
    own: &[(usize, &Process)],
    pages: &dyn PageSource,
) -> Result<(), RestoreError> {
    let pid = own.first().map_or(0, |(_, process)| process.pid);
    let mut orders: Vec<Order> = own
        .iter()
        .flat_map(|(space, process)| choice::touched(process).into_iter().map(|at| (*space, at)))
        .filter_map(|(space, at)| board.around(space, at, 1))
        .collect();
    let mut buffer = Vec::new();
    let is_swapped = |store: &Store<'_>| {
        let mut runs = store.runs.iter();
        runs.any(|run| matches!(run.content, PageContent::Swap { .. }))
    };
    let looked_at = match board.stores.iter().any(is_swapped) {
        true => board.spaces.len(),
        false => 0,
    };
    for space in 0..looked_at {
        let mut from = 0;
        while let Some(order) = board.next(space, from, 64) {
            from = order.at + order.count * PAGE;
            let swapped = board.stores.get(order.store).is_some_and(|store| {
                swapped(store.runs, store.start + order.first * PAGE, order.count)
            });
            if swapped {
                orders.push(order);
            }
        }
    }
    for order in orders {
        let Some((runs, start)) = board.stores.get(order.store).map(content::place) else {
            continue;
        };
        content::read(runs, start, &order, pages, &mut buffer)
            .map_err(|source| RestoreError::Page { pid, source })?;
        match board.deliver(&order, &buffer) {
            Delivered::All => {}
            other => {
                return Err(RestoreError::Lost {
                    pid,
                    how: format!("does not take its page at {:#x} ({other:?})", order.at),
                });
            }
        }
    }
    Ok(())
}

/// A page of these is in a swap area.
fn swapped(runs: &[PageRun], begin: u64, count: u64) -> bool {
    let end = begin + count * PAGE;
    let from = runs.partition_point(|run| run.start + run.count.saturating_mul(PAGE) <= begin);
    let there = runs.get(from..).unwrap_or_default();
    there
        .iter()
        .take_while(|run| run.start < end)
        .any(|run| matches!(run.content, PageContent::Swap { .. }))
}
