//! Terminals: `struct tty_struct`.

use super::{inode, tty_queue};
use crate::dataset::{Blob, FileKind};
use crate::kernel::{Kernel, KernelError, Object};

/// `tty_driver.type` of pseudo-terminals, where it is not an enum yet. Linux
/// include/linux/tty_driver.h.
const TTY_DRIVER_TYPE_PTY: i64 = 4;
/// `tty_driver.subtype`.
const PTY_TYPE_MASTER: i64 = 1;

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
            window: None,
            inside: None,
        });
    }
    let tty = kernel.object("tty_file_private", addr)?.follow("tty")?;
    let (major, minor, pty_index) = numbers(&tty, (major, minor))?;
    // What tcsetattr(3) says to a master is said of its slave, which keeps it.
    let is_master = pty_index.is_some() && tty.follow("driver")?.i("subtype")? == PTY_TYPE_MASTER;
    let spoken_of = if is_master {
        tty.follow_opt("link")?.unwrap_or_else(|| tty.clone())
    } else {
        tty.clone()
    };
    let bytes = |member: &str| {
        let field = spoken_of.get(member).and_then(|field| field.bytes());
        field.map(Blob).ok()
    };
    Ok(FileKind::Tty {
        major,
        minor,
        termios: bytes("termios"),
        pty_index,
        window: bytes("winsize"),
        inside: match pty_index {
            Some(_) => Some(Box::new(tty_queue::read(&tty)?)),
            None => None,
        },
    })
}

/// Device number of a `struct tty_struct`, where its driver does not say it
/// the one given, and its number among the pseudo-terminals, if it is one.
pub(super) fn numbers(
    tty: &Object<'_>,
    (major, minor): (u32, u32),
) -> Result<(u32, u32, Option<u32>), KernelError> {
    let driver = tty.follow("driver")?;
    let index = u32::try_from(tty.i("index")?).unwrap_or(0);
    // What /dev/tty and /dev/console stand for is the driver's to say.
    let of_driver = |field: &str| driver.i(field).ok().and_then(|v| u32::try_from(v).ok());
    let pty = tty
        .kernel()
        .enum_value("tty_driver_type", "TTY_DRIVER_TYPE_PTY")
        .unwrap_or(TTY_DRIVER_TYPE_PTY);
    let is_pty = driver.i("type")? == pty;
    Ok((
        of_driver("major").unwrap_or(major),
        of_driver("minor_start").map_or(minor, |first| first.saturating_add(index)),
        is_pty.then_some(index),
    ))
}
