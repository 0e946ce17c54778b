//! Stubs: stopped processes with nothing in them, on their way to become the
//! processes of the dataset.
//!
//! ```text
//! vmrestore ── nursery (new time namespace)            killed at the end
//!                 ├── stub of each process, or
//!                 └── PID 1 of a new PID namespace     reaps, ends with them
//!                        └── stub of each process
//! ```
//!
//! All of them are seized with PTRACE_O_EXITKILL: were vmrestore to die at any
//! point, nothing would be left behind.

use super::error::Context;
use super::inject::{CODE, Scratch, Tracee};
use super::maps::{Mapping, TASK_SIZE, find_syscall, free_gap, mappings};
use super::{RestoreError, Syscalls, calls, namespaces};
use crate::dataset::{Dataset, Process, Thread};
use crate::sys::clone::{CloneArgs, idle_child};
use crate::sys::ptrace::{self, Stop};
use crate::sys::task_control;

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
    /// PID 1 of their PID namespace, when they have one of their own.
    init: Option<Tracee>,
    nursery: Tracee,
    released: bool,
}

impl<'a> Family<'a> {
    /// Makes a stub with all its threads for every process.
    ///
    /// # Errors
    /// [`RestoreError::PidTaken`] without `own_pids`, when an ID is not free.
    pub fn make(dataset: &'a Dataset, own_pids: bool) -> Result<Self, RestoreError> {
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
            init: None,
            nursery,
            released: false,
        };
        namespaces::enter_time(&mut family.nursery, &dataset.host)?;
        if own_pids {
            family.init = Some(namespaces::pid_namespace(&mut family.nursery)?);
        }
        for process in &dataset.processes {
            family.add(process)?;
        }
        Ok(family)
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

    /// The stubs have a PID namespace of their own.
    pub fn has_own_pids(&self) -> bool {
        self.init.is_some()
    }

    fn add(&mut self, process: &'a Process) -> Result<(), RestoreError> {
        let pid = process.pid;
        let parent_at = self
            .stubs
            .iter()
            .position(|s| s.process.pid == process.ppid && process.ppid != pid);
        let parent = match parent_at.and_then(|at| self.stubs.get_mut(at)) {
            Some(stub) => stub.leader()?,
            None => self.init.as_mut().unwrap_or(&mut self.nursery),
        };
        let leader = spawn(parent, Kind::Process, Some(process.ns_pid))?;
        self.stubs.push(Stub {
            process,
            pid: leader.tid,
            threads: vec![leader],
        });
        let Some(stub) = self.stubs.last_mut() else {
            return Ok(());
        };
        let root = parent_at.is_none();
        if root || process.sid == pid {
            calls::plain::<0>(stub.leader()?, libc::SYS_setsid, [])
                .during(pid, || "setsid".into())?;
        } else if process.pgid == pid {
            calls::plain(stub.leader()?, libc::SYS_setpgid, [0, 0])
                .during(pid, || "setpgid".into())?;
        }
        for thread in process.threads.iter().skip(1) {
            let born = add_thread(stub.leader()?, thread)?;
            stub.threads.push(born);
        }
        Ok(())
    }

    /// They live now: the nursery goes, PID 1 of their namespace begins to
    /// reap, and dropping this kills nobody. The stubs were detached already.
    pub fn release(&mut self) {
        self.released = true;
        if let Some(init) = &mut self.init {
            namespaces::release_init(init);
        }
        reap(&[self.nursery.tid]);
    }
}

impl Drop for Family<'_> {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        for stub in self.stubs.iter().rev() {
            let mut tids: Vec<i32> = stub.threads.iter().map(|t| t.tid).collect();
            // The leader last: it is not to be had before its threads.
            tids.reverse();
            reap(&tids);
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

/// Kills tasks and waits until they are gone.
fn reap(tids: &[i32]) {
    for &tid in tids {
        // Gone already is as well.
        let _ = task_control::kill(tid, libc::SIGKILL);
    }
    for &tid in tids {
        // Stops may still be queued before the end.
        for _ in 0..64 {
            match ptrace::wait(tid) {
                Ok(Stop::Gone(_)) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }
}

fn add_thread(leader: &mut Tracee, thread: &Thread) -> Result<Tracee, RestoreError> {
    spawn(leader, Kind::Thread, Some(thread.ns_tid))
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A child.
    Process,
    /// A thread of the caller.
    Thread,
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
        Kind::Process => args.exit_signal = libc::SIGCHLD.cast_unsigned().into(),
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
        Kind::Process => Tracee::new(
            tid,
            parent.scratch_mapping().start,
            parent.scratch_mapping(),
        ),
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
        .write(scratch.start, &CODE)
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
