//! Who stands in the line of a set or a queue, and which calls lead there.

use super::super::list::int;
use super::{QUEUES, SEMAPHORES, objects, queues, semaphores};
use crate::dataset::Process;
use crate::kernel::{KernelError, Object};

/// Numbers of semop, semtimedop; msgsnd, msgrcv. x86-64.
const ON_SEMAPHORES: [u64; 2] = [65, 220];
const ON_QUEUES: [u64; 2] = [69, 70];

/// What is known of a thread that is in a call on a set or a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::task) enum Waits {
    /// It is in no such call.
    #[default]
    Not,
    /// It stands in the line: nothing has been done for it yet.
    InLine,
    /// The thing is there, and it does not stand in the line.
    OutOfLine,
    /// The set or queue has been removed.
    Removed,
}

/// How a thread waits in a call with this number and first argument.
pub(in crate::task) fn waits(
    task: &Object<'_>,
    number: u64,
    id: u64,
) -> Result<Waits, KernelError> {
    let index = match number {
        n if ON_SEMAPHORES.contains(&n) => SEMAPHORES,
        n if ON_QUEUES.contains(&n) => QUEUES,
        _ => return Ok(Waits::Not),
    };
    let id = as_id(id);
    let namespace = task.follow("nsproxy")?.follow("ipc_ns")?;
    let found = objects(&namespace, index)?
        .into_iter()
        .find(|perm| int(perm, "id").is_ok_and(|own| own == id));
    let Some(perm) = found else {
        return Ok(Waits::Removed);
    };
    let sleepers = match index {
        SEMAPHORES => semaphores::sleepers(&perm.container_of("sem_array", "sem_perm")?)?,
        _ => queues::sleepers(&perm.container_of("msg_queue", "q_perm")?)?,
    };
    Ok(match sleepers.contains(&task.addr()) {
        true => Waits::InLine,
        false => Waits::OutOfLine,
    })
}

/// An ID in a register, of whose upper half nothing is known.
fn as_id(register: u64) -> i32 {
    u32::try_from(register & 0xffff_ffff).map_or(-1, u32::cast_signed)
}

/// (kind, ID) of the calls on sets and queues that a process is in.
pub(super) fn calls(process: &Process) -> Vec<(u64, i32)> {
    let calls = process.threads.iter().filter_map(|t| t.syscall.as_ref());
    calls
        .filter_map(|call| match call.number {
            n if ON_SEMAPHORES.contains(&n) => Some((SEMAPHORES, as_id(call.args[0]))),
            n if ON_QUEUES.contains(&n) => Some((QUEUES, as_id(call.args[0]))),
            _ => None,
        })
        .collect()
}
