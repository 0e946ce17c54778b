//! UDP datagrams that nobody had read.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::skb;
use crate::dataset::{Blob, Datagram};
use crate::kernel::{KernelError, Object};

/// The datagrams of a `struct udp_sock`, the oldest first.
pub(super) fn unread(sk: &Object<'_>) -> Result<Vec<Datagram>, KernelError> {
    let udp = sk.kernel().object("udp_sock", sk.addr())?;
    let mut buffers = Vec::new();
    // What a reader has begun with. Since Linux commit 2276f58ac589 ("udp: use a separate rx queue
    // for packet reception") (in v4.13).
    if udp.has("reader_queue") {
        buffers = skb::queue(&udp.get("reader_queue")?)?;
    }
    buffers.extend(skb::queue(&sk.get("sk_receive_queue")?)?);
    let mut left = skb::MAX_BYTES;
    buffers.iter().map(|b| datagram(b, &mut left)).collect()
}

/// The headers are before the data still.
fn datagram(buffer: &Object<'_>, left: &mut u64) -> Result<Datagram, KernelError> {
    let kernel = buffer.kernel();
    let head = buffer.ptr("head")?;
    let at = |member: &str, offset: u64| -> Result<u64, KernelError> {
        Ok(head.wrapping_add(buffer.u(member)?).wrapping_add(offset))
    };
    let read = |from: u64, bytes: &mut [u8]| kernel.read(from, bytes);
    let mut ports = [0; 4];
    read(at("transport_header", 0)?, &mut ports)?;
    let [a, b, c, d] = ports;
    let (from_port, to_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let mut version = [0];
    read(at("network_header", 0)?, &mut version)?;
    let (from, to) = match version[0] >> 4 {
        4 => {
            let (mut from, mut to) = ([0; 4], [0; 4]);
            read(at("network_header", 12)?, &mut from)?;
            read(at("network_header", 16)?, &mut to)?;
            (Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into())
        }
        6 => {
            let (mut from, mut to) = ([0; 16], [0; 16]);
            read(at("network_header", 8)?, &mut from)?;
            read(at("network_header", 24)?, &mut to)?;
            (Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into())
        }
        other => {
            return Err(KernelError::Damaged {
                what: "sk_buff",
                addr: buffer.addr(),
                detail: format!("a datagram of IP version {other}"),
            });
        }
    };
    Ok(Datagram {
        from: SocketAddr::new(from, from_port),
        to: SocketAddr::new(to, to_port),
        data: Blob(skb::content(buffer, left)?),
    })
}
