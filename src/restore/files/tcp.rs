//! TCP connections, by TCP_REPAIR: a socket is told where a connection stands, and goes on there.
//!
//! Until the processes run ([`super::tcp_resume`]) it says nothing to anybody and hears nothing: a
//! filter drops what comes, and closed again it leaves no trace, so that a restore that fails can be
//! tried again. Linux net/ipv4/tcp.c, do_tcp_setsockopt.

use super::inet::sockaddr;
use super::{Place, Workshop, socket_options, unix};
use crate::dataset::{Fidelity, InetSocket, TcpConnection, TcpPeer, TcpState};
use crate::restore::{Errno, RestoreError, TcpPolicy};
use crate::sys::{pidfd, socket};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

/// Linux include/uapi/linux/tcp.h.
pub(super) const REPAIR: i32 = 19;
const REPAIR_QUEUE: i32 = 20;
const QUEUE_SEQ: i32 = 21;
const REPAIR_OPTIONS: i32 = 22;
const TIMESTAMP: i32 = 24;
const REPAIR_WINDOW: i32 = 29;
const NO_QUEUE: i32 = 0;
const RECEIVED: i32 = 1;
const SENT: i32 = 2;
/// TCPOPT_MSS, _WINDOW, _SACK_PERM, _TIMESTAMP of `struct tcp_repair_opt`.
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;
/// SO_BUF_LOCK. Linux include/uapi/asm-generic/socket.h.
const BUF_LOCK: i32 = 72;
/// A classic BPF program: no packet passes. `BPF_RET | BPF_K`, 0.
const NOTHING: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
/// Pieces in which queues are filled. Bytes.
const PIECE: usize = 32 << 10;
/// Room beyond twice what a queue holds. Bytes.
const ROOM: usize = 1 << 20;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    GoesOn,
    /// Its other end has gone: what was received can be read, then the end.
    PeerGone,
    /// It is over: as with [`Self::PeerGone`], and nothing can be sent.
    Over,
    /// connect(2) begins again.
    Begins,
    /// Its other end waited to be accepted: it connects to the listener.
    Waits,
}

/// What is to be done with a connection when the processes run.
#[derive(Debug)]
pub(super) struct Unfinished<'d> {
    pub socket: &'d InetSocket,
    pub connection: &'d TcpConnection,
    pub fate: Fate,
    /// PID in the dead host.
    pub pid: i32,
    /// Who has it open: the stub's PID on this host, and the descriptor's number there.
    pub holder: (i32, i32),
}

/// A call that was refused.
pub(super) type Refused = (&'static str, io::Error);

/// Names the call that failed.
pub(super) fn step(name: &'static str) -> impl Fn(io::Error) -> Refused {
    move |error| (name, error)
}

/// `setsockopt(2)` at TCP's level.
pub(super) fn set(socket: BorrowedFd<'_>, option: i32, value: i32) -> io::Result<()> {
    socket::set_number(socket, libc::IPPROTO_TCP, option, value)
}

fn set_u32(socket: BorrowedFd<'_>, option: i32, value: u32) -> io::Result<()> {
    set(socket, option, value.cast_signed())
}

impl<'d> Workshop<'d> {
    /// What becomes of a connection here.
    fn fate(&self, connection: &TcpConnection, ends: (SocketAddr, SocketAddr)) -> Fate {
        let waits = || {
            let files = self.dataset.files.iter();
            let listeners = files.filter_map(super::inet::of_file);
            let mut waiting = listeners.flat_map(|listener| &listener.waiting);
            waiting.any(|w| canonical((w.from, w.to)) == canonical(ends))
        };
        match (connection.state, connection.peer) {
            (TcpState::Closed, _) => Fate::Over,
            (_, TcpPeer::Restored) if waits() => Fate::Waits,
            (TcpState::SynSent, _) => Fate::Begins,
            (_, TcpPeer::Restored) => Fate::GoesOn,
            (_, TcpPeer::Gone) => Fate::PeerGone,
            (_, TcpPeer::Elsewhere) if self.tcp == TcpPolicy::Close => Fate::Over,
            (_, TcpPeer::Elsewhere) => Fate::GoesOn,
        }
    }

    /// Gives a new socket its connection. The answer is the descriptor that has it, which may be
    /// another than `fd`.
    pub(super) fn connect(
        &mut self,
        fd: i32,
        socket: &'d InetSocket,
        (connection, remote): (&'d TcpConnection, SocketAddr),
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        let fate = self.fate(connection, (socket.local, remote));
        let what = format!("TCP connection with {remote}");
        let made = pidfd::take(place.tid, fd)
            .map_err(step("pidfd_getfd"))
            .and_then(|own| match fate {
                Fate::Begins | Fate::Waits => bind(own.as_fd(), socket.local).map_err(step("bind")),
                Fate::GoesOn | Fate::PeerGone | Fate::Over => {
                    let goes_on = fate == Fate::GoesOn;
                    repair(own.as_fd(), socket.local, remote, connection, goes_on)
                }
            });
        let cut = fate == Fate::Over && connection.state != TcpState::Closed;
        if cut && made.is_ok() {
            let why = "closed, as was asked for (--tcp close)";
            self.notes
                .push(Fidelity::lost(format!("pid {pid}"), &what, why));
        }
        if fate == Fate::GoesOn && connection.peer == TcpPeer::Elsewhere && made.is_ok() {
            let how = "it goes on, if no kernel has answered in its place since (docs/network.md)";
            self.notes
                .push(Fidelity::exact(format!("pid {pid}"), &what, how));
        }
        match made {
            Ok(()) => {
                self.unfinished.push(Unfinished {
                    socket,
                    connection,
                    fate,
                    pid,
                    // The number follows when all have theirs.
                    holder: (place.tid, fd),
                });
                Ok(fd)
            }
            Err((call, error)) => {
                let why = self.refused(pid, &what, fate, call, &error, socket.local)?;
                self.notes
                    .push(Fidelity::lost(format!("pid {pid}"), &what, why));
                crate::restore::calls::close(place.sys, fd)
                    .map_err(|errno| close_failed(pid, errno))?;
                unix::closed_behind(&connection.received.0, place)
            }
        }
    }

    /// Why a connection cannot go on; an error, when it has to.
    fn refused(
        &self,
        pid: i32,
        what: &str,
        fate: Fate,
        call: &str,
        error: &io::Error,
        local: SocketAddr,
    ) -> Result<String, RestoreError> {
        let network = [libc::EADDRNOTAVAIL, libc::ENETUNREACH, libc::EHOSTUNREACH];
        let code = error.raw_os_error();
        let why = if code.is_some_and(|code| network.contains(&code)) {
            format!(
                "{call}: {error}: this host has not got the address {} now",
                local.ip()
            )
        } else {
            format!("{call}: {error}")
        };
        if fate == Fate::GoesOn && self.tcp == TcpPolicy::Require {
            return Err(RestoreError::Refused {
                pid,
                what: what.into(),
                why,
                hint: "bring the network up first, with the addresses that it had; without \
                       --tcp require the connection is closed",
            });
        }
        Ok(format!("{why}: it sees it closed"))
    }
}

fn close_failed(pid: i32, errno: Errno) -> RestoreError {
    RestoreError::Call {
        pid,
        what: "close".into(),
        errno,
    }
}

/// Both ends, IPv4 within IPv6 as IPv4.
pub(super) fn canonical((a, b): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let plain = |s: SocketAddr| SocketAddr::new(s.ip().to_canonical(), s.port());
    (plain(a), plain(b))
}

fn bind(socket: BorrowedFd<'_>, local: SocketAddr) -> io::Result<()> {
    match local.port() {
        0 => Ok(()),
        _ => socket::bind(socket, &sockaddr(local)),
    }
}

/// Where a connection's queues begin: the numbers of the first byte that waits to be read, and of
/// the first that is not acknowledged. The end of a stream has a number and is not in a queue.
fn starts(connection: &TcpConnection, goes_on: bool) -> (u32, u32) {
    let unread = u32::try_from(connection.received.0.len()).unwrap_or(0);
    let received = received_end(connection).wrapping_sub(unread);
    let sent = match goes_on {
        // Acknowledged with the end of the stream, if it was.
        true if connection.state == TcpState::FinWait2 => connection.write_seq.wrapping_sub(1),
        true => connection.snd_una,
        // What was not acknowledged has nobody to go to.
        false => written_end(connection),
    };
    (received, sent)
}

/// The number behind the last byte that was received.
pub(super) fn received_end(connection: &TcpConnection) -> u32 {
    let ended = connection.state.has_heard_the_end();
    connection.rcv_nxt.wrapping_sub(u32::from(ended))
}

/// The number behind the last byte that was written.
pub(super) fn written_end(connection: &TcpConnection) -> u32 {
    let ended = connection.state.has_ended();
    connection.write_seq.wrapping_sub(u32::from(ended))
}

/// What was sent and not acknowledged, and what was not sent yet.
pub(super) fn sent_and_unsent(connection: &TcpConnection) -> (&[u8], &[u8]) {
    let written = &connection.written.0;
    let sent = connection.snd_nxt.wrapping_sub(connection.snd_una);
    let sent = usize::try_from(sent).unwrap_or(0).min(written.len());
    written.split_at_checked(sent).unwrap_or_default()
}

/// Makes the connection. The socket stays in repair, and deaf.
fn repair(
    socket: BorrowedFd<'_>,
    local: SocketAddr,
    remote: SocketAddr,
    connection: &TcpConnection,
    goes_on: bool,
) -> Result<(), Refused> {
    make_room(socket, connection).map_err(step("setsockopt(SO_RCVBUFFORCE)"))?;
    set(socket, REPAIR, 1).map_err(step("setsockopt(TCP_REPAIR)"))?;
    socket::attach_filter(socket, &NOTHING).map_err(step("setsockopt(SO_ATTACH_FILTER)"))?;
    socket::bind(socket, &sockaddr(local)).map_err(step("bind"))?;
    let (received, sent) = starts(connection, goes_on);
    for (queue, number) in [(SENT, sent), (RECEIVED, received)] {
        set(socket, REPAIR_QUEUE, queue)
            .and_then(|()| set_u32(socket, QUEUE_SEQ, number))
            .map_err(step("setsockopt(TCP_QUEUE_SEQ)"))?;
    }
    socket::connect(socket, &sockaddr(remote)).map_err(step("connect"))?;
    socket::set(
        socket,
        libc::IPPROTO_TCP,
        REPAIR_OPTIONS,
        &options(connection),
    )
    .map_err(step("setsockopt(TCP_REPAIR_OPTIONS)"))?;
    if let Some(clock) = connection.timestamp {
        // The lowest bit says that it counts microseconds, since Linux commit 614e8316aa4c.
        let value = match clock.microseconds {
            true => clock.value | 1,
            false => clock.value.wrapping_add(1) & !1,
        };
        set_u32(socket, TIMESTAMP, value).map_err(step("setsockopt(TCP_TIMESTAMP)"))?;
    }
    fill(socket, RECEIVED, &connection.received.0).map_err(step("fill the receive queue"))?;
    if goes_on {
        let (sent, _) = sent_and_unsent(connection);
        fill(socket, SENT, sent).map_err(step("fill the send queue"))?;
    }
    set(socket, REPAIR_QUEUE, NO_QUEUE).map_err(step("setsockopt(TCP_REPAIR_QUEUE)"))?;
    if connection.state != TcpState::Closed {
        set_window(socket, connection).map_err(step("setsockopt(TCP_REPAIR_WINDOW)"))?;
    }
    Ok(())
}

/// `struct tcp_repair_opt`: a code and a value each.
fn options(connection: &TcpConnection) -> Vec<u8> {
    let mut options = vec![(OPTION_MSS, u32::from(connection.mss))];
    if let Some((theirs, own)) = connection.window_scales {
        options.push((OPTION_WINDOW, u32::from(theirs) | u32::from(own) << 16));
    }
    if connection.selective {
        options.push((OPTION_SACK, 0));
    }
    if connection.timestamp.is_some() {
        options.push((OPTION_TIMESTAMP, 0));
    }
    let words = options.into_iter().flat_map(|(code, value)| [code, value]);
    words.flat_map(u32::to_ne_bytes).collect()
}

fn set_window(socket: BorrowedFd<'_>, connection: &TcpConnection) -> io::Result<()> {
    let window = connection.window;
    // The end of the other's stream comes anew.
    let ended = u32::from(connection.state.has_heard_the_end());
    let words = [
        window.snd_wl1,
        window.snd_wnd,
        window.max_window.max(window.snd_wnd),
        window.rcv_wnd.saturating_add(ended),
        window.rcv_wup.wrapping_sub(ended),
    ];
    let value: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    socket::set(socket, libc::IPPROTO_TCP, REPAIR_WINDOW, &value)
}

fn fill(socket: BorrowedFd<'_>, queue: i32, bytes: &[u8]) -> io::Result<()> {
    set(socket, REPAIR_QUEUE, queue)?;
    bytes
        .chunks(PIECE)
        .try_for_each(|piece| socket::send_all(socket, piece))
}

/// Buffers in which the queues find room, as large as they had grown.
fn make_room(socket: BorrowedFd<'_>, connection: &TcpConnection) -> io::Result<()> {
    let needed = |bytes: usize, had: u32| -> i32 {
        let had = usize::try_from(had).unwrap_or(0);
        // The kernel counts a buffer's own size as well, and doubles what it is told.
        let room = had.max(bytes.saturating_mul(2).saturating_add(ROOM)) / 2;
        i32::try_from(room).unwrap_or(i32::MAX)
    };
    let receive = needed(connection.received.0.len(), connection.receive_room);
    let send = needed(connection.written.0.len(), connection.send_room);
    let level = libc::SOL_SOCKET;
    socket::set_number(socket, level, libc::SO_RCVBUFFORCE, receive)?;
    socket::set_number(socket, level, libc::SO_SNDBUFFORCE, send)
}

/// The receive buffer as large as the program had set it. Before the socket speaks: it tells the other
/// end how much room there is, and what then has none is thrown away and awaited for long.
pub(super) fn give_receive_room_back(socket: BorrowedFd<'_>, of: &InetSocket) -> io::Result<()> {
    let Some(size) = of.receive_buffer else {
        return Ok(());
    };
    let half = i32::try_from(size / 2).unwrap_or(i32::MAX);
    socket::set_number(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, half)
}

/// Buffers as the program had set them, or free to grow.
pub(super) fn give_room_back(socket: BorrowedFd<'_>, of: &InetSocket) -> io::Result<()> {
    let level = libc::SOL_SOCKET;
    // SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK.
    let mut locks = 0;
    let sizes = [
        (of.send_buffer, libc::SO_SNDBUFFORCE, 1),
        (of.receive_buffer, libc::SO_RCVBUFFORCE, 2),
    ];
    for (size, option, lock) in sizes {
        if let Some(size) = size {
            locks |= lock;
            let half = i32::try_from(size / 2).unwrap_or(i32::MAX);
            socket::set_number(socket, level, option, half)?;
        }
    }
    match socket::set_number(socket, level, BUF_LOCK, locks) {
        // Before Linux commit 04190bf8944d ("sock: allow reading and changing sk_userlocks with
        // setsockopt") (in v5.15): they keep their size.
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        other => other,
    }
}

/// It sends no more, and nobody is told.
pub(super) fn end_in_silence(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, REPAIR_QUEUE, SENT)?;
    socket::shut_down(socket, libc::SHUT_WR)?;
    set(socket, REPAIR_QUEUE, NO_QUEUE)
}

/// Options that were held back, and SO_REUSEADDR, which repair has taken.
pub(super) fn finish_options(
    socket: BorrowedFd<'_>,
    of: &Unfinished<'_>,
    notes: &mut Vec<Fidelity>,
) -> Result<(), Refused> {
    let reuse = i32::from(of.socket.reuse_address);
    socket::set_number(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)
        .map_err(step("setsockopt(SO_REUSEADDR)"))?;
    let late = of
        .socket
        .options
        .iter()
        .filter(|o| socket_options::is_late(o));
    let what = format!("the socket at {}", of.socket.local);
    socket_options::set_all(socket, late, (of.pid, &what), notes);
    Ok(())
}
