//! Stubs: stopped processes with nothing in them, on their way to become the
//! processes of the dataset.
//!
//! ```text
//! vmrestore ── nursery (new time namespace)            killed at the end
//!                 ├── stub of each process, or
//!                 ├── PID 1 of a new PID namespace     reaps, ends with them
//!                 │      └── stub of each process, or
//!                 └── deputy in a container            killed at the end
//!                        └── stub of each process
//! ```
//!
//! When PID 1 of a PID namespace is of the set, its stub is PID 1 of a new one.
//!
//! All of them are seized with PTRACE_O_EXITKILL: were vmrestore to die at any
//! point, nothing would be left behind.

use super::container::Container;
use super::error::Context;
use super::inject::{self, Scratch, Tracee};
use super::maps::{Mapping, TASK_SIZE, find_syscall, free_gap, mappings};
use super::pid_space::{self, PidSpace};
use super::terminals::Masters;
use super::{RestoreError, Syscalls, calls, namespaces, objects};
use crate::dataset::{Dataset, Fidelity, NamespaceKind, Process, Thread, Zombie};
use crate::sys::clone::{CloneArgs, idle_child};
use crate::sys::ptrace::{self, Stop};
use crate::sys::task_control;
use std::time::Duration;

/// What the scratch mapping keeps away from: the lowest megabyte, which
/// `vm.mmap_min_addr` may forbid.
const LOWEST: u64 = 1 << 20;

/// `RSEQ_FLAG_UNREGISTER`.
const RSEQ_UNREGISTER: u64 = 1;

/// `RLIM_NLIMITS`.
const LIMITS: u32 = 16;

/// `PTRACE_EVENT_STOP`. Linux include/uapi/linux/ptrace.h.
const EVENT_STOP: i32 = 128;

/// A process on its way.
#[derive(Debug)]
pub struct Stub<'a> {
    /// What it is to become.
    pub process: &'a Process,
    /// PID on this host.
    pub pid: i32,
    /// One for each of `process.threads`, in their order.
    pub threads: Vec<Tracee>,
    /// More threads, for a time: see `fill::direct`.
    pub helpers: Vec<Tracee>,
    /// An earlier stub has the same descriptor table, or the same directories.
    pub shares_files: bool,
    pub shares_fs: bool,
}

impl Stub<'_> {
    /// The main thread, which makes the calls whose effect all threads share.
    pub fn leader(&mut self) -> Result<&mut Tracee, RestoreError> {
        self.threads.first_mut().ok_or(RestoreError::Malformed {
            pid: self.process.pid,
            what: "the list of its threads".into(),
            why: "it is empty".into(),
        })
    }
}

/// All stubs of one restore. Dropped before it was released, it kills them.
#[derive(Debug)]
pub struct Family<'a> {
    /// Parents before children.
    pub stubs: Vec<Stub<'a>>,
    /// Zombies to be, which wait for their end.
    pub zombies: Vec<(&'a Zombie, Tracee)>,
    /// While they are made: the nodes of the plan.
    pub(super) cradle: Vec<Option<Tracee>>,
    /// Pseudo-terminals that sessions have.
    pub masters: Masters,
    /// What could not be made as it was.
    pub notes: Vec<Fidelity>,
    /// Where they have their PIDs.
    pub(super) space: PidSpace,
    /// They have a mount namespace of their own, made here.
    pub(super) own_mounts: bool,
    /// The stub that is PID 1 of their PID namespace.
    pub(super) first: Option<i32>,
    /// PID 1 of their PID namespace, when that is none of theirs; in a
    /// container's whoever makes the roots there, and then leaves them to its
    /// PID 1.
    init: Option<Tracee>,
    nursery: Tracee,
    released: bool,
}

impl<'a> Family<'a> {
    /// Nobody yet but those who make the others.
    ///
    /// # Errors
    /// What was refused.
    pub(super) fn new(
        dataset: &'a Dataset,
        own_pids: bool,
        container: Option<&Container>,
    ) -> Result<Self, RestoreError> {
        let pid = idle_child().during(0, || "fork".into())?;
        let nursery = match nursery(dataset, pid) {
            Ok(nursery) => nursery,
            Err(e) => {
                reap(&[pid]);
                return Err(e);
            }
        };
        let mut family = Self {
            stubs: Vec::new(),
            zombies: Vec::new(),
            cradle: Vec::new(),
            masters: Masters::default(),
            notes: Vec::new(),
            init: None,
            space: PidSpace::of(dataset, own_pids, container),
            own_mounts: false,
            first: None,
            nursery,
            released: false,
        };
        let base = objects::base(dataset);
        namespaces::open_doors(&mut family.nursery, base, container.is_some())?;
        namespaces::enter_time(&mut family.nursery, &dataset.host)?;
        if let Some(container) = container {
            namespaces::enter(&mut family.nursery, container)?;
        }
        let led = family.space == PidSpace::Led;
        if let Some(first) = pid_space::first_process(dataset).filter(|_| led)
            && first.namespaces.has(NamespaceKind::Mount)
        {
            namespaces::copy_mounts(&mut family.nursery)?;
            family.own_mounts = true;
        }
        family.init = match family.space {
            PidSpace::Own => Some(namespaces::pid_namespace(&mut family.nursery)?),
            // What ends with the container is to end with it here as well.
            _ if container.is_some_and(|c| c.enters(NamespaceKind::Pid)) => {
                Some(namespaces::deputy(&mut family.nursery, dataset)?)
            }
            PidSpace::Host | PidSpace::Led | PidSpace::Container => None,
        };
        if led {
            namespaces::unshare_pids(family.root_maker())?;
        }
        Ok(family)
    }

    /// Whose children the roots are.
    pub(super) fn root_maker(&mut self) -> &mut Tracee {
        self.init.as_mut().unwrap_or(&mut self.nursery)
    }

    /// The main thread of the stub with this index.
    ///
    /// # Errors
    /// There is none.
    pub fn leader(&mut self, at: usize) -> Result<&mut Tracee, RestoreError> {
        match self.stubs.get_mut(at) {
            Some(stub) => stub.leader(),
            None => Err(no_stub(at)),
        }
    }

    /// The process that the stub with this index becomes.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&self, at: usize) -> Result<&'a Process, RestoreError> {
        match self.stubs.get(at) {
            Some(stub) => Ok(stub.process),
            None => Err(no_stub(at)),
        }
    }

    /// Makes PID 1 of a namespace made for them ready: it outlives vmrestore from here on, and ends
    /// when none of them is left.
    ///
    /// # Errors
    /// It was killed.
    pub fn ready_init(&mut self) -> Result<(), RestoreError> {
        match &mut self.init {
            Some(init) if self.space == PidSpace::Own => namespaces::ready_init(init),
            _ => Ok(()),
        }
    }

    /// They live now: the nursery goes, PID 1 of their namespace begins to
    /// reap, and dropping this kills nobody. The stubs were detached already.
    pub fn release(&mut self) {
        self.released = true;
        match &mut self.init {
            // Were it gone, all of them would be.
            Some(init) if self.space == PidSpace::Own => drop(ptrace::detach(init.tid)),
            // Its children go to PID 1 of the container.
            Some(deputy) => reap(&[deputy.tid]),
            None => {}
        }
        reap(&[self.nursery.tid]);
    }
}

impl Drop for Family<'_> {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // PID 1 of a namespace waits for all others of it, which are this
        // process's to reap: it comes last.
        let first = self.first;
        let unborn = self.cradle.drain(..).flatten();
        let unborn: Vec<i32> = unborn.map(|tracee| tracee.tid).collect();
        let others: Vec<i32> = unborn.into_iter().filter(|t| Some(*t) != first).collect();
        reap(&others);
        let zombies: Vec<i32> = self.zombies.drain(..).map(|(_, t)| t.tid).collect();
        reap(&zombies);
        let is_first = |stub: &&Stub<'_>| Some(stub.pid) == first;
        let others = self.stubs.iter().rev().filter(|stub| !is_first(stub));
        for stub in others.chain(self.stubs.iter().filter(is_first)) {
            let threads = stub.helpers.iter().chain(&stub.threads);
            let tids: Vec<i32> = threads.map(|t| t.tid).collect();
            reap(&tids);
        }
        if let Some(first) = first {
            reap(&[first]);
        }
        if let Some(init) = &self.init {
            reap(&[init.tid]);
        }
        reap(&[self.nursery.tid]);
    }
}

fn no_stub(at: usize) -> RestoreError {
    RestoreError::Lost {
        pid: 0,
        how: format!("is not there (stub {at})"),
    }
}

/// Kills tasks and waits until they are gone, in whatever order they go: of the threads of a PID
/// namespace's PID 1 the last one waits in the kernel until the others have been reaped.
pub(super) fn reap(tids: &[i32]) {
    for &tid in tids {
        // Gone already is as well.
        let _ = task_control::kill(tid, libc::SIGKILL);
    }
    let mut left = tids.to_vec();
    let mut pause = Duration::from_micros(20);
    loop {
        let before = left.len();
        // Stops may still be queued before the end.
        left.retain(|tid| !matches!(ptrace::look(*tid), Ok(Some(Stop::Gone(_))) | Err(_)));
        if left.is_empty() {
            return;
        }
        if left.len() < before {
            continue;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Makes a thread that is none of the process's, with whatever ID.
pub(super) fn add_helper(leader: &mut Tracee) -> Result<Tracee, RestoreError> {
    spawn(leader, Kind::Thread, None)
}

/// Ends such a thread.
pub(super) fn end_helper(mut helper: Tracee) {
    // It does not come back from this call.
    let _ = calls::plain(&mut helper, libc::SYS_exit, [0]);
}

pub(super) fn add_thread(leader: &mut Tracee, thread: &Thread) -> Result<Tracee, RestoreError> {
    spawn(leader, Kind::Thread, Some(thread.ns_tid))
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A process.
    Process(Birth),
    /// A thread of the caller.
    Thread,
}

/// How a process is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// By which its parent hears of its end.
    pub exit_signal: i32,
    /// It becomes the caller's sibling, not its child, and its exit signal is
    /// the caller's.
    pub sibling: bool,
    /// It has the caller's descriptor table, or directories.
    pub share_files: bool,
    pub share_fs: bool,
}

impl Default for Birth {
    /// As by fork.
    fn default() -> Self {
        Self {
            exit_signal: libc::SIGCHLD,
            sibling: false,
            share_files: false,
            share_fs: false,
        }
    }
}

impl Birth {
    fn flags(self) -> i32 {
        let when = |yes: bool, flag: i32| if yes { flag } else { 0 };
        when(self.sibling, libc::CLONE_PARENT)
            | when(self.share_files, libc::CLONE_FILES)
            | when(self.share_fs, libc::CLONE_FS)
    }
}

/// Makes the tracee clone itself; the new task is stopped before its first
/// instruction. `id` is the PID or TID that it must have in its namespace.
///
/// # Errors
/// [`RestoreError::PidTaken`]; the errno of clone3.
pub fn spawn(parent: &mut Tracee, kind: Kind, id: Option<i32>) -> Result<Tracee, RestoreError> {
    let named = id.unwrap_or(0);
    let (at, _) = parent.scratch();
    let ids_at = at + size_of::<CloneArgs>() as u64;
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let mut args = CloneArgs::default();
    match kind {
        Kind::Process(birth) => {
            args.flags = birth.flags().cast_unsigned().into();
            if !birth.sibling {
                args.exit_signal = birth.exit_signal.cast_unsigned().into();
            }
        }
        Kind::Thread => args.flags = flags.cast_unsigned().into(),
    }
    if id.is_some() {
        args.set_tid = ids_at;
        args.set_tid_size = 1;
    }
    let mut bytes = args.to_bytes();
    let len = bytes.len() as u64;
    bytes.extend(named.to_ne_bytes());
    let what = || format!("clone3 of the task with ID {named}");
    parent.take_born();
    parent.write(at, &bytes).during(named, what)?;
    parent
        .syscall(libc::SYS_clone3, [at, len, 0, 0, 0, 0])
        .map_err(|errno| match errno.0 {
            libc::EEXIST => RestoreError::PidTaken { pid: named },
            libc::EINVAL if id.is_some() => RestoreError::Unsupported {
                pid: named,
                what: format!("the ID {named}"),
                why: "is it above this host's kernel.pid_max?".into(),
            },
            _ => RestoreError::Call {
                pid: named,
                what: what(),
                errno,
            },
        })?;
    let tid = parent.take_born().ok_or_else(|| RestoreError::Lost {
        pid: named,
        how: "was made, but not traced".into(),
    })?;
    await_stop(tid, named)?;
    match kind {
        Kind::Process(_) => Tracee::new(
            tid,
            parent.scratch_mapping().start,
            parent.scratch_mapping(),
        )
        .map(|child| child.with_doors(parent.doors())),
        Kind::Thread => parent.sibling(tid),
    }
    .during(named, || format!("open the memory of task {tid}"))
}

/// Waits for a seized task's first stop.
fn await_stop(tid: i32, named: i32) -> Result<(), RestoreError> {
    loop {
        match ptrace::wait(tid).during(named, || format!("wait for task {tid}"))? {
            Stop::Event(EVENT_STOP) => return Ok(()),
            Stop::Gone(code) => {
                return Err(RestoreError::Lost {
                    pid: named,
                    how: format!("ended with {code}"),
                });
            }
            _ => ptrace::resume_to_syscall(tid).during(named, || format!("resume task {tid}"))?,
        }
    }
}

/// Takes an idle child over and empties it: no memory but the scratch
/// mapping, no files, no restartable sequences, every signal blocked, no limits.
fn nursery(dataset: &Dataset, pid: i32) -> Result<Tracee, RestoreError> {
    let at = |what: &'static str| move || what.to_string();
    ptrace::seize(pid).during(0, at("ptrace (PTRACE_SEIZE)"))?;
    ptrace::interrupt(pid).during(0, at("ptrace (PTRACE_INTERRUPT)"))?;
    await_stop(pid, 0)?;
    ptrace::set_signal_mask(pid, u64::MAX).during(0, at("ptrace (PTRACE_SETSIGMASK)"))?;

    let maps = mappings(pid)?;
    let scratch = Scratch {
        start: scratch_gap(dataset, &maps)?,
    };
    let mut tracee = Tracee::new(pid, 0, scratch).during(0, at("open /proc/PID/mem"))?;
    let code = maps
        .iter()
        .filter(|m| m.executable)
        .find_map(|m| find_syscall(tracee.memory(), m.start, m.end))
        .ok_or_else(|| RestoreError::Lost {
            pid: 0,
            how: "has no syscall instruction".into(),
        })?;
    tracee.use_code(code);

    if let Some((address, len, signature)) =
        ptrace::rseq(pid).during(0, at("ptrace (PTRACE_GET_RSEQ_CONFIGURATION)"))?
    {
        let call = [address, len.into(), RSEQ_UNREGISTER, signature.into()];
        calls::plain(&mut tracee, libc::SYS_rseq, call).during(0, at("rseq (unregister)"))?;
    }
    let (prot, anon) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    calls::map(&mut tracee, scratch.start, Scratch::LEN, prot, anon, -1, 0)
        .during(0, at("mmap of the scratch memory"))?;
    tracee
        .write(scratch.start, &inject::code())
        .during(0, at("write the scratch memory"))?;
    let prot = libc::PROT_READ | libc::PROT_EXEC;
    calls::protect(&mut tracee, scratch.start, Scratch::CODE_LEN, prot)
        .during(0, at("mprotect of the scratch memory"))?;
    tracee.use_code(scratch.start);

    calls::unmap(&mut tracee, 0, scratch.start).during(0, at("munmap of vmrestore's memory"))?;
    calls::unmap(&mut tracee, scratch.end(), TASK_SIZE - scratch.end()).during(
        0,
        at("munmap of vmrestore's memory (is the vDSO sealed by mseal?)"),
    )?;
    calls::plain(&mut tracee, libc::SYS_close_range, [0, u32::MAX.into(), 0])
        .during(0, at("close_range"))?;
    // Its dead children leave no zombies, should the restore fail.
    let ignore: Vec<u8> = [1u64, 0, 0, 0]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect();
    let child = libc::SIGCHLD.cast_unsigned().into();
    calls::put(&mut tracee, &ignore)
        .and_then(|act| calls::plain(&mut tracee, libc::SYS_rt_sigaction, [child, act, 0, 8]))
        .during(0, at("rt_sigaction"))?;
    for resource in 0..LIMITS {
        let limit = if resource == libc::RLIMIT_NOFILE {
            1 << 20 // what fs.nr_open allows everywhere
        } else {
            u64::MAX
        };
        // One that cannot be lifted shows when it is reached.
        let _ = task_control::set_limit(pid, resource, limit, limit);
    }
    Ok(tracee)
}

/// An address for the scratch mapping that is free in the stub and in every
/// process of the dataset.
fn scratch_gap(dataset: &Dataset, own: &[Mapping]) -> Result<u64, RestoreError> {
    let taken = dataset
        .processes
        .iter()
        .flat_map(|p| p.mm.vmas.iter().map(|v| (v.start, v.end)))
        .chain(own.iter().map(|m| (m.start, m.end)));
    free_gap(taken, LOWEST, Scratch::LEN).ok_or_else(|| RestoreError::Unsupported {
        pid: 0,
        what: "an address space without a gap".into(),
        why: "132 KiB of free addresses are needed to work in".into(),
    })
}
