//! What a terminal is told from outside of the process that has it open.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of `struct termios2`, which the kernel's `struct ktermios` equals.
pub const SETTINGS: usize = 44;
const TCSETS2: libc::c_ulong = 0x402c_542b;

fn checked(answer: libc::c_int) -> io::Result<()> {
    match answer {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// TIOCSTI: the line discipline takes the byte as if it had come in, before this
/// returns.
///
/// # Errors
/// EIO, EPERM: without CAP_SYS_ADMIN.
pub fn insert(terminal: BorrowedFd<'_>, byte: u8) -> io::Result<()> {
    // SAFETY: the call reads one byte, which lives.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSTI, &raw const byte) })
}

/// TCSETS2: of either end of a pseudo-terminal, the slave's settings.
///
/// # Errors
/// Of the call.
pub fn set(terminal: BorrowedFd<'_>, settings: &[u8; SETTINGS]) -> io::Result<()> {
    // SAFETY: the call reads as many bytes as the array has.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), TCSETS2, settings.as_ptr()) })
}

/// FIONREAD: bytes that a read gives; in line mode those of whole lines.
///
/// # Errors
/// Of the call.
pub fn waiting(terminal: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the call writes an int, which lives.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// TIOCPKT of a master: packet mode.
///
/// # Errors
/// Of the call.
pub fn packet_mode(master: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the call reads an int, which lives.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &raw const on) })
}

/// TIOCSPTLCK of a master: its slave cannot be opened.
///
/// # Errors
/// Of the call.
pub fn lock(master: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the call reads an int, which lives.
    checked(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const on) })
}

/// TIOCEXCL: nobody else may open it.
///
/// # Errors
/// Of the call.
pub fn exclusive(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory arguments.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCEXCL, 0) })
}

/// TCXONC with TCOOFF: its output stops until it is told to go on.
///
/// # Errors
/// Of the call.
pub fn stop_output(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory arguments.
    checked(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TCXONC, libc::TCOOFF) })
}

/// Writes what there is room for at once, whatever the file's own flags say.
///
/// # Errors
/// Of the call; not that there was no room.
pub fn write_now(terminal: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let fd = terminal.as_raw_fd();
    // SAFETY: fcntl with plain numbers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    checked(flags)?;
    // SAFETY: as above.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    let mut done = 0;
    let result = loop {
        // One at a time: the queue has room for the most bytes then, and what is written here may
        // have come in so.
        let Some(byte) = bytes.get(done) else {
            break Ok(done);
        };
        // SAFETY: the call reads one byte, which lives.
        let wrote = unsafe { libc::write(fd, (&raw const *byte).cast(), 1) };
        match usize::try_from(wrote) {
            Ok(0) => break Ok(done),
            Ok(n) => done += n,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e if e.kind() == io::ErrorKind::WouldBlock => break Ok(done),
                e => break Err(e),
            },
        }
    };
    // SAFETY: as above.
    checked(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) })?;
    result
}
