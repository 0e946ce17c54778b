//! Eventfds that KVM raises interrupts by or signals a guest's writes by, and writes that it
//! batches.

use super::GuestError;
use super::field::{flag, narrow, u_or_0};
use crate::dataset::{CoalescedZone, IoEventFd, IrqFd, ObjectId};
use crate::kernel::{Object, containers};

/// `enum kvm_bus`. Linux include/linux/kvm_host.h.
const MMIO_BUS: u64 = 0;
const PIO_BUS: u64 = 1;

/// Eventfds that raise interrupts: `kvm.irqfds`.
pub(super) fn irqfds(vm: &Object<'_>) -> Result<Vec<IrqFd>, GuestError> {
    containers::list(&vm.get("irqfds.items")?, "kvm_kernel_irqfd", "list")?
        .iter()
        .map(|irqfd| {
            let resampled = irqfd.ptr("resampler")? != 0;
            Ok(IrqFd {
                gsi: narrow(irqfd, "gsi")?,
                eventfd: ObjectId(irqfd.ptr("eventfd")?),
                resample: resampled
                    .then(|| irqfd.ptr("resamplefd").map(ObjectId))
                    .transpose()?,
            })
        })
        .collect()
}

/// Eventfds that a guest's writes signal: `kvm.ioeventfds`. The twin that KVM makes of one without
/// a length, on its bus for fast MMIO, is left out: KVM makes it again.
pub(super) fn ioeventfds(vm: &Object<'_>) -> Result<Vec<IoEventFd>, GuestError> {
    let mut found = Vec::new();
    for fd in containers::list(&vm.get("ioeventfds")?, "_ioeventfd", "list")? {
        let bus = fd.u("bus_idx")?;
        if bus != MMIO_BUS && bus != PIO_BUS {
            continue;
        }
        found.push(IoEventFd {
            address: fd.u("addr")?,
            len: narrow(&fd, "length")?,
            pio: bus == PIO_BUS,
            datamatch: (!flag(&fd, "wildcard")?)
                .then(|| fd.u("datamatch"))
                .transpose()?,
            eventfd: ObjectId(fd.ptr("eventfd")?),
        });
    }
    // KVM puts each new one first.
    found.reverse();
    Ok(found)
}

/// Ranges whose writes are batched: `kvm.coalesced_zones`.
pub(super) fn coalesced_zones(vm: &Object<'_>) -> Result<Vec<CoalescedZone>, GuestError> {
    if !vm.has("coalesced_zones") {
        return Ok(Vec::new());
    }
    containers::list(
        &vm.get("coalesced_zones")?,
        "kvm_coalesced_mmio_dev",
        "list",
    )?
    .iter()
    .map(|dev| {
        let zone = dev.get("zone")?;
        Ok(CoalescedZone {
            address: zone.u("addr")?,
            size: narrow(&zone, "size")?,
            pio: u_or_0(&zone, "pio")? != 0,
        })
    })
    .collect()
}
