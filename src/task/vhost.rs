//! The kernel's halves of virtio devices: `struct vhost_dev` and its rings, of the vhost module,
//! within `struct vhost_net` or `struct vhost_vsock`.

use super::extract::Extraction;
use super::list::int;
use super::path::Name;
use crate::dataset::{FileKind, ObjectId, Vhost, VhostDevice, VhostRegion, VhostRing};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// Most rings of one device: vhost-scsi has the most, 3 + 128.
const MOST_RINGS: u64 = 256;
/// A ring has at most so many descriptors (the virtio specification).
const MOST_DESCRIPTORS: u64 = 32768;
/// UIO_MAXIOV: entries of `vhost_virtqueue.heads` that hold zero-copy transmissions.
const MOST_IN_FLIGHT: u64 = 1024;
/// `vring_used_elem.len` of a zero-copy transmission's slot that is free: VHOST_DMA_CLEAR_LEN.
/// Linux drivers/vhost/net.c.
const SLOT_FREE: u64 = 0;
/// Features of virtio that make another ring, or other addresses: VIRTIO_F_RING_PACKED,
/// VIRTIO_F_ACCESS_PLATFORM.
const RING_PACKED: u64 = 1 << 34;

/// Reads the vhost device whose file has `private_data` at `addr`.
pub(super) fn kind(
    x: &mut Extraction<'_, '_>,
    addr: u64,
    operations: &str,
    name: &Name,
) -> Result<FileKind, KernelError> {
    let kernel = x.kernel;
    let refused = |why: &str| {
        Ok(FileKind::Unsupported {
            operations: operations.to_owned(),
            private_data: ObjectId(addr),
            why: why.to_owned(),
        })
    };
    let (outer, device) = match operations {
        "vhost_net_fops" => (object(kernel, "vhost_net", addr)?, VhostDevice::Net),
        _ => {
            let vsock = object(kernel, "vhost_vsock", addr)?;
            let guest_cid = u32::try_from(vsock.u("guest_cid")?).unwrap_or(0);
            (vsock, VhostDevice::Vsock { guest_cid })
        }
    };
    let dev = outer.get("dev")?;
    if dev.ptr("iotlb")? != 0 {
        return refused(
            "vhost with a translation of its own (a vIOMMU): its table of addresses is the VMM's \
             to fill, and what it had asked for is lost",
        );
    }
    let owner = dev.ptr("mm")?;
    let mut vhost = Vhost {
        device,
        owned: owner != 0,
        features: 0,
        backend_features: 0,
        regions: regions(&dev)?,
        log_base: 0,
        rings: Vec::new(),
    };
    if owner != 0 && !x.address_spaces.contains(&owner) {
        return refused("vhost whose rings lie in the memory of another process");
    }
    let count = dev.u("nvqs")?;
    if count > MOST_RINGS {
        return Err(KernelError::Damaged {
            what: "vhost_dev",
            addr: dev.addr(),
            detail: format!("it has {count} rings"),
        });
    }
    // Behind the first word since Linux 6.17.
    let mut extended = false;
    for index in 0..count {
        let queue = dev.get("vqs")?.element(index)?.deref()?;
        vhost.features |= queue.u("acked_features")?;
        extended |= (1..4).any(|word| {
            let word = queue.u(&format!("acked_features_array[{word}]"));
            word.is_ok_and(|bits| bits != 0)
        });
        if queue.has("acked_backend_features") {
            vhost.backend_features |= queue.u("acked_backend_features")?;
        }
        vhost.log_base = vhost.log_base.max(queue.ptr("log_base")?);
        let ring = ring(kernel, &queue, device)?;
        if ring.backend.is_some() && !ring.out_of_order.is_empty() {
            x.reconstructed(
                &name.path,
                "transmissions",
                format!(
                    "{} without a copy were under way: they count as sent",
                    ring.out_of_order.len()
                ),
            );
        }
        // An eventfd that the process has closed since lives in the ring alone.
        if let Some(kick) = ring.kick {
            x.file(kick.0, None);
        }
        vhost.rings.push(ring);
    }
    if extended {
        return refused("vhost with features beyond the first 64 (tunnel offloads)");
    }
    if vhost.features & RING_PACKED != 0 {
        return refused("vhost with packed rings");
    }
    if matches!(device, VhostDevice::Vsock { .. })
        && vhost.rings.iter().any(|r| r.backend.is_some())
    {
        return refused(
            "vhost-vsock in use by the guest: this version brings it back only before the guest's \
             driver has started it",
        );
    }
    Ok(FileKind::Vhost(vhost))
}

/// A type of the vhost modules.
fn object<'k>(kernel: &'k Kernel, ty: &str, addr: u64) -> Result<Object<'k>, KernelError> {
    kernel
        .object_in(ty, ty, addr)
        .or_else(|_| kernel.object(ty, addr))
}

/// The table of the guest's memory: `vhost_dev.umem`.
fn regions(dev: &Object<'_>) -> Result<Vec<VhostRegion>, KernelError> {
    let Some(table) = dev.follow_opt("umem")? else {
        return Ok(Vec::new());
    };
    containers::list(&table.get("list")?, "vhost_iotlb_map", "link")?
        .iter()
        .map(|map| {
            Ok(VhostRegion {
                guest_address: map.u("start")?,
                size: map.u("size")?,
                user_address: map.u("addr")?,
            })
        })
        .collect()
}

fn ring(
    kernel: &Kernel,
    queue: &Object<'_>,
    device: VhostDevice,
) -> Result<VhostRing, KernelError> {
    let short = |member: &str| -> Result<u16, KernelError> {
        Ok(u16::try_from(queue.u(member)?).unwrap_or(0))
    };
    let context = |member: &str| -> Result<Option<ObjectId>, KernelError> {
        let at = queue.ptr(member)?;
        Ok((at != 0).then_some(ObjectId(at)))
    };
    let size = queue.u("num")?;
    if size > MOST_DESCRIPTORS {
        return Err(KernelError::Damaged {
            what: "vhost_virtqueue",
            addr: queue.addr(),
            detail: format!("its ring has {size} descriptors"),
        });
    }
    // A structure since Linux commit 265a0ad8731d ("vhost: introduce vhost_vring_call") (in v5.9).
    let call = if queue.has("call_ctx.ctx") {
        "call_ctx.ctx"
    } else {
        "call_ctx"
    };
    let private = queue.ptr("private_data")?;
    let backend = match (private, device) {
        (0, _) => None,
        // The socket of a tap's queue knows its open file.
        (socket, VhostDevice::Net) => Some(ObjectId(kernel.object("socket", socket)?.ptr("file")?)),
        (own, VhostDevice::Vsock { .. }) => Some(ObjectId(own)),
    };
    Ok(VhostRing {
        size: u32::try_from(size).unwrap_or(0),
        descriptors: queue.ptr("desc")?,
        available: queue.ptr("avail")?,
        used: queue.ptr("used")?,
        log_address: (queue.u("log_used")? != 0)
            .then(|| queue.u("log_addr"))
            .transpose()?,
        last_available: short("last_avail_idx")?,
        last_used: short("last_used_idx")?,
        out_of_order: match device {
            VhostDevice::Net => zero_copy(queue, size)?,
            VhostDevice::Vsock { .. } => Vec::new(),
        },
        kick: context("kick")?,
        call: context(call)?,
        error: context("error_ctx")?,
        backend,
        busy_loop: if queue.has("busyloop_timeout") {
            u32::try_from(int(queue, "busyloop_timeout")?).unwrap_or(0)
        } else {
            0
        },
    })
}

/// Descriptors of zero-copy transmissions that have not been put into the used ring:
/// `vhost_virtqueue.heads` from `done_idx` to `upend_idx` of `struct vhost_net_virtqueue`, around
/// `UIO_MAXIOV`. Empty where zero-copy is off, as it is unless asked for.
fn zero_copy(queue: &Object<'_>, size: u64) -> Result<Vec<u32>, KernelError> {
    let net = queue.container_of("vhost_net_virtqueue", "vq")?;
    if net.ptr("ubufs")? == 0 {
        return Ok(Vec::new());
    }
    let (mut at, end) = (net.u("done_idx")?, net.u("upend_idx")?);
    let mut found = Vec::new();
    if at >= MOST_IN_FLIGHT || end >= MOST_IN_FLIGHT {
        return Err(KernelError::Damaged {
            what: "vhost_net_virtqueue",
            addr: net.addr(),
            detail: format!("its transmissions go from {at} to {end}"),
        });
    }
    while at != end {
        let head = queue.get("heads")?.element(at)?;
        // Numbers are in the guest's order, which on x86 is the host's.
        let id = head.u("id")?;
        if head.u("len")? != SLOT_FREE && id < size {
            found.push(u32::try_from(id).unwrap_or(0));
        }
        at = (at + 1) % MOST_IN_FLIGHT;
    }
    Ok(found)
}
