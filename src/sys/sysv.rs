//! System V IPC of this process's own IPC namespace, or of another one.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;

/// What kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Segment,
    Semaphores,
    Queue,
}

/// Removes an object (IPC_RMID). `namespace` is an open `/proc/PID/ns/ipc`;
/// `None`: the caller's own.
///
/// # Errors
/// There is none of that ID, or no right to it, or to the namespace.
pub fn remove(kind: Kind, id: i32, namespace: Option<&File>) -> io::Result<()> {
    within(namespace, || remove_here(kind, id))
}

/// Removes the name of a POSIX message queue (without the slash).
///
/// # Errors
/// As [`remove`].
pub fn remove_queue(name: &str, namespace: Option<&File>) -> io::Result<()> {
    let name = CString::new(format!("/{name}")).map_err(io::Error::other)?;
    within(namespace, || {
        // SAFETY: a string that lives.
        match unsafe { libc::mq_unlink(name.as_ptr()) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    })
}

/// Sets the permission bits of an object (IPC_SET); its owner stays.
///
/// # Errors
/// As [`remove`].
pub fn set_mode(kind: Kind, id: i32, mode: u32, namespace: Option<&File>) -> io::Result<()> {
    within(namespace, || set_mode_here(kind, id, mode))
}

/// Sets the permission bits of a POSIX message queue (without the slash).
///
/// # Errors
/// As [`remove`].
pub fn set_queue_mode(name: &str, mode: u32, namespace: Option<&File>) -> io::Result<()> {
    let name = CString::new(format!("/{name}")).map_err(io::Error::other)?;
    within(namespace, || {
        // SAFETY: a string that lives; without O_CREAT there are no further arguments.
        let fd = unsafe { libc::mq_open(name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a queue's descriptor is one of a file on Linux, just made and owned by nobody else.
        let queue = unsafe { File::from_raw_fd(fd) };
        queue.set_permissions(Permissions::from_mode(mode))
    })
}

fn set_mode_here(kind: Kind, id: i32, mode: u32) -> io::Result<()> {
    let done = |result: i32| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    match kind {
        Kind::Segment => {
            // SAFETY: numbers all of them, of which every value is one.
            let mut known: libc::shmid_ds = unsafe { std::mem::zeroed() };
            // SAFETY: it fills such a structure, which lives.
            done(unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut known) })?;
            known.shm_perm.mode = permissions(known.shm_perm.mode.into(), mode)?;
            // SAFETY: it reads that structure.
            done(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut known) })
        }
        Kind::Semaphores => {
            // SAFETY: as above.
            let mut known: libc::semid_ds = unsafe { std::mem::zeroed() };
            // SAFETY: `union semun` is passed as the pointer that it is here.
            done(unsafe { libc::semctl(id, 0, libc::IPC_STAT, &raw mut known) })?;
            known.sem_perm.mode = permissions(known.sem_perm.mode.into(), mode)?;
            // SAFETY: as above.
            done(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut known) })
        }
        Kind::Queue => {
            // SAFETY: as above.
            let mut known: libc::msqid_ds = unsafe { std::mem::zeroed() };
            // SAFETY: it fills such a structure, which lives.
            done(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut known) })?;
            known.msg_perm.mode = permissions(known.msg_perm.mode.into(), mode)?;
            // SAFETY: it reads that structure.
            done(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut known) })
        }
    }
}

/// A mode with other permission bits, as wide as the C library has it.
fn permissions<T: TryFrom<u32>>(known: u32, mode: u32) -> io::Result<T> {
    T::try_from(known & !0o777 | mode & 0o777).map_err(|_| io::Error::other("too large a mode"))
}

fn within(
    namespace: Option<&File>,
    call: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<()> {
    let Some(namespace) = namespace else {
        return call();
    };
    // A thread of its own: what it enters, nobody else does.
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWIPC)?;
            call()
        });
        entered
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that was to remove it died")))
    })
}

fn remove_here(kind: Kind, id: i32) -> io::Result<()> {
    let removed = match kind {
        // SAFETY: IPC_RMID takes no argument behind the command.
        Kind::Segment => unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
        // SAFETY: as above.
        Kind::Semaphores => unsafe { libc::semctl(id, 0, libc::IPC_RMID) },
        // SAFETY: as above.
        Kind::Queue => unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
    };
    match removed {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
