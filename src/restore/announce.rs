//! Tells the network where a restored guest is, as QEMU does after a migration: a reverse ARP
//! request with the guest's own hardware address, put into the host's network through the guest's
//! tap as if the guest had sent it. Bridges and switches learn from it which way the guest is; to
//! everybody else it says nothing.

use crate::dataset::{HeardAddress, TapLink};

/// Ethernet types: RARP, and of a VLAN's tag.
const RARP: u16 = 0x8035;
const VLAN: u16 = 0x8100;
/// The shortest frame. Bytes.
const SHORTEST: usize = 60;

/// Flags of TUNSETIFF.
const IFF_TAP: u32 = 0x2;
const IFF_NO_PI: u32 = 0x1000;
const IFF_VNET_HDR: u32 = 0x4000;

/// What is written to a tap's queue to announce all addresses that were heard behind it. Empty for
/// a tun, which carries no such frames.
pub fn packets(link: &TapLink, flags: u32, vnet_header_len: u32) -> Vec<Vec<u8>> {
    if flags & IFF_TAP == 0 {
        return Vec::new();
    }
    let untagged = link
        .master
        .iter()
        .flat_map(|m| &m.vlans)
        .find(|v| v.pvid)
        .map_or(0, |v| v.id);
    link.heard
        .iter()
        .map(|heard| {
            // struct tun_pi, and struct virtio_net_hdr: nothing special about this frame.
            let mut packet = Vec::new();
            if flags & IFF_NO_PI == 0 {
                packet.extend([0, 0]);
                packet.extend(RARP.to_be_bytes());
            }
            if flags & IFF_VNET_HDR != 0 {
                let len = usize::try_from(vnet_header_len).unwrap_or(0).min(64);
                packet.resize(packet.len() + len, 0);
            }
            packet.extend(frame(heard, untagged));
            packet
        })
        .collect()
}

/// RFC 903: opcode 3, "who has this hardware address?", about the sender itself.
fn frame(heard: &HeardAddress, untagged: u16) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(heard.mac);
    if heard.vlan != 0 && heard.vlan != untagged {
        frame.extend(VLAN.to_be_bytes());
        frame.extend(heard.vlan.to_be_bytes());
    }
    frame.extend(RARP.to_be_bytes());
    // Ethernet, IPv4, lengths of their addresses, request reverse.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(heard.mac);
        frame.extend([0; 4]);
    }
    frame.resize(frame.len().max(SHORTEST), 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Master, PortVlan};

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    fn link(vlan: u16) -> TapLink {
        TapLink {
            heard: vec![HeardAddress { mac: MAC, vlan }],
            master: Some(Master {
                vlans: vec![PortVlan {
                    id: 7,
                    pvid: true,
                    untagged: true,
                }],
                ..Master::default()
            }),
            ..TapLink::default()
        }
    }

    #[test]
    fn it_is_the_frame_that_qemu_sends() {
        // QEMU net/announce.c, announce_self_create().
        let packets = packets(&link(0), 0x5002, 12);
        let packet = &packets[0];
        assert_eq!(packet.len(), 12 + 60);
        assert_eq!(packet[..12], [0; 12]);
        let frame = &packet[12..];
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], MAC);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&MAC[..], &MAC[..]));
        assert!(frame[42..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_vlan_is_tagged_unless_it_is_the_ports_own() {
        assert_eq!(packets(&link(7), 0x1002, 0)[0][12..14], [0x80, 0x35]);
        assert_eq!(packets(&link(9), 0x1002, 0)[0][12..16], [0x81, 0, 0, 9]);
        assert_eq!(packets(&link(0), 0x1001, 0), Vec::<Vec<u8>>::new(), "a tun");
    }
}
