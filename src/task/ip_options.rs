//! Options of IPv4 and IPv6: `inet_sock`, `ipv6_pinfo`.

use super::list::int;
use super::net_device;
use super::socket_options::{Found, differs};
use crate::kernel::{KernelError, Object};

/// Most IPv6 groups of a socket.
const MOST_GROUPS: usize = 1024;

/// A bit of an `inet_sock`: a member of its own before Linux commit c274af224269 ("inet:
/// introduce inet->inet_flags") (in v6.6) and its successors, then one of `inet_flags`.
fn inet_bit(inet: &Object<'_>, member: &str, bit: &str) -> Option<bool> {
    if inet.has(member) {
        return inet.u(member).ok().map(|value| value != 0);
    }
    let bit = inet.kernel().enum_value("", bit)?;
    let flags = inet.u("inet_flags").ok()?;
    Some(flags.checked_shr(u32::try_from(bit).ok()?).unwrap_or(0) & 1 == 1)
}

pub(super) fn of_ip(inet: &Object<'_>, found: &mut Found) {
    use libc::IPPROTO_IP as LEVEL;
    /// What this machine's libc does not name. Linux include/uapi/linux/in.h.
    const IP_CHECKSUM: i32 = 23;
    const IP_RECVFRAGSIZE: i32 = 25;
    const IP_RECVERR_RFC4884: i32 = 26;
    const IP_UNICAST_IF: i32 = 50;
    const IP_LOCAL_PORT_RANGE: i32 = 51;
    found.member((inet, "tos"), 0, "IP_TOS", LEVEL, libc::IP_TOS);
    if let Some(ttl) = differs(inet, "uc_ttl", -1) {
        found.number("IP_TTL", LEVEL, libc::IP_TTL, ttl);
    }
    for (member, usual, name, option) in [
        ("min_ttl", 0, "IP_MINTTL", libc::IP_MINTTL),
        // IP_PMTUDISC_WANT.
        ("pmtudisc", 1, "IP_MTU_DISCOVER", libc::IP_MTU_DISCOVER),
        (
            "local_port_range",
            0,
            "IP_LOCAL_PORT_RANGE",
            IP_LOCAL_PORT_RANGE,
        ),
    ] {
        found.member((inet, member), usual, name, LEVEL, option);
    }
    if let Some(index) = differs(inet, "uc_index", 0) {
        // In the network's order.
        let index = i32::try_from(index).unwrap_or(0).to_be_bytes().to_vec();
        found.bytes("IP_UNICAST_IF", LEVEL, IP_UNICAST_IF, index);
    }
    // IP_CMSG_* of `cmsg_flags`, whose numbers the bits of `inet_flags` have kept.
    let told = inet
        .u("cmsg_flags")
        .or_else(|_| inet.u("inet_flags"))
        .unwrap_or(0);
    for (bit, name, option) in [
        (0, "IP_PKTINFO", libc::IP_PKTINFO),
        (1, "IP_RECVTTL", libc::IP_RECVTTL),
        (2, "IP_RECVTOS", libc::IP_RECVTOS),
        (3, "IP_RECVOPTS", libc::IP_RECVOPTS),
        (4, "IP_RETOPTS", libc::IP_RETOPTS),
        (6, "IP_RECVORIGDSTADDR", libc::IP_RECVORIGDSTADDR),
        (7, "IP_CHECKSUM", IP_CHECKSUM),
        (8, "IP_RECVFRAGSIZE", IP_RECVFRAGSIZE),
    ] {
        found.when(told >> bit & 1 == 1, name, LEVEL, option);
    }
    for (member, bit, name, option) in [
        (
            "recverr",
            "INET_FLAGS_RECVERR",
            "IP_RECVERR",
            libc::IP_RECVERR,
        ),
        (
            "recverr_rfc4884",
            "INET_FLAGS_RECVERR_RFC4884",
            "IP_RECVERR_RFC4884",
            IP_RECVERR_RFC4884,
        ),
        (
            "freebind",
            "INET_FLAGS_FREEBIND",
            "IP_FREEBIND",
            libc::IP_FREEBIND,
        ),
        (
            "transparent",
            "INET_FLAGS_TRANSPARENT",
            "IP_TRANSPARENT",
            libc::IP_TRANSPARENT,
        ),
        (
            "bind_address_no_port",
            "INET_FLAGS_BIND_ADDRESS_NO_PORT",
            "IP_BIND_ADDRESS_NO_PORT",
            libc::IP_BIND_ADDRESS_NO_PORT,
        ),
    ] {
        found.when(
            inet_bit(inet, member, bit) == Some(true),
            name,
            LEVEL,
            option,
        );
    }
}

pub(super) fn of_multicast(inet: &Object<'_>, found: &mut Found) {
    use libc::IPPROTO_IP as LEVEL;
    let ttl = libc::IP_MULTICAST_TTL;
    found.member((inet, "mc_ttl"), 1, "IP_MULTICAST_TTL", LEVEL, ttl);
    if differs(inet, "mc_index", 0).is_some() || differs(inet, "mc_addr", 0).is_some() {
        // struct ip_mreqn.
        let mut value = vec![0; 4];
        let address = inet.get("mc_addr").and_then(|a| a.read_bytes(4));
        value.extend(address.unwrap_or_else(|_| vec![0; 4]));
        value.extend(int(inet, "mc_index").unwrap_or(0).to_ne_bytes());
        found.bytes("IP_MULTICAST_IF", LEVEL, libc::IP_MULTICAST_IF, value);
    }
    for (member, bit, name, option) in [
        (
            "mc_loop",
            "INET_FLAGS_MC_LOOP",
            "IP_MULTICAST_LOOP",
            libc::IP_MULTICAST_LOOP,
        ),
        (
            "mc_all",
            "INET_FLAGS_MC_ALL",
            "IP_MULTICAST_ALL",
            libc::IP_MULTICAST_ALL,
        ),
    ] {
        if inet_bit(inet, member, bit) == Some(false) {
            found.number(name, LEVEL, option, 0);
        }
    }
}

pub(super) fn of_ipv6(inet: &Object<'_>, own: &Object<'_>, found: &mut Found) {
    use libc::IPPROTO_IPV6 as LEVEL;
    /// What this machine's libc does not name. Linux include/uapi/linux/in6.h, ipv6.h.
    const IPV6_AUTOFLOWLABEL: i32 = 70;
    const IPV6_MINHOPCOUNT: i32 = 73;
    const IPV6_RECVORIGDSTADDR: i32 = 74;
    const IPV6_RECVFRAGSIZE: i32 = 77;
    let bit = |member: &str, flag: &str| ipv6_bit(inet, own, member, flag);
    for (member, usual, name, option) in [
        ("tclass", 0, "IPV6_TCLASS", libc::IPV6_TCLASS),
        (
            "hop_limit",
            -1,
            "IPV6_UNICAST_HOPS",
            libc::IPV6_UNICAST_HOPS,
        ),
        ("min_hopcount", 0, "IPV6_MINHOPCOUNT", IPV6_MINHOPCOUNT),
        // IPV6_PMTUDISC_WANT.
        ("pmtudisc", 1, "IPV6_MTU_DISCOVER", libc::IPV6_MTU_DISCOVER),
    ] {
        found.member((own, member), usual, name, LEVEL, option);
    }
    for (member, name, option) in [
        ("rxinfo", "IPV6_RECVPKTINFO", libc::IPV6_RECVPKTINFO),
        ("rxhlim", "IPV6_RECVHOPLIMIT", libc::IPV6_RECVHOPLIMIT),
        ("rxtclass", "IPV6_RECVTCLASS", libc::IPV6_RECVTCLASS),
        ("rxpmtu", "IPV6_RECVPATHMTU", libc::IPV6_RECVPATHMTU),
        (
            "rxorigdstaddr",
            "IPV6_RECVORIGDSTADDR",
            IPV6_RECVORIGDSTADDR,
        ),
        ("recvfragsize", "IPV6_RECVFRAGSIZE", IPV6_RECVFRAGSIZE),
    ] {
        let set = own.u(&format!("rxopt.bits.{member}")).is_ok_and(|n| n != 0);
        found.when(set, name, LEVEL, option);
    }
    for (member, flag, name, option) in [
        (
            "recverr",
            "INET_FLAGS_RECVERR6",
            "IPV6_RECVERR",
            libc::IPV6_RECVERR,
        ),
        (
            "dontfrag",
            "INET_FLAGS_DONTFRAG",
            "IPV6_DONTFRAG",
            libc::IPV6_DONTFRAG,
        ),
    ] {
        found.when(bit(member, flag) == Some(true), name, LEVEL, option);
    }
    if bit("autoflowlabel_set", "INET_FLAGS_AUTOFLOWLABEL_SET") == Some(true) {
        let on = bit("autoflowlabel", "INET_FLAGS_AUTOFLOWLABEL") == Some(true);
        found.number("IPV6_AUTOFLOWLABEL", LEVEL, IPV6_AUTOFLOWLABEL, on.into());
    }
}

/// A bit that went from `ipv6_pinfo` to `inet_flags`.
fn ipv6_bit(inet: &Object<'_>, own: &Object<'_>, member: &str, flag: &str) -> Option<bool> {
    match own.has(member) {
        true => own.u(member).ok().map(|value| value != 0),
        false => inet_bit(inet, member, flag),
    }
}

pub(super) fn of_multicast6(
    inet: &Object<'_>,
    own: &Object<'_>,
    found: &mut Found,
) -> Result<(), KernelError> {
    use libc::IPPROTO_IPV6 as LEVEL;
    const IPV6_MULTICAST_ALL: i32 = 29;
    let bit = |member: &str, flag: &str| ipv6_bit(inet, own, member, flag);
    let interface = libc::IPV6_MULTICAST_IF;
    found.member((own, "mcast_oif"), 0, "IPV6_MULTICAST_IF", LEVEL, interface);
    // Signed before it was a byte of its own.
    if let Ok(hops) = own.i("mcast_hops")
        && !matches!(hops, -1 | 1 | 0xff)
    {
        found.number(
            "IPV6_MULTICAST_HOPS",
            LEVEL,
            libc::IPV6_MULTICAST_HOPS,
            hops,
        );
    }
    for (member, flag, name, option) in [
        (
            "mc_loop",
            "INET_FLAGS_MC6_LOOP",
            "IPV6_MULTICAST_LOOP",
            libc::IPV6_MULTICAST_LOOP,
        ),
        (
            "mc_all",
            "INET_FLAGS_MC6_ALL",
            "IPV6_MULTICAST_ALL",
            IPV6_MULTICAST_ALL,
        ),
    ] {
        if bit(member, flag) == Some(false) {
            found.number(name, LEVEL, option, 0);
        }
    }
    groups6(own, found)
}

/// IPV6_ADD_MEMBERSHIP: `ipv6_pinfo.ipv6_mc_list`. The index of an interface is replaced by that
/// of the interface of its name when it is set.
fn groups6(own: &Object<'_>, found: &mut Found) -> Result<(), KernelError> {
    let mut next = own.follow_opt("ipv6_mc_list")?;
    let mut count = 0;
    while let Some(entry) = next {
        // struct ipv6_mreq, and the interface's name behind it.
        let mut value = entry.get("addr")?.read_bytes(16)?;
        let index = int(&entry, "ifindex")?;
        value.extend(index.to_ne_bytes());
        if let Some(name) = net_device::name_of(own.kernel(), index)? {
            value.extend(name.as_bytes());
        }
        let option = libc::IPV6_ADD_MEMBERSHIP;
        found.bytes("IPV6_ADD_MEMBERSHIP", libc::IPPROTO_IPV6, option, value);
        count += 1;
        if count >= MOST_GROUPS {
            break;
        }
        next = entry.follow_opt("next")?;
    }
    Ok(())
}
