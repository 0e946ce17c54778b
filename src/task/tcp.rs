//! TCP connections: `struct tcp_sock` and the segments in its queues.

use std::net::SocketAddr;

use super::extract::Extraction;
use super::inet;
use super::path::Name;
use super::skb;
use super::socket_options::flag;
use crate::dataset::{
    Blob, ObjectId, TcpConnection, TcpPeer, TcpState, TcpTimestamp, TcpWaiting, TcpWindow,
};
use crate::kernel::{KernelError, Object, containers};

/// `tcp_skb_cb.tcp_flags`: TCPHDR_SYN.
const SYN: u64 = 2;
/// `urg_data`: TCP_URG_VALID, and the byte itself.
const URGENT_VALID: u64 = 0x100;
/// Most connections of one backlog: `net.core.somaxconn` is 4096.
const MOST_WAITING: usize = 1 << 16;

/// `skc_state`. Linux include/net/tcp_states.h. `None`: it has no connection.
fn state(sk: &Object<'_>) -> Result<Option<TcpState>, KernelError> {
    Ok(Some(match sk.u("__sk_common.skc_state")? {
        1 => TcpState::Established,
        2 => TcpState::SynSent,
        4 => TcpState::FinWait1,
        5 => TcpState::FinWait2,
        7 if sk.u("__sk_common.skc_dport")? != 0 => TcpState::Closed,
        8 => TcpState::CloseWait,
        9 => TcpState::LastAck,
        11 => TcpState::Closing,
        7 => return Ok(None),
        other => {
            return Err(KernelError::Damaged {
                what: "sock",
                addr: sk.addr(),
                detail: format!("a connection in state {other}"),
            });
        }
    }))
}

/// The connection of a TCP socket that does not listen.
pub(super) fn connection(
    x: &mut Extraction<'_, '_>,
    sk: &Object<'_>,
    name: &Name,
) -> Result<Option<TcpConnection>, KernelError> {
    let Some(state) = state(sk)? else {
        return Ok(None);
    };
    let tcp = sk.kernel().object("tcp_sock", sk.addr())?;
    refuse(&tcp)?;
    let number = |member: &str| -> Result<u32, KernelError> {
        Ok(u32::try_from(tcp.u(member)?).unwrap_or(0))
    };
    let (snd_una, snd_nxt) = (number("snd_una")?, number("snd_nxt")?);
    let (write_seq, rcv_nxt) = (number("write_seq")?, number("rcv_nxt")?);
    let options = tcp.get("rx_opt")?;
    let has = |member: &str| options.u(member).is_ok_and(|value| value != 0);
    let shift = |member: &str| options.u(member).map(|n| u8::try_from(n).unwrap_or(0));
    let scales = match has("wscale_ok") {
        true => Some((shift("snd_wscale")?, shift("rcv_wscale")?)),
        false => None,
    };
    let mut received = received(sk, &tcp, state, rcv_nxt)?;
    urgent(x, sk, &tcp, &mut received, rcv_nxt, state, name)?;
    let written = match state {
        TcpState::SynSent | TcpState::Closed => Vec::new(),
        _ => written(
            sk,
            &tcp,
            snd_una,
            write_seq.wrapping_sub(u32::from(state.has_ended())),
        )?,
    };
    Ok(Some(TcpConnection {
        socket: ObjectId(sk.addr()),
        state,
        // All are looked at together, later.
        peer: TcpPeer::Elsewhere,
        snd_una,
        snd_nxt,
        write_seq,
        rcv_nxt,
        received: Blob(received),
        written: Blob(written),
        mss: u16::try_from(options.u("mss_clamp")?).unwrap_or(u16::MAX),
        window_scales: scales,
        selective: has("sack_ok"),
        timestamp: match has("tstamp_ok") {
            true => Some(timestamp(x, &tcp)?),
            false => None,
        },
        window: TcpWindow {
            snd_wl1: number("snd_wl1")?,
            snd_wnd: number("snd_wnd")?,
            max_window: number("max_window")?,
            rcv_wnd: number("rcv_wnd")?,
            rcv_wup: number("rcv_wup")?,
        },
        receive_room: u32::try_from(sk.u("sk_rcvbuf")?).unwrap_or(0),
        send_room: u32::try_from(sk.u("sk_sndbuf")?).unwrap_or(0),
        shutdown: u8::try_from(sk.u("sk_shutdown")?).unwrap_or(0),
        error: i32::try_from(sk.i("sk_err")?).unwrap_or(0),
        corked: tcp.u("nonagle")? & 2 != 0,
    }))
}

/// What cannot go on: connections that the kernel itself encrypts or signs.
fn refuse(tcp: &Object<'_>) -> Result<(), KernelError> {
    let set = |member: &str| tcp.has(member) && tcp.ptr(member).is_ok_and(|at| at != 0);
    let why = if set("inet_conn.icsk_ulp_ops") {
        "the kernel itself speaks another protocol in it (TLS)"
    } else if set("md5sig_info") || set("ao_info") {
        "its segments are signed, and the keys are not carried over"
    } else {
        return Ok(());
    };
    Err(KernelError::Damaged {
        what: "tcp_sock",
        addr: tcp.addr(),
        detail: why.into(),
    })
}

/// Its clock of timestamps at the crash, a little in the future: it must never go back.
fn timestamp(x: &Extraction<'_, '_>, tcp: &Object<'_>) -> Result<TcpTimestamp, KernelError> {
    /// The clock at the crash is known to some milliseconds.
    const AHEAD_NS: i64 = 20_000_000;
    // Since Linux commit 614e8316aa4c ("tcp: add support for usec resolution in TCP TS values")
    // (in v6.7).
    let microseconds = tcp.has("tcp_usec_ts") && tcp.u("tcp_usec_ts")? != 0;
    let newest_us = x
        .clocks
        .monotonic
        .saturating_add(AHEAD_NS)
        .max(0)
        .cast_unsigned()
        / 1000;
    // The last time that it looked at the clock. Microseconds.
    let newest_us = newest_us.max(tcp.u("tcp_mstamp").unwrap_or(0));
    let ticks = match microseconds {
        true => newest_us,
        false => newest_us / 1000,
    };
    let offset = u32::try_from(tcp.u("tsoffset")?).unwrap_or(0);
    // Modulo 2³², as the clock itself.
    let value = u32::try_from(ticks & u64::from(u32::MAX)).unwrap_or(0);
    Ok(TcpTimestamp {
        value: value.wrapping_add(offset),
        microseconds,
    })
}

/// The bytes of some segments from `start` up to `end`; each must be there.
fn assemble(
    queue: &'static str,
    segments: &[Object<'_>],
    start: u32,
    end: u32,
) -> Result<Vec<u8>, KernelError> {
    // Sequence numbers are a circle.
    let behind = |number: u32, other: u32| number.wrapping_sub(other).cast_signed();
    let mut pieces = Vec::new();
    let mut left = skb::MAX_BYTES;
    for segment in segments {
        let control = segment.get("cb")?.cast("tcp_skb_cb")?;
        let seq = u32::try_from(control.u("seq")?).unwrap_or(0);
        // A SYN has a number of its own.
        let seq = seq.wrapping_add(u32::from(control.u("tcp_flags")? & SYN != 0));
        pieces.push((seq, skb::content(segment, &mut left)?));
    }
    pieces.sort_by_key(|(seq, _)| behind(*seq, start));
    let wanted = usize::try_from(behind(end, start)).unwrap_or(0);
    let mut bytes: Vec<u8> = Vec::new();
    for (seq, piece) in pieces {
        let at = start.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        // Known already, or not there yet.
        if let Ok(known) = usize::try_from(behind(at, seq)) {
            bytes.extend_from_slice(piece.get(known..).unwrap_or_default());
        }
    }
    if bytes.len() < wanted {
        return Err(KernelError::Damaged {
            what: queue,
            addr: segments.first().map_or(0, Object::addr),
            detail: format!("{} of {wanted} bytes from {start} on", bytes.len()),
        });
    }
    bytes.truncate(wanted);
    Ok(bytes)
}

/// Whether the end of the other's stream was received.
fn heard_the_end(sk: &Object<'_>, state: TcpState) -> bool {
    state.has_heard_the_end() || flag(sk, "SOCK_DONE")
}

/// What was received in order and not read. What came out of order is not acknowledged: the
/// other end has it still.
fn received(
    sk: &Object<'_>,
    tcp: &Object<'_>,
    state: TcpState,
    rcv_nxt: u32,
) -> Result<Vec<u8>, KernelError> {
    let copied = u32::try_from(tcp.u("copied_seq")?).unwrap_or(0);
    let end = rcv_nxt.wrapping_sub(u32::from(heard_the_end(sk, state)));
    let segments = skb::queue(&sk.get("sk_receive_queue")?)?;
    assemble("sk_receive_queue", &segments, copied, end)
}

/// What was written and not acknowledged, sent or not.
fn written(
    sk: &Object<'_>,
    tcp: &Object<'_>,
    snd_una: u32,
    end: u32,
) -> Result<Vec<u8>, KernelError> {
    let mut segments = skb::queue(&sk.get("sk_write_queue")?)?;
    // Both are in one queue before Linux commit 75c119afe14f ("tcp: implement rb-tree based
    // retransmit queue") (in v4.15).
    if tcp.has("inet_conn.icsk_inet.sk.tcp_rtx_queue") {
        let sent = sk.get("tcp_rtx_queue")?;
        segments.extend(containers::rbtree(&sent, "sk_buff", "rbnode")?);
    }
    assemble("tcp_rtx_queue", &segments, snd_una, end)
}

/// An urgent byte has a number in the stream, and a reader of the stream does not see it.
fn urgent(
    x: &mut Extraction<'_, '_>,
    sk: &Object<'_>,
    tcp: &Object<'_>,
    received: &mut Vec<u8>,
    rcv_nxt: u32,
    state: TcpState,
    name: &Name,
) -> Result<(), KernelError> {
    const URGENT: &str = "urgent byte";
    let urgent = tcp.u("urg_data")?;
    if urgent == 0 {
        return Ok(());
    }
    let end = rcv_nxt.wrapping_sub(u32::from(heard_the_end(sk, state)));
    let number = u32::try_from(tcp.u("urg_seq")?).unwrap_or(0);
    let before_end = usize::try_from(end.wrapping_sub(number)).unwrap_or(usize::MAX);
    let at = received.len().checked_sub(before_end);
    if flag(sk, "SOCK_URGINLINE") {
        x.reconstructed(
            &name.path,
            URGENT,
            "it comes in its turn, and is no mark any more",
        );
    } else {
        if let Some(at) = at.filter(|at| *at < received.len()) {
            received.remove(at);
        }
        if urgent & URGENT_VALID != 0 {
            x.lost(&name.path, URGENT, "received, and not read by MSG_OOB");
        }
    }
    Ok(())
}

/// The connections in a listener's backlog; each that cannot be read is lost.
pub(super) fn waiting(x: &mut Extraction<'_, '_>, sk: &Object<'_>, name: &Name) -> Vec<TcpWaiting> {
    const WAITING: &str = "connections waiting to be accepted";
    let mut found = Vec::new();
    let requests = match requests(sk) {
        Ok(requests) => requests,
        Err(error) => {
            x.lost(&name.path, WAITING, error.to_string());
            return found;
        }
    };
    for child in requests {
        let read = inet::addresses(&child)
            .and_then(|addresses| Ok((addresses, connection(x, &child, name)?)));
        match read {
            Ok(((to, from), Some(connection))) => found.push(TcpWaiting {
                from,
                to,
                connection,
            }),
            Ok(((_, from), None)) => {
                x.lost(&name.path, WAITING, format!("that of {from} was over"));
            }
            Err(error) => x.lost(&name.path, WAITING, format!("one sees it closed: {error}")),
        }
    }
    found
}

/// Its own address, and the other's.
pub(super) type Ends = (SocketAddr, SocketAddr);

/// The addresses of a TCP socket's connection, its own first, with its `struct sock`; of a listener,
/// those of the connections in its backlog.
pub(super) fn ends(sk: &Object<'_>) -> Result<Vec<(Ends, u64)>, KernelError> {
    const LISTEN: u64 = 10;
    let ends = |of: &Object<'_>| {
        let (own, other) = inet::addresses(of)?;
        Ok(((inet::canonical(own), inet::canonical(other)), sk.addr()))
    };
    if sk.u("__sk_common.skc_state")? == LISTEN {
        return requests(sk)?.iter().map(ends).collect();
    }
    Ok(match sk.u("__sk_common.skc_dport")? {
        0 => Vec::new(),
        _ => vec![ends(sk)?],
    })
}

/// The sockets that accept(2) would give, the oldest first.
fn requests<'k>(sk: &Object<'k>) -> Result<Vec<Object<'k>>, KernelError> {
    let listener = sk.kernel().object("inet_connection_sock", sk.addr())?;
    let mut found = Vec::new();
    let mut next = listener.follow_opt("icsk_accept_queue.rskq_accept_head")?;
    while let Some(request) = next {
        if found.len() >= MOST_WAITING {
            return Err(KernelError::Damaged {
                what: "request_sock_queue",
                addr: listener.addr(),
                detail: format!("more than {MOST_WAITING} connections"),
            });
        }
        found.push(request.follow("sk")?);
        next = request.follow_opt("dl_next")?;
    }
    Ok(found)
}
