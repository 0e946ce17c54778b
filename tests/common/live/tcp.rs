//! TCP connections of a live process, by the calls of TCP_REPAIR: a test's own view of them, which
//! shares nothing with how they are read from a dead kernel. Closed now, they tell nobody.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use vmrestore::dataset::*;
use vmrestore::sys::{pidfd, socket};

const REPAIR: i32 = 19;
const REPAIR_QUEUE: i32 = 20;
const QUEUE_SEQ: i32 = 21;
const TIMESTAMP: i32 = 24;
const REPAIR_WINDOW: i32 = 29;
const RECEIVED: i32 = 1;
const SENT: i32 = 2;

fn get(own: BorrowedFd<'_>, option: i32) -> u32 {
    let value = socket::get::<4>(own, libc::IPPROTO_TCP, option).expect("getsockopt");
    u32::from_ne_bytes(value)
}

fn queued(own: BorrowedFd<'_>, request: libc::c_ulong) -> u32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests write an int.
    let asked = unsafe { libc::ioctl(own.as_raw_fd(), request, &raw mut bytes) };
    assert_eq!(asked, 0);
    bytes as u32
}

/// What is in a queue, and stays in it.
fn peek(own: BorrowedFd<'_>) -> Vec<u8> {
    let mut bytes = vec![0u8; 32 << 20];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the vector's own pointer and length.
    let got = unsafe {
        libc::recv(
            own.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            flags,
        )
    };
    bytes.truncate(usize::try_from(got).unwrap_or(0));
    bytes
}

fn empty(id: u64, state: TcpState) -> TcpConnection {
    TcpConnection {
        socket: ObjectId(id),
        state,
        peer: TcpPeer::Elsewhere,
        snd_una: 0,
        snd_nxt: 0,
        write_seq: 0,
        rcv_nxt: 0,
        received: Blob(Vec::new()),
        written: Blob(Vec::new()),
        mss: 1460,
        window_scales: None,
        selective: false,
        timestamp: None,
        window: TcpWindow {
            snd_wl1: 0,
            snd_wnd: 0,
            max_window: 0,
            rcv_wnd: 0,
            rcv_wup: 0,
        },
        receive_room: 0,
        send_room: 0,
        shutdown: 0,
        error: 0,
        corked: false,
    }
}

/// A connection of process `pid`, whose socket no table of the kernel names: it is over.
pub fn over(pid: i32, fd: i32, inode: u64) -> Option<InetSocket> {
    let own = pidfd::take(pid, fd).expect("the socket");
    let number = |option: i32| {
        let value = socket::get::<4>(own.as_fd(), libc::SOL_SOCKET, option);
        i32::from_ne_bytes(value.expect("getsockopt"))
    };
    if number(libc::SO_PROTOCOL) != libc::IPPROTO_TCP {
        return None;
    }
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let mut connection = empty(inode, TcpState::Closed);
    // Asked first: whoever reads is told of it, once.
    connection.error = number(libc::SO_ERROR);
    connection.received = Blob(peek(own.as_fd()));
    Some(InetSocket {
        remote: Some("127.0.0.1:9".parse().expect("an address")),
        connection: Some(Box::new(connection)),
        ..super::files::inet_socket((libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP), any)
    })
}

/// A connection of process `pid`; from now on it is mute.
fn take(pid: i32, fd: i32, inode: u64) -> TcpConnection {
    let own = pidfd::take(pid, fd).expect("the socket");
    let own = own.as_fd();
    let info = socket::get::<8>(own, libc::IPPROTO_TCP, libc::TCP_INFO).expect("TCP_INFO");
    let state = match info[0] {
        1 => TcpState::Established,
        4 => TcpState::FinWait1,
        5 => TcpState::FinWait2,
        8 => TcpState::CloseWait,
        9 => TcpState::LastAck,
        11 => TcpState::Closing,
        other => panic!("the test cannot take a connection in state {other}"),
    };
    let set = |option: i32, value: i32| {
        socket::set_number(own, libc::IPPROTO_TCP, option, value).expect("setsockopt");
    };
    set(REPAIR, 1);
    let mut connection = empty(inode, state);
    set(REPAIR_QUEUE, SENT);
    connection.write_seq = get(own, QUEUE_SEQ);
    // SIOCOUTQ, SIOCOUTQNSD.
    connection.snd_una = connection.write_seq.wrapping_sub(queued(own, 0x5411));
    connection.snd_nxt = connection.write_seq.wrapping_sub(queued(own, 0x894b));
    connection.written = Blob(peek(own));
    set(REPAIR_QUEUE, RECEIVED);
    connection.rcv_nxt = get(own, QUEUE_SEQ);
    connection.received = Blob(peek(own));
    set(REPAIR_QUEUE, 0);
    connection.mss = u16::try_from(get(own, libc::TCP_MAXSEG)).expect("a segment's size");
    connection.selective = info[5] & 2 != 0;
    connection.window_scales = (info[5] & 4 != 0).then_some((info[6] & 15, info[6] >> 4));
    connection.timestamp = (info[5] & 1 != 0).then(|| TcpTimestamp {
        value: get(own, TIMESTAMP),
        microseconds: get(own, TIMESTAMP) & 1 != 0,
    });
    let window = socket::get::<20>(own, libc::IPPROTO_TCP, REPAIR_WINDOW).expect("the window");
    let word = |i: usize| u32::from_ne_bytes(window[i * 4..][..4].try_into().expect("4"));
    connection.window = TcpWindow {
        snd_wl1: word(0),
        snd_wnd: word(1),
        max_window: word(2),
        rcv_wnd: word(3),
        rcv_wup: word(4),
    };
    let room = |option: i32| {
        let value = socket::get::<4>(own, libc::SOL_SOCKET, option).expect("a size");
        u32::from_ne_bytes(value)
    };
    connection.receive_room = room(libc::SO_RCVBUF);
    connection.send_room = room(libc::SO_SNDBUF);
    connection
}

/// Takes all connections of a stopped process, and says of each where its other end is.
pub fn take_all(dataset: &mut Dataset) {
    let mut ends = Vec::new();
    for process in &dataset.processes {
        for fd in &process.fds {
            let file = dataset.files.iter_mut().find(|file| file.id == fd.file);
            let FileKind::InetSocket(socket) = &mut file.expect("a file").kind else {
                continue;
            };
            let Some(remote) = socket.remote else {
                continue;
            };
            if socket.socket_type == libc::SOCK_STREAM && socket.connection.is_none() {
                let link = fs::read_link(format!("/proc/{}/fd/{}", process.pid, fd.fd));
                let inode = link.expect("a link").to_string_lossy().into_owned();
                let inode = inode.trim_matches(|c: char| !c.is_ascii_digit()).parse();
                let taken = take(process.pid, fd.fd, inode.expect("a number"));
                socket.connection = Some(Box::new(taken));
            }
            ends.push((socket.local, remote));
        }
    }
    for file in &mut dataset.files {
        if let FileKind::InetSocket(socket) = &mut file.kind
            && let (Some(connection), Some(remote)) = (&mut socket.connection, socket.remote)
        {
            connection.peer = match () {
                () if ends.contains(&(remote, socket.local)) => TcpPeer::Restored,
                () if remote.ip() == socket.local.ip() => TcpPeer::Gone,
                () => TcpPeer::Elsewhere,
            };
        }
    }
}
