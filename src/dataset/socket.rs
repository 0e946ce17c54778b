//! Sockets: of the UNIX family, TCP and UDP.

use super::{Blob, ObjectId, TcpConnection, TcpWaiting};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A UNIX socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixListener {
    /// `struct sock`'s identity.
    pub socket: ObjectId,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_SEQPACKET 5.
    pub socket_type: i32,
    /// `sun_path`, without a trailing NUL; an abstract name starts with NUL.
    /// Empty: unnamed.
    pub address: Blob,
    pub state: UnixState,
    /// Of one that is bound to a path: who may connect to it.
    #[serde(default)]
    pub file: Option<SocketFile>,
    /// What it had received and nobody had read, the oldest first.
    #[serde(default)]
    pub unread: Vec<UnixMessage>,
    /// `sk_shutdown`: it will not receive (1), not send (2).
    #[serde(default)]
    pub shutdown: u8,
    /// `sk_sndbuf`: how much it may have on its way. Bytes, 0: not known.
    #[serde(default)]
    pub send_buffer: u32,
    /// SO_PASSCRED.
    #[serde(default)]
    pub pass_credentials: bool,
    /// Of a listener: the other ends of the connections that waited to be accepted, and what
    /// each had sent, the oldest first.
    #[serde(default)]
    pub waiting: Vec<UnixWaiting>,
    /// What setsockopt(2) had set besides.
    #[serde(default)]
    pub options: Vec<SocketOption>,
}

/// The file that a UNIX socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    pub rights: Rights,
    /// Of the directory that it is in, which may have gone with the host.
    pub directory: Option<Rights>,
}

/// Permissions and owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// The lower twelve bits of `i_mode`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A connection that nobody had accepted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixWaiting {
    /// The `struct sock` that accept(2) would have given.
    pub socket: ObjectId,
    /// Who had connected: the other `struct sock`, in the same dataset or gone.
    pub peer: ObjectId,
    /// What that had sent.
    #[serde(default)]
    pub unread: Vec<UnixMessage>,
}

/// A message in the queue of a UNIX socket; of a stream, a piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixMessage {
    pub data: Blob,
    /// Open files under way in it (SCM_RIGHTS).
    #[serde(default)]
    pub files: Vec<ObjectId>,
}

/// What a UNIX socket was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum UnixState {
    Unconnected,
    Listening {
        backlog: u32,
    },
    /// `peer` is the other `struct sock`; it is in the same dataset or gone.
    Connected {
        peer: ObjectId,
    },
}

/// A TCP or UDP socket over IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetSocket {
    /// AF_INET 2, AF_INET6 10.
    pub family: i32,
    /// SOCK_STREAM 1, SOCK_DGRAM 2.
    pub socket_type: i32,
    /// IPPROTO_TCP 6, IPPROTO_UDP 17.
    pub protocol: i32,
    /// Where it is bound; port 0: nowhere.
    pub local: SocketAddr,
    /// Whom it is connected to.
    pub remote: Option<SocketAddr>,
    /// Of a listener: how many connections may wait.
    pub backlog: Option<u32>,
    /// SO_REUSEADDR, SO_REUSEPORT, IPV6_V6ONLY.
    pub reuse_address: bool,
    pub reuse_port: bool,
    pub v6only: bool,
    /// The kernel had chosen its port: another one is as good.
    #[serde(default)]
    pub any_port: bool,
    /// SO_KEEPALIVE, SO_BROADCAST.
    #[serde(default)]
    pub keepalive: bool,
    #[serde(default)]
    pub broadcast: bool,
    /// SO_RCVBUF and SO_SNDBUF, where the program set them. Bytes, as getsockopt says them:
    /// twice what was asked for.
    #[serde(default)]
    pub receive_buffer: Option<u32>,
    #[serde(default)]
    pub send_buffer: Option<u32>,
    /// SO_BINDTODEVICE, or the interface of a link-local address.
    #[serde(default)]
    pub interface: Option<String>,
    /// IPv4 multicast groups that it had joined.
    #[serde(default)]
    pub groups: Vec<MulticastGroup>,
    /// What setsockopt(2) had set besides, in the order in which it is to be set again.
    #[serde(default)]
    pub options: Vec<SocketOption>,
    /// A TCP socket's connection, also one that is over.
    #[serde(default)]
    pub connection: Option<Box<TcpConnection>>,
    /// Of a listener: connections that waited to be accepted, the oldest first.
    #[serde(default)]
    pub waiting: Vec<TcpWaiting>,
    /// Datagrams that nobody had read, the oldest first.
    #[serde(default)]
    pub unread: Vec<Datagram>,
}

/// A datagram as it had come from the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Who had sent it.
    pub from: SocketAddr,
    /// Where it was sent to: one of the host's addresses.
    pub to: SocketAddr,
    pub data: Blob,
}

/// What setsockopt(2) is to be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// As C calls it: `SO_MARK`.
    pub name: String,
    pub level: i32,
    pub option: i32,
    /// The option's value, in this machine's order of bytes.
    pub value: Blob,
}

/// IP_ADD_MEMBERSHIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MulticastGroup {
    pub group: std::net::Ipv4Addr,
    /// The address by which the interface was named, or 0.0.0.0.
    pub address: std::net::Ipv4Addr,
    /// The interface's name.
    pub interface: Option<String>,
}
