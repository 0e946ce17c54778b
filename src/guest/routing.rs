//! Where each interrupt line (GSI) leads.

use super::GuestError;
use super::field::narrow;
use crate::dataset::{IrqRoute, IrqRouteTarget};
use crate::kernel::{Object, containers};

/// KVM_MAX_IRQ_ROUTES.
const MOST: u64 = 4096;
/// Pins of one PIC. Within KVM the second PIC's pins count on from the first's.
const PIC_PINS: u32 = 8;
const PIC_SLAVE: u32 = 1;

// KVM_IRQ_ROUTING_*. Linux include/uapi/linux/kvm.h.
const IRQCHIP: u64 = 1;
const MSI: u64 = 2;
const HV_SINT: u64 = 4;

/// KVM_SET_GSI_ROUTING's table.
pub(super) fn routes(vm: &Object<'_>) -> Result<Vec<IrqRoute>, GuestError> {
    let Some(table) = vm.follow_opt("irq_routing")? else {
        return Ok(Vec::new());
    };
    let lines = table.u("nr_rt_entries")?;
    if lines > MOST {
        return Err(GuestError::Damaged {
            what: "kvm_irq_routing_table.nr_rt_entries",
            addr: table.addr(),
            detail: format!("{lines} lines, of which KVM allows {MOST}"),
        });
    }
    let map = table.get("map")?;
    let mut routes = Vec::new();
    for line in 0..lines {
        let mut entries =
            containers::hlist(&map.element(line)?, "kvm_kernel_irq_routing_entry", "link")?;
        // KVM puts each new one first.
        entries.reverse();
        for entry in entries {
            routes.push(route(&entry)?);
        }
        if routes.len() as u64 > MOST {
            return Err(GuestError::Damaged {
                what: "kvm_irq_routing_table.map",
                addr: map.addr(),
                detail: format!("more than {MOST} routes"),
            });
        }
    }
    Ok(routes)
}

fn route(entry: &Object<'_>) -> Result<IrqRoute, GuestError> {
    let target = match entry.u("type")? {
        IRQCHIP => {
            let chip = narrow(entry, "irqchip.irqchip")?;
            let pin: u32 = narrow(entry, "irqchip.pin")?;
            let first = if chip == PIC_SLAVE { PIC_PINS } else { 0 };
            IrqRouteTarget::Irqchip {
                chip,
                pin: pin.saturating_sub(first),
            }
        }
        MSI => IrqRouteTarget::Msi {
            address: entry.u("msi.address_hi")? << 32 | entry.u("msi.address_lo")?,
            data: narrow(entry, "msi.data")?,
            devid: narrow(entry, "msi.devid")?,
            flags: narrow(entry, "msi.flags")?,
        },
        HV_SINT => IrqRouteTarget::HypervSint {
            vcpu: narrow(entry, "hv_sint.vcpu")?,
            sint: narrow(entry, "hv_sint.sint")?,
        },
        other => {
            return Err(GuestError::Damaged {
                what: "kvm_kernel_irq_routing_entry.type",
                addr: entry.addr(),
                detail: format!("{other} is no route that is known (Xen's event channels are 5)"),
            });
        }
    };
    Ok(IrqRoute {
        gsi: narrow(entry, "gsi")?,
        target,
    })
}
