//! Messages of rtnetlink about interfaces.

use crate::dataset::InterfaceAddress;
use std::net::IpAddr;

/// Messages and attributes of Linux include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h,
/// if_bridge.h.
pub(crate) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const NLM_F_CREATE_REPLACE: u16 = 0x500;
pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_MTU: u16 = 4;
pub(crate) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_TXQLEN: u16 = 13;
pub(super) const IFLA_AF_SPEC: u16 = 26;
pub(super) const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
pub(super) const IFA_ADDRESS: u16 = 1;
pub(super) const IFA_LOCAL: u16 = 2;
pub(super) const IFF_UP: u32 = 1;
pub(super) const VLAN_PVID: u16 = 2;
pub(super) const VLAN_UNTAGGED: u16 = 4;

/// One attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `struct ifinfomsg` and attributes. `up`: set IFF_UP so.
pub(crate) fn link_message(family: u8, index: u32, up: Option<bool>, attributes: &[u8]) -> Vec<u8> {
    let mut message = vec![family, 0, 0, 0];
    message.extend(index.to_ne_bytes());
    message.extend(up.map_or(0, |up| if up { IFF_UP } else { 0 }).to_ne_bytes());
    message.extend(up.map_or(0, |_| IFF_UP).to_ne_bytes());
    message.extend(attributes);
    message
}

/// `struct ifaddrmsg` and attributes.
pub(crate) fn address_message(index: u32, address: &InterfaceAddress) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let family = match address.address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let mut message = vec![u8::try_from(family).unwrap_or(0), address.prefix, 0, 0];
    message.extend(index.to_ne_bytes());
    message.extend(attribute(IFA_LOCAL, &octets(address.address)));
    let other = address.peer.unwrap_or(address.address);
    message.extend(attribute(IFA_ADDRESS, &octets(other)));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded() {
        assert_eq!(attribute(1, &[1, 2, 3, 4, 5, 6]).len(), 12);
        assert_eq!(attribute(1, &[1, 2, 3, 4, 5, 6])[..4], [10, 0, 1, 0]);
        let up = link_message(0, 3, Some(true), &[]);
        assert_eq!(up, [0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    }
}
