//! TCP and UDP sockets: what listens or is bound, is so again, with its options.

use super::{Place, Workshop, socket_options, unix};
use crate::dataset::{Fidelity, FileKind, InetSocket, MulticastGroup, OpenFile};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use crate::sys::{pidfd, socket as own_socket};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

/// `IP_FREEBIND`, which IPv6 sockets take too. Linux include/uapi/linux/in.h.
const FREEBIND: i32 = 15;

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

/// What a file is, if it is such a socket.
pub(super) fn of_file(file: &OpenFile) -> Option<&InetSocket> {
    match &file.kind {
        FileKind::InetSocket(socket) => Some(socket),
        _ => None,
    }
}

impl<'d> Workshop<'d> {
    /// Makes a TCP or UDP socket. A dry run binds nothing.
    pub(super) fn inet(
        &mut self,
        socket: &'d InetSocket,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        let stream = socket.socket_type == libc::SOCK_STREAM;
        if stream && socket.remote.is_some() && socket.connection.is_none() {
            // It did not outlive the host, as the dataset says.
            return unix::closed(libc::SOCK_STREAM, place);
        }
        let kind = arg(socket.socket_type | libc::SOCK_CLOEXEC);
        let call = [arg(socket.family), kind, arg(socket.protocol)];
        let fd = match calls::make_fd(place.sys, libc::SYS_socket, call) {
            // Sockets for pings are an administrator's to allow (net.ipv4.ping_group_range).
            Err(Errno(libc::EACCES)) if is_ping(socket) => {
                self.lose(pid, socket, "this host allows no such sockets");
                return unix::quiet(place);
            }
            other => other.during(pid, || "socket".into())?,
        };
        let sys = &mut *place.sys;
        for (set, level, name) in [
            (socket.reuse_address, libc::SOL_SOCKET, libc::SO_REUSEADDR),
            (socket.reuse_port, libc::SOL_SOCKET, libc::SO_REUSEPORT),
            (socket.keepalive, libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (socket.broadcast, libc::SOL_SOCKET, libc::SO_BROADCAST),
            (socket.v6only, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        ] {
            if set {
                set_option(sys, fd, level, name, &1i32.to_ne_bytes())
                    .during(pid, || format!("setsockopt {level}/{name}"))?;
            }
        }
        // The kernel doubles what is asked for, and root may exceed the limits.
        for (size, name) in [
            (socket.receive_buffer, libc::SO_RCVBUFFORCE),
            (socket.send_buffer, libc::SO_SNDBUFFORCE),
        ] {
            if let Some(size) = size {
                let half = (size / 2).to_ne_bytes();
                set_option(sys, fd, libc::SOL_SOCKET, name, &half)
                    .during(pid, || format!("setsockopt {name} of {size} bytes"))?;
            }
        }
        if let Some(interface) = &socket.interface {
            let name = interface.as_bytes();
            if let Err(errno) = set_option(sys, fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name) {
                // Without its interface it would listen to the whole world.
                return Err(errno).during(pid, || format!("bind a socket to {interface}"));
            }
        }
        let own = pidfd::take(place.tid, fd).during(pid, || "pidfd_getfd of a socket".into())?;
        let connected = socket.connection.is_some();
        let options = socket.options.iter();
        let now = options.filter(|option| !connected || !socket_options::is_late(option));
        let what = format!("the socket at {}", socket.local);
        socket_options::set_all(own.as_fd(), now, (pid, &what), &mut self.notes);
        if self.dry_run {
            return Ok(fd);
        }
        if let (Some(connection), Some(remote)) = (socket.connection.as_deref(), socket.remote) {
            return self.connect(fd, socket, (connection, remote), place);
        }
        let sys = &mut *place.sys;
        if socket.local.port() != 0 {
            let bound = match with_address(sys, libc::SYS_bind, fd, socket.local) {
                // The interface with this address may come up later.
                Err(Errno(libc::EADDRNOTAVAIL)) => {
                    self.notes.push(Fidelity::reconstructed(
                        format!("pid {pid}"),
                        format!("socket at {}", socket.local),
                        "no interface has this address now: bound to it all the same (IP_FREEBIND)",
                    ));
                    set_option(sys, fd, libc::IPPROTO_IP, FREEBIND, &1i32.to_ne_bytes())
                        .and_then(|()| with_address(sys, libc::SYS_bind, fd, socket.local))
                }
                // The kernel had picked the port: it picks another.
                Err(Errno(libc::EADDRINUSE)) if socket.any_port => {
                    self.notes.push(Fidelity::reconstructed(
                        format!("pid {pid}"),
                        format!("socket at {}", socket.local),
                        "its port, which the kernel had chosen, is in use: it has another",
                    ));
                    let any = SocketAddr::new(socket.local.ip(), 0);
                    with_address(sys, libc::SYS_bind, fd, any)
                }
                other => other,
            };
            bound.during(pid, || format!("bind to {}", socket.local))?;
        }
        for group in &socket.groups {
            if let Err(errno) = join(sys, fd, group) {
                self.notes.push(Fidelity::lost(
                    format!("pid {pid}"),
                    format!("multicast group {}", group.group),
                    format!("the socket at {} is not in it: {errno}", socket.local),
                ));
            }
        }
        if let Some(backlog) = socket.backlog {
            calls::plain(sys, libc::SYS_listen, [arg(fd), backlog.into()])
                .during(pid, || format!("listen at {}", socket.local))?;
        }
        if let Some(remote) = socket.remote
            && let Err(errno) = with_address(sys, libc::SYS_connect, fd, remote)
        {
            self.notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("UDP socket connected to {remote}"),
                format!("{errno}: it is not connected"),
            ));
        }
        Ok(fd)
    }
}

impl Workshop<'_> {
    fn lose(&mut self, pid: i32, socket: &InetSocket, why: &str) {
        self.notes.push(Fidelity::lost(
            format!("pid {pid}"),
            format!("socket at {}", socket.local),
            format!("{why}: nothing comes on it any more"),
        ));
    }
}

/// ICMP through a datagram socket, as QEMU's user-mode network makes it for a guest's pings.
fn is_ping(socket: &InetSocket) -> bool {
    [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6].contains(&socket.protocol)
}

/// IP_ADD_MEMBERSHIP.
fn join(sys: &mut dyn Syscalls, fd: i32, group: &MulticastGroup) -> Result<(), Errno> {
    let index = match &group.interface {
        None => 0,
        Some(name) => socket_options::interface(name).map_err(|_| Errno(libc::ENODEV))?,
    };
    // struct ip_mreqn.
    let mut request = group.group.octets().to_vec();
    request.extend(group.address.octets());
    request.extend(i32::to_ne_bytes(index));
    set_option(sys, fd, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &request)
}

fn set_option(
    sys: &mut dyn Syscalls,
    fd: i32,
    level: i32,
    name: i32,
    value: &[u8],
) -> Result<(), Errno> {
    let at = calls::put(sys, value)?;
    let call = [arg(fd), arg(level), arg(name), at, value.len() as u64];
    calls::plain(sys, libc::SYS_setsockopt, call).map(drop)
}

fn with_address(
    sys: &mut dyn Syscalls,
    number: i64,
    fd: i32,
    address: SocketAddr,
) -> Result<(), Errno> {
    let bytes = sockaddr(address);
    let at = calls::put(sys, &bytes)?;
    calls::plain(sys, number, [arg(fd), at, bytes.len() as u64]).map(drop)
}

/// `getsockname(2)`.
pub(super) fn own_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let bytes = own_socket::name(socket)?;
    let port = |at: usize| {
        bytes
            .get(at..at + 2)
            .map_or(0, |b| u16::from(b[0]) << 8 | u16::from(b[1]))
    };
    let ip = match bytes.len() {
        0..28 => <[u8; 4]>::try_from(bytes.get(4..8).unwrap_or_default())
            .map(IpAddr::from)
            .map_err(io::Error::other)?,
        _ => <[u8; 16]>::try_from(bytes.get(8..24).unwrap_or_default())
            .map(|sixteen| IpAddr::from(Ipv6Addr::from(sixteen)))
            .map_err(io::Error::other)?,
    };
    Ok(SocketAddr::new(ip, port(2)))
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
pub(super) fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let family = |f: i32| u16::try_from(f).unwrap_or(0).to_ne_bytes();
    match address {
        SocketAddr::V4(v4) => {
            let mut bytes = family(libc::AF_INET).to_vec();
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.resize(16, 0);
            bytes
        }
        SocketAddr::V6(v6) => {
            let mut bytes = family(libc::AF_INET6).to_vec();
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sockaddr;

    #[test]
    fn addresses_are_in_network_order() {
        let v4 = "127.0.0.1:5900".parse().map(sockaddr);
        assert_eq!(
            v4.as_deref(),
            Ok(&[2, 0, 0x17, 0x0c, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0][..])
        );
        let v6 = "[::1]:1".parse().map(sockaddr).unwrap_or_default();
        assert_eq!((v6.len(), v6[0], v6[3], v6[23]), (28, 10, 1, 1));
    }
}
