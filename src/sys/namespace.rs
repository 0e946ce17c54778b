//! Looking into another mount namespace.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

/// The root directory of a mount namespace, `namespace` being an open
/// `/proc/PID/ns/mnt`: `/proc/self/fd/N` leads there, whatever the roots of the
/// processes in it are.
///
/// # Errors
/// No right to enter it.
pub fn root_of(namespace: &File) -> io::Result<File> {
    // A thread of its own: what it enters, nobody else does.
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
                .open("/")
        });
        entered
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that was to enter it died")))
    })
}
