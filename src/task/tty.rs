//! Terminals: `struct tty_struct`.

use super::inode;
use crate::dataset::{Blob, FileKind};
use crate::kernel::{Kernel, KernelError, Object};

/// `tty_driver.type` of pseudo-terminals, where it is not an enum yet. Linux
/// include/linux/tty_driver.h.
const TTY_DRIVER_TYPE_PTY: i64 = 4;

/// Reads the terminal behind a file with `private_data` at `addr`.
pub(super) fn kind(
    kernel: &Kernel,
    addr: u64,
    inode: &Object<'_>,
) -> Result<FileKind, KernelError> {
    let (major, minor) = inode::device_number(inode)?;
    if addr == 0 {
        return Ok(FileKind::Tty {
            major,
            minor,
            termios: None,
            pty_index: None,
        });
    }
    let tty = kernel.object("tty_file_private", addr)?.follow("tty")?;
    let driver = tty.follow("driver")?;
    let index = u32::try_from(tty.i("index")?).unwrap_or(0);
    // What /dev/tty and /dev/console stand for is the driver's to say.
    let of_driver = |field: &str| driver.i(field).ok().and_then(|v| u32::try_from(v).ok());
    let pty = kernel
        .enum_value("tty_driver_type", "TTY_DRIVER_TYPE_PTY")
        .unwrap_or(TTY_DRIVER_TYPE_PTY);
    Ok(FileKind::Tty {
        major: of_driver("major").unwrap_or(major),
        minor: of_driver("minor_start").map_or(minor, |first| first.saturating_add(index)),
        termios: tty.get("termios").and_then(|t| t.bytes()).map(Blob).ok(),
        pty_index: (driver.i("type")? == pty).then_some(index),
    })
}
