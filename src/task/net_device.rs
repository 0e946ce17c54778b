//! A network interface as the dead host had it configured: `struct net_device`, the bridge that it
//! was a port of, and which hardware addresses that bridge had heard behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::list::int;
use crate::dataset::{Blob, HeardAddress, InterfaceAddress, Master, PortVlan, TapLink};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// IFF_UP of `net_device.flags`.
const IFF_UP: u64 = 1;
/// Bytes of an Ethernet address.
const MAC_LEN: u64 = 6;
/// `net_bridge_vlan.flags`: BRIDGE_VLAN_INFO_PVID, _UNTAGGED.
const VLAN_PVID: u64 = 2;
const VLAN_UNTAGGED: u64 = 4;
/// Most addresses of one interface that are carried over, and most hardware addresses.
const MOST: usize = 256;
/// Bridges' tables hold some thousands; more is a fault or a flood.
const MOST_HEARD: usize = 64;
/// `inet6_ifaddr.scope`: IFA_LINK, which the kernel gives an interface by itself.
const SCOPE_LINK: u64 = 0x20;
/// IFA_F_PERMANENT; others come from routers' advertisements and come again.
const PERMANENT: u64 = 0x80;

/// What there is to set on an interface that is made again. What cannot be read of its bridge or
/// its addresses is left out.
pub(super) fn read(device: &Object<'_>) -> Result<TapLink, KernelError> {
    let number = |member: &str| -> Result<u32, KernelError> {
        Ok(u32::try_from(device.u(member)?).unwrap_or(0))
    };
    let mac = match device.u("addr_len")? {
        // A pointer, or (the interface's first address, before it was allocated) an array.
        MAC_LEN => device
            .follow("dev_addr")
            .and_then(|at| at.read_bytes(MAC_LEN))?,
        _ => Vec::new(),
    };
    let master = master(device)?;
    let heard = match &master {
        Some((found, port)) if found.kind == "bridge" => port.as_ref().map(heard).transpose()?,
        _ => None,
    };
    let mut addresses = v4(device)?;
    addresses.extend(v6(device)?);
    Ok(TapLink {
        mac: Blob(mac),
        mtu: number("mtu")?,
        up: device.u("flags")? & IFF_UP != 0,
        tx_queue_len: number("tx_queue_len")?,
        owner: None,
        group: None,
        master: master.map(|(master, _)| master),
        addresses,
        heard: heard.unwrap_or_default(),
    })
}

/// The name of the interface with this number, in the first network namespace.
pub(super) fn name_of(kernel: &Kernel, index: i32) -> Result<Option<String>, KernelError> {
    if index == 0 {
        return Ok(None);
    }
    let net = kernel.object("net", kernel.symbol("init_net")?)?;
    for device in containers::list(&net.get("dev_base_head")?, "net_device", "dev_list")? {
        if int(&device, "ifindex")? == index {
            return device.get("name")?.string().map(Some);
        }
    }
    Ok(None)
}

/// All addresses of the host, in the first network namespace, so far as they can be read.
pub(super) fn addresses(kernel: &Kernel) -> Vec<IpAddr> {
    let devices = || -> Result<Vec<Object<'_>>, KernelError> {
        let net = kernel.object("net", kernel.symbol("init_net")?)?;
        containers::list(&net.get("dev_base_head")?, "net_device", "dev_list")
    };
    let mut found = Vec::new();
    for device in devices().unwrap_or_default() {
        found.extend(v4(&device).unwrap_or_default());
        found.extend(v6(&device).unwrap_or_default());
    }
    found.into_iter().map(|entry| entry.address).collect()
}

/// What the interface is a port of; of a bridge, the port too.
fn master<'k>(device: &Object<'k>) -> Result<Option<(Master, Option<Object<'k>>)>, KernelError> {
    for upper in containers::list(&device.get("adj_list.upper")?, "netdev_adjacent", "list")? {
        if upper.u("master")? == 0 {
            continue;
        }
        let above = upper.follow("dev")?;
        let kind = match above.follow_opt("rtnl_link_ops")? {
            Some(operations) => operations.get("kind")?.string()?,
            None => String::new(),
        };
        let mut master = Master {
            name: above.get("name")?.string()?,
            kind,
            ..Master::default()
        };
        if master.kind != "bridge" {
            return Ok(Some((master, None)));
        }
        let kernel = device.kernel();
        let at = device.ptr("rx_handler_data")?;
        let port = kernel
            .object_in("bridge", "net_bridge_port", at)
            .or_else(|_| kernel.object("net_bridge_port", at))?;
        if port.ptr("dev")? != device.addr() {
            return Err(KernelError::Damaged {
                what: "net_bridge_port",
                addr: at,
                detail: format!("it is not that of the interface at {:#x}", device.addr()),
            });
        }
        master.port_flags = port.u("flags")?;
        if port.has("vlgrp")
            && let Some(group) = port.follow_opt("vlgrp")?
        {
            let pvid = group.u("pvid")?;
            for vlan in containers::list(&group.get("vlan_list")?, "net_bridge_vlan", "vlist")? {
                let (id, flags) = (vlan.u("vid")?, vlan.u("flags")?);
                master.vlans.push(PortVlan {
                    id: u16::try_from(id).unwrap_or(0),
                    pvid: id == pvid || flags & VLAN_PVID != 0,
                    untagged: flags & VLAN_UNTAGGED != 0,
                });
            }
        }
        return Ok(Some((master, Some(port))));
    }
    Ok(None)
}

/// Who had spoken behind a bridge's port: `net_bridge.fdb_list`, without the bridge's own
/// addresses.
fn heard(port: &Object<'_>) -> Result<Vec<HeardAddress>, KernelError> {
    /// BR_FDB_LOCAL.
    const LOCAL: u64 = 0;
    let bridge = port.follow("br")?;
    let local = bridge
        .kernel()
        .enum_value("", "BR_FDB_LOCAL")
        .map_or(LOCAL, i64::cast_unsigned);
    let mut found = Vec::new();
    for entry in containers::hlist(&bridge.get("fdb_list")?, "net_bridge_fdb_entry", "fdb_node")? {
        // Bits of `flags` since Linux commit 6869c3b02b59 ("net: bridge: fdb: convert is_local to
        // bitops") (in v5.5).
        let own = if entry.has("is_local") {
            entry.u("is_local")? != 0
        } else {
            entry
                .u("flags")?
                .checked_shr(u32::try_from(local).unwrap_or(64))
                .unwrap_or(0)
                & 1
                != 0
        };
        if own || entry.ptr("dst")? != port.addr() {
            continue;
        }
        let mac = entry.get("key.addr.addr")?.bytes()?;
        if let Ok(mac) = <[u8; 6]>::try_from(mac.as_slice()) {
            found.push(HeardAddress {
                mac,
                vlan: u16::try_from(entry.u("key.vlan_id")?).unwrap_or(0),
            });
        }
        if found.len() >= MOST_HEARD {
            break;
        }
    }
    Ok(found)
}

fn v4(device: &Object<'_>) -> Result<Vec<InterfaceAddress>, KernelError> {
    let mut found = Vec::new();
    let Some(inet) = device.follow_opt("ip_ptr")? else {
        return Ok(found);
    };
    let mut next = inet.follow_opt("ifa_list")?;
    while let Some(entry) = next {
        let address = |member: &str| -> Result<Ipv4Addr, KernelError> {
            // In the order of the network.
            let bytes = entry.get(member)?.read_bytes(4)?;
            Ok(<[u8; 4]>::try_from(bytes.as_slice()).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from))
        };
        let (own, other) = (address("ifa_local")?, address("ifa_address")?);
        found.push(InterfaceAddress {
            address: IpAddr::V4(own),
            prefix: u8::try_from(entry.u("ifa_prefixlen")?).unwrap_or(32),
            peer: (own != other).then_some(IpAddr::V4(other)),
        });
        if found.len() >= MOST {
            break;
        }
        next = entry.follow_opt("ifa_next")?;
    }
    Ok(found)
}

fn v6(device: &Object<'_>) -> Result<Vec<InterfaceAddress>, KernelError> {
    let Some(inet6) = device.follow_opt("ip6_ptr")? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in containers::list(&inet6.get("addr_list")?, "inet6_ifaddr", "if_list")? {
        if entry.u("scope")? == SCOPE_LINK || entry.u("flags")? & PERMANENT == 0 {
            continue;
        }
        let bytes = entry.get("addr")?.read_bytes(16)?;
        let Ok(bytes) = <[u8; 16]>::try_from(bytes.as_slice()) else {
            continue;
        };
        found.push(InterfaceAddress {
            address: IpAddr::V6(Ipv6Addr::from(bytes)),
            prefix: u8::try_from(entry.u("prefix_len")?).unwrap_or(128),
            peer: None,
        });
        if found.len() >= MOST {
            break;
        }
    }
    Ok(found)
}
