//! What one task may set of another by its ID: scheduling, limits, signals.

use std::io;

fn checked(value: i64) -> io::Result<i64> {
    if value == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// ESRCH, EPERM.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory arguments.
    checked(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Sends a signal to one task, be it a thread or a process's first.
///
/// # Errors
/// ESRCH, EPERM.
pub fn kill_task(tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory arguments.
    checked(unsafe { libc::syscall(libc::SYS_tkill, tid, signal) }).map(drop)
}

/// Sets policy, nice value and real-time priority of a task.
///
/// # Errors
/// EINVAL for a policy that this cannot set (deadline) or an unknown one.
pub fn set_scheduler(tid: i32, policy: u32, nice: i32, rt_priority: u32) -> io::Result<()> {
    // sched_setattr takes it for SCHED_OTHER and SCHED_BATCH alone, but tasks of
    // other policies have one: for when they change.
    let who = libc::id_t::try_from(tid).map_err(io::Error::other)?;
    // SAFETY: no memory arguments.
    checked(unsafe { libc::setpriority(libc::PRIO_PROCESS, who, nice) }.into())?;
    // SAFETY: made of integers; zero is a value of each.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = 48; // SCHED_ATTR_SIZE_VER0: without utilisation clamps
    attr.sched_policy = policy;
    attr.sched_nice = nice;
    attr.sched_priority = rt_priority;
    // SAFETY: `attr` lives and says its own size.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0u32) }).map(drop)
}

/// Sets SCHED_DEADLINE with its three times (nanoseconds) and SCHED_FLAG_*, and the nice value that the task has should it change.
///
/// # Errors
/// EBUSY: there is not so much time left to grant. EPERM: it may not run on all CPUs.
pub fn set_deadline(
    tid: i32,
    nice: i32,
    [runtime, deadline, period]: [u64; 3],
    flags: u64,
) -> io::Result<()> {
    const SCHED_DEADLINE: u32 = 6;
    let who = libc::id_t::try_from(tid).map_err(io::Error::other)?;
    // SAFETY: no memory arguments.
    checked(unsafe { libc::setpriority(libc::PRIO_PROCESS, who, nice) }.into())?;
    // SAFETY: made of integers; zero is a value of each.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = 48; // SCHED_ATTR_SIZE_VER0
    attr.sched_policy = SCHED_DEADLINE;
    attr.sched_flags = flags;
    attr.sched_runtime = runtime;
    attr.sched_deadline = deadline;
    attr.sched_period = period;
    // SAFETY: `attr` lives and says its own size.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0u32) }).map(drop)
}

/// Sets the CPUs that a task may run on.
///
/// # Errors
/// EINVAL when none of them exists.
pub fn set_affinity(tid: i32, cpus: &[u32]) -> io::Result<()> {
    let highest = cpus.iter().copied().max().unwrap_or(0).min(1 << 16);
    let mut mask = vec![0u64; highest as usize / 64 + 1];
    for &cpu in cpus {
        if let Some(word) = mask.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }
    // SAFETY: `mask` lives, and its length in bytes is passed.
    checked(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            tid,
            mask.len() * 8,
            mask.as_ptr(),
        )
    })
    .map(drop)
}

/// Sets one resource limit (RLIMIT_*) of a process.
///
/// # Errors
/// EPERM to raise a hard limit without the right to; EINVAL.
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = [soft, hard];
    // SAFETY: `limit` has the layout of struct rlimit64 and lives.
    checked(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            limit.as_ptr(),
            std::ptr::null_mut::<u64>(),
        )
    })
    .map(drop)
}
