//! What setsockopt(2) had been told is told again.

use crate::dataset::{Fidelity, SocketOption};
use crate::sys::socket;
use std::io;
use std::os::fd::BorrowedFd;

/// Sets all options. One that this host does not take is a line of the report.
pub(super) fn set_all<'o>(
    socket: BorrowedFd<'_>,
    options: impl IntoIterator<Item = &'o SocketOption>,
    (pid, what): (i32, &str),
    notes: &mut Vec<Fidelity>,
) {
    for option in options {
        if let Err(error) = set(socket, option) {
            notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("{} of {what}", option.name),
                format!("not set again: {error}"),
            ));
        }
    }
}

fn set(socket: BorrowedFd<'_>, option: &SocketOption) -> io::Result<()> {
    let value = &option.value.0;
    match (option.level, option.option) {
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) => socket::attach_filter(socket, value),
        (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP) => {
            socket::set(socket, option.level, option.option, &membership(value)?)
        }
        (level, name) => socket::set(socket, level, name, value),
    }
}

/// `struct ipv6_mreq`: a group, and the number that the interface of this name has here.
fn membership(value: &[u8]) -> io::Result<Vec<u8>> {
    const GROUP: usize = 16;
    const INDEX: usize = 4;
    let name = String::from_utf8_lossy(value.get(GROUP + INDEX..).unwrap_or_default());
    let index = match name.as_ref() {
        "" => 0,
        name => interface(name)?,
    };
    let mut request = value.get(..GROUP).unwrap_or_default().to_vec();
    request.extend(index.to_ne_bytes());
    Ok(request)
}

/// The number of the interface of this name.
pub(super) fn interface(name: &str) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Options that a connection gets only when it stands: a filter would stop what makes it, and what
/// waits for more would wait.
pub(super) fn is_late(option: &SocketOption) -> bool {
    let socket = [libc::SO_ATTACH_FILTER, libc::SO_LOCK_FILTER];
    match option.level {
        libc::SOL_SOCKET => socket.contains(&option.option),
        libc::IPPROTO_TCP => option.option == libc::TCP_CORK,
        _ => false,
    }
}
