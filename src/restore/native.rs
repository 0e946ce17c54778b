//! The whole way: from a dataset to processes that run.
//!
//! Order matters everywhere here. Stubs and threads first, while IDs may still
//! turn out to be taken; memory before virtual machines, whose clocks and steal
//! time lie in it; epoll behind all that it watches; timers last, since they
//! run from the moment they are set; credentials behind all that needs root.

use super::container::Container;
use super::error::Context;
use super::files::{Round, Workshop, start_timers};
use super::lazy::{self, Arrival, Arriving, Memory, Pager, Plan};
use super::objects::Objects;
use super::restored::{self, Restored, distribute};
use super::resume::{self, Goal};
use super::stub::Family;
use super::{
    RestoreError, Syscalls, address_space, aio, calls, cgroup, confinement, deleted_directory,
    fill, holdings, in_place, machines, objects, pid_space, preflight, registers, rest_of_call,
    seccomp, signals, swap, sysv, threads, timers, vdso, vhost, volatile_files, zombies,
};
use crate::dataset::{Dataset, Fidelity, NamespaceKind, PageSource, Process, SyscallResume};
use crate::phases;
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
    /// What becomes of TCP connections with other machines.
    pub tcp: TcpPolicy,
    /// Bring threads back without the seccomp filters that are not known.
    pub force: bool,
    /// The dataset may use page frames of the dead host in place; the caller has seen that these are
    /// nobody else's ([`super::in_place`]).
    pub in_place: bool,
    /// Whose namespaces they come into; none: this process's own.
    pub container: Option<Arc<Container>>,
    /// When its memory is there.
    pub memory: Memory,
    /// Told how far the filling of memory has come.
    pub progress: Option<Arc<Progress>>,
}

/// What becomes of TCP connections with other machines. Those within the set that is restored
/// always go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpPolicy {
    /// They go on where that is possible, else they are closed, and the report says so.
    #[default]
    Keep,
    /// They are closed.
    Close,
    /// They go on, or nothing is restored.
    Require,
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
    arriving: Arriving,
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
    if !options.in_place {
        in_place::refuse_unasked(dataset)?;
    }
    for process in &dataset.processes {
        rest_of_call::bytes(process)?;
    }
    holdings::check(dataset)?;
    let container = options.container.as_deref();
    if !container.is_some_and(|c| c.enters(NamespaceKind::Ipc)) {
        sysv::check(dataset)?;
    }
    if !options.force {
        seccomp::check(dataset)?;
    }
    let unconfined = confinement::check(dataset, options.force)?;
    let swap = swap::open(dataset, pages, options.force)?;
    let pages: &dyn PageSource = &swap;
    phases::done("looked at");
    let guard = Guard::install();
    // Its IDs in its own namespace were others: only there can it have them.
    let led = pid_space::first_process(dataset).is_some();
    let in_container = !led && container.is_some_and(|c| c.enters(NamespaceKind::Pid));
    let mut threads = dataset.processes.iter().flat_map(|p| &p.threads);
    let nested = !in_container && threads.any(|t| t.tid != t.ns_tid);
    let built = match build(dataset, pages, options, &guard, nested) {
        Err(RestoreError::PidTaken { pid }) if in_container => {
            return Err(RestoreError::Refused {
                pid: dataset.processes.first().map_or(0, |p| p.pid),
                what: format!("its ID {pid} in its PID namespace"),
                why: "it is in use in the container here".into(),
                hint: "start the container with as little in it as it can be: what runs there \
                       takes the first IDs",
            });
        }
        Err(RestoreError::PidTaken { pid }) if !nested => {
            tracing::info!("ID {pid} is in use here: a PID namespace of its own is made");
            build(dataset, pages, options, &guard, true)
        }
        result => result,
    };
    let (family, mut workshop, (goals, arriving)) = match built {
        // A call that did not come back, say an open on a dead NFS server.
        Err(_) if guard.interrupted() => return Err(RestoreError::Interrupted),
        other => other?,
    };
    swap.still_untouched(dataset.processes.first().map_or(0, |p| p.pid))?;
    workshop.notes.extend(swap.notes());
    workshop.notes.extend(unconfined);
    let notes = std::mem::take(&mut workshop.notes);
    let restored = restored::describe(dataset, &family, &notes);
    Ok(Prepared {
        dataset,
        options: options.clone(),
        family,
        workshop,
        goals,
        restored,
        arriving,
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

    /// When their memory is there, and why not otherwise.
    pub fn arriving(&self) -> &Arriving {
        &self.arriving
    }

    /// Lets all of them run, or leaves them stopped when that was asked for, and waits until all of
    /// their memory is there. After a dry run they are done away with instead.
    ///
    /// # Errors
    /// Why not; then none of them is left. (Were one killed from outside in the
    /// very moment of letting go, the others run.)
    pub fn resume(self) -> Result<Vec<Restored>, RestoreError> {
        let pid = self.dataset.processes.first().map_or(0, |p| p.pid);
        let (restored, pager) = self.resume_at_once(|| Ok::<(), RestoreError>(()))?;
        match pager.map(|pager| pager.wait(|_| true)) {
            Some(Arrival::Stopped(why)) => Err(RestoreError::Arrival { pid, why }),
            _ => Ok(restored),
        }
    }

    /// Lets all of them run, and does not wait for memory that arrives later: the pager sees to it.
    /// `commit` is called when nothing can keep them from running any more, and before their first
    /// instruction: it makes durable that they run. It is not called in a dry run.
    ///
    /// # Errors
    /// As [`Self::resume`], and those of `commit`.
    pub fn resume_at_once<E: From<RestoreError>>(
        mut self,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<(Vec<Restored>, Option<Pager>), E> {
        alive(&self.guard)?;
        let mut notes = Vec::new();
        if !self.options.dry_run {
            self.workshop.resume_connections(&mut notes);
        }
        let mut seen = std::collections::HashSet::new();
        for (stub, goal) in self.family.stubs.iter_mut().zip(&mut self.goals) {
            let process = stub.process;
            let leader = stub.leader()?;
            timers::start(process, leader, &mut notes)?;
            start_timers(self.dataset, process, leader)?;
            self.workshop.start_watches(process, leader, &mut seen)?;
            if !self.options.dry_run {
                vhost::start(self.dataset, process, leader)?;
                aio::submit(process, leader)?;
            }
            let way = objects::base(self.dataset);
            confinement::enter(stub, way, self.options.force, &mut notes)?;
            resume::prepare(stub, goal, &mut notes)?;
        }
        if !self.options.dry_run {
            let taps = &mut self.workshop.taps;
            taps.connect(self.dataset, &self.family, &mut notes);
        }
        if self.options.dry_run {
            for process in &mut self.restored {
                process.pid = 0;
            }
        } else {
            self.workshop.publish_what_was_made()?;
            resume::let_go(&mut self.family, self.options.paused, commit)?;
            if let Some(pager) = &mut self.arriving.pager {
                pager.go();
            }
            self.workshop.keep_what_was_made();
            let taps = &mut self.workshop.taps;
            taps.settle(self.dataset, !self.options.paused, &mut notes);
        }
        notes.append(&mut self.workshop.notes);
        distribute(self.dataset, &notes, &mut self.restored);
        Ok((self.restored, self.arriving.pager))
    }
}

/// Stubs with everything in them, the registers they are to have, and what they have not got yet.
type Built<'d> = (Family<'d>, Workshop<'d>, (Vec<Goal>, Arriving));

fn build<'d>(
    dataset: &'d Dataset,
    pages: &dyn PageSource,
    options: &Options,
    guard: &Guard,
    own_pids: bool,
) -> Result<Built<'d>, RestoreError> {
    let container = options.container.as_deref();
    let mut family = Family::make(dataset, own_pids, container)?;
    phases::done("stubs");
    let mut workshop = Workshop::new(dataset, options);
    cgroup::place(&family, container, &mut workshop.notes)?;
    restored::namespaces_left(dataset, &family, container, &mut workshop.notes);
    workshop.know_terminals(&family.masters);
    workshop.notes.append(&mut family.notes);
    let goals = furnish(dataset, pages, options, guard, &mut family, &mut workshop)?;
    Ok((family, workshop, goals))
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
) -> Result<(Vec<Goal>, Arriving), RestoreError> {
    let mut objects = Objects::new(dataset);
    let mut made = volatile_files::Made::default();
    let result = volatile_files::make(dataset, pages, guard, !options.dry_run, &mut made);
    workshop.made_paths.append(&mut made.paths);
    workshop.notes.append(&mut made.notes);
    result?;
    let result = super::disks::make_newborn(dataset, pages, guard, !options.dry_run, &mut made);
    workshop.made_paths.append(&mut made.paths);
    workshop.notes.append(&mut made.notes);
    result?;
    let notes = &mut workshop.notes;
    sysv::make(dataset, family, &mut workshop.sysv, notes)?;
    for stub in 0..family.stubs.len() {
        alive(guard)?;
        let process = family.process(stub)?;
        let shares_fs = family.stubs.get(stub).is_some_and(|s| s.shares_fs);
        let leader = family.leader(stub)?;
        if !shares_fs {
            place_in_file_system(process, leader, &mut workshop.notes)?;
        }
        vdso::map(dataset, family, stub, pages, &mut workshop.notes)?;
        address_space::map_all(dataset, family, stub, &mut objects, &mut workshop.notes)?;
        in_place::map(dataset, family, stub, &mut workshop.notes)?;
        sysv::attach(dataset, family, stub, &workshop.sysv)?;
    }
    phases::done("mappings");
    workshop.make_round(Round::Master, family, &mut objects)?;
    workshop.make_round(Round::Plain, family, &mut objects)?;
    workshop.make_round(Round::Connections, family, &mut objects)?;
    workshop.fill_backlogs(family, &mut objects)?;
    workshop.fill_sockets(family, &mut objects)?;
    workshop.fill_terminals(family, &objects)?;
    phases::done("descriptors");
    let mut arriving = Arriving::default();
    if !options.dry_run {
        let plan = Plan::make(dataset, options.memory, family)?;
        fill_memory(dataset, pages, &plan, (options, guard), family, &objects)?;
        arriving = lazy::start(dataset, plan, family, &objects, pages)?;
        let progress = options.progress.as_deref();
        sysv::fill_all(dataset, &workshop.sysv, pages, guard, progress)?;
    }
    phases::done("memory");
    let goals = come_to_life(dataset, options, guard, family, workshop, objects);
    goals
        .map_err(|error| arriving.cause(dataset, error))
        .map(|goals| (goals, arriving))
}

/// What needs the memory: virtual machines, threads, and what watches or locks.
fn come_to_life<'d>(
    dataset: &'d Dataset,
    options: &Options,
    guard: &Guard,
    family: &mut Family<'d>,
    workshop: &mut Workshop<'d>,
    mut objects: Objects,
) -> Result<Vec<Goal>, RestoreError> {
    sysv::finish(dataset, family, &mut workshop.sysv)?;
    for stub in 0..family.stubs.len() {
        alive(guard)?;
        let process = family.process(stub)?;
        let leader = family.leader(stub)?;
        aio::make(process, leader)?;
        address_space::seal(process, leader)?;
        address_space::describe_to_kernel(dataset, process, leader, &mut workshop.notes)?;
        machines::make(dataset, stub, family, workshop, &objects)?;
    }
    phases::done("virtual machines");
    if !options.dry_run {
        for stub in 0..family.stubs.len() {
            let process = family.process(stub)?;
            let leader = family.leader(stub)?;
            vhost::set_up(dataset, process, leader, &mut workshop.notes)?;
        }
    }
    workshop.make_round(Round::Kvm, family, &mut objects)?;
    for stub in 0..family.stubs.len() {
        machines::map_vcpus(family, stub, &mut objects)?;
    }
    workshop.make_round(Round::Epoll, family, &mut objects)?;
    if !options.dry_run {
        machines::finish(dataset, family, workshop)?;
    }
    phases::done("vCPUs");
    workshop.notes.append(&mut objects.notes);
    workshop.place_connections(family, &objects)?;
    workshop.close_temporary(family, &objects)?;
    // Whoever closes a descriptor of a queue takes its notice back.
    workshop.ask_for_notices(family)?;
    workshop.posix_locks(family)?;
    for stub in 0..family.stubs.len() {
        let process = family.process(stub)?;
        let shares_fs = family.stubs.get(stub).is_some_and(|s| s.shares_fs);
        if process.fs.root != "/" && !shares_fs {
            calls::with_path(family.leader(stub)?, libc::SYS_chroot, &process.fs.root)
                .during(process.pid, || format!("chroot to {}", process.fs.root))?;
        }
    }
    zombies::end_all(family, &mut workshop.notes)?;
    let mut goals = Vec::new();
    for stub in 0..family.stubs.len() {
        alive(guard)?;
        goals.push(set_threads(dataset, family, stub, &mut workshop.notes)?);
    }
    phases::done("threads");
    if options.strict {
        preflight::exact(&workshop.notes)?;
    }
    Ok(goals)
}

/// Working directory, umask. The root comes when all files are there.
fn place_in_file_system(
    process: &Process,
    sys: &mut dyn Syscalls,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let pid = process.pid;
    let fs = &process.fs;
    let nowhere = fs.cwd_deleted && deleted_directory::enter(process, sys, notes);
    if !nowhere && let Err(errno) = calls::with_path(sys, libc::SYS_chdir, &fs.cwd) {
        notes.push(Fidelity::lost(
            format!("pid {pid}"),
            format!("working directory {}", fs.cwd),
            format!("{errno}: it is / now"),
        ));
        calls::with_path(sys, libc::SYS_chdir, &fs.root)
            .during(pid, || format!("chdir to {}", fs.root))?;
    }
    calls::plain(sys, libc::SYS_umask, [fs.umask.into()])
        .during(pid, || "umask".into())
        .map(drop)
}

fn fill_memory(
    dataset: &Dataset,
    pages: &dyn PageSource,
    later: &Plan,
    (options, guard): (&Options, &Guard),
    family: &mut Family<'_>,
    objects: &Objects,
) -> Result<(), RestoreError> {
    let progress = options.progress.as_deref();
    if let Some(progress) = progress {
        let bytes = |process| fill::bytes_of(process, later);
        let total = dataset.processes.iter().map(bytes).sum();
        progress.total.store(total, Ordering::Relaxed);
    }
    for (id, holder) in objects.memories() {
        let Some(memory) = dataset.shared_memory.iter().find(|m| m.id == id) else {
            continue;
        };
        let process = family.process(holder.stub)?;
        let leader = family.leader(holder.stub)?;
        let path = format!("/proc/{}/fd/{}", leader.tid, holder.fd);
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .during(process.pid, || format!("open {path}"))?;
        if !later.has_memory(memory) {
            fill::memory(process.pid, memory, &file, pages, guard, progress)?;
        }
        if memory.size % 4096 != 0 {
            // The last page was written whole.
            file.set_len(memory.size).during(process.pid, || {
                format!("set the length of {:?}", memory.name)
            })?;
        }
        if memory.memfd && memory.seals != 0 {
            let seals = memory.seals.into();
            calls::fcntl(leader, holder.fd, libc::F_ADD_SEALS, seals)
                .during(process.pid, || format!("fcntl(F_ADD_SEALS, {seals:#x})"))?;
        }
    }
    for stub in &mut family.stubs {
        fill::process(stub, later, pages, guard, progress)?;
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
    if let Some(filter) = process.mm.core_filter {
        let path = format!("/proc/{live}/coredump_filter");
        std::fs::write(&path, format!("{filter:#x}")).during(pid, || format!("write {path}"))?;
    }
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
        if let (Some(rseq), SyscallResume::UserMode) = (&thread.rseq, &thread.resume) {
            aborted = registers::abort_sequence(tracee, thread.regs.rip, rseq)
                .during(thread.tid, || "read its restartable sequence".into())?;
        }
        rest_of_call::leave_time(tracee, thread);
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
