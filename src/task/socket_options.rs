//! What setsockopt(2) had been told, out of the places where the kernel keeps it.
//!
//! Only what differs from a new socket is said, in an order in which it can be set again: the type
//! of service sets the priority as well, so it comes first.

use super::extract::Extraction;
use super::path::Name;
use super::{clock, ip_options};
use crate::dataset::{Blob, InetSocket, SocketOption};
use crate::kernel::{Kernel, KernelError, Object};

/// MAX_SCHEDULE_TIMEOUT.
const FOR_EVER: i64 = i64::MAX;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
/// Longest classic filter: BPF_MAXINSNS.
const MOST_INSTRUCTIONS: u64 = 4096;

/// Whether a bit of `skc_flags` is set, by its name in `enum sock_flags`.
pub(super) fn flag(sk: &Object<'_>, name: &str) -> bool {
    let bit = sk.kernel().enum_value("sock_flags", name);
    let bit = bit.and_then(|bit| u32::try_from(bit).ok());
    let flags = sk.u("__sk_common.skc_flags").unwrap_or(0);
    bit.is_some_and(|bit| flags.checked_shr(bit).unwrap_or(0) & 1 == 1)
}

/// Options found so far.
pub(super) struct Found(Vec<SocketOption>);

impl Found {
    pub(super) fn bytes(&mut self, name: &str, level: i32, option: i32, value: Vec<u8>) {
        self.0.push(SocketOption {
            name: name.into(),
            level,
            option,
            value: Blob(value),
        });
    }

    pub(super) fn number(&mut self, name: &str, level: i32, option: i32, value: i64) {
        // An `int`, or an `unsigned int` of which the kernel takes the same bits.
        let value = i32::try_from(value)
            .or_else(|_| u32::try_from(value).map(u32::cast_signed))
            .unwrap_or(i32::MAX);
        self.bytes(name, level, option, value.to_ne_bytes().to_vec());
    }

    pub(super) fn when(&mut self, set: bool, name: &str, level: i32, option: i32) {
        if set {
            self.number(name, level, option, 1);
        }
    }

    /// A member that differs from what it is in a new socket.
    pub(super) fn member(
        &mut self,
        of: (&Object<'_>, &str),
        usual: i64,
        name: &str,
        level: i32,
        option: i32,
    ) {
        if let Some(value) = differs(of.0, of.1, usual) {
            self.number(name, level, option, value);
        }
    }
}

/// A member's value where it is there and is not `usual`.
pub(super) fn differs(object: &Object<'_>, member: &str, usual: i64) -> Option<i64> {
    let value = object.i(member).ok()?;
    (value != usual).then_some(value)
}

/// Of a socket of any family: the level SOL_SOCKET.
pub(super) fn of_any(
    x: &mut Extraction<'_, '_>,
    sk: &Object<'_>,
    name: &Name,
) -> Vec<SocketOption> {
    let mut found = Found(Vec::new());
    of_socket(x, sk, name, &mut found);
    found.0
}

/// Of a TCP or UDP socket.
pub(super) fn of_inet(
    x: &mut Extraction<'_, '_>,
    sk: &Object<'_>,
    socket: &InetSocket,
    name: &Name,
) -> Vec<SocketOption> {
    let kernel = sk.kernel();
    let mut found = Found(Vec::new());
    if let Ok(inet) = kernel.object("inet_sock", sk.addr()) {
        ip_options::of_ip(&inet, &mut found);
        // A stream has none, but in the place of its interface and hops those of its first packet.
        let casts = socket.socket_type != libc::SOCK_STREAM;
        if casts {
            ip_options::of_multicast(&inet, &mut found);
        }
        if socket.family == libc::AF_INET6
            && let Ok(Some(own)) = inet.follow_opt("pinet6")
        {
            ip_options::of_ipv6(&inet, &own, &mut found);
            if casts && let Err(error) = ip_options::of_multicast6(&inet, &own, &mut found) {
                x.lost(&name.path, "multicast groups", error.to_string());
            }
        }
    }
    of_socket(x, sk, name, &mut found);
    match socket.protocol {
        TCP => {
            if let Ok(tcp) = kernel.object("tcp_sock", sk.addr()) {
                of_tcp(&tcp, &mut found);
            }
        }
        UDP => {
            if let Ok(udp) = kernel.object("udp_sock", sk.addr()) {
                of_udp(&udp, &mut found);
            }
        }
        _ => {}
    }
    found.0
}

fn of_socket(x: &mut Extraction<'_, '_>, sk: &Object<'_>, name: &Name, found: &mut Found) {
    use libc::SOL_SOCKET as LEVEL;
    /// What this machine's libc does not name.
    const SO_NO_CHECK: i32 = 11;
    const SO_WIFI_STATUS: i32 = 41;
    const SO_NOFCS: i32 = 43;
    const SO_TXREHASH: i32 = 74;
    const SO_RCVMARK: i32 = 75;
    const SO_RCVPRIORITY: i32 = 82;
    const SO_TIMESTAMP_NEW: i32 = 63;
    const SO_TIMESTAMPNS_NEW: i32 = 64;
    const SO_TIMESTAMPING_NEW: i32 = 65;
    for (bit, name, option) in [
        ("SOCK_URGINLINE", "SO_OOBINLINE", libc::SO_OOBINLINE),
        ("SOCK_LOCALROUTE", "SO_DONTROUTE", libc::SO_DONTROUTE),
        ("SOCK_RXQ_OVFL", "SO_RXQ_OVFL", libc::SO_RXQ_OVFL),
        ("SOCK_WIFI_STATUS", "SO_WIFI_STATUS", SO_WIFI_STATUS),
        ("SOCK_NOFCS", "SO_NOFCS", SO_NOFCS),
        (
            "SOCK_SELECT_ERR_QUEUE",
            "SO_SELECT_ERR_QUEUE",
            libc::SO_SELECT_ERR_QUEUE,
        ),
        ("SOCK_ZEROCOPY", "SO_ZEROCOPY", libc::SO_ZEROCOPY),
        ("SOCK_RCVMARK", "SO_RCVMARK", SO_RCVMARK),
        ("SOCK_RCVPRIORITY", "SO_RCVPRIORITY", SO_RCVPRIORITY),
    ] {
        found.when(flag(sk, bit), name, LEVEL, option);
    }
    // With 64 bits of seconds or as the machine's `struct timeval` is.
    let wide = flag(sk, "SOCK_TSTAMP_NEW");
    if flag(sk, "SOCK_RCVTSTAMPNS") {
        let option = if wide {
            SO_TIMESTAMPNS_NEW
        } else {
            libc::SO_TIMESTAMPNS
        };
        found.number("SO_TIMESTAMPNS", LEVEL, option, 1);
    } else if flag(sk, "SOCK_RCVTSTAMP") {
        let option = if wide {
            SO_TIMESTAMP_NEW
        } else {
            libc::SO_TIMESTAMP
        };
        found.number("SO_TIMESTAMP", LEVEL, option, 1);
    }
    let option = if wide {
        SO_TIMESTAMPING_NEW
    } else {
        libc::SO_TIMESTAMPING
    };
    found.member((sk, "sk_tsflags"), 0, "SO_TIMESTAMPING", LEVEL, option);
    for (member, usual, name, option) in [
        ("sk_priority", 0, "SO_PRIORITY", libc::SO_PRIORITY),
        ("sk_mark", 0, "SO_MARK", libc::SO_MARK),
        ("sk_rcvlowat", 1, "SO_RCVLOWAT", libc::SO_RCVLOWAT),
        ("sk_ll_usec", 0, "SO_BUSY_POLL", libc::SO_BUSY_POLL),
        (
            "sk_prefer_busy_poll",
            0,
            "SO_PREFER_BUSY_POLL",
            libc::SO_PREFER_BUSY_POLL,
        ),
        (
            "sk_busy_poll_budget",
            8,
            "SO_BUSY_POLL_BUDGET",
            libc::SO_BUSY_POLL_BUDGET,
        ),
        ("sk_no_check_tx", 0, "SO_NO_CHECK", SO_NO_CHECK),
        ("sk_peek_off", -1, "SO_PEEK_OFF", libc::SO_PEEK_OFF),
    ] {
        // BUSY_POLL_BUDGET is 8, and 0 stands for it.
        let zero_too = name == "SO_BUSY_POLL_BUDGET" && sk.u(member).is_ok_and(|n| n == 0);
        // TCP takes 0 for 1.
        let zero_too = zero_too || name == "SO_RCVLOWAT" && sk.u(member).is_ok_and(|n| n == 0);
        if !zero_too {
            found.member((sk, member), usual, name, LEVEL, option);
        }
    }
    // 1 in a new TCP socket of a host whose administrator set it so; else nobody asks.
    if sk.i("sk_txrehash").is_ok_and(|n| n == 0) && sk.i("sk_protocol").is_ok_and(|p| p == 6) {
        found.number("SO_TXREHASH", LEVEL, SO_TXREHASH, 0);
    }
    if let Ok(rate) = sk.u("sk_max_pacing_rate")
        && rate != u64::MAX
        && rate != u64::from(u32::MAX)
    {
        let value = rate.to_ne_bytes().to_vec();
        found.bytes("SO_MAX_PACING_RATE", LEVEL, libc::SO_MAX_PACING_RATE, value);
    }
    match times(sk) {
        Ok(times) => found.0.extend(times),
        Err(error) => x.lost(&name.path, "socket options", format!("timeouts: {error}")),
    }
    match filter(sk) {
        Ok(None) => {}
        Ok(Some(program)) => {
            // Its pointer is made when it is set.
            found.bytes("SO_ATTACH_FILTER", LEVEL, libc::SO_ATTACH_FILTER, program);
            found.when(
                flag(sk, "SOCK_FILTER_LOCKED"),
                "SO_LOCK_FILTER",
                LEVEL,
                libc::SO_LOCK_FILTER,
            );
        }
        Err(error) => x.lost(&name.path, "socket filter", error.to_string()),
    }
}

/// SO_LINGER, SO_RCVTIMEO, SO_SNDTIMEO.
fn times(sk: &Object<'_>) -> Result<Vec<SocketOption>, KernelError> {
    let mut found = Found(Vec::new());
    let level = libc::SOL_SOCKET;
    if flag(sk, "SOCK_LINGER") {
        let ticks = sk.u("sk_lingertime")?;
        let seconds = match ticks {
            0 => 0,
            ticks => ticks / ticks_per_second(sk.kernel())?,
        };
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        // struct linger.
        let value = [1i32.to_ne_bytes(), seconds.to_ne_bytes()].concat();
        found.bytes("SO_LINGER", level, libc::SO_LINGER, value);
    }
    for (member, name, option) in [
        ("sk_rcvtimeo", "SO_RCVTIMEO", libc::SO_RCVTIMEO),
        ("sk_sndtimeo", "SO_SNDTIMEO", libc::SO_SNDTIMEO),
    ] {
        let ticks = sk.i(member)?;
        if ticks == FOR_EVER || ticks < 0 {
            continue;
        }
        let hz = ticks_per_second(sk.kernel())?.cast_signed();
        // struct timeval. 0 would be for ever; the kernel has 1 for "at once".
        let (seconds, rest) = (ticks / hz, ticks % hz);
        let value = [seconds, (rest * 1_000_000 / hz).max(i64::from(ticks == 0))];
        let value = value.iter().flat_map(|n| n.to_ne_bytes()).collect();
        found.bytes(name, level, option, value);
    }
    Ok(found.0)
}

/// HZ of the dead kernel: how long it took a tick to be.
fn ticks_per_second(kernel: &Kernel) -> Result<u64, KernelError> {
    /// NTP_SCALE_SHIFT. Linux include/linux/timex.h.
    const SCALE: u32 = 32;
    /// CONFIG_HZ of x86.
    const KNOWN: [u64; 4] = [100, 250, 300, 1000];
    let keeper = clock::timekeeper(kernel)?;
    // Adjusted by some hundred millionths.
    let tick_ns = keeper.u("ntp_tick")? >> SCALE;
    let near = |hz: u64| (1_000_000_000 / hz).abs_diff(tick_ns);
    KNOWN
        .into_iter()
        .min_by_key(|hz| near(*hz))
        .filter(|hz| near(*hz) < tick_ns / 8)
        .ok_or_else(|| KernelError::Damaged {
            what: "timekeeper",
            addr: keeper.addr(),
            detail: format!("a tick of {tick_ns} ns"),
        })
}

/// The classic BPF program that SO_ATTACH_FILTER had been given.
fn filter(sk: &Object<'_>) -> Result<Option<Vec<u8>>, KernelError> {
    let Some(filter) = sk.follow_opt("sk_filter")? else {
        return Ok(None);
    };
    let damaged = |detail: String| KernelError::Damaged {
        what: "sk_filter",
        addr: filter.addr(),
        detail,
    };
    let Some(program) = filter.follow("prog")?.follow_opt("orig_prog")? else {
        return Err(damaged("an eBPF program".into()));
    };
    let len = program.u("len")?;
    if len == 0 || len > MOST_INSTRUCTIONS {
        return Err(damaged(format!("a program of {len} instructions")));
    }
    let mut bytes = vec![0; usize::try_from(len * 8).unwrap_or(0)];
    sk.kernel().read(program.ptr("filter")?, &mut bytes)?;
    Ok(Some(bytes))
}

fn of_tcp(tcp: &Object<'_>, found: &mut Found) {
    const LEVEL: i32 = TCP;
    /// What this machine's libc does not name. Linux include/uapi/linux/tcp.h.
    const TCP_SAVE_SYN: i32 = 27;
    const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
    const TCP_INQ: i32 = 36;
    const TCP_TX_DELAY: i32 = 37;
    /// `nonagle`: TCP_NAGLE_OFF, TCP_NAGLE_CORK.
    const OFF: u64 = 1;
    const CORK: u64 = 2;
    let nagle = tcp.u("nonagle").unwrap_or(0);
    found.when(nagle & OFF != 0, "TCP_NODELAY", LEVEL, libc::TCP_NODELAY);
    found.when(nagle & CORK != 0, "TCP_CORK", LEVEL, libc::TCP_CORK);
    if let Ok(hz) = ticks_per_second(tcp.kernel()).map(u64::cast_signed) {
        for (member, name, option) in [
            ("keepalive_time", "TCP_KEEPIDLE", libc::TCP_KEEPIDLE),
            ("keepalive_intvl", "TCP_KEEPINTVL", libc::TCP_KEEPINTVL),
            ("linger2", "TCP_LINGER2", libc::TCP_LINGER2),
        ] {
            if let Some(ticks) = differs(tcp, member, 0) {
                let seconds = if ticks < 0 { -1 } else { ticks / hz };
                found.number(name, LEVEL, option, seconds);
            }
        }
    }
    for (member, name, option) in [
        ("keepalive_probes", "TCP_KEEPCNT", libc::TCP_KEEPCNT),
        ("inet_conn.icsk_syn_retries", "TCP_SYNCNT", libc::TCP_SYNCNT),
        (
            "inet_conn.icsk_user_timeout",
            "TCP_USER_TIMEOUT",
            libc::TCP_USER_TIMEOUT,
        ),
        ("rx_opt.user_mss", "TCP_MAXSEG", libc::TCP_MAXSEG),
        (
            "notsent_lowat",
            "TCP_NOTSENT_LOWAT",
            libc::TCP_NOTSENT_LOWAT,
        ),
        ("save_syn", "TCP_SAVE_SYN", TCP_SAVE_SYN),
        ("recvmsg_inq", "TCP_INQ", TCP_INQ),
        ("tcp_tx_delay", "TCP_TX_DELAY", TCP_TX_DELAY),
        (
            "fastopen_connect",
            "TCP_FASTOPEN_CONNECT",
            libc::TCP_FASTOPEN_CONNECT,
        ),
        (
            "fastopen_no_cookie",
            "TCP_FASTOPEN_NO_COOKIE",
            TCP_FASTOPEN_NO_COOKIE,
        ),
        (
            "inet_conn.icsk_accept_queue.fastopenq.max_qlen",
            "TCP_FASTOPEN",
            libc::TCP_FASTOPEN,
        ),
    ] {
        found.member((tcp, member), 0, name, LEVEL, option);
    }
    if let Some(tries @ 1..=64) = differs(tcp, "inet_conn.icsk_accept_queue.rskq_defer_accept", 0) {
        // Retransmissions of a SYN, as seconds: 1, 3, 7 … and no more than 120 between two.
        let seconds = (0..tries).map(|n| 1i64.checked_shl(n as u32).unwrap_or(120).min(120));
        found.number(
            "TCP_DEFER_ACCEPT",
            LEVEL,
            libc::TCP_DEFER_ACCEPT,
            seconds.sum(),
        );
    }
    if differs(tcp, "inet_conn.icsk_ca_setsockopt", 0).is_some()
        && let Ok(name) = tcp
            .follow("inet_conn.icsk_ca_ops")
            .and_then(|operations| operations.get("name")?.string())
    {
        let name = name.into_bytes();
        found.bytes("TCP_CONGESTION", LEVEL, libc::TCP_CONGESTION, name);
    }
}

fn of_udp(udp: &Object<'_>, found: &mut Found) {
    const LEVEL: i32 = UDP;
    /// Linux include/uapi/linux/udp.h.
    const UDP_ENCAP: i32 = 100;
    const UDP_NO_CHECK6_TX: i32 = 101;
    const UDP_NO_CHECK6_RX: i32 = 102;
    const UDP_SEGMENT: i32 = 103;
    const UDP_GRO: i32 = 104;
    // Bits of `udp_flags` since Linux commit 81b36803ac13 ("udp: introduce udp->udp_flags")
    // (in v6.7) and its successors.
    let bit = |member: &str, flag: &str| match udp.has(member) {
        true => udp.u(member).is_ok_and(|value| value != 0),
        false => udp.kernel().enum_value("", flag).is_some_and(|bit| {
            let bit = u32::try_from(bit).unwrap_or(64);
            let flags = udp.u("udp_flags").unwrap_or(0);
            flags.checked_shr(bit).unwrap_or(0) & 1 == 1
        }),
    };
    for (member, flag, name, option) in [
        ("corkflag", "UDP_FLAGS_CORK", "UDP_CORK", libc::UDP_CORK),
        (
            "no_check6_tx",
            "UDP_FLAGS_NO_CHECK6_TX",
            "UDP_NO_CHECK6_TX",
            UDP_NO_CHECK6_TX,
        ),
        (
            "no_check6_rx",
            "UDP_FLAGS_NO_CHECK6_RX",
            "UDP_NO_CHECK6_RX",
            UDP_NO_CHECK6_RX,
        ),
        ("gro_enabled", "UDP_FLAGS_GRO_ENABLED", "UDP_GRO", UDP_GRO),
    ] {
        found.when(bit(member, flag), name, LEVEL, option);
    }
    found.member((udp, "encap_type"), 0, "UDP_ENCAP", LEVEL, UDP_ENCAP);
    found.member((udp, "gso_size"), 0, "UDP_SEGMENT", LEVEL, UDP_SEGMENT);
}
