//! TCP and UDP sockets: where they are bound, and what they were told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::extract::Extraction;
use super::list::int;
use super::path::Name;
use super::{net_device, socket_options, tcp, udp_queue};
use crate::dataset::{FileKind, InetSocket, MulticastGroup, TcpConnection, TcpPeer, TcpState};
use crate::kernel::{KernelError, Object};

const AF_INET: u64 = 2;
const STREAM: i32 = 1;
const DGRAM: i32 = 2;
const TCP: i32 = 6;
const UDP: i32 = 17;
/// `skc_state`: TCP_LISTEN.
const LISTEN: u64 = 10;
/// `sk_userlocks`: SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK, SOCK_BINDPORT_LOCK. Linux
/// include/net/sock.h.
const SEND_BUFFER: u64 = 1;
const RECEIVE_BUFFER: u64 = 2;
const BIND_PORT: u64 = 8;

/// What a connection that nobody keeps is called in the report.
const CONNECTION: &str = "connection";

fn common(member: &str) -> String {
    format!("__sk_common.{member}")
}

/// Its own address and the other's: all that is needed lies in `struct sock_common`.
pub(super) fn addresses(sk: &Object<'_>) -> Result<(SocketAddr, SocketAddr), KernelError> {
    let family = sk.u(&common("skc_family"))?;
    let address = |v4: &str, v6: &str, port: u16| -> Result<SocketAddr, KernelError> {
        let (member, len) = if family == AF_INET { (v4, 4) } else { (v6, 16) };
        let bytes = sk.get(&common(member))?.read_bytes(len)?;
        Ok(match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(four) => (Ipv4Addr::from(four), port).into(),
            Err(_) => {
                let sixteen = <[u8; 16]>::try_from(bytes.as_slice()).unwrap_or_default();
                (Ipv6Addr::from(sixteen), port).into()
            }
        })
    };
    let port = |member: &str| -> Result<u16, KernelError> {
        Ok(u16::try_from(sk.u(&common(member))?).unwrap_or(0))
    };
    // skc_num is in the host's byte order, skc_dport in the network's.
    let local = address("skc_rcv_saddr", "skc_v6_rcv_saddr", port("skc_num")?)?;
    let remote = address("skc_daddr", "skc_v6_daddr", port("skc_dport")?.swap_bytes())?;
    Ok((local, remote))
}

/// Reads a TCP or UDP socket.
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    sk: &Object<'_>,
    family: u64,
    name: &Name,
) -> Result<FileKind, KernelError> {
    let (local, remote) = addresses(sk)?;
    let bit = |member: &str| sk.u(&common(member)).is_ok_and(|value| value != 0);
    // `skc_flags` and `sk_userlocks`: what setsockopt(2) and bind(2) had set.
    let flag = |name: &str| socket_options::flag(sk, name);
    let locks = sk.u("sk_userlocks").unwrap_or(0);
    let buffer = |lock: u64, member: &str| -> Option<u32> {
        let set = locks & lock != 0;
        set.then(|| sk.u(member).ok().and_then(|n| u32::try_from(n).ok()))?
    };
    let interface = int(sk, &common("skc_bound_dev_if")).unwrap_or(0);
    let listening = sk.u(&common("skc_state"))? == LISTEN;
    let (socket_type, protocol) = (int(sk, "sk_type")?, int(sk, "sk_protocol")?);
    let mut socket = InetSocket {
        family: i32::try_from(family).unwrap_or(0),
        socket_type,
        protocol,
        local,
        remote: (remote.port() != 0).then_some(remote),
        backlog: listening
            .then(|| sk.u("sk_max_ack_backlog"))
            .transpose()?
            .map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        // 2 while TCP_REPAIR is on.
        reuse_address: sk.u(&common("skc_reuse")).is_ok_and(|value| value == 1),
        reuse_port: bit("skc_reuseport"),
        v6only: bit("skc_ipv6only"),
        any_port: locks & BIND_PORT == 0 && !listening,
        keepalive: flag("SOCK_KEEPOPEN"),
        broadcast: flag("SOCK_BROADCAST"),
        receive_buffer: buffer(RECEIVE_BUFFER, "sk_rcvbuf"),
        send_buffer: buffer(SEND_BUFFER, "sk_sndbuf"),
        interface: net_device::name_of(x.kernel, interface).unwrap_or_default(),
        groups: groups(sk).unwrap_or_else(|error| {
            x.lost(&name.path, "multicast groups", error.to_string());
            Vec::new()
        }),
        options: Vec::new(),
        connection: None,
        waiting: Vec::new(),
        unread: Vec::new(),
    };
    socket.options = socket_options::of_inet(x, sk, &socket, name);
    let unread = sk.u("sk_receive_queue.qlen").unwrap_or(0);
    if socket_type == DGRAM && protocol == UDP {
        socket.unread = udp_queue::unread(sk).unwrap_or_else(|error| {
            let why = format!("datagrams, which networks may lose: {error}");
            x.lost(&name.path, "received and unread", why);
            Vec::new()
        });
    } else if socket_type == DGRAM && unread > 0 {
        let why = format!("{unread} datagrams, which networks may lose");
        x.lost(&name.path, "received and unread", why);
    }
    if protocol == TCP && listening {
        socket.waiting = tcp::waiting(x, sk, name);
    } else if protocol == TCP {
        match tcp::connection(x, sk, name) {
            Ok(connection) => socket.connection = connection.map(Box::new),
            Err(error) => {
                let why = format!("TCP connection with {remote}: it sees it closed: {error}");
                x.lost(&name.path, CONNECTION, why);
            }
        }
    } else if socket_type == STREAM
        && let Some(remote) = socket.remote
    {
        let why = format!("connection with {remote}: it sees it closed");
        x.lost(&name.path, CONNECTION, why);
    }
    Ok(FileKind::InetSocket(socket))
}

/// IPv4 multicast groups: `inet_sock.mc_list`.
fn groups(sk: &Object<'_>) -> Result<Vec<MulticastGroup>, KernelError> {
    /// IP_MAX_MEMBERSHIPS is 20 by default; a program may not have more than an administrator
    /// allows.
    const MOST: usize = 1024;
    let kernel = sk.kernel();
    let inet = kernel.object("inet_sock", sk.addr())?;
    let mut found = Vec::new();
    let mut next = inet.follow_opt("mc_list")?;
    while let Some(entry) = next {
        let address = |member: &str| -> Result<Ipv4Addr, KernelError> {
            let bytes = entry.get(member)?.read_bytes(4)?;
            Ok(<[u8; 4]>::try_from(bytes.as_slice()).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from))
        };
        found.push(MulticastGroup {
            group: address("multi.imr_multiaddr.s_addr")?,
            address: address("multi.imr_address.s_addr")?,
            interface: net_device::name_of(kernel, int(&entry, "multi.imr_ifindex")?)?,
        });
        if found.len() >= MOST {
            break;
        }
        next = entry.follow_opt("next_rcu")?;
    }
    Ok(found)
}

/// Says of every connection where its other end is, and of those that end what becomes of them.
pub(super) fn settle_peers(x: &mut Extraction<'_, '_>) {
    let mut ends = Vec::new();
    for file in &x.out.files {
        if let FileKind::InetSocket(socket) = &file.kind {
            let remote = socket.connection.as_ref().and(socket.remote);
            ends.extend(remote.map(|remote| (canonical(socket.local), canonical(remote))));
            let waiting = socket.waiting.iter();
            ends.extend(waiting.map(|w| (canonical(w.to), canonical(w.from))));
        }
    }
    if ends.is_empty() {
        return;
    }
    let own = net_device::addresses(x.kernel);
    let place = |local: SocketAddr, remote: SocketAddr| {
        let (local, remote) = (canonical(local), canonical(remote));
        let here =
            local.ip() == remote.ip() || remote.ip().is_loopback() || own.contains(&remote.ip());
        match ends.contains(&(remote, local)) {
            true => TcpPeer::Restored,
            false if here => TcpPeer::Gone,
            false => TcpPeer::Elsewhere,
        }
    };
    let mut gone = Vec::new();
    for file in &mut x.out.files {
        let FileKind::InetSocket(socket) = &mut file.kind else {
            continue;
        };
        let (local, remote) = (socket.local, socket.remote);
        if let (Some(connection), Some(remote)) = (socket.connection.as_deref_mut(), remote) {
            connection.peer = place(local, remote);
            gone.extend(ended(connection, remote).map(|why| (file.path.clone(), CONNECTION, why)));
        }
        for waiting in &mut socket.waiting {
            let peer = place(waiting.to, waiting.from);
            waiting.connection.peer = peer;
            let why = match peer {
                TcpPeer::Restored => continue,
                TcpPeer::Gone => format!(
                    "{}, which is not among the processes that are restored: the connection can \
                     be accepted, and has ended",
                    waiting.from
                ),
                TcpPeer::Elsewhere => format!("{} sees it closed", waiting.from),
            };
            gone.push((file.path.clone(), "connections waiting to be accepted", why));
        }
    }
    for (path, what, why) in gone {
        x.lost(&path, what, why);
    }
}

/// Why a connection does not go on.
fn ended(connection: &TcpConnection, remote: SocketAddr) -> Option<String> {
    let over = matches!(connection.state, TcpState::Closed | TcpState::SynSent);
    (connection.peer == TcpPeer::Gone && !over).then(|| {
        format!(
            "TCP connection with {remote} on this host, which is not among the processes that \
             are restored: what was received can be read, then it sees the end"
        )
    })
}

/// IPv4 within IPv6 is IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}
