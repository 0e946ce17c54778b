//! Network interfaces that processes made, and the kernel's halves of virtio devices (vhost).

use super::hex::u64_hex;
use super::{Blob, ObjectId};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The network interface behind a tap or tun queue (`struct net_device`), as the host had it
/// configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TapLink {
    /// Its own hardware address, the host's side. 6 bytes; empty for a tun.
    pub mac: Blob,
    /// Bytes.
    pub mtu: u32,
    /// IFF_UP.
    pub up: bool,
    /// Frames that wait at most.
    pub tx_queue_len: u32,
    /// TUNSETOWNER, TUNSETGROUP.
    pub owner: Option<u32>,
    /// See `owner`.
    pub group: Option<u32>,
    /// What it was a port of.
    pub master: Option<Master>,
    /// Addresses of the host on it.
    pub addresses: Vec<InterfaceAddress>,
    /// Hardware addresses that the bridge had heard behind it: the guest's.
    pub heard: Vec<HeardAddress>,
}

/// The bridge (or bond, or switch) that an interface belonged to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Master {
    /// Its name, such as `br0`.
    pub name: String,
    /// `rtnl_link_ops.kind`: `bridge`, `openvswitch`, …
    pub kind: String,
    /// Of a bridge's port: `net_bridge_port.flags`, BR_*.
    #[serde(with = "u64_hex")]
    pub port_flags: u64,
    /// Of a bridge's port: its VLANs.
    pub vlans: Vec<PortVlan>,
}

/// One VLAN of a bridge's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortVlan {
    /// 1 to 4094.
    pub id: u16,
    /// What comes in without a tag belongs to it.
    pub pvid: bool,
    /// It leaves without a tag.
    pub untagged: bool,
}

/// An address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network's part.
    pub prefix: u8,
    /// The other end, of a point-to-point interface.
    pub peer: Option<IpAddr>,
}

/// A hardware address in a bridge's table (`net_bridge_fdb_entry`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardAddress {
    /// The address.
    pub mac: [u8; 6],
    /// The VLAN that it was heard in; 0 without VLANs.
    pub vlan: u16,
}

/// An open vhost device: rings of the guest's that the kernel serves (`struct vhost_dev`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vhost {
    /// Which device.
    pub device: VhostDevice,
    /// VHOST_SET_OWNER was called.
    pub owned: bool,
    /// VHOST_SET_FEATURES.
    #[serde(with = "u64_hex")]
    pub features: u64,
    /// VHOST_SET_BACKEND_FEATURES.
    #[serde(with = "u64_hex")]
    pub backend_features: u64,
    /// The guest's memory as the device sees it.
    pub regions: Vec<VhostRegion>,
    /// Address in the process of the log of a migration under way. 0: none.
    #[serde(with = "u64_hex")]
    pub log_base: u64,
    /// In the order of their index.
    pub rings: Vec<VhostRing>,
}

/// Which vhost device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VhostDevice {
    /// /dev/vhost-net.
    Net,
    /// /dev/vhost-vsock.
    Vsock {
        /// VHOST_VSOCK_SET_GUEST_CID; 0: not yet.
        guest_cid: u32,
    },
}

/// One range of VHOST_SET_MEM_TABLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostRegion {
    /// Address in the guest.
    #[serde(with = "u64_hex")]
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// Address in the process.
    #[serde(with = "u64_hex")]
    pub user_address: u64,
}

/// One ring (`struct vhost_virtqueue`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostRing {
    /// Descriptors.
    pub size: u32,
    /// Addresses in the process; 0: not set.
    #[serde(with = "u64_hex")]
    pub descriptors: u64,
    /// The guest's ring of those available.
    #[serde(with = "u64_hex")]
    pub available: u64,
    /// The device's ring of those used.
    #[serde(with = "u64_hex")]
    pub used: u64,
    /// Where writes to the used ring are logged, when they are.
    pub log_address: Option<u64>,
    /// Next entry of the available ring that the device would have taken.
    pub last_available: u16,
    /// Entries of the used ring that it had written.
    pub last_used: u16,
    /// Descriptors of zero-copy transmissions that were under way: taken, not used yet, and
    /// perhaps out of order with others that are.
    pub out_of_order: Vec<u32>,
    /// The file that the guest's notifications arrive at, an eventfd's open file.
    pub kick: Option<ObjectId>,
    /// The eventfd context by which it interrupts the guest.
    pub call: Option<ObjectId>,
    /// The eventfd context by which it tells of errors.
    pub error: Option<ObjectId>,
    /// What it serves the ring with. Of vhost-net the open file of a tap's queue; of others the
    /// device's own address. `None`: it was not running.
    pub backend: Option<ObjectId>,
    /// VHOST_SET_VRING_BUSYLOOP_TIMEOUT. Microseconds.
    pub busy_loop: u32,
}
