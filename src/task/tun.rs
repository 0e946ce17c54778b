//! Queues of tap and tun interfaces: `struct tun_file`, of the tun module.

use super::extract::Extraction;
use super::list::int;
use super::net_device;
use super::path::Name;
use crate::dataset::{FileKind, ObjectId};
use crate::kernel::{KernelError, Object};

/// `tun_struct.flags`: the interface outlives its queues.
const IFF_PERSIST: u64 = 0x0800;
/// Flags of TUNSETIFF: IFF_TUN, IFF_TAP, IFF_NAPI, IFF_NAPI_FRAGS,
/// IFF_MULTI_QUEUE, IFF_NO_PI, IFF_ONE_QUEUE, IFF_VNET_HDR. And what
/// TUNSETVNETBE and TUNSETVNETLE set.
const SETIFF_FLAGS: u64 =
    0x1 | 0x2 | 0x10 | 0x20 | 0x100 | 0x1000 | 0x2000 | 0x4000 | 0x4000_0000 | 0x8000_0000;

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
pub(super) fn kind(
    x: &mut Extraction<'_, '_>,
    addr: u64,
    operations: &str,
    name: &Name,
) -> Result<FileKind, KernelError> {
    let kernel = x.kernel;
    let object = |ty: &str, at: u64| -> Result<Object<'_>, KernelError> {
        kernel
            .object_in("tun", ty, at)
            .or_else(|_| kernel.object(ty, at))
    };
    let file = object("tun_file", addr)?;
    let interface = file.ptr("tun")?;
    // A queue that was taken out of service (TUNSETQUEUE) keeps its interface.
    let detached = file.ptr("detached")? != 0;
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
    // Programs of others, in the kernel's own form: they cannot be loaded again.
    for (member, what) in [
        (
            "steering_prog",
            "program that chooses queues (TUNSETSTEERINGEBPF)",
        ),
        ("filter_prog", "filter program (TUNSETFILTEREBPF)"),
        ("filter_attached", "socket filter (TUNATTACHFILTER)"),
        ("txflt.count", "filter of addresses (TUNSETTXFILTER)"),
    ] {
        if tun.has(member) && tun.u(member)? != 0 {
            let why = "it is not carried over: the VMM sets it when it next configures the device";
            x.lost(&name.path, what, why);
        }
    }
    let device = tun.follow("dev")?;
    let mut link = net_device::read(&device)?;
    // -1: nobody in particular.
    let id = |member: &str| -> Result<Option<u32>, KernelError> {
        let id = u32::try_from(tun.u(&format!("{member}.val"))?).unwrap_or(u32::MAX);
        Ok((id != u32::MAX).then_some(id))
    };
    link.owner = id("owner")?;
    link.group = id("group")?;
    Ok(FileKind::Tun {
        interface: device.get("name")?.string()?,
        flags: u32::try_from(flags & SETIFF_FLAGS).unwrap_or(0),
        vnet_header_len: u32::try_from(tun.u("vnet_hdr_sz")?).unwrap_or(0),
        offloads,
        sndbuf: int(&tun, "sndbuf")?,
        persist: flags & IFF_PERSIST != 0,
        detached,
        link: Some(Box::new(link)),
    })
}
