//! An object with a certain ID and key, and a certain creator.

use super::IN_USE;
use crate::dataset::{Dataset, SysvKind, SysvObject};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use crate::sys::sysv::Kind;

/// IPC_CREAT | IPC_EXCL.
pub const NEW: u64 = 0o1000 | 0o2000;
/// Commands of shmctl, semctl and msgctl.
pub const RMID: u64 = 0;
const SET: u64 = 1;
const STAT: u64 = 2;

/// SHM_DEST of a segment's mode.
const DEST: u32 = 0o1000;

/// Bytes of `struct ipc64_perm`, with which all three kinds' begin. Linux
/// include/uapi/asm-generic/ipcbuf.h.
const PERM: usize = 48;

/// `SECBIT_NO_SETUID_FIXUP`: user IDs change without touching capabilities.
const NO_SETUID_FIXUP: u64 = 4;

/// A number as a register holds it.
pub fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

fn keep() -> u64 {
    arg(-1)
}

/// (control call, bytes of its `…id64_ds`, name of the sysctl).
fn words(kind: Kind) -> (i64, usize, &'static str) {
    match kind {
        Kind::Segment => (libc::SYS_shmctl, PERM + 64, "shm_next_id"),
        Kind::Semaphores => (libc::SYS_semctl, PERM + 56, "sem_next_id"),
        Kind::Queue => (libc::SYS_msgctl, PERM + 72, "msg_next_id"),
    }
}

/// `shmctl`, `semctl` or `msgctl` with an address behind the command.
pub fn control(
    sys: &mut dyn Syscalls,
    kind: Kind,
    id: i32,
    command: u64,
    at: u64,
) -> Result<u64, Errno> {
    let (number, ..) = words(kind);
    match kind {
        Kind::Semaphores => calls::plain(sys, number, [arg(id), 0, command, at]),
        _ => calls::plain(sys, number, [arg(id), command, at]),
    }
}

fn refused(pid: i32, object: &SysvObject, why: impl Into<String>) -> RestoreError {
    RestoreError::Refused {
        pid,
        what: object.name(),
        why: why.into(),
        hint: IN_USE,
    }
}

/// Makes an object: `get` is `shmget`, `semget` or `msgget` with the object's
/// key and the given flags. Nobody has a right to it until all is done.
///
/// # Errors
/// Its ID or its key is in use; the kernel refuses.
pub fn create(
    sys: &mut dyn Syscalls,
    pid: i32,
    kind: Kind,
    object: &SysvObject,
    get: &mut dyn FnMut(&mut dyn Syscalls, u64) -> Result<u64, Errno>,
) -> Result<i32, RestoreError> {
    let what = || format!("make {}", object.name());
    let (.., sysctl) = words(kind);
    remove_remains(sys, kind, object);
    let number = object.id.to_string();
    let path = format!("sys/kernel/{sysctl}");
    write(sys, &path, number.as_bytes()).during(pid, || {
        format!("write /proc/{path} (needs CONFIG_CHECKPOINT_RESTORE)")
    })?;
    let result = as_user(sys, object, &mut |sys| get(sys, NEW));
    let id = match result.map(|id| i32::try_from(id).unwrap_or(-1)) {
        Ok(id) if id == object.id => id,
        Ok(other) => {
            control(sys, kind, other, RMID, 0).during(pid, what)?;
            return Err(refused(pid, object, "its ID is in use on this host"));
        }
        Err(errno) => {
            forget_next_id(sys, kind);
            if errno.0 == libc::EEXIST {
                return Err(refused(pid, object, "its key is in use on this host"));
            }
            return Err(errno).during(pid, || {
                format!(
                    "{} (see kernel.shmmax, shmall, shmmni, sem, msgmni)",
                    what()
                )
            });
        }
    };
    let owner = (object.uid, object.gid);
    if owner != (object.creator_uid, object.creator_gid) {
        let set = own(sys, kind, id, object, &[]);
        if let Err(errno) = set {
            let _ = control(sys, kind, id, RMID, 0);
            return Err(errno).during(pid, || format!("give {} its owner", object.name()));
        }
    }
    Ok(id)
}

/// An object of just this ID and key to which nobody has any right: what a restore
/// leaves that is killed before its processes run. A program that gives nobody a
/// right itself is not to be told from that, and neither are its objects.
fn is_remains(object: &SysvObject, (id, key, mode): (i32, i32, u32)) -> bool {
    let nobodys = object.mode & 0o777 != 0 && mode & 0o777 == 0 && mode & DEST == 0;
    nobodys && (id, key) == (object.id, object.key)
}

/// Removes it, unless somebody has attached it.
fn remove_remains(sys: &mut dyn Syscalls, kind: Kind, object: &SysvObject) {
    /// Of `shm_nattch` in `struct shmid64_ds`. Linux include/uapi/asm-generic/shmbuf.h.
    const ATTACHED: usize = PERM + 40;
    let (_, len, _) = words(kind);
    let mut bytes = vec![0; len];
    let known = calls::put(sys, &bytes)
        .and_then(|at| control(sys, kind, object.id, STAT, at).map(|_| at))
        .and_then(|at| sys.read(at, &mut bytes));
    if known.is_err() {
        return;
    }
    let word = |at: usize| {
        let four = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
        u32::from_ne_bytes(four.copied().unwrap_or_default())
    };
    let attached = kind == Kind::Segment && word(ATTACHED) != 0;
    if !attached && is_remains(object, (object.id, word(0).cast_signed(), word(20))) {
        match control(sys, kind, object.id, RMID, 0) {
            Ok(_) => tracing::warn!(
                "{}: what a restore that was killed had left of it is removed",
                object.name()
            ),
            Err(errno) => tracing::warn!("{}: what is left of it stays: {errno}", object.name()),
        }
    }
}

/// Sets owner, and what else `change` writes, as (offset, bytes),
/// into the kernel's `…id64_ds` of the object.
pub fn own(
    sys: &mut dyn Syscalls,
    kind: Kind,
    id: i32,
    object: &SysvObject,
    change: &[(usize, &[u8])],
) -> Result<(), Errno> {
    let (_, len, _) = words(kind);
    let mut bytes = vec![0; len];
    let at = calls::put(sys, &bytes)?;
    control(sys, kind, id, STAT, at)?;
    sys.read(at, &mut bytes)?;
    // `key`, then `uid` and `gid`; `cuid`, `cgid`, `mode` behind them.
    let [uid, gid, mode] = [object.uid, object.gid, 0].map(u32::to_ne_bytes);
    let changes = [(4, &uid[..]), (8, &gid[..]), (20, &mode[..])];
    for (from, new) in changes.iter().chain(change) {
        if let Some(place) = bytes.get_mut(*from..from + new.len()) {
            place.copy_from_slice(new);
        }
    }
    let at = calls::put(sys, &bytes)?;
    control(sys, kind, id, SET, at).map(drop)
}

/// Makes a call as the object's creator, which it then says for ever.
fn as_user(
    sys: &mut dyn Syscalls,
    object: &SysvObject,
    call: &mut dyn FnMut(&mut dyn Syscalls) -> Result<u64, Errno>,
) -> Result<u64, Errno> {
    let (uid, gid) = (u64::from(object.creator_uid), u64::from(object.creator_gid));
    if (uid, gid) == (0, 0) {
        return call(sys);
    }
    calls::prctl(sys, libc::PR_SET_SECUREBITS, [NO_SETUID_FIXUP])?;
    calls::plain(sys, libc::SYS_setresgid, [keep(), gid, keep()])?;
    calls::plain(sys, libc::SYS_setresuid, [keep(), uid, keep()])?;
    let result = call(sys);
    calls::plain(sys, libc::SYS_setresuid, [keep(), 0, keep()])?;
    calls::plain(sys, libc::SYS_setresgid, [keep(), 0, keep()])?;
    calls::prctl(sys, libc::PR_SET_SECUREBITS, [0])?;
    result
}

/// The number that was asked for is not given to whoever comes next.
fn forget_next_id(sys: &mut dyn Syscalls, kind: Kind) {
    let flags = NEW | 0o600;
    let taken = match kind {
        Kind::Segment => calls::plain(sys, libc::SYS_shmget, [0, 1, flags]),
        Kind::Semaphores => calls::plain(sys, libc::SYS_semget, [0, 1, flags]),
        Kind::Queue => calls::plain(sys, libc::SYS_msgget, [0, flags]),
    };
    if let Ok(id) = taken.map(|id| i32::try_from(id).unwrap_or(-1)) {
        let _ = control(sys, kind, id, RMID, 0);
    }
}

fn write(sys: &mut dyn Syscalls, path: &str, bytes: &[u8]) -> Result<(), Errno> {
    let fd = calls::open_in_proc(sys, path, libc::O_WRONLY | libc::O_CLOEXEC)?;
    let written = calls::put(sys, bytes)
        .and_then(|at| calls::plain(sys, libc::SYS_write, [arg(fd), at, bytes.len() as u64]));
    calls::close(sys, fd)?;
    written.map(drop)
}

/// What this host has already, by (key, ID): found before anything is made.
/// What procfs does not say shows when it is made.
///
/// # Errors
/// The first object whose ID or key is in use.
pub fn check(dataset: &Dataset) -> Result<(), RestoreError> {
    let pid = dataset.processes.first().map_or(0, |p| p.pid);
    for object in super::wanted(dataset).filter(|object| !object.unused) {
        let name = match object.kind {
            SysvKind::Segment { .. } => "shm",
            SysvKind::Semaphores { .. } => "sem",
            SysvKind::Queue { .. } => "msg",
        };
        let text = std::fs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap_or_default();
        for (key, id, mode) in in_use(&text) {
            if is_remains(object, (id, key, mode)) {
                continue;
            }
            if id == object.id {
                return Err(refused(pid, object, "its ID is in use on this host"));
            }
            if key == object.key && key != 0 {
                let why = format!("its key is in use on this host, by ID {id}");
                return Err(refused(pid, object, why));
            }
        }
    }
    Ok(())
}

/// (key, ID, mode) of each line but the first.
fn in_use(text: &str) -> impl Iterator<Item = (i32, i32, u32)> {
    text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (key, id) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((key, id, u32::from_str_radix(words.next()?, 8).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn procfs_says_what_is_in_use() {
        let text =
            "       key      shmid perms\n     24301          3   640\n -16777216    98309  1600\n";
        let found: Vec<_> = in_use(text).collect();
        assert_eq!(found, [(24301, 3, 0o640), (-16_777_216, 98309, 0o1600)]);
    }

    #[test]
    fn only_what_nobody_has_a_right_to_is_taken_for_remains() {
        let mut object = SysvObject {
            id: 7,
            key: 9,
            mode: 0o640,
            uid: 0,
            gid: 0,
            creator_uid: 0,
            creator_gid: 0,
            unused: false,
            kind: SysvKind::Semaphores {
                values: Vec::new(),
                undo: Vec::new(),
                operated: false,
            },
        };
        assert!(is_remains(&object, (7, 9, 0)));
        for other in [(7, 9, 0o600), (7, 8, 0), (6, 9, 0), (7, 9, 0o1000)] {
            assert!(!is_remains(&object, other), "{other:?}");
        }
        object.mode = 0;
        assert!(!is_remains(&object, (7, 9, 0)), "its program's own");
    }
}
