//! A process: what its threads share.

use super::extract::Extraction;
use super::list::{PF_KTHREAD, int, raw_state};
use super::path::{self, Place};
use super::{
    TaskError, access, aio, cgroup, fpu, kin, mm, namespace, registers, signal, thread, timer,
    zeros,
};
use crate::dataset::{Fd, Fidelity, FsState, Process, ResourceLimit};
use crate::kernel::{KernelError, Object, XsaveLayout};

/// Most descriptors of a process: `fs.nr_open`'s upper bound (sysctl_nr_open_max).
const MAX_FDS: u64 = 1 << 31;
/// Most of them that are open. `fs.nr_open` is 2²⁰ unless raised.
const MAX_OPEN: usize = 1 << 22;
/// Most files that cannot be read. A table with more of them is none, and each takes memory.
const MAX_UNREADABLE: usize = 1 << 14;
/// Most resource limits: RLIM_NLIMITS is 16.
const MAX_RLIMITS: u64 = 64;

/// Reads the process whose leader is `task`.
pub(super) fn read(x: &mut Extraction<'_, '_>, task: &Object<'_>) -> Result<Process, TaskError> {
    let pid = int(task, "tgid").map_err(|source| TaskError::Kernel {
        what: "task_struct",
        source,
    })?;
    let comm = task
        .get("comm")
        .and_then(|c| c.string())
        .unwrap_or_else(|_| "?".into());
    let failed = |what| {
        let comm = comm.clone();
        move |source| TaskError::Process {
            pid,
            comm,
            what,
            source,
        }
    };
    if task.u("flags").map_err(failed("flags"))? & PF_KTHREAD != 0 {
        return Err(TaskError::KernelThread { pid, comm });
    }
    // The leader may have left while other threads live on: any of them has
    // the address space.
    let threads = thread::tasks(task).map_err(failed("list of threads"))?;
    let Some(alive) = threads.first() else {
        return Err(TaskError::Exited { pid, comm });
    };
    let Some(mm_struct) = alive.follow_opt("mm").map_err(failed("address space"))? else {
        return Err(TaskError::Exited { pid, comm });
    };
    let subject = format!("pid {pid}");
    // Names are from the root of its mount namespace, a chroot or not.
    let root = None;
    x.mounts = alive
        .follow("nsproxy")
        .and_then(|spaces| spaces.ptr("mnt_ns"))
        .unwrap_or(0);
    kin::children(x, &threads, pid);
    // Those of the last process; identities of memories are kernel addresses.
    x.address_spaces.insert(mm_struct.addr());
    x.orphans.retain(|at| *at >> 63 != 0);
    let fds = descriptors(x, alive, root).map_err(failed("descriptor table"))?;
    let mut mm = mm::read(x, alive, &mm_struct, &subject, root).map_err(failed("address space"))?;
    let space = access::space(&mm_struct).map_err(failed("page tables"))?;
    let layout = XsaveLayout::of(x.kernel).map_err(failed("FPU layout"))?;
    // The first process sleeps nearly always; its thread votes too.
    let first = super::list::find(x.kernel, 1).ok();
    let switched_out = threads
        .iter()
        .chain(&first)
        .filter(|t| matches!(thread::on_cpu(t), Ok(None)));
    let context = thread::Context {
        need_fpu_load: fpu::need_load_bit(switched_out),
        pid,
        space: &space,
        layout: &layout,
        root,
    };
    let mut read = Vec::new();
    for task in &threads {
        read.push(thread::read(x, &context, task).map_err(failed("thread"))?);
        note_unshared(x, alive, task, &subject);
    }
    if alive.addr() != task.addr()
        && let Some(like) = read.first()
    {
        let leader = thread::ended(task, like).map_err(failed("first thread"))?;
        read.insert(0, leader);
    }
    if read.iter().any(|t| t.regs.cs == registers::USER32_CS) {
        return Err(TaskError::Unsupported {
            pid,
            comm,
            what: "it runs 32-bit code".into(),
        });
    }
    zeros::settle(x, &mut mm, &read, &subject);
    let namespaces = namespace::read(x.kernel, alive).map_err(failed("namespaces"))?;
    let cgroup = cgroup::unified(alive).unwrap_or_default();
    let legacy_cgroups = cgroup::legacy(alive).unwrap_or_default();
    if let Some(how) = namespace::describe(&namespaces, &cgroup) {
        let note = Fidelity::exact(&subject, "namespaces", how);
        x.out.fidelity.push(note);
    }
    let shared = shared(x, alive).map_err(failed("signal_struct"))?;
    let mut process = Process {
        pid,
        ns_pid: innermost_pid(task).map_err(failed("struct pid"))?,
        ppid: alive
            .follow("real_parent")
            .and_then(|p| int(&p, "tgid"))
            .map_err(failed("parent"))?,
        pgid: shared.pgid,
        sid: shared.sid,
        comm: comm.clone(),
        cmdline: access::arguments(&mm_struct).unwrap_or_default(),
        mm,
        threads: read,
        fds,
        fs: fs_state(x, alive).map_err(failed("fs_struct"))?,
        rlimits: shared.rlimits,
        sigactions: signal::actions(alive).map_err(failed("sighand_struct"))?,
        pending: shared.pending,
        itimers: shared.itimers,
        posix_timers: shared.posix_timers,
        personality: u32::try_from(alive.u("personality").map_err(failed("personality"))?)
            .unwrap_or(0),
        child_subreaper: shared.child_subreaper,
        stopped: is_stopped(alive).map_err(failed("state"))?,
        kin: kin::read(task, alive).map_err(failed("ties to others"))?,
        namespaces,
        cgroup,
        legacy_cgroups,
    };
    aio::read(x, &mm_struct, &space, &mut process);
    Ok(process)
}

/// Its threads were stopped by a signal (SIGSTOP, ^Z). Linux include/linux/sched/signal.h,
/// SIGNAL_STOP_STOPPED; include/linux/sched.h, __TASK_STOPPED.
fn is_stopped(task: &Object<'_>) -> Result<bool, KernelError> {
    const STOP_STOPPED: u64 = 1;
    const TASK_STOPPED: u64 = 4;
    let all = task.follow("signal")?.u("flags")? & STOP_STOPPED != 0;
    Ok(all || raw_state(task)? & TASK_STOPPED != 0)
}

/// The number of a `struct pid` at a level of PID namespaces, 0 the initial.
pub(super) fn pid_number(pid: &Object<'_>, level: u64) -> Result<i32, KernelError> {
    let kernel = pid.kernel();
    let at = pid
        .addr()
        .wrapping_add(kernel.offset_of("pid", "numbers")?)
        .wrapping_add(level.wrapping_mul(kernel.size_of("upid")?));
    int(&kernel.object("upid", at)?, "nr")
}

/// A thread's number in its own PID namespace.
pub(super) fn innermost_pid(task: &Object<'_>) -> Result<i32, KernelError> {
    let pid = task.follow("thread_pid")?;
    let level = pid.u("level")?;
    if level > 32 {
        // MAX_PID_NS_LEVEL
        return Err(KernelError::Damaged {
            what: "struct pid",
            addr: pid.addr(),
            detail: format!("level is {level}"),
        });
    }
    pid_number(&pid, level)
}

/// What is in or under `signal_struct`.
struct Shared {
    pgid: i32,
    sid: i32,
    rlimits: Vec<ResourceLimit>,
    pending: Vec<crate::dataset::PendingSignal>,
    itimers: Vec<crate::dataset::IntervalTimer>,
    posix_timers: Vec<crate::dataset::PosixTimer>,
    child_subreaper: bool,
}

fn shared(x: &mut Extraction<'_, '_>, task: &Object<'_>) -> Result<Shared, KernelError> {
    let of = task.follow("signal")?;
    let (pgid, sid) = kin::group_and_session(&of)?;
    let limits = of.get("rlim")?;
    let count = limits.array_len().unwrap_or(0).min(MAX_RLIMITS);
    let mut rlimits = Vec::new();
    for i in 0..count {
        let limit = limits.element(i)?;
        rlimits.push(ResourceLimit {
            soft: limit.u("rlim_cur")?,
            hard: limit.u("rlim_max")?,
        });
    }
    Ok(Shared {
        pgid,
        sid,
        rlimits,
        pending: signal::pending(&of.get("shared_pending")?)?,
        itimers: timer::intervals(&x.clocks, &of)?,
        posix_timers: cpu_timers(x, timer::posix(&x.clocks, &of)?, task)?,
        child_subreaper: of.u("is_child_subreaper")? != 0,
    })
}

/// Says of timers of CPU time that they begin their period anew.
fn cpu_timers(
    x: &mut Extraction<'_, '_>,
    timers: Vec<crate::dataset::PosixTimer>,
    task: &Object<'_>,
) -> Result<Vec<crate::dataset::PosixTimer>, KernelError> {
    let pid = int(task, "tgid")?;
    for timer in timers.iter().filter(|t| t.remaining_ns.is_some()) {
        // Negative ones are of other processes and threads.
        if timer.clock < 0 || matches!(timer.clock, 2 | 3) {
            x.reconstructed(
                &format!("pid {pid}"),
                "timer of CPU time",
                format!("timer {} begins its interval anew", timer.id),
            );
        }
    }
    Ok(timers)
}

fn fs_state(x: &Extraction<'_, '_>, task: &Object<'_>) -> Result<FsState, KernelError> {
    let fs = task.follow("fs")?;
    let name = |place: &str| path::name(x.kernel, Place::of(&fs.get(place)?)?, None);
    let cwd = name("pwd")?;
    Ok(FsState {
        cwd: cwd.path,
        cwd_deleted: cwd.deleted,
        root: name("root")?.path,
        umask: u32::try_from(fs.u("umask")?).unwrap_or(0o22),
        seen_at: String::new(),
    })
}

/// The descriptor table.
fn descriptors(
    x: &mut Extraction<'_, '_>,
    task: &Object<'_>,
    root: Option<Place>,
) -> Result<Vec<Fd>, KernelError> {
    let Some(files) = task.follow_opt("files")? else {
        return Ok(Vec::new());
    };
    let table = files.follow("fdt")?;
    let max = table.u("max_fds")?;
    // The array of pointers to files alone must have had room in memory.
    let fits = max / 512 <= x.kernel.memory().max_pfn();
    if max > MAX_FDS || !fits {
        return Err(KernelError::Damaged {
            what: "fdtable",
            addr: table.addr(),
            detail: format!("max_fds is {max}"),
        });
    }
    let (array, cloexec, open) = (
        table.ptr("fd")?,
        table.ptr("close_on_exec")?,
        table.ptr("open_fds")?,
    );
    let mut out = Vec::new();
    for word in 0..max.div_ceil(64) {
        let opened = x.kernel.read_u64(open.wrapping_add(word * 8))?;
        if opened == 0 {
            continue;
        }
        let closing = x.kernel.read_u64(cloexec.wrapping_add(word * 8))?;
        for bit in (0..64).filter(|bit| opened >> bit & 1 != 0) {
            let number = word * 64 + bit;
            // A descriptor that is reserved and not installed yet is null.
            let file = x.kernel.read_u64(array.wrapping_add(number * 8))?;
            if file == 0 {
                continue;
            }
            if out.len() >= MAX_OPEN {
                return Err(KernelError::Damaged {
                    what: "fdtable",
                    addr: table.addr(),
                    detail: format!("open_fds has more than {MAX_OPEN} bits of {max} set"),
                });
            }
            if x.unreadable_files > MAX_UNREADABLE {
                return Err(KernelError::Damaged {
                    what: "fdtable",
                    addr: table.addr(),
                    detail: format!(
                        "fd leads to more than {MAX_UNREADABLE} files that cannot be read"
                    ),
                });
            }
            out.push(Fd {
                fd: i32::try_from(number).unwrap_or(i32::MAX),
                file: x.file(file, root),
                cloexec: closing >> bit & 1 != 0,
            });
        }
    }
    Ok(out)
}

/// The `struct file` of a descriptor.
pub(super) fn descriptor<'k>(task: &Object<'k>, fd: u64) -> Result<Object<'k>, KernelError> {
    let table = task.follow("files")?.follow("fdt")?;
    let fd = fd & 0xffff_ffff;
    if fd >= table.u("max_fds")? {
        return Err(KernelError::Damaged {
            what: "fdtable",
            addr: table.addr(),
            detail: format!("no descriptor {fd}"),
        });
    }
    let kernel = task.kernel();
    kernel.object(
        "file",
        kernel.read_u64(table.ptr("fd")?.wrapping_add(fd * 8))?,
    )
}

/// Threads that went their own way with what is usually shared.
fn note_unshared(
    x: &mut Extraction<'_, '_>,
    leader: &Object<'_>,
    task: &Object<'_>,
    subject: &str,
) {
    for (member, what) in [("files", "descriptor table"), ("fs", "working directory")] {
        let own = (leader.ptr(member), task.ptr(member));
        if let (Ok(a), Ok(b)) = own
            && a != b
        {
            x.lost(
                subject,
                what,
                format!(
                    "thread {} had its own (unshare); it gets the process's",
                    int(task, "pid").unwrap_or(0)
                ),
            );
        }
    }
}
