//! Semaphore sets: their values, by whom they were changed last, and what the
//! ends of processes undo.

use super::create::{self, arg, control};
use super::{Made, stub_of};
use crate::dataset::{SysvKind, SysvObject};
use crate::restore::error::Context;
use crate::restore::stub::Family;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use crate::sys::sysv::Kind;

/// Commands of semctl.
const SETVAL: u64 = 16;
const SETALL: u64 = 17;
/// SEM_UNDO.
const UNDO: i16 = 0x1000;

pub(super) fn make(
    family: &mut Family<'_>,
    object: &SysvObject,
    made: &mut Made,
) -> Result<(), RestoreError> {
    let SysvKind::Semaphores {
        values,
        undo,
        operated,
    } = &object.kind
    else {
        return Ok(());
    };
    let pid = family.process(0)?.pid;
    let what = || object.name();
    let count = values.len() as u64;
    let mut get = |sys: &mut dyn Syscalls, flags: u64| {
        calls::plain(sys, libc::SYS_semget, [arg(object.key), count, flags])
    };
    let sys = family.leader(0)?;
    let id = create::create(sys, pid, Kind::Semaphores, object, &mut get)?;
    made.remember(Kind::Semaphores, object, id);
    if *operated {
        // All of them are zero: to wait for that is over at once.
        operate(sys, id, &[(0, 0, 0)]).during(pid, what)?;
    }
    let words: Vec<u8> = values
        .iter()
        .flat_map(|one| u16::try_from(one.value).unwrap_or(0).to_ne_bytes())
        .collect();
    calls::put(sys, &words)
        .and_then(|at| control(sys, Kind::Semaphores, id, SETALL, at))
        .during(pid, || format!("semctl(SETALL) of {}", object.name()))?;
    for (number, one) in (0u64..).zip(values) {
        // Nobody had touched it: then it may say that the first of the set did.
        let Some(stub) = family.stubs.iter().position(|s| s.process.pid == one.pid) else {
            continue;
        };
        let call = [arg(id), number, SETVAL, arg(one.value)];
        calls::plain(family.leader(stub)?, libc::SYS_semctl, call)
            .during(one.pid, || format!("semctl(SETVAL) of {}", object.name()))?;
    }
    for one in undo {
        let stub = stub_of(family, one.pid);
        let leader = family.leader(stub)?;
        // There and back: what its end undoes is what was done with SEM_UNDO.
        let back = one.adjust.checked_neg().unwrap_or(i16::MAX);
        let (up, down) = if one.adjust > 0 {
            ((one.number, one.adjust, 0), (one.number, back, UNDO))
        } else {
            ((one.number, back, UNDO), (one.number, one.adjust, 0))
        };
        // A semaphore is never above 32767, nor below 0.
        operate(leader, id, &[up, down])
            .or_else(|_| operate(leader, id, &[down, up]))
            .during(one.pid, || format!("semop(SEM_UNDO) on {}", object.name()))?;
    }
    Ok(())
}

/// `semop` with (number, change, flags) each.
fn operate(sys: &mut dyn Syscalls, id: i32, operations: &[(u16, i16, i16)]) -> Result<(), Errno> {
    let bytes: Vec<u8> = operations
        .iter()
        .flat_map(|(number, change, flags)| {
            let [a, b] = number.to_ne_bytes();
            let [c, d] = change.to_ne_bytes();
            let [e, f] = (flags | 0o4000).to_ne_bytes(); // IPC_NOWAIT
            [a, b, c, d, e, f]
        })
        .collect();
    let at = calls::put(sys, &bytes)?;
    calls::plain(sys, libc::SYS_semop, [arg(id), at, operations.len() as u64]).map(drop)
}
