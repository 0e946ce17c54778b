//! What ties a process to others: the objects that it shares as a whole, its
//! session's terminal, and its children that have ended.

use super::extract::Extraction;
use super::list::int;
use super::namespace::IdMaps;
use super::process::{innermost_pid, pid_number};
use super::tty;
use crate::dataset::{ControllingTerminal, Kin, ObjectId, Zombie};
use crate::kernel::{KernelError, Object, containers};

/// Indices into `signal.pids`: PIDTYPE_PGID, PIDTYPE_SID.
const PGID: u64 = 2;
const SID: u64 = 3;
/// `exit_state`.
const EXIT_ZOMBIE: u64 = 0x20;

/// Reads the ties of a process; `leader` is its first thread, `alive` one that
/// has an address space.
pub(super) fn read(leader: &Object<'_>, alive: &Object<'_>) -> Result<Kin, KernelError> {
    let of = |member: &str| alive.ptr(member).map(ObjectId);
    Ok(Kin {
        exit_signal: int(leader, "exit_signal")?.max(0),
        files: of("files")?,
        fs: of("fs")?,
        mm: of("mm")?,
        vforked: alive.ptr("vfork_done")? != 0,
        terminal: terminal(alive)?,
    })
}

/// The controlling terminal, when the process leads its session.
fn terminal(task: &Object<'_>) -> Result<Option<ControllingTerminal>, KernelError> {
    let signal = task.follow("signal")?;
    if signal.u("leader")? == 0 {
        return Ok(None);
    }
    let Some(terminal) = signal.follow_opt("tty")? else {
        return Ok(None);
    };
    // In a struct of its own since Linux commit 64d608db38ff ("tty: cumulate
    // and document tty_struct::ctrl* members") (in v5.14).
    let foreground = if terminal.has("ctrl.pgrp") {
        terminal.follow_opt("ctrl.pgrp")?
    } else {
        terminal.follow_opt("pgrp")?
    };
    let (major, minor, pty_index) = tty::numbers(&terminal, (0, 0))?;
    Ok(Some(ControllingTerminal {
        major,
        minor,
        pty_index,
        foreground: foreground.map_or(Ok(0), |pid| pid_number(&pid, 0))?,
    }))
}

/// A process's group and session, as the initial PID namespace numbers them.
pub(super) fn group_and_session(signal: &Object<'_>) -> Result<(i32, i32), KernelError> {
    let id = |index: u64| -> Result<i32, KernelError> {
        match signal.follow_opt(&format!("pids[{index}]"))? {
            Some(pid) => pid_number(&pid, 0),
            None => Ok(0),
        }
    };
    Ok((id(PGID)?, id(SID)?))
}

/// Takes note of a process's children: those that live may be restored with
/// it, those that have ended are its zombies.
pub(super) fn children(x: &mut Extraction<'_, '_>, threads: &[Object<'_>], pid: i32) {
    for thread in threads {
        let children = thread
            .get("children")
            .and_then(|head| containers::list(&head, "task_struct", "sibling"));
        for child in children.unwrap_or_default() {
            let dead = child
                .u("exit_state")
                .is_ok_and(|state| state & EXIT_ZOMBIE != 0);
            if !dead {
                if let Ok(child) = int(&child, "tgid") {
                    x.children.push((pid, child));
                }
                continue;
            }
            match zombie(&child, pid) {
                // One whose other threads live on is no zombie for its parent.
                Ok(None) => {
                    if let Ok(child) = int(&child, "tgid") {
                        x.children.push((pid, child));
                    }
                }
                Ok(Some(zombie)) => x.out.zombies.push(zombie),
                Err(error) => x.lost(
                    &format!("pid {pid}"),
                    "child",
                    format!("one was dead and not waited for, and cannot be read: {error}"),
                ),
            }
        }
    }
}

fn zombie(task: &Object<'_>, ppid: i32) -> Result<Option<Zombie>, KernelError> {
    let signal = task.follow("signal")?;
    if signal.u("nr_threads")? > 1 {
        return Ok(None);
    }
    let (pgid, sid) = group_and_session(&signal)?;
    // wait(2) takes the group's code where the whole group was ended.
    const SIGNAL_GROUP_EXIT: u64 = 4;
    let of_group = signal.u("flags")? & SIGNAL_GROUP_EXIT != 0;
    let status = if of_group {
        int(&signal, "group_exit_code")?
    } else {
        int(task, "exit_code")?
    };
    Ok(Some(Zombie {
        pid: int(task, "tgid")?,
        ns_pid: innermost_pid(task)?,
        ppid,
        pgid,
        sid,
        comm: task.get("comm")?.string()?,
        status: status & 0xffff,
        exit_signal: int(task, "exit_signal")?.max(0),
        uid: {
            let cred = task.follow("real_cred")?;
            let id = u32::try_from(cred.u("uid.val")?).unwrap_or(u32::MAX);
            IdMaps::of(&cred)?.user(id)
        },
    }))
}

/// Says what of the ties is not kept: a parent, a terminal, a part of an
/// address space that live outside of what is restored.
pub(super) fn note_cut(x: &mut Extraction<'_, '_>) {
    let known: std::collections::HashSet<i32> = x.out.processes.iter().map(|p| p.pid).collect();
    let mut notes = Vec::new();
    for process in &x.out.processes {
        let subject = format!("pid {}", process.pid);
        if process.ppid > 1 && !known.contains(&process.ppid) {
            notes.push((
                subject.clone(),
                "parent",
                format!(
                    "{} is not restored with it: it has become an orphan, as by its parent's death",
                    process.ppid
                ),
            ));
        }
        if process.sid > 0 && !known.contains(&process.sid) && has_terminal(x, process.pid) {
            notes.push((
                subject,
                "controlling terminal",
                format!(
                    "the leader of its session, {}, is not restored with it",
                    process.sid
                ),
            ));
        }
    }
    for (subject, what, how) in notes {
        x.reconstructed(&subject, what, how);
    }
}

fn has_terminal(x: &Extraction<'_, '_>, pid: i32) -> bool {
    super::list::find(x.kernel, pid)
        .ok()
        .and_then(|task| task.follow("signal").ok()?.ptr("tty").ok())
        .is_some_and(|tty| tty != 0)
}
