//! io_uring instances: what was under way in them.

use crate::kernel::{Kernel, KernelError, Object, containers};

use super::list::{int, percpu_sum};

/// What is to be known of the `io_ring_ctx` at `addr`, in words.
pub(super) fn describe(kernel: &Kernel, addr: u64) -> String {
    let found = kernel
        .object("io_ring_ctx", addr)
        .and_then(|ring| in_flight(&ring));
    match found {
        Ok((requests, workers)) => {
            let workers = match workers {
                0 => String::new(),
                n => format!(", {n} kernel threads at work for it"),
            };
            format!(
                "an io_uring with {requests} requests in flight{workers}: no call puts them, or \
                 the ring's counters, back"
            )
        }
        Err(error) => format!("an io_uring whose requests in flight cannot be counted: {error}"),
    }
}

/// Requests in flight of the tasks that use the ring (all their rings), and
/// their worker threads.
fn in_flight(ring: &Object<'_>) -> Result<(i64, usize), KernelError> {
    let nodes = containers::list(&ring.get("tctx_list")?, "io_tctx_node", "ctx_node")?;
    let (mut requests, mut workers) = (0i64, 0);
    for node in nodes {
        let Some(task) = node.follow_opt("task")? else {
            continue;
        };
        if let Some(context) = task.follow_opt("io_uring")? {
            // References are taken in stock: those that no request has yet
            // are not in flight.
            let stock = i64::from(int(&context, "cached_refs")?);
            let taken = percpu_sum(&context.get("inflight")?)?;
            requests = requests.saturating_add(taken.saturating_sub(stock).max(0));
        }
        workers = workers.max(worker_threads(&task)?);
    }
    Ok((requests, workers))
}

/// Threads of the process that io_uring made (PF_IO_WORKER).
fn worker_threads(task: &Object<'_>) -> Result<usize, KernelError> {
    const IO_WORKER: u64 = 0x10;
    let head = task.follow("signal")?.get("thread_head")?;
    let mut count = 0;
    for thread in containers::list(&head, "task_struct", "thread_node")? {
        count += usize::from(thread.u("flags")? & IO_WORKER != 0);
    }
    Ok(count)
}
