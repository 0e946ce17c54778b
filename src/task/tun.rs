//! Queues of tap and tun interfaces: `struct tun_file`, of the tun module.

use super::list::int;
use crate::dataset::{FileKind, ObjectId};
use crate::kernel::{Kernel, KernelError, Object};

/// `tun_struct.flags`: the interface outlives its queues.
const IFF_PERSIST: u64 = 0x0800;
/// Flags of TUNSETIFF: IFF_TUN, IFF_TAP, IFF_NAPI, IFF_NAPI_FRAGS,
/// IFF_MULTI_QUEUE, IFF_NO_PI, IFF_ONE_QUEUE, IFF_VNET_HDR.
const SETIFF_FLAGS: u64 = 0x1 | 0x2 | 0x10 | 0x20 | 0x100 | 0x1000 | 0x2000 | 0x4000;

/// TUN_F_* and the bit of `netdev_features_t` that each one sets, with the
/// bit's usual number. Linux drivers/net/tun.c, set_offload().
const OFFLOADS: [(u32, &str, i64); 6] = [
    (0x01, "NETIF_F_HW_CSUM_BIT", 3),
    (0x02, "NETIF_F_TSO_BIT", 16),
    (0x04, "NETIF_F_TSO6_BIT", 20),
    (0x08, "NETIF_F_TSO_ECN_BIT", 18),
    (0x20, "NETIF_F_GSO_UDP_L4_BIT", 34),
    (0x40, "NETIF_F_GSO_UDP_L4_BIT", 34),
];

/// Reads the `tun_file` at `addr`.
pub(super) fn kind(kernel: &Kernel, addr: u64, operations: &str) -> Result<FileKind, KernelError> {
    let object = |ty: &str, at: u64| -> Result<Object<'_>, KernelError> {
        kernel
            .object_in("tun", ty, at)
            .or_else(|_| kernel.object(ty, at))
    };
    let interface = object("tun_file", addr)?.ptr("tun")?;
    if interface == 0 {
        return Ok(FileKind::Unsupported {
            operations: operations.to_owned(),
            private_data: ObjectId(addr),
            why: "a tun device without an interface (TUNSETIFF was not called)".into(),
        });
    }
    let tun = object("tun_struct", interface)?;
    let flags = tun.u("flags")?;
    let features = tun.u("set_features")?;
    let offloads = OFFLOADS.iter().fold(0, |sum, (bit, name, usual)| {
        let n = kernel.enum_value("", name).unwrap_or(*usual);
        let set = u32::try_from(n)
            .ok()
            .and_then(|n| features.checked_shr(n))
            .is_some_and(|f| f & 1 != 0);
        if set { sum | bit } else { sum }
    });
    Ok(FileKind::Tun {
        interface: tun.follow("dev")?.get("name")?.string()?,
        flags: u32::try_from(flags & SETIFF_FLAGS).unwrap_or(0),
        vnet_header_len: u32::try_from(tun.u("vnet_hdr_sz")?).unwrap_or(0),
        offloads,
        sndbuf: int(&tun, "sndbuf")?,
        persist: flags & IFF_PERSIST != 0,
    })
}
