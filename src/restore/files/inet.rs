//! TCP and UDP sockets: what listens or is bound, is so again; a TCP
//! connection has been given up by its other side since.

use super::{Place, Workshop, unix};
use crate::dataset::{Fidelity, InetSocket};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use std::net::SocketAddr;

/// `IP_FREEBIND`, which IPv6 sockets take too. Linux include/uapi/linux/in.h.
const FREEBIND: i32 = 15;

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

impl Workshop<'_> {
    /// Makes a TCP or UDP socket. A dry run binds nothing.
    pub(super) fn inet(
        &mut self,
        socket: &InetSocket,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        let stream = socket.socket_type == libc::SOCK_STREAM;
        if stream && socket.remote.is_some() {
            // It did not outlive the host, as the dataset says.
            return unix::closed(libc::SOCK_STREAM, place);
        }
        let kind = arg(socket.socket_type | libc::SOCK_CLOEXEC);
        let call = [arg(socket.family), kind, arg(socket.protocol)];
        let sys = &mut *place.sys;
        let fd = calls::make_fd(sys, libc::SYS_socket, call).during(pid, || "socket".into())?;
        for (set, level, name) in [
            (socket.reuse_address, libc::SOL_SOCKET, libc::SO_REUSEADDR),
            (socket.reuse_port, libc::SOL_SOCKET, libc::SO_REUSEPORT),
            (socket.v6only, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        ] {
            if set {
                set_option(sys, fd, level, name)
                    .during(pid, || format!("setsockopt {level}/{name}"))?;
            }
        }
        if self.dry_run {
            return Ok(fd);
        }
        if socket.local.port() != 0 {
            let bound = with_address(sys, libc::SYS_bind, fd, socket.local);
            let bound = match bound {
                // The interface with this address may come up later.
                Err(Errno(libc::EADDRNOTAVAIL)) => {
                    self.notes.push(Fidelity::reconstructed(
                        format!("pid {pid}"),
                        format!("socket at {}", socket.local),
                        "no interface has this address now: bound to it all the same (IP_FREEBIND)",
                    ));
                    set_option(sys, fd, libc::IPPROTO_IP, FREEBIND)
                        .and_then(|()| with_address(sys, libc::SYS_bind, fd, socket.local))
                }
                other => other,
            };
            bound.during(pid, || format!("bind to {}", socket.local))?;
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

fn set_option(sys: &mut dyn Syscalls, fd: i32, level: i32, name: i32) -> Result<(), Errno> {
    let at = calls::put(sys, &1i32.to_ne_bytes())?;
    let call = [arg(fd), arg(level), arg(name), at, 4];
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

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
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
