//! The bridges that guests' taps are ports of, and what connects them with the world.

use super::modules;
use super::plan::{Link, LinkKind};
use nix::ifaddrs::getifaddrs;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

const CLASS: &str = "/sys/class/net";
/// Settings of a bridge that are worth making again, where they are not what a new one has.
const SETTINGS: [&str; 11] = [
    "stp_state",
    "priority",
    "forward_delay",
    "hello_time",
    "max_age",
    "ageing_time",
    "group_fwd_mask",
    "multicast_snooping",
    "multicast_querier",
    "default_pvid",
    "vlan_filtering",
];

/// What is to be made for some bridges.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they are made: a port's own link before the port, ports before bridges.
    pub links: Vec<Link>,
    pub modules: BTreeSet<String>,
    /// What cannot be made, and why.
    pub lacking: Vec<String>,
}

/// The bridges of these names with their ports, but for `taps`, which come with their guests.
pub fn find(bridges: &BTreeSet<String>, taps: &BTreeSet<String>) -> Found {
    let mut found = Found::default();
    for bridge in bridges {
        if !class(bridge).join("bridge").exists() {
            found
                .lacking
                .push(format!("{bridge} is no bridge of the kernel's own"));
            continue;
        }
        for port in names(&class(bridge).join("brif")) {
            if !taps.contains(&port) {
                found.add(&port, Some(bridge));
            }
        }
        let mut link = link(bridge, LinkKind::Bridge);
        for name in SETTINGS {
            if let Some(value) = read(&class(bridge).join("bridge").join(name)) {
                link.settings.insert(name.into(), value);
            }
        }
        found.modules.insert("bridge".into());
        found.links.push(link);
    }
    found
}

impl Found {
    fn add(&mut self, name: &str, bridge: Option<&str>) {
        if self.links.iter().any(|l| l.name == name) {
            return;
        }
        let kind = if class(name).join("device").exists() {
            self.modules
                .extend(modules::drivers(&class(name).join("device")));
            LinkKind::Card
        } else if let Some((of, id)) = vlan(name) {
            self.add(&of, None);
            self.modules.insert("8021q".into());
            LinkKind::Vlan { of, id }
        } else if class(name).join("tun_flags").exists() {
            // A tap of somebody who does not live on.
            return;
        } else {
            self.lacking.push(format!(
                "{name}{} is neither a card nor a VLAN: only the host's own configuration makes it",
                bridge.map_or_else(String::new, |b| format!(", a port of {b},")),
            ));
            return;
        };
        let mut link = link(name, kind);
        link.bridge = bridge.map(str::to_owned);
        self.links.push(link);
    }
}

fn link(name: &str, kind: LinkKind) -> Link {
    let text = |file: &str| read(&class(name).join(file));
    let flags =
        text("flags").and_then(|f| u32::from_str_radix(f.trim_start_matches("0x"), 16).ok());
    Link {
        name: name.to_owned(),
        kind,
        mac: text("address").unwrap_or_default(),
        mtu: text("mtu").and_then(|m| m.parse().ok()).unwrap_or(0),
        up: flags.is_some_and(|flags| flags & 1 != 0),
        bridge: None,
        addresses: addresses(name),
        gateway: gateway(
            name,
            &fs::read_to_string("/proc/net/route").unwrap_or_default(),
        ),
        settings: BTreeMap::new(),
    }
}

/// Addresses of an interface, but for those that it gives itself.
fn addresses(name: &str) -> Vec<(IpAddr, u8)> {
    let all = getifaddrs().into_iter().flatten();
    all.filter(|a| a.interface_name == name)
        .filter_map(|a| {
            let (address, mask) = (a.address?, a.netmask?);
            if let (Some(ip), Some(mask)) = (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
                let bits = u32::from(mask.ip()).count_ones();
                return Some((IpAddr::V4(ip.ip()), u8::try_from(bits).ok()?));
            }
            let (ip, mask) = (address.as_sockaddr_in6()?, mask.as_sockaddr_in6()?);
            let bits = u128::from(mask.ip()).count_ones();
            let own = ip.ip().is_unicast_link_local();
            (!own).then_some((IpAddr::V6(ip.ip()), u8::try_from(bits).ok()?))
        })
        .collect()
}

/// Where the default route through an interface leads, by `/proc/net/route`.
fn gateway(name: &str, routes: &str) -> Option<IpAddr> {
    routes.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [interface, "00000000", gateway, ..] if *interface == name => {
                // In network byte order, as a number of this machine's.
                let number = u32::from_str_radix(gateway, 16).ok().filter(|n| *n != 0)?;
                Some(IpAddr::V4(Ipv4Addr::from(number.to_ne_bytes())))
            }
            _ => None,
        }
    })
}

/// Of a VLAN's interface: of which, and its number.
fn vlan(name: &str) -> Option<(String, u16)> {
    let text = fs::read_to_string(Path::new("/proc/net/vlan").join(name)).ok()?;
    let id = text.split("VID:").nth(1)?.split_whitespace().next()?;
    let of = text.split("Device:").nth(1)?.split_whitespace().next()?;
    Some((of.to_owned(), id.parse().ok()?))
}

fn class(name: &str) -> PathBuf {
    Path::new(CLASS).join(name)
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_is_found() {
        let text = "Iface\tDestination\tGateway\tFlags\n\
                    br0\t000010AC\t00000000\t0001\n\
                    br0\t00000000\t010010AC\t0003\n";
        assert_eq!(
            gateway("br0", text),
            Some("172.16.0.1".parse().expect("it"))
        );
        assert_eq!(gateway("eth0", text), None);
    }

    #[test]
    fn the_loop_has_its_addresses() {
        let found = link("lo", LinkKind::Card);
        assert!(
            found
                .addresses
                .contains(&("127.0.0.1".parse().expect("it"), 8))
        );
        assert!(found.mtu > 0);
    }
}
