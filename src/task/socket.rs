//! Sockets: which family each is of, and those of the UNIX family.

use std::collections::{HashMap, HashSet};

use super::extract::Extraction;
use super::holders::{self, Elsewhere};
use super::list::int;
use super::path::Name;
use super::{inet, socket_options, unix_queue};
use crate::dataset::{Blob, FileKind, ObjectId, Rights, SocketFile, UnixListener, UnixState};
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
        return inet::read(x, &sk, family, name);
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
    let count = sk.u("sk_receive_queue.qlen")?;
    let mut waiting = Vec::new();
    let (state, unread) = if sk.u("__sk_common.skc_state")? == LISTEN {
        waiting = unix_queue::waiting(&sk).unwrap_or_else(|error| {
            x.lost(
                &name.path,
                "connections waiting to be accepted",
                format!("{count} peers see them closed: {error}"),
            );
            Vec::new()
        });
        let backlog = u32::try_from(sk.u("sk_max_ack_backlog")?).unwrap_or(u32::MAX);
        (UnixState::Listening { backlog }, Vec::new())
    } else {
        let unread = unix_queue::unread(&sk).unwrap_or_else(|error| {
            x.lost(
                &name.path,
                "received and unread",
                format!("{count} messages of its receive queue: {error}"),
            );
            Vec::new()
        });
        let state = match peer {
            0 => UnixState::Unconnected,
            peer => UnixState::Connected {
                peer: ObjectId(peer),
            },
        };
        (state, unread)
    };
    // Since Linux commit 314001f0bf92 ("af_unix: Add OOB support") (in v5.15).
    if unix.has("oob_skb") && unix.ptr("oob_skb")? != 0 {
        x.reconstructed(
            &name.path,
            "out-of-band byte",
            "it comes in its turn, as an ordinary one",
        );
    }
    Ok(FileKind::UnixSocket(UnixListener {
        socket: ObjectId(sk.addr()),
        socket_type: int(&sk, "sk_type")?,
        address: Blob(address(&unix)?),
        state,
        file: file(&unix),
        unread,
        shutdown: u8::try_from(sk.u("sk_shutdown")?).unwrap_or(0),
        send_buffer: u32::try_from(sk.u("sk_sndbuf")?).unwrap_or(0),
        pass_credentials: pass_credentials(&socket, &sk)?,
        waiting,
        options: socket_options::of_any(x, &sk, name),
    }))
}

/// SO_PASSCRED.
fn pass_credentials(socket: &Object<'_>, sk: &Object<'_>) -> Result<bool, KernelError> {
    /// Its bit in `socket.flags`: SOCK_PASSCRED.
    const PASSCRED: u64 = 3;
    // A bit of its own in struct sock since v6.16 or so.
    if sk.has("sk_scm_credentials") {
        return Ok(sk.u("sk_scm_credentials")? != 0);
    }
    Ok(socket.u("flags")? >> PASSCRED & 1 != 0)
}

/// The file of one that is bound to a path: `unix_sock.path`.
fn file(unix: &Object<'_>) -> Option<SocketFile> {
    let rights = |dentry: &Object<'_>| -> Result<Rights, KernelError> {
        let inode = dentry.follow("d_inode")?;
        let number = |field| inode.u(field).map(|n| u32::try_from(n).unwrap_or(0));
        Ok(Rights {
            mode: number("i_mode")? & 0o7777,
            uid: number("i_uid.val")?,
            gid: number("i_gid.val")?,
        })
    };
    let dentry = unix.follow_opt("path.dentry").ok()??;
    Some(SocketFile {
        rights: rights(&dentry).ok()?,
        directory: dentry.follow("d_parent").and_then(|dir| rights(&dir)).ok(),
    })
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

/// `SOCK_DEAD` of `sock_common.skc_flags`: nobody had it any more. Linux include/net/sock.h.
const SOCK_DEAD: u64 = 1;

/// Connected UNIX sockets whose other half is not in the extraction, and the
/// `struct socket` of that; 0 where it has none: it waited to be accepted. Those
/// whose other half was closed before the crash are not among them: they lose nothing.
pub(super) fn peers_outside(x: &Extraction<'_, '_>) -> HashMap<ObjectId, u64> {
    let sockets = || {
        x.out.files.iter().filter_map(|f| match &f.kind {
            FileKind::UnixSocket(socket) => Some(socket),
            _ => None,
        })
    };
    let waiting = sockets().flat_map(|s| s.waiting.iter().map(|w| w.socket));
    let known: HashSet<ObjectId> = sockets().map(|s| s.socket).chain(waiting).collect();
    sockets()
        .filter_map(|socket| match socket.state {
            UnixState::Connected { peer } if !known.contains(&peer) => {
                let theirs = x.kernel.object("sock", peer.0);
                let flags = theirs
                    .as_ref()
                    .map_or(0, |sk| sk.u("__sk_common.skc_flags").unwrap_or(0));
                let theirs = theirs.and_then(|sk| sk.ptr("sk_socket")).unwrap_or(0);
                (flags & SOCK_DEAD == 0).then_some((socket.socket, theirs))
            }
            _ => None,
        })
        .collect()
}

/// Names the connections whose other half is not in the extraction.
pub(super) fn missing_peers(x: &mut Extraction<'_, '_>, elsewhere: &Elsewhere) {
    let outside = peers_outside(x);
    let cut: Vec<(String, u64)> = x
        .out
        .files
        .iter()
        .filter_map(|f| match &f.kind {
            FileKind::UnixSocket(s) => Some((f.path.clone(), *outside.get(&s.socket)?)),
            _ => None,
        })
        .collect();
    for (path, peer) in cut {
        let who = match holders::names(elsewhere, peer) {
            who if who.is_empty() => "its peer".to_owned(),
            who => format!("its peer, {who},"),
        };
        x.lost(
            &path,
            "connection",
            format!(
                "{who} is not among the processes that are restored: it sees the connection closed"
            ),
        );
    }
}
