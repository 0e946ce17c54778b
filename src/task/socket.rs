//! Sockets: those of the UNIX family, TCP and UDP.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::extract::Extraction;
use super::list::int;
use super::path::Name;
use crate::dataset::{Blob, FileKind, InetSocket, ObjectId, UnixListener, UnixState};
use crate::kernel::{KernelError, Object};

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const STREAM: i32 = 1;
const DGRAM: i32 = 2;
/// `skc_state`: TCP_LISTEN, which UNIX sockets use too.
const LISTEN: u64 = 10;
/// Longest `struct sockaddr_un`. Bytes.
const MAX_ADDRESS: u64 = 110;

/// Reads the `struct socket` at `addr`.
pub(super) fn kind(
    x: &mut Extraction<'_, '_>,
    addr: u64,
    operations: &str,
    name: &Name,
) -> Result<FileKind, KernelError> {
    let kernel = x.kernel;
    let socket = kernel.object("socket", addr)?;
    let sk = socket.follow("sk")?;
    let family = sk.u("__sk_common.skc_family")?;
    if matches!(family, AF_INET | AF_INET6) && matches!(int(&sk, "sk_type")?, STREAM | DGRAM) {
        return inet(x, &sk, family, name);
    }
    if family != AF_UNIX {
        let family = match family {
            2 => "an IPv4".to_owned(),
            10 => "an IPv6".to_owned(),
            16 => "a netlink".to_owned(),
            17 => "a packet".to_owned(),
            40 => "a vsock".to_owned(),
            other => format!("a family {other}"),
        };
        let listening = if sk.u("__sk_common.skc_state")? == LISTEN {
            " listening"
        } else {
            ""
        };
        return Ok(FileKind::Unsupported {
            operations: operations.to_owned(),
            private_data: ObjectId(addr),
            why: format!("{family}{listening} socket"),
        });
    }
    let unix = kernel
        .object("unix_sock", sk.addr())
        .or_else(|_| kernel.object_in("unix", "unix_sock", sk.addr()))?;
    let peer = unix.ptr("peer")?;
    let unread = sk.u("sk_receive_queue.qlen")?;
    let state = if sk.u("__sk_common.skc_state")? == LISTEN {
        if unread > 0 {
            x.lost(
                &name.path,
                "connections waiting to be accepted",
                format!("{unread} peers see them closed"),
            );
        }
        UnixState::Listening {
            backlog: u32::try_from(sk.u("sk_max_ack_backlog")?).unwrap_or(u32::MAX),
        }
    } else {
        if unread > 0 {
            x.lost(
                &name.path,
                "received and unread",
                format!("{unread} messages of its receive queue"),
            );
        }
        if peer == 0 {
            UnixState::Unconnected
        } else {
            UnixState::Connected {
                peer: ObjectId(peer),
            }
        }
    };
    Ok(FileKind::UnixSocket(UnixListener {
        socket: ObjectId(sk.addr()),
        socket_type: int(&sk, "sk_type")?,
        address: Blob(address(&unix)?),
        state,
    }))
}

/// A TCP or UDP socket: all that is needed lies in `struct sock_common`.
fn inet(
    x: &mut Extraction<'_, '_>,
    sk: &Object<'_>,
    family: u64,
    name: &Name,
) -> Result<FileKind, KernelError> {
    let common = |member: &str| format!("__sk_common.{member}");
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
    let bit = |member: &str| sk.u(&common(member)).is_ok_and(|value| value != 0);
    let listening = sk.u(&common("skc_state"))? == LISTEN;
    let socket = InetSocket {
        family: int(sk, &common("skc_family"))?,
        socket_type: int(sk, "sk_type")?,
        protocol: int(sk, "sk_protocol")?,
        local,
        remote: (remote.port() != 0).then_some(remote),
        backlog: listening
            .then(|| sk.u("sk_max_ack_backlog"))
            .transpose()?
            .map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        reuse_address: bit("skc_reuse"),
        reuse_port: bit("skc_reuseport"),
        v6only: bit("skc_ipv6only"),
    };
    if socket.socket_type == STREAM
        && let Some(remote) = socket.remote
    {
        x.lost(
            &name.path,
            "connection",
            format!("TCP connection with {remote}: it sees it closed"),
        );
    }
    Ok(FileKind::InetSocket(socket))
}

/// `sun_path` of a bound socket.
fn address(unix: &Object<'_>) -> Result<Vec<u8>, KernelError> {
    let Some(address) = unix.follow_opt("addr")? else {
        return Ok(Vec::new());
    };
    let len = address.u("len")?;
    if len > MAX_ADDRESS {
        return Err(KernelError::Damaged {
            what: "unix_address",
            addr: address.addr(),
            detail: format!("it is {len} bytes long"),
        });
    }
    let kernel = unix.kernel();
    let ty = address.type_name();
    let offset = kernel
        .offset_of("unix_address", "name")
        .map_err(|_| KernelError::NoMember {
            ty,
            path: "name".into(),
        })?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    kernel.read(address.addr().wrapping_add(offset), &mut bytes)?;
    // Behind the family, 2 bytes.
    let mut path: Vec<u8> = bytes.into_iter().skip(2).collect();
    if path.first() != Some(&0) {
        while path.last() == Some(&0) {
            path.pop();
        }
    }
    Ok(path)
}

/// Names the connections whose other half is not in the extraction.
pub(super) fn missing_peers(x: &mut Extraction<'_, '_>) {
    let sockets = |x: &Extraction<'_, '_>| -> Vec<(String, UnixListener)> {
        x.out
            .files
            .iter()
            .filter_map(|f| match &f.kind {
                FileKind::UnixSocket(s) => Some((f.path.clone(), s.clone())),
                _ => None,
            })
            .collect()
    };
    let all = sockets(x);
    let known: HashSet<ObjectId> = all.iter().map(|(_, s)| s.socket).collect();
    for (path, socket) in all {
        if let UnixState::Connected { peer } = socket.state
            && !known.contains(&peer)
        {
            x.lost(
                &path,
                "connection",
                "its peer is not among the processes that are restored: it sees the connection closed",
            );
        }
    }
}
