//! A process: what its threads share.

use super::extract::Extraction;
use super::list::{PF_KTHREAD, int, raw_state};
use super::path::{self, Place};
use super::{TaskError, access, fpu, mm, registers, signal, thread, timer, zeros};
use crate::dataset::{Fd, FsState, Process, ResourceLimit};
use crate::kernel::{KernelError, Object, XsaveLayout, containers};

/// Indices into `signal.pids`: PIDTYPE_PGID, PIDTYPE_SID.
const PGID: u64 = 2;
const SID: u64 = 3;
/// Most descriptors of a process: `fs.nr_open`'s upper bound (sysctl_nr_open_max).
const MAX_FDS: u64 = 1 << 31;
/// Most of them that are open. `fs.nr_open` is 2²⁰ unless raised.
const MAX_OPEN: usize = 1 << 22;
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
    let root = alive
        .follow("fs")
        .and_then(|fs| Place::of(&fs.get("root")?))
        .ok();

    if foreign_root(x, alive, root) {
        return Err(TaskError::Unsupported {
            pid,
            comm,
            what: "it ran in a container: its root directory is not the host's".into(),
        });
    }
    if threads.iter().all(|t| t.addr() != task.addr()) {
        x.lost(
            &subject,
            "leader",
            "its first thread had ended before the others: the oldest of them takes its place",
        );
    }
    note_children(x, &threads, pid);
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
    if read.iter().any(|t| t.regs.cs == registers::USER32_CS) {
        return Err(TaskError::Unsupported {
            pid,
            comm,
            what: "it runs 32-bit code".into(),
        });
    }
    zeros::settle(x, &mut mm, &read, &subject);
    note_namespaces(x, alive, &subject).map_err(failed("namespaces"))?;
    let shared = shared(x, alive).map_err(failed("signal_struct"))?;
    Ok(Process {
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
        fs: fs_state(x, alive, root).map_err(failed("fs_struct"))?,
        rlimits: shared.rlimits,
        sigactions: signal::actions(alive).map_err(failed("sighand_struct"))?,
        pending: shared.pending,
        itimers: shared.itimers,
        posix_timers: shared.posix_timers,
        child_subreaper: shared.child_subreaper,
        stopped: raw_state(task).map_err(failed("state"))? & 4 != 0,
    })
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
    let id = |index: u64| -> Result<i32, KernelError> {
        match of.follow_opt(&format!("pids[{index}]"))? {
            Some(pid) => pid_number(&pid, 0),
            None => Ok(0),
        }
    };
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
        pgid: id(PGID)?,
        sid: id(SID)?,
        rlimits,
        pending: signal::pending(&of.get("shared_pending")?)?,
        itimers: timer::intervals(&x.clocks, &of)?,
        posix_timers: timer::posix(&x.clocks, &of)?,
        child_subreaper: of.u("is_child_subreaper")? != 0,
    })
}

fn fs_state(
    x: &Extraction<'_, '_>,
    task: &Object<'_>,
    root: Option<Place>,
) -> Result<FsState, KernelError> {
    let fs = task.follow("fs")?;
    let name = |place, root| path::name(x.kernel, place, root).map(|n| n.path);
    Ok(FsState {
        cwd: name(Place::of(&fs.get("pwd")?)?, root)?,
        root: match root {
            Some(place) => name(place, None)?,
            None => "/".into(),
        },
        umask: u32::try_from(fs.u("umask")?).unwrap_or(0o22),
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

/// Another file system than the host's stands at the process's root, by a mount
/// namespace of its own: its paths mean nothing to the host. A namespace alone
/// does no harm (libvirt gives each QEMU one), nor does a chroot within the
/// host's.
fn foreign_root(x: &Extraction<'_, '_>, task: &Object<'_>, root: Option<Place>) -> bool {
    let namespace = |task: &Object<'_>| task.follow("nsproxy")?.ptr("mnt_ns");
    let first_root = |task: &Object<'_>| Place::of(&task.follow("fs")?.get("root")?);
    let Some((first, root)) = super::list::find(x.kernel, 1).ok().zip(root) else {
        return false;
    };
    match (namespace(task), namespace(&first), first_root(&first)) {
        (Ok(own), Ok(hosts), Ok(hosts_root)) => own != hosts && root.dentry != hosts_root.dentry,
        _ => false,
    }
}

/// Remembers the children that it would have waited for.
fn note_children(x: &mut Extraction<'_, '_>, threads: &[Object<'_>], pid: i32) {
    const EXIT_ZOMBIE: u64 = 0x20;
    for thread in threads {
        let children = thread
            .get("children")
            .and_then(|head| containers::list(&head, "task_struct", "sibling"));
        for child in children.unwrap_or_default() {
            let dead = child
                .u("exit_state")
                .is_ok_and(|state| state & EXIT_ZOMBIE != 0);
            if let Ok(child) = int(&child, "tgid") {
                x.children.push((pid, child, dead));
            }
        }
    }
}

/// Namespaces that are not the initial ones are not made again.
fn note_namespaces(
    x: &mut Extraction<'_, '_>,
    task: &Object<'_>,
    subject: &str,
) -> Result<(), KernelError> {
    const MEMBERS: [(&str, &str); 6] = [
        ("mnt_ns", "mount"),
        ("net_ns", "network"),
        ("uts_ns", "UTS"),
        ("ipc_ns", "IPC"),
        ("cgroup_ns", "cgroup"),
        ("time_ns", "time"),
    ];
    let init = x
        .kernel
        .object("task_struct", x.kernel.symbol("init_task")?)?;
    let (own, initial) = (task.follow("nsproxy")?, init.follow("nsproxy")?);
    // The mount namespace of the first process, not of the swapper, is the
    // host's: the kernel mounts its root after init_task was made.
    let first = super::list::find(x.kernel, 1)
        .ok()
        .and_then(|t| t.follow("nsproxy").ok());
    for (member, name) in MEMBERS {
        if !own.has(member) {
            continue;
        }
        let mine = own.ptr(member)?;
        let hosts = match &first {
            Some(first) => first.ptr(member)?,
            None => initial.ptr(member)?,
        };
        if mine != hosts && mine != initial.ptr(member)? {
            x.reconstructed(
                subject,
                &format!("{name} namespace"),
                "it had one of its own; it runs in this host's",
            );
        }
    }
    let personality = task.u("personality")? & 0xffff_ffff;
    if personality != 0 {
        x.lost(
            subject,
            "personality",
            format!("{personality:#x} is not carried over"),
        );
    }
    if task.follow("real_cred")?.ptr("user_ns")? != init.follow("real_cred")?.ptr("user_ns")? {
        x.reconstructed(
            subject,
            "user namespace",
            "it had one of its own; it runs in this host's",
        );
    }
    Ok(())
}
