//! Reading a process's own memory: what it holds where, as it saw it.

use super::{TaskError, list};
use crate::kernel::{AddressSpace, Kernel, KernelError, Object};

/// Longest command line that is read. Bytes; the kernel's own limit is larger
/// (`ulimit -s` / 4), but nobody reads more.
const MAX_COMMAND_LINE: u64 = 128 << 10;

/// Reads `buf.len()` bytes at address `va` of process `pid`.
///
/// # Errors
/// No such process, no address space, or a page that is not resident or not
/// in the dump.
pub fn read_process_memory(
    kernel: &Kernel,
    pid: i32,
    va: u64,
    buf: &mut [u8],
) -> Result<(), TaskError> {
    let task = list::find(kernel, pid)?;
    let comm = task
        .get("comm")
        .and_then(|c| c.string())
        .unwrap_or_else(|_| "?".into());
    let failed = |source| TaskError::Process {
        pid,
        comm: comm.clone(),
        what: "memory",
        source,
    };
    let mm = task.follow_opt("mm").map_err(failed)?;
    let mm = mm.ok_or_else(|| TaskError::Exited {
        pid,
        comm: comm.clone(),
    })?;
    space(&mm)
        .and_then(|space| space.read(va, buf))
        .map_err(failed)
}

/// Arguments of the process with this `task_struct` (see
/// [`ProcessSummary::task`](super::ProcessSummary::task)), as its memory holds
/// them. Empty when it has none, or they are not in the dump.
pub fn command_line(kernel: &Kernel, task: u64) -> Vec<String> {
    let read = || -> Result<Vec<String>, KernelError> {
        match kernel.object("task_struct", task)?.follow_opt("mm")? {
            Some(mm) => arguments(&mm),
            None => Ok(Vec::new()),
        }
    };
    read().unwrap_or_default()
}

/// The page tables of an `mm_struct`.
pub(super) fn space<'k>(mm: &Object<'k>) -> Result<AddressSpace<'k>, KernelError> {
    AddressSpace::new(mm.kernel(), mm.ptr("pgd")?)
}

/// `/proc/PID/cmdline`. What is not resident is left out.
pub(super) fn arguments(mm: &Object<'_>) -> Result<Vec<String>, KernelError> {
    let (start, end) = (mm.u("arg_start")?, mm.u("arg_end")?);
    let len = end.saturating_sub(start).min(MAX_COMMAND_LINE);
    let space = space(mm)?;
    let mut bytes = Vec::new();
    let mut at = start;
    while at < start.saturating_add(len) {
        let page_end = (at | 0xfff)
            .saturating_add(1)
            .min(start.saturating_add(len));
        let Ok(n) = usize::try_from(page_end - at) else {
            break;
        };
        let mut part = vec![0; n];
        if space.read(at, &mut part).is_err() {
            break;
        }
        bytes.extend_from_slice(&part);
        at = page_end;
    }
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    Ok(bytes
        .split(|b| *b == 0)
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect())
}
