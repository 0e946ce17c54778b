//! What ran: the list of processes.

use std::collections::HashSet;

use super::TaskError;
use crate::kernel::{Kernel, KernelError, Object, containers};

/// PID_MAX_LIMIT of include/linux/threads.h: no list of tasks is longer.
const MAX_TASKS: usize = 4 << 20;

/// `task_struct.flags`: a thread of the kernel. Linux include/linux/sched.h.
pub(super) const PF_KTHREAD: u64 = 0x0020_0000;

/// A process in one line.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ProcessSummary {
    /// PID (tgid) in the initial PID namespace.
    pub pid: i32,
    /// Parent's PID.
    pub ppid: i32,
    /// Name of its leader (`task.comm`).
    pub comm: String,
    /// Real user.
    pub uid: u32,
    /// As `ps` shows it: R, S, D, T, t, Z, X, I or ?.
    #[serde(rename = "state_char")]
    pub state: char,
    /// Number of its threads.
    pub threads: u32,
    /// Resident pages of 4 KiB.
    pub rss_pages: u64,
    /// Process group and session, 0 where they cannot be read.
    pub pgid: i32,
    pub sid: i32,
    /// Time on CPUs of all its threads, those that have ended too. Nanoseconds.
    pub cpu_ns: u64,
    /// Path of its cgroup in the unified hierarchy; empty where there is none.
    pub cgroup: String,
    /// It is a thread of the kernel.
    pub kernel_thread: bool,
    /// Address of the leader's `task_struct`.
    #[serde(with = "crate::dataset::u64_hex")]
    pub task: u64,
    /// When it was started. Nanoseconds of CLOCK_BOOTTIME.
    pub start_time: u64,
    /// What is wrong with the list at or behind this process, if anything.
    pub problem: Option<String>,
}

/// Every process and kernel thread of the dead kernel, in the order of their
/// PIDs.
///
/// A broken list does not hide what can be read: what its chain no longer
/// reaches is looked up in the table of PIDs, and the last entry that was
/// reached says so in its `problem`.
///
/// # Errors
/// When not even the first task can be found.
pub fn processes(kernel: &Kernel) -> Result<Vec<ProcessSummary>, TaskError> {
    let (tasks, broken) = leaders(kernel).map_err(|source| TaskError::Kernel {
        what: "list of tasks",
        source,
    })?;
    let mut out: Vec<ProcessSummary> = tasks.iter().map(summary).collect();
    if let (Some(error), Some(last)) = (broken, out.last_mut()) {
        last.problem = Some(format!("the list of tasks breaks off behind it: {error}"));
    }
    out.sort_by_key(|p| p.pid);
    Ok(out)
}

/// The leaders of all thread groups, and why the walk ended early if it did.
pub(super) fn leaders<'k>(
    kernel: &'k Kernel,
) -> Result<(Vec<Object<'k>>, Option<KernelError>), KernelError> {
    let init = kernel.object("task_struct", kernel.symbol("init_task")?)?;
    let offset = kernel.offset_of("task_struct", "tasks")?;
    let head = init.addr().wrapping_add(offset);
    let mut seen = HashSet::new();
    let mut tasks = Vec::new();
    let mut node = init.ptr("tasks.next")?;
    let mut broken = None;
    while node != head {
        if tasks.len() >= MAX_TASKS || !seen.insert(node) {
            broken = Some(KernelError::Damaged {
                what: "init_task.tasks",
                addr: node,
                detail: "the list runs in a circle that does not lead back to its head".into(),
            });
            break;
        }
        let step = kernel
            .object("task_struct", node.wrapping_sub(offset))
            .and_then(|task| Ok((task.ptr("tasks.next")?, task)));
        match step {
            Ok((next, task)) => {
                tasks.push(task);
                node = next;
            }
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    if broken.is_some() {
        let known: HashSet<u64> = tasks.iter().map(Object::addr).collect();
        for task in by_pid_table(kernel).unwrap_or_default() {
            if !known.contains(&task.addr()) {
                tasks.push(task);
            }
        }
    }
    Ok((tasks, broken))
}

/// Thread group leaders by the initial PID namespace's table.
fn by_pid_table<'k>(kernel: &'k Kernel) -> Result<Vec<Object<'k>>, KernelError> {
    const PIDTYPE_TGID: u64 = 1;
    let ns = kernel.object("pid_namespace", kernel.symbol("init_pid_ns")?)?;
    let link = kernel
        .offset_of("task_struct", "pid_links")?
        .wrapping_add(PIDTYPE_TGID * kernel.size_of("hlist_node")?);
    let mut tasks = Vec::new();
    for (_, pid) in containers::idr(&ns.get("idr")?)? {
        let first = kernel
            .object("pid", pid)
            .and_then(|p| p.ptr("tasks[1].first"));
        if let Ok(node) = first
            && node != 0
            && let Ok(task) = kernel.object("task_struct", node.wrapping_sub(link))
        {
            tasks.push(task);
        }
    }
    Ok(tasks)
}

fn summary(task: &Object<'_>) -> ProcessSummary {
    let mut problem = None;
    let mut note = |error: KernelError| {
        problem.get_or_insert_with(|| error.to_string());
    };
    let flags = task.u("flags").unwrap_or_else(|e| {
        note(e);
        0
    });
    let pid = int(task, "tgid").unwrap_or_else(|e| {
        note(e);
        -1
    });
    let comm = task.get("comm").and_then(|c| c.string());
    let kernel_thread = flags & PF_KTHREAD != 0;
    let ids = task
        .follow("signal")
        .and_then(|s| super::kin::group_and_session(&s))
        .unwrap_or_default();
    ProcessSummary {
        pid,
        ppid: task
            .follow("real_parent")
            .and_then(|p| int(&p, "tgid"))
            .unwrap_or(0),
        comm: comm.unwrap_or_else(|e| {
            note(e);
            "?".into()
        }),
        uid: task
            .follow("real_cred")
            .and_then(|c| c.u("uid.val"))
            .ok()
            .and_then(|v| u32::try_from(v).ok())
            .unwrap_or(u32::MAX),
        state: state(task),
        threads: task
            .follow("signal")
            .and_then(|s| s.u("nr_threads"))
            .ok()
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1),
        rss_pages: if kernel_thread {
            0
        } else {
            rss_pages(task).unwrap_or(0)
        },
        pgid: ids.0,
        sid: ids.1,
        cpu_ns: cpu_time(task).unwrap_or(0),
        cgroup: super::cgroup::unified(task).unwrap_or_default(),
        kernel_thread,
        task: task.addr(),
        // task.start_boottime since Linux commit cf25e24db61c ("time: Rename
        // tsk->real_start_time to ->start_boottime") (in v5.5).
        start_time: task.u("start_boottime").unwrap_or(0),
        problem,
    }
}

/// Nanoseconds on CPUs: what ended threads left, and the living ones' own.
fn cpu_time(task: &Object<'_>) -> Result<u64, KernelError> {
    let mut sum = task.follow("signal")?.u("sum_sched_runtime")?;
    for thread in super::thread::tasks(task)? {
        sum = sum.saturating_add(thread.u("se.sum_exec_runtime")?);
    }
    Ok(sum)
}

/// A 32-bit signed member.
pub(super) fn int(object: &Object<'_>, path: &str) -> Result<i32, KernelError> {
    let value = object.i(path)?;
    i32::try_from(value).map_err(|_| KernelError::Damaged {
        what: "a 32-bit number",
        addr: object.addr(),
        detail: format!("{path} is {value}"),
    })
}

/// Raw `task.__state`, with `task.exit_state` in it.
pub(super) fn raw_state(task: &Object<'_>) -> Result<u64, KernelError> {
    // Since Linux commit 2f064a59a11f ("sched: Change task_struct::state") (in
    // v5.14) the member is __state.
    let running = if task.has("__state") {
        task.u("__state")?
    } else {
        task.u("state")?
    };
    Ok((running | task.u("exit_state")?) & 0xffff)
}

/// The letter of `ps`. Bits of include/linux/sched.h.
fn state(task: &Object<'_>) -> char {
    const NOLOAD: u64 = 0x400;
    let Ok(raw) = raw_state(task) else { return '?' };
    match raw {
        0 => 'R',
        s if s & 0x20 != 0 => 'Z',
        s if s & 0x10 != 0 => 'X',
        s if s & 0x08 != 0 => 't',
        s if s & 0x04 != 0 => 'T',
        s if s & 0x02 != 0 && s & NOLOAD != 0 => 'I',
        s if s & 0x02 != 0 => 'D',
        s if s & 0x01 != 0 => 'S',
        s if s & 0x40 != 0 => 'P',
        _ => '?',
    }
}

/// Resident pages: MM_FILEPAGES 0, MM_ANONPAGES 1, MM_SHMEMPAGES 3.
fn rss_pages(task: &Object<'_>) -> Result<u64, KernelError> {
    let Some(mm) = task.follow_opt("mm")? else {
        return Ok(0);
    };
    let mut sum = 0i64;
    for kind in [0u32, 1, 3] {
        let counted = if mm.has("rss_stat.count") {
            mm.i(&format!("rss_stat.count[{kind}].counter"))?
        } else {
            // Per-CPU counters since Linux commit f1a7941243c1 ("mm: convert
            // mm's rss stats into percpu_counter") (in v6.2).
            percpu_sum(&mm.get(&format!("rss_stat[{kind}]"))?)?
        };
        sum = sum.saturating_add(counted.max(0));
    }
    Ok(u64::try_from(sum).unwrap_or(0))
}

/// `struct percpu_counter`'s exact value.
pub(super) fn percpu_sum(counter: &Object<'_>) -> Result<i64, KernelError> {
    let kernel = counter.kernel();
    let mut sum = counter.i("count")?;
    let counters = counter.ptr("counters")?;
    if counters != 0 {
        for cpu in kernel.cpus()? {
            let part = kernel.read_u32(kernel.per_cpu(counters, cpu)?)?;
            sum = sum.saturating_add(i64::from(part.cast_signed()));
        }
    }
    Ok(sum)
}

/// The leader of the thread group with this PID.
pub(super) fn find<'k>(kernel: &'k Kernel, pid: i32) -> Result<Object<'k>, TaskError> {
    let (tasks, _) = leaders(kernel).map_err(|source| TaskError::Kernel {
        what: "list of tasks",
        source,
    })?;
    tasks
        .into_iter()
        .find(|t| int(t, "tgid").is_ok_and(|p| p == pid))
        .ok_or(TaskError::NoSuchProcess { pid })
}
