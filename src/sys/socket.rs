//! Sockets that this process has at hand: calls on them whose arguments are plain bytes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Makes a socket.
///
/// # Errors
/// `socket(2)` refused.
pub fn new(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a socket in the network that another socket is in.
///
/// # Errors
/// `socket(2)` refused, or that network cannot be entered.
pub fn new_beside(
    other: BorrowedFd<'_>,
    family: i32,
    kind: i32,
    protocol: i32,
) -> io::Result<OwnedFd> {
    /// SIOCGSKNS. Linux include/uapi/linux/sockios.h.
    const NETWORK_OF: libc::c_ulong = 0x894c;
    // SAFETY: the request takes no argument.
    let network = unsafe { libc::ioctl(other.as_raw_fd(), NETWORK_OF) };
    if network < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ioctl made it for us, and nobody else knows it.
    let network = unsafe { OwnedFd::from_raw_fd(network) };
    // A thread of its own goes there, and ends there.
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            // SAFETY: an open descriptor and a plain number.
            check(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) })?;
            new(family, kind, protocol)
        });
        made.join()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
    })
}

fn check(answer: libc::c_int) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn length(bytes: &[u8]) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)
}

/// `setsockopt(2)`.
///
/// # Errors
/// It refused.
pub fn set(socket: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), length(value)?);
    // SAFETY: the slice's own pointer and length. The kernel only reads. Options whose value has
    // pointers in it have functions of their own.
    check(unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), len) })
}

/// `setsockopt(2)` with an `int`.
///
/// # Errors
/// It refused.
pub fn set_number(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    set(socket, level, option, &value.to_ne_bytes())
}

/// `getsockopt(2)` of up to `N` bytes; those that the kernel did not write are 0.
///
/// # Errors
/// It refused.
pub fn get<const N: usize>(socket: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<[u8; N]> {
    let mut value = [0u8; N];
    let mut len = length(&value)?;
    let (fd, at) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: the array's own pointer and length; the kernel writes no more than that.
    check(unsafe { libc::getsockopt(fd, level, option, at, &raw mut len) })?;
    Ok(value)
}

/// `bind(2)` to a `struct sockaddr`.
///
/// # Errors
/// It refused.
pub fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), length(address)?);
    // SAFETY: the slice's own pointer and length; the kernel only reads.
    check(unsafe { libc::bind(fd, address.as_ptr().cast(), len) })
}

/// The `struct sockaddr` that it is bound to.
///
/// # Errors
/// `getsockname(2)` refused.
pub fn name(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut address = vec![0u8; 128];
    let mut len = length(&address)?;
    let (fd, at) = (socket.as_raw_fd(), address.as_mut_ptr().cast());
    // SAFETY: the vector's own pointer and length; the kernel writes no more than that.
    check(unsafe { libc::getsockname(fd, at, &raw mut len) })?;
    address.truncate(usize::try_from(len).unwrap_or(0));
    Ok(address)
}

/// `connect(2)` to a `struct sockaddr`.
///
/// # Errors
/// It refused.
pub fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), length(address)?);
    // SAFETY: the slice's own pointer and length; the kernel only reads.
    check(unsafe { libc::connect(fd, address.as_ptr().cast(), len) })
}

/// Starts to connect, and waits no longer than `limit_ms` for an answer: 0 does not wait.
///
/// # Errors
/// It refused, nobody answered in time, or whoever did refused.
pub fn connect_within(socket: BorrowedFd<'_>, address: &[u8], limit_ms: i32) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: fcntl(2) with plain numbers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) };
    let begun = connect(socket, address);
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETFL, flags) };
    match begun {
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => return other,
    }
    if limit_ms == 0 {
        return Ok(());
    }
    let mut watched = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one structure of its own.
    let ready = unsafe { libc::poll(&raw mut watched, 1, limit_ms) };
    match ready {
        1 => match i32::from_ne_bytes(get::<4>(socket, libc::SOL_SOCKET, libc::SO_ERROR)?) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        },
        0 => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends all of `bytes`, and waits for nothing.
///
/// # Errors
/// It refused, or had no room for all.
pub fn send_all(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    while !bytes.is_empty() {
        // SAFETY: the slice's own pointer and length.
        let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
        match usize::try_from(sent) {
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// Sends one packet to a `struct sockaddr`.
///
/// # Errors
/// It refused.
pub fn send_to(socket: BorrowedFd<'_>, packet: &[u8], address: &[u8]) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), length(address)?);
    let to = address.as_ptr().cast();
    // SAFETY: pointers and lengths of two slices; the kernel only reads.
    let sent = unsafe {
        libc::sendto(
            fd,
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_DONTWAIT,
            to,
            len,
        )
    };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `shutdown(2)`.
///
/// # Errors
/// It refused.
pub fn shut_down(socket: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), how) })
}

/// Bytes that can be read, of a datagram socket in the first datagram (FIONREAD).
///
/// # Errors
/// The ioctl refused.
pub fn readable(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(bytes)
}

/// SO_ATTACH_FILTER with the instructions of `program`, 8 bytes each.
///
/// # Errors
/// It refused.
pub fn attach_filter(socket: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .as_chunks::<8>()
        .0
        .iter()
        .map(|[a, b, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    let (fd, at) = (socket.as_raw_fd(), (&raw const program).cast());
    let len = libc::socklen_t::try_from(size_of_val(&program)).map_err(io::Error::other)?;
    // SAFETY: a structure that points to as many instructions as it says; the kernel copies them.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, at, len) })
}

/// Takes a filter off. There need not be one.
///
/// # Errors
/// It is locked.
pub fn detach_filter(socket: BorrowedFd<'_>) -> io::Result<()> {
    match set_number(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
