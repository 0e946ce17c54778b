//! Packets as they come from a network: for what only a packet can do to a socket.

use crate::sys::socket;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

/// `flags` of a TCP header.
pub(super) const FIN: u8 = 1;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A TCP segment without data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// As it stands in the header, scaled already.
    pub window: u16,
}

impl Segment {
    fn packet(&self) -> io::Result<Vec<u8>> {
        let mut header = Vec::new();
        header.extend(self.from.port().to_be_bytes());
        header.extend(self.to.port().to_be_bytes());
        header.extend(self.seq.to_be_bytes());
        header.extend(self.ack.to_be_bytes());
        // Five words of four bytes.
        header.extend([5 << 4, self.flags]);
        header.extend(self.window.to_be_bytes());
        // Checksum, urgent pointer.
        header.extend([0; 4]);
        packet(TCP, self.from, self.to, header, 16)
    }
}

/// A UDP datagram.
fn datagram(from: SocketAddr, to: SocketAddr, data: &[u8]) -> io::Result<Vec<u8>> {
    let len = u16::try_from(data.len() + 8).map_err(io::Error::other)?;
    let mut whole = Vec::new();
    whole.extend(from.port().to_be_bytes());
    whole.extend(to.port().to_be_bytes());
    whole.extend(len.to_be_bytes());
    whole.extend([0; 2]);
    whole.extend(data);
    packet(UDP, from, to, whole, 6)
}

/// Puts an IP header before it, and the checksum at `at`.
fn packet(
    protocol: u8,
    from: SocketAddr,
    to: SocketAddr,
    mut body: Vec<u8>,
    at: usize,
) -> io::Result<Vec<u8>> {
    const HOPS: u8 = 64;
    let len = body.len();
    let mut pseudo = Vec::new();
    let mut whole = Vec::new();
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(len + 20).map_err(io::Error::other)?;
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
            pseudo.extend([0, protocol]);
            pseudo.extend(u16::try_from(len).map_err(io::Error::other)?.to_be_bytes());
            whole.extend([0x45, 0]);
            whole.extend(total.to_be_bytes());
            // Identification; not to be split; its checksum is the kernel's to make.
            whole.extend([0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
            whole.extend(from.octets());
            whole.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
            pseudo.extend(u32::try_from(len).map_err(io::Error::other)?.to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
            whole.extend([0x60, 0, 0, 0]);
            whole.extend(u16::try_from(len).map_err(io::Error::other)?.to_be_bytes());
            whole.extend([protocol, HOPS]);
            whole.extend(from.octets());
            whole.extend(to.octets());
        }
        _ => return Err(io::Error::other("addresses of two families")),
    }
    pseudo.extend(&body);
    let sum = match checksum(&pseudo) {
        // 0 says that there is none.
        0 if protocol == UDP => u16::MAX,
        sum => sum,
    };
    if let Some(place) = body.get_mut(at..at + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    whole.append(&mut body);
    Ok(whole)
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|pair| match pair {
            [a, b] => u64::from(u16::from_be_bytes([*a, *b])),
            [a] => u64::from(*a) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Delivers a segment to the socket `own` of this host, as if the network had brought it.
pub(super) fn deliver(own: BorrowedFd<'_>, segment: &Segment) -> io::Result<()> {
    send(own, segment.to, &segment.packet()?)
}

/// Delivers a datagram. To an address of somebody else it is refused.
pub(super) fn deliver_datagram(
    own: BorrowedFd<'_>,
    from: SocketAddr,
    to: SocketAddr,
    data: &[u8],
) -> io::Result<()> {
    send(own, to, &datagram(from, to, data)?)
}

fn send(own: BorrowedFd<'_>, to: SocketAddr, packet: &[u8]) -> io::Result<()> {
    is_own(own, to.ip())?;
    let ip = to.ip().to_canonical();
    let family = family(ip);
    let raw = socket::new_beside(own, family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let address = match to {
        // The interface of a link-local address stays with it.
        SocketAddr::V6(mut v6) if ip.is_ipv6() => {
            v6.set_port(0);
            v6.into()
        }
        _ => SocketAddr::new(ip, 0),
    };
    socket::send_to(raw.as_fd(), packet, &super::inet::sockaddr(address))
}

fn family(ip: IpAddr) -> i32 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    }
}

/// Whether the host has this address: then it can be bound to. A packet leaves it for nowhere.
fn is_own(own: BorrowedFd<'_>, ip: IpAddr) -> io::Result<()> {
    if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Ok(());
    }
    let probe = socket::new_beside(own, family(ip), libc::SOCK_DGRAM, 0)?;
    socket::bind(
        probe.as_fd(),
        &super::inet::sockaddr(SocketAddr::new(ip, 0)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(a: &str, b: &str) -> (SocketAddr, SocketAddr) {
        (
            a.parse().expect("an address"),
            b.parse().expect("an address"),
        )
    }

    #[test]
    fn a_checksum_over_a_whole_packet_is_zero() {
        let (from, to) = addresses("10.0.0.1:7", "10.0.0.2:9");
        let whole = datagram(from, to, b"abc").expect("a packet");
        assert_eq!((whole.len(), whole[0], whole[9]), (31, 0x45, 17));
        let mut pseudo = whole[12..20].to_vec();
        pseudo.extend([0, 17, 0, 11]);
        pseudo.extend(&whole[20..]);
        assert_eq!(checksum(&pseudo), 0);
    }

    #[test]
    fn ipv4_within_ipv6_is_sent_as_ipv4() {
        let (from, to) = addresses("[::ffff:10.0.0.1]:7", "[::ffff:10.0.0.2]:9");
        let segment = Segment {
            from,
            to,
            seq: 1,
            ack: 2,
            flags: FIN | ACK,
            window: 3,
        };
        let whole = segment.packet().expect("a packet");
        assert_eq!((whole.len(), whole[0], whole[33]), (40, 0x45, 17));
        let (v6, _) = addresses("[::1]:7", "10.0.0.2:9");
        assert!(
            Segment {
                from: v6,
                ..segment
            }
            .packet()
            .is_err()
        );
    }
}
