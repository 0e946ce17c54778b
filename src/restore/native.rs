//! The whole way: from a dataset to processes that run.
//!
//! Order matters everywhere here. Stubs and threads first, while IDs may still
//! turn out to be taken; memory before virtual machines, whose clocks and steal
//! time lie in it; epoll behind all that it watches; timers last, since they
//! run from the moment they are set; credentials behind all that needs root.

use super::error::Context;
use super::files::{Round, Workshop, start_timers};
use super::objects::Objects;
use super::resume::{self, Goal};
use super::stub::Family;
use super::{
    RestoreError, Syscalls, address_space, calls, fill, machines, preflight, registers, signals,
    threads, timers, vdso,
};
use crate::dataset::{Dataset, Fidelity, PageSource, Process, SyscallResume};
use crate::sys::{interrupt::Guard, task_control};
use std::fs::{File, OpenOptions};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use super::fill::Progress;

/// How to restore.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Leave the processes stopped, as by SIGSTOP: `kill -CONT` lets them run.
    pub paused: bool,
    /// Do everything but what shows outside, and let nothing run.
    pub dry_run: bool,
    /// Refuse whatever is not exact.
    pub strict: bool,
    /// Told how far the filling of memory has come.
    pub progress: Option<Arc<Progress>>,
}

/// A process that lives again.
#[derive(Clone, Debug)]
pub struct Restored {
    /// PID on this host; 0 after a dry run.
    pub pid: i32,
    /// PID in the dead host.
    pub old_pid: i32,
    /// It lives in a PID namespace of its own, in which it has its old PID.
    pub own_pid_namespace: bool,
    /// What restoring added to the dataset's report.
    pub fidelity: Vec<Fidelity>,
}

/// Processes that are whole, and stopped before their next instruction.
///
/// It belongs to the thread that prepared it, which is their tracer. Dropped,
/// it takes them along.
#[derive(Debug)]
pub struct Prepared<'d> {
    dataset: &'d Dataset,
    options: Options,
    family: Family<'d>,
    workshop: Workshop<'d>,
    goals: Vec<Goal>,
    restored: Vec<Restored>,
    guard: Guard,
}

/// Builds all processes of a dataset, or none, and lets nothing run. Outside
/// of them, UNIX sockets that nobody listens at any more are bound again.
///
/// # Errors
/// Why not. Nothing is left behind then.
pub fn prepare<'d>(
    dataset: &'d Dataset,
    pages: &dyn PageSource,
    options: &Options,
) -> Result<Prepared<'d>, RestoreError> {
    if options.strict {
        preflight::exact(&dataset.fidelity)?;
    }
    preflight::check(dataset)?;
    let guard = Guard::install();
    if let Some(progress) = &options.progress {
        let total = dataset.processes.iter().map(fill::bytes_of).sum();
        progress.total.store(total, Ordering::Relaxed);
    }
    // Its IDs in its own namespace were others: only there can it have them.
    let nested = dataset
        .processes
        .iter()
        .flat_map(|p| &p.threads)
        .any(|t| t.tid != t.ns_tid);
    let built = match build(dataset, pages, options, &guard, nested) {
        Err(RestoreError::PidTaken { pid }) if !nested => {
            tracing::info!("ID {pid} is in use here: a PID namespace of its own is made");
            build(dataset, pages, options, &guard, true)
        }
        result => result,
    };
    let (family, workshop, goals) = match built {
        // A call that did not come back, say an open on a dead NFS server.
        Err(_) if guard.interrupted() => return Err(RestoreError::Interrupted),
        other => other?,
    };
    let restored = describe(dataset, &family, &workshop.notes);
    Ok(Prepared {
        dataset,
        options: options.clone(),
        family,
        workshop,
        goals,
        restored,
        guard,
    })
}

impl Prepared<'_> {
    /// The processes, and what could not be made exactly in each.
    pub fn processes(&self) -> &[Restored] {
        &self.restored
    }

    /// Whether Ctrl-C was pressed: [`Self::resume`] would refuse.
    pub fn interrupted(&self) -> bool {
        self.guard.interrupted()
    }

    /// Lets all of them run, or leaves them stopped when that was asked for.
    /// After a dry run they are done away with instead.
    ///
    /// # Errors
    /// Why not; then none of them is left. (Were one killed from outside in the
    /// very moment of letting go, the others run.)
    pub fn resume(mut self) -> Result<Vec<Restored>, RestoreError> {
        alive(&self.guard)?;
        let mut notes = Vec::new();
        for (stub, goal) in self.family.stubs.iter_mut().zip(&self.goals) {
            let process = stub.process;
            let leader = stub.leader()?;
            timers::start(process, leader, &mut notes)?;
            start_timers(self.dataset, process, leader)?;
            resume::prepare(stub, goal, &mut notes)?;
        }
        distribute(self.dataset, &notes, &mut self.restored);
        if self.options.dry_run {
            for process in &mut self.restored {
                process.pid = 0;
            }
        } else {
            resume::let_go(&mut self.family, self.options.paused)?;
            self.workshop.keep_paths();
        }
        Ok(self.restored)
    }
}

/// Stubs with everything in them, and the registers they are to have.
type Built<'d> = (Family<'d>, Workshop<'d>, Vec<Goal>);

fn build<'d>(
    dataset: &'d Dataset,
    pages: &dyn PageSource,
    options: &Options,
    guard: &Guard,
    own_pids: bool,
) -> Result<Built<'d>, RestoreError> {
    let mut family = Family::make(dataset, own_pids)?;
    let mut workshop = Workshop::new(dataset, options.dry_run);
    let goals = furnish(dataset, pages, options, guard, &mut family, &mut workshop)?;
    Ok((family, workshop, goals))
}

fn describe(dataset: &Dataset, family: &Family<'_>, notes: &[Fidelity]) -> Vec<Restored> {
    let own_pid_namespace = family.has_own_pids();
    let mut restored: Vec<Restored> = family
        .stubs
        .iter()
        .map(|stub| Restored {
            pid: stub.pid,
            old_pid: stub.process.pid,
            own_pid_namespace,
            fidelity: Vec::new(),
        })
        .collect();
    if own_pid_namespace {
        for process in &mut restored {
            process.fidelity.push(Fidelity::reconstructed(
                format!("pid {}", process.old_pid),
                "PID",
                format!(
                    "it, or one of its threads' IDs, was in use: outside of a PID namespace of \
                     its own it is {}",
                    process.pid
                ),
            ));
        }
    }
    distribute(dataset, notes, &mut restored);
    restored
}

/// Gives each process the lines that speak of it.
fn distribute(dataset: &Dataset, notes: &[Fidelity], restored: &mut [Restored]) {
    for note in notes {
        let number = note
            .subject
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|n| n.parse::<i32>().ok());
        let owner = dataset
            .processes
            .iter()
            .position(|p| Some(p.pid) == number || p.threads.iter().any(|t| Some(t.tid) == number));
        if let Some(process) = restored.get_mut(owner.unwrap_or(0)) {
            process.fidelity.push(note.clone());
        }
    }
}

fn alive(guard: &Guard) -> Result<(), RestoreError> {
    if guard.interrupted() {
        Err(RestoreError::Interrupted)
    } else {
        Ok(())
    }
}

/// Everything but timers and registers.
fn furnish<'d>(
    dataset: &'d Dataset,
    pages: &dyn PageSource,
    options: &Options,
    guard: &Guard,
    family: &mut Family<'d>,
    workshop: &mut Workshop<'d>,
) -> Result<Vec<Goal>, RestoreError> {
    let mut objects = Objects::new(dataset);
    for stub in 0..family.stubs.len() {
        alive(guard)?;
        let process = family.process(stub)?;
        let leader = family.leader(stub)?;
        place_in_file_system(process, leader, &mut workshop.notes)?;
        vdso::map(dataset, family, stub, pages, &mut workshop.notes)?;
        address_space::map_all(dataset, family, stub, &mut objects, &mut workshop.notes)?;
    }
    workshop.make_round(Round::Plain, family, &mut objects)?;
    if !options.dry_run {
        fill_memory(dataset, pages, options, guard, family, &objects)?;
    }
    for stub in 0..family.stubs.len() {
        alive(guard)?;
        let process = family.process(stub)?;
        let leader = family.leader(stub)?;
        address_space::seal(process, leader)?;
        address_space::describe_to_kernel(process, leader, &mut workshop.notes)?;
        machines::make(dataset, stub, family, workshop, &objects)?;
    }
    workshop.make_round(Round::Kvm, family, &mut objects)?;
    for stub in 0..family.stubs.len() {
        machines::map_vcpus(family, stub, &mut objects)?;
    }
    workshop.make_round(Round::Epoll, family, &mut objects)?;
    if !options.dry_run {
        machines::finish(dataset, family, workshop)?;
    }
    workshop.close_temporary(family, &objects)?;
    workshop.posix_locks(family)?;
    let mut goals = Vec::new();
    for stub in 0..family.stubs.len() {
        alive(guard)?;
        goals.push(set_threads(dataset, family, stub, &mut workshop.notes)?);
    }
    if options.strict {
        preflight::exact(&workshop.notes)?;
    }
    Ok(goals)
}

/// Root, working directory, umask.
fn place_in_file_system(
    process: &Process,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let pid = process.pid;
    let fs = &process.fs;
    if fs.root != "/" {
        calls::with_path(sys, libc::SYS_chroot, &fs.root)
            .during(pid, || format!("chroot to {}", fs.root))?;
    }
    if let Err(errno) = calls::with_path(sys, libc::SYS_chdir, &fs.cwd) {
        notes.push(Fidelity::lost(
            format!("pid {pid}"),
            format!("working directory {}", fs.cwd),
            format!("{errno}: it is / now"),
        ));
        calls::with_path(sys, libc::SYS_chdir, "/").during(pid, || "chdir to /".into())?;
    }
    calls::plain(sys, libc::SYS_umask, [fs.umask.into()])
        .during(pid, || "umask".into())
        .map(drop)
}

fn fill_memory(
    dataset: &Dataset,
    pages: &dyn PageSource,
    options: &Options,
    guard: &Guard,
    family: &mut Family<'_>,
    objects: &Objects,
) -> Result<(), RestoreError> {
    let progress = options.progress.as_deref();
    for (id, holder) in objects.memories() {
        let Some(memory) = dataset.shared_memory.iter().find(|m| m.id == id) else {
            continue;
        };
        let process = family.process(holder.stub)?;
        let leader = family.leader(holder.stub)?;
        let path = format!("/proc/{}/fd/{}", leader.tid, holder.fd);
        let file: File = OpenOptions::new()
            .write(true)
            .open(&path)
            .during(process.pid, || format!("open {path}"))?;
        fill::memory(process.pid, memory, &file, pages, guard, progress)?;
        if memory.memfd && memory.seals != 0 {
            let seals = memory.seals.into();
            calls::fcntl(leader, holder.fd, libc::F_ADD_SEALS, seals)
                .during(process.pid, || format!("fcntl(F_ADD_SEALS, {seals:#x})"))?;
        }
    }
    for stub in &family.stubs {
        fill::process(stub.process, stub.pid, pages, guard, progress)?;
    }
    Ok(())
}

/// Signals, limits, and the threads of a process: all but registers. Gives
/// the registers with which the threads go on.
fn set_threads(
    dataset: &Dataset,
    family: &mut Family<'_>,
    at: usize,
    notes: &mut Vec<Fidelity>,
) -> Result<Goal, RestoreError> {
    let process = family.process(at)?;
    let pid = process.pid;
    let parent_is_restored = dataset.process(process.ppid).is_some();
    let leader = family.leader(at)?;
    let live = leader.tid;
    signals::set_actions(process, leader)?;
    signals::queue(leader, process.ns_pid, None, &process.pending)?;
    if process.child_subreaper {
        calls::prctl(leader, libc::PR_SET_CHILD_SUBREAPER, [1])
            .during(pid, || "prctl(PR_SET_CHILD_SUBREAPER)".into())?;
    }
    let path = format!("/proc/{live}/oom_score_adj");
    std::fs::write(&path, process.mm.oom_score_adj.to_string())
        .during(pid, || format!("write {path}"))?;
    for (resource, limit) in (0u32..16).zip(&process.rlimits) {
        task_control::set_limit(live, resource, limit.soft, limit.hard)
            .during(pid, || format!("prlimit of resource {resource}"))?;
    }

    let Some(stub) = family.stubs.get_mut(at) else {
        return Ok(Goal::new());
    };
    let mut goal = Goal::new();
    for (tracee, thread) in stub.threads.iter_mut().zip(&process.threads) {
        let mut aborted = None;
        if let (Some(rseq), SyscallResume::UserMode) = (&thread.rseq, thread.resume) {
            aborted = registers::abort_sequence(tracee, thread.regs.rip, rseq)
                .during(thread.tid, || "read its restartable sequence".into())?;
        }
        registers::set_fpu(tracee, thread, notes)?;
        threads::set(process, thread, tracee, parent_is_restored, notes)?;
        goal.push(registers::resumed(thread, aborted)?);
    }
    // A change of credentials makes the process undumpable.
    let leader = stub.leader()?;
    if process.mm.dumpable <= 1 {
        calls::prctl(leader, libc::PR_SET_DUMPABLE, [process.mm.dumpable.into()])
            .during(pid, || "prctl(PR_SET_DUMPABLE)".into())?;
    }
    Ok(goal)
}
