//! Bridges and what hangs on them, made as the plan says. What is there already, the host's own
//! configuration has made, and is left alone.

use super::log::Log;
use crate::cli::prepare::plan::{Link, LinkKind};
use crate::dataset::InterfaceAddress;
use crate::restore::link_messages::{
    IFLA_ADDRESS, IFLA_MASTER, IFLA_MTU, NLM_F_CREATE_REPLACE, RTM_NEWADDR, RTM_NEWLINK,
    address_message, attribute, link_message,
};
use crate::sys::netlink::Rtnetlink;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Linux include/uapi/linux/{if_link,rtnetlink,netlink}.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const NLM_F_CREATE_EXCL: u16 = 0x600;
const RTM_NEWROUTE: u16 = 24;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

/// How long a card may take to be found.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes them. Nothing here keeps a guest from going on.
pub fn make(links: &[Link], log: &mut Log) {
    if links.is_empty() {
        return;
    }
    let mut netlink = match Rtnetlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return log.say(format!("no bridge is made: {error}")),
    };
    // Names in the plan, and here.
    let mut made = BTreeMap::new();
    for link in links {
        match create(link, &made, &mut netlink) {
            Ok(Some(name)) => {
                made.insert(link.name.as_str(), name);
            }
            Ok(None) => {}
            Err(error) => log.say(format!("{}: {error}", link.name)),
        }
    }
    // Ports join what is set up.
    let (bridges, others): (Vec<_>, Vec<_>) =
        links.iter().partition(|l| l.kind == LinkKind::Bridge);
    for link in bridges.into_iter().chain(others) {
        let Some(name) = made.get(link.name.as_str()) else {
            continue;
        };
        for (what, error) in configure(link, name, &mut netlink) {
            log.say(format!("{name}: {what}: {error}"));
        }
        log.say(format!("{name} is there"));
    }
}

/// Up, as every host has it.
pub fn loopback() -> io::Result<()> {
    let message = link_message(0, index("lo")?, Some(true), &[]);
    Rtnetlink::open()?.request(RTM_NEWLINK, 0, &message)
}

/// Gives the name that a link has here; `None`: it was there already.
fn create(
    link: &Link,
    made: &BTreeMap<&str, String>,
    netlink: &mut Rtnetlink,
) -> io::Result<Option<String>> {
    let info = |kind: &str, data: Vec<u8>| {
        let kind = attribute(IFLA_INFO_KIND, kind.as_bytes());
        attribute(IFLA_LINKINFO, &[kind, data].concat())
    };
    let name = attribute(IFLA_IFNAME, format!("{}\0", link.name).as_bytes());
    let attributes = match &link.kind {
        LinkKind::Card => return card(link).map(Some),
        _ if class(&link.name).exists() => return Ok(None),
        LinkKind::Bridge => [name, info("bridge", Vec::new())].concat(),
        LinkKind::Vlan { of, id } => {
            let below = index(made.get(of.as_str()).unwrap_or(of))?;
            let id = attribute(IFLA_VLAN_ID, &id.to_ne_bytes());
            let info = info("vlan", attribute(IFLA_INFO_DATA, &id));
            [name, attribute(IFLA_LINK, &below.to_ne_bytes()), info].concat()
        }
    };
    let message = link_message(0, 0, None, &attributes);
    netlink.request(RTM_NEWLINK, NLM_F_CREATE_EXCL, &message)?;
    Ok(Some(link.name.clone()))
}

/// A card by its hardware address, whatever its name is now.
fn card(link: &Link) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let entries = fs::read_dir("/sys/class/net")
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries.filter(|e| e.path().join("device").exists()) {
            if read(&entry.path().join("address")).as_ref() == Some(&link.mac) {
                return Ok(entry.file_name().to_string_lossy().into_owned());
            }
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!(
                "no card has the address {}",
                link.mac
            )));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// All that a new link needs; what failed.
fn configure(link: &Link, name: &str, netlink: &mut Rtnetlink) -> Vec<(String, io::Error)> {
    let mut failed = Vec::new();
    let index_here = match index(name) {
        Ok(index) => index,
        Err(error) => return vec![("its number".into(), error)],
    };
    // VLANs are filtered only when its other settings are made.
    let (last, first): (Vec<_>, Vec<_>) = link
        .settings
        .iter()
        .partition(|(n, _)| *n == "vlan_filtering");
    for (setting, value) in first.into_iter().chain(last) {
        let path = class(name).join("bridge").join(setting);
        if read(&path).as_ref() != Some(value)
            && let Err(error) = fs::write(&path, value)
        {
            failed.push((setting.clone(), error));
        }
    }
    let mut note = |what: &str, done: io::Result<()>| {
        if let Err(error) = done {
            failed.push((what.to_owned(), error));
        }
    };
    let mut settings = Vec::new();
    if link.kind == LinkKind::Bridge
        && let Some(mac) = hardware_address(&link.mac)
    {
        settings.push(("hardware address", attribute(IFLA_ADDRESS, &mac)));
    }
    if link.mtu != 0 {
        settings.push(("MTU", attribute(IFLA_MTU, &link.mtu.to_ne_bytes())));
    }
    let bridge = link.bridge.as_deref().map(index);
    match bridge {
        Some(Ok(bridge)) => {
            settings.push(("bridge", attribute(IFLA_MASTER, &bridge.to_ne_bytes())))
        }
        Some(Err(error)) => note("bridge", Err(error)),
        None => {}
    }
    for (what, attribute) in settings {
        let message = link_message(0, index_here, None, &attribute);
        note(what, netlink.request(RTM_NEWLINK, 0, &message));
    }
    for (address, prefix) in &link.addresses {
        let address = InterfaceAddress {
            address: *address,
            prefix: *prefix,
            peer: None,
        };
        let message = address_message(index_here, &address);
        note(
            "address",
            netlink.request(RTM_NEWADDR, NLM_F_CREATE_REPLACE, &message),
        );
    }
    if link.up {
        let message = link_message(0, index_here, Some(true), &[]);
        note("being up", netlink.request(RTM_NEWLINK, 0, &message));
    }
    if let Some(IpAddr::V4(gateway)) = link.gateway {
        // struct rtmsg: family, lengths of both addresses, TOS; table main, static, universe, unicast.
        let mut message = vec![2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        message.extend(attribute(RTA_GATEWAY, &gateway.octets()));
        message.extend(attribute(RTA_OIF, &index_here.to_ne_bytes()));
        note(
            "default route",
            netlink.request(RTM_NEWROUTE, NLM_F_CREATE_REPLACE, &message),
        );
    }
    failed
}

fn hardware_address(text: &str) -> Option<Vec<u8>> {
    let parts = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok());
    let bytes: Option<Vec<u8>> = parts.collect();
    bytes.filter(|b| b.len() == 6)
}

fn class(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn index(name: &str) -> io::Result<u32> {
    read(&class(name).join("ifindex"))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::other(format!("there is no {name}")))
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read() {
        assert_eq!(
            hardware_address("52:54:00:00:00:0b"),
            Some(vec![0x52, 0x54, 0, 0, 0, 0xb])
        );
        assert_eq!(hardware_address("52:54"), None);
    }
}
