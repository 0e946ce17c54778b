//! TCP connections: what one end of them knew.

use super::{Blob, ObjectId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One end of a TCP connection (`struct tcp_sock`). Sequence numbers as RFC 9293 names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// `struct sock`'s identity.
    pub socket: ObjectId,
    pub state: TcpState,
    /// Where the other end is.
    pub peer: TcpPeer,
    /// The first byte that the other end has not acknowledged.
    pub snd_una: u32,
    /// The first that was not sent yet.
    pub snd_nxt: u32,
    /// The one behind the last that the program had written; the end of the stream counts as one.
    pub write_seq: u32,
    /// The next that is awaited from the other end; the end of its stream counts as one.
    pub rcv_nxt: u32,
    /// What was received in order and not read.
    #[serde(default)]
    pub received: Blob,
    /// What was written and not acknowledged, from `snd_una` on.
    #[serde(default)]
    pub written: Blob,
    /// The largest segment that the other end takes (`rx_opt.mss_clamp`). Bytes.
    pub mss: u16,
    /// Shifts of the windows that the two ends announce: the other's, and its own.
    #[serde(default)]
    pub window_scales: Option<(u8, u8)>,
    /// Both ends know selective acknowledgements.
    #[serde(default)]
    pub selective: bool,
    /// Both ends send timestamps: the one that it would have sent at the crash.
    #[serde(default)]
    pub timestamp: Option<TcpTimestamp>,
    pub window: TcpWindow,
    /// How large its buffers had grown (`sk_rcvbuf`, `sk_sndbuf`). Bytes, 0: not known.
    #[serde(default)]
    pub receive_room: u32,
    #[serde(default)]
    pub send_room: u32,
    /// `sk_shutdown`: it will not receive (1), not send (2).
    #[serde(default)]
    pub shutdown: u8,
    /// An error that the program has not been told of yet (`sk_err`).
    #[serde(default)]
    pub error: i32,
    /// TCP_CORK: what does not fill a segment waits.
    #[serde(default)]
    pub corked: bool,
}

/// RFC 9293's states of a connection that a program has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum TcpState {
    /// connect(2) was under way.
    SynSent,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    /// It is over, and the program has not closed its socket.
    Closed,
}

impl TcpState {
    /// The program had said that it sends no more.
    pub fn has_ended(self) -> bool {
        use TcpState::*;
        matches!(self, FinWait1 | FinWait2 | Closing | LastAck)
    }

    /// The end of the other's stream was received.
    pub fn has_heard_the_end(self) -> bool {
        use TcpState::*;
        matches!(self, CloseWait | Closing | LastAck)
    }
}

/// Where the other end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpPeer {
    /// In the same dataset.
    Restored,
    /// On the dead host, and not in the dataset: it has gone.
    Gone,
    /// On another machine, or in another network of this one.
    Elsewhere,
}

/// The clock of a connection's timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpTimestamp {
    /// What it showed at the crash.
    pub value: u32,
    /// It counts microseconds, not milliseconds.
    #[serde(default)]
    pub microseconds: bool,
}

/// `struct tcp_repair_window`: what each end may send. Linux include/uapi/linux/tcp.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TcpWindow {
    pub snd_wl1: u32,
    pub snd_wnd: u32,
    pub max_window: u32,
    pub rcv_wnd: u32,
    pub rcv_wup: u32,
}

/// A connection that nobody had accepted yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpWaiting {
    /// Who had connected.
    pub from: SocketAddr,
    /// To which of the host's addresses.
    pub to: SocketAddr,
    pub connection: TcpConnection,
}
