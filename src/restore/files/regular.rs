//! Files, directories and devices: opened by their path again.

use super::{OPEN, Place};
use crate::dataset::{FileKind, OpenFile};
use crate::restore::error::Context;
use crate::restore::{RestoreError, Syscalls, calls};

/// Opens a file as it was open, and puts its position back.
pub(super) fn open(file: &OpenFile, place: &mut Place<'_>) -> Result<i32, RestoreError> {
    let pid = place.pid;
    if file.deleted {
        return Err(RestoreError::Unsupported {
            pid,
            what: format!("its open file {}", file.path),
            why: "it had been deleted before the crash, and its content went with the host".into(),
        });
    }
    // O_NONBLOCK: opening a device must not wait for anything.
    let flags = file.flags.cast_signed() & OPEN | libc::O_CLOEXEC | libc::O_NOCTTY;
    let path_only = flags & libc::O_PATH != 0;
    let flags = if path_only {
        flags
    } else {
        flags | libc::O_NONBLOCK
    };
    let fd = calls::open_file(place.sys, file, flags)
        .during(pid, || format!("open {} (flags {:#o})", file.path, flags))?;
    let seekable = matches!(
        file.kind,
        FileKind::Regular | FileKind::Directory | FileKind::BlockDevice { .. }
    );
    if seekable && !path_only && file.position != 0 {
        seek(place.sys, pid, fd, file)?;
    }
    Ok(fd)
}

fn seek(sys: &mut dyn Syscalls, pid: i32, fd: i32, file: &OpenFile) -> Result<(), RestoreError> {
    let fd = i64::from(fd).cast_unsigned();
    calls::plain(sys, libc::SYS_lseek, [fd, file.position, 0])
        .during(pid, || {
            format!("lseek of {} to {}", file.path, file.position)
        })
        .map(drop)
}

/// Another open file for a memory file that is held at `held`, as `file` had
/// it open.
pub(in crate::restore) fn reopen(
    sys: &mut dyn Syscalls,
    pid: i32,
    held: i32,
    file: &OpenFile,
    base: i32,
) -> Result<i32, RestoreError> {
    let path = format!("self/fd/{held}");
    let flags = file.flags.cast_signed() & OPEN & !libc::O_DIRECTORY | libc::O_CLOEXEC;
    let fd = calls::open_in_proc(sys, &path, flags)
        .and_then(|fd| calls::raise(sys, fd, base))
        .during(pid, || format!("open {} by /proc/{path}", file.path))?;
    if file.position != 0 {
        seek(sys, pid, fd, file)?;
    }
    Ok(fd)
}
