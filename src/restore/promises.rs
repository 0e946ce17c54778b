//! What a process has said of all of its memory at once: that it makes none executable that is not
//! (PR_SET_MDWE), and that equal pages are to be merged (PR_SET_MEMORY_MERGE).

use super::{Syscalls, calls};
use crate::dataset::{Fidelity, Process};

/// Linux include/uapi/linux/prctl.h; since v6.3 and v6.4.
const PR_SET_MDWE: i32 = 65;
const PR_SET_MEMORY_MERGE: i32 = 67;

/// All of its memory may be merged, as the areas that it has say already.
pub fn merge_all(process: &Process, sys: &mut dyn Syscalls, notes: &mut Vec<Fidelity>) {
    if process.mm.memory_merge
        && let Err(errno) = calls::prctl(sys, PR_SET_MEMORY_MERGE, [1, 0, 0, 0])
    {
        notes.push(Fidelity::lost(
            format!("pid {}", process.pid),
            "merging of all its memory (PR_SET_MEMORY_MERGE)",
            format!("{errno}: it holds for the areas that it has, and not for new ones"),
        ));
    }
}

/// No memory becomes executable any more: by us neither, so this comes when all is mapped and
/// protected.
pub fn no_more_code(process: &Process, sys: &mut dyn Syscalls, notes: &mut Vec<Fidelity>) {
    let mdwe = process.mm.mdwe;
    if mdwe != 0
        && let Err(errno) = calls::prctl(sys, PR_SET_MDWE, [mdwe.into(), 0, 0, 0])
    {
        notes.push(Fidelity::lost(
            format!("pid {}", process.pid),
            "promise to make no memory executable (PR_SET_MDWE)",
            format!("{errno}: it may do so now"),
        ));
    }
}
