//! One interface, made what it was: address, queue, port of a bridge, VLANs.

use super::messages::*;
use super::{Queue, Undo, attribute_of, class, index_of, not_done};
use crate::dataset::{Fidelity, Master, PortVlan, TapLink};
use crate::sys::netlink::Rtnetlink;
use std::fs;
use std::io;

/// `net_bridge_port.flags` (BR_* of Linux include/linux/if_bridge.h) and the file below `brport`
/// that shows each. Those that the kernel computes by itself are not here.
const PORT_FLAGS: [(u32, &str); 12] = [
    (0, "hairpin_mode"),
    (1, "bpdu_guard"),
    (2, "root_block"),
    (3, "multicast_fast_leave"),
    (5, "learning"),
    (6, "unicast_flood"),
    (8, "proxyarp"),
    (11, "multicast_flood"),
    (12, "multicast_to_unicast"),
    (14, "broadcast_flood"),
    (15, "neigh_suppress"),
    (16, "isolated"),
];

/// One interface on its way.
pub(super) struct Setup<'a> {
    pub netlink: &'a mut Rtnetlink,
    pub queue: &'a Queue,
    pub link: &'a TapLink,
    pub undo: &'a mut Vec<Undo>,
    pub notes: &'a mut Vec<Fidelity>,
}

impl Setup<'_> {
    /// Does all, and notes what could not be done.
    pub fn all(&mut self) {
        let index = match index_of(&self.queue.name) {
            Ok(index) => index,
            Err(error) => {
                self.notes
                    .push(not_done(self.queue, "configuration", &error));
                return;
            }
        };
        if !self.queue.existed {
            self.own_attributes(index);
            for address in &self.link.addresses {
                let done = self.netlink.request(
                    RTM_NEWADDR,
                    NLM_F_CREATE_REPLACE,
                    &address_message(index, address),
                );
                self.note(&format!("address {}", address.address), done);
            }
        }
        let was_up = attribute_of(&self.queue.name, "flags").is_some_and(|flags| {
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16);
            flags.is_ok_and(|flags| flags & IFF_UP != 0)
        });
        if self.link.up && !was_up {
            let message = link_message(0, index, Some(true), &[]);
            let done = self.netlink.request(RTM_NEWLINK, 0, &message);
            if done.is_ok() && self.queue.existed {
                self.undo.push(Undo::Down(index));
            }
            self.note("being up", done);
        }
        if let Some(master) = &self.link.master {
            self.join(index, master);
        }
    }

    fn note(&mut self, what: &str, done: io::Result<()>) {
        if let Err(error) = done {
            self.notes.push(not_done(self.queue, what, &error));
        }
    }

    /// Hardware address, MTU, queue length: of an interface that was made anew.
    fn own_attributes(&mut self, index: u32) {
        let link = self.link;
        let mut settings = Vec::new();
        if !link.mac.0.is_empty() {
            settings.push(("hardware address", attribute(IFLA_ADDRESS, &link.mac.0)));
        }
        if link.mtu != 0 {
            settings.push(("MTU", attribute(IFLA_MTU, &link.mtu.to_ne_bytes())));
        }
        if link.tx_queue_len != 0 {
            let value = link.tx_queue_len.to_ne_bytes();
            settings.push(("queue length", attribute(IFLA_TXQLEN, &value)));
        }
        for (what, setting) in settings {
            let message = link_message(0, index, None, &setting);
            let done = self.netlink.request(RTM_NEWLINK, 0, &message);
            self.note(what, done);
        }
    }

    /// Makes it a port of the bridge that it was a port of.
    fn join(&mut self, index: u32, master: &Master) {
        let Ok(bridge) = index_of(&master.name) else {
            return; // It was said when the queue was made.
        };
        if let Ok(now) = fs::read_link(class(&self.queue.name).join("master")) {
            let now = now.file_name().unwrap_or_default().to_string_lossy();
            if now != master.name.as_str() {
                self.notes.push(Fidelity::reconstructed(
                    format!("pid {}", self.queue.pid),
                    format!("network interface {}", self.queue.name),
                    format!(
                        "it is a port of {now} on this host, and was one of {}",
                        master.name
                    ),
                ));
            }
            return;
        }
        if master.kind == "openvswitch" {
            self.notes.push(Fidelity::reconstructed(
                format!("pid {}", self.queue.pid),
                format!("network interface {}", self.queue.name),
                "Open vSwitch takes it in when its database has the port; else `ovs-vsctl add-port`",
            ));
            return;
        }
        let setting = attribute(IFLA_MASTER, &bridge.to_ne_bytes());
        let message = link_message(0, index, None, &setting);
        let done = self.netlink.request(RTM_NEWLINK, 0, &message);
        let joined = done.is_ok();
        if joined && self.queue.existed {
            self.undo.push(Undo::Master(index));
        }
        self.note(&format!("being a port of {}", master.name), done);
        if joined && master.kind == "bridge" {
            self.port_flags(master);
            self.vlans(index, master);
        }
    }

    fn port_flags(&mut self, master: &Master) {
        for (bit, file) in PORT_FLAGS {
            let wanted = if master.port_flags >> bit & 1 == 1 {
                "1"
            } else {
                "0"
            };
            let name = format!("brport/{file}");
            // A kernel without this flag does not have the file.
            match attribute_of(&self.queue.name, &name) {
                Some(now) if now != wanted => {
                    let done = fs::write(class(&self.queue.name).join(&name), wanted);
                    self.note(&format!("{file} of the bridge's port"), done);
                }
                _ => {}
            }
        }
    }

    /// VLANs, where they are not what the bridge has just given the port: its default, untagged.
    fn vlans(&mut self, index: u32, master: &Master) {
        let only = |id| PortVlan {
            id,
            pvid: true,
            untagged: true,
        };
        let Some(given) = attribute_of(&master.name, "bridge/default_pvid")
            .and_then(|text| text.parse::<u16>().ok())
        else {
            // This kernel's bridges know no VLANs.
            if !master.vlans.is_empty() && master.vlans != [only(1)] {
                let why = io::Error::other("this kernel's bridges have no VLANs");
                self.note("VLANs", Err(why));
            }
            return;
        };
        if master.vlans.is_empty() || master.vlans == [only(given)] {
            return;
        }
        let message = |id: u16, flags: u16| {
            let info = [flags.to_ne_bytes(), id.to_ne_bytes()].concat();
            let spec = attribute(IFLA_AF_SPEC, &attribute(IFLA_BRIDGE_VLAN_INFO, &info));
            link_message(libc::AF_BRIDGE as u8, index, None, &spec)
        };
        if given != 0 && master.vlans.iter().all(|v| v.id != given) {
            let done = self.netlink.request(RTM_DELLINK, 0, &message(given, 0));
            self.note(&format!("not being in VLAN {given}"), done);
        }
        for vlan in &master.vlans {
            let pvid = if vlan.pvid { VLAN_PVID } else { 0 };
            let untagged = if vlan.untagged { VLAN_UNTAGGED } else { 0 };
            let done = self
                .netlink
                .request(RTM_SETLINK, 0, &message(vlan.id, pvid | untagged));
            self.note(&format!("being in VLAN {}", vlan.id), done);
        }
    }
}
