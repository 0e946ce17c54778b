//! How a thread was scheduled.

use super::list::int;
use super::page_cache::words;
use crate::dataset::{Deadline, Scheduling};
use crate::kernel::{KernelError, Object};

/// `static_prio` of nice 0. Linux include/linux/sched/prio.h.
const DEFAULT_PRIO: i32 = 120;

/// `task.policy`. Linux include/uapi/linux/sched.h.
const SCHED_DEADLINE: u64 = 6;

/// Policy, priority and affinity of a thread.
pub(super) fn read(task: &Object<'_>) -> Result<Scheduling, KernelError> {
    Ok(Scheduling {
        policy: u32::try_from(task.u("policy")?).unwrap_or(0),
        nice: int(task, "static_prio")?.saturating_sub(DEFAULT_PRIO),
        rt_priority: u32::try_from(task.u("rt_priority")?).unwrap_or(0),
        affinity: affinity(task)?,
        io_priority: match task.follow_opt("io_context")? {
            Some(context) => u16::try_from(context.u("ioprio")?).unwrap_or(0),
            None => 0,
        },
        deadline: match task.u("policy")? {
            SCHED_DEADLINE => Some(Deadline {
                runtime: task.u("dl.dl_runtime")?,
                deadline: task.u("dl.dl_deadline")?,
                period: task.u("dl.dl_period")?,
                flags: task.u("dl.flags")?,
            }),
            _ => None,
        },
    })
}

/// The CPUs that it may run on; empty when these are all that were online.
fn affinity(task: &Object<'_>) -> Result<Vec<u32>, KernelError> {
    let mask = words(&task.get("cpus_mask")?.bytes()?);
    let allowed: Vec<u32> = mask
        .iter()
        .enumerate()
        .flat_map(|(word, bits)| {
            (0..64u32)
                .filter(move |bit| bits >> bit & 1 != 0)
                .filter_map(move |bit| Some(u32::try_from(word).ok()?.checked_mul(64)? + bit))
        })
        .collect();
    let kernel = task.kernel();
    let online = kernel.cpus()?;
    // Bits of CPUs that can never be are of no meaning, and not always clear.
    let possible = kernel
        .symbol("nr_cpu_ids")
        .and_then(|a| kernel.read_u32(a))
        .unwrap_or_else(|_| online.iter().max().map_or(1, |cpu| cpu.saturating_add(1)));
    let allowed: Vec<u32> = allowed.into_iter().filter(|cpu| *cpu < possible).collect();
    Ok(if online.iter().all(|cpu| allowed.contains(cpu)) {
        Vec::new()
    } else {
        allowed
    })
}
