//! A VM without its VMM: what goes with that, and what is said of it.

use super::exit::forget_requests;
use crate::dataset::{Fidelity, IrqRouteTarget, Irqchip, Vm};

/// `KVM_MEM_READONLY`.
const READ_ONLY: u32 = 2;
/// COM1's interrupt line.
const COM1_GSI: u32 = 4;
/// Where the local APICs take messages.
const APIC_MESSAGES: u64 = 0xfee0_0000;
/// Below it there are exceptions.
const FIRST_VECTOR: u32 = 16;

/// A VM that needs nobody but this process.
pub struct Alone {
    pub vm: Vm,
    /// The serial port may raise its interrupt.
    pub serial_interrupt: bool,
    pub fidelity: Vec<Fidelity>,
}

/// Takes from a VM what leads to its VMM: eventfds, dirty logs, requests.
pub fn alone(vm: &Vm) -> Alone {
    let mut vm = vm.clone();
    let subject = format!("vm {}", vm.name.as_deref().unwrap_or("of the dump"));
    let mut fidelity = vec![Fidelity::lost(
        &subject,
        "devices of the VMM",
        "bare mode has none but a new serial port (COM1): reads of others give ones, writes go \
         nowhere, and what waits for a disk or the network waits for ever",
    )];
    // Without its eventfd a notification makes an exit, and goes nowhere there.
    vm.irqfds.clear();
    vm.ioeventfds.clear();
    vm.coalesced_zones.clear();
    for slot in &mut vm.memslots {
        slot.flags &= READ_ONLY;
    }
    vm.caps.manual_dirty_log_protect = 0;
    vm.caps.dirty_ring_size = 0;
    for vcpu in &mut vm.vcpus {
        vcpu.signal_mask = None;
        vcpu.guest_debug = 0;
        vcpu.tpr_access_reporting = false;
        // The third is the coalesced MMIO ring.
        vcpu.run_pages.truncate(2);
        if let Some(page) = vcpu.run_pages.first_mut() {
            forget_requests(&mut page.0);
        }
    }
    let serial_interrupt = match vm.irqchip {
        Irqchip::Kernel { .. } => true,
        Irqchip::None => {
            fidelity.push(Fidelity::lost(
                &subject,
                "interrupt controllers",
                "all of them were the VMM's: no interrupt reaches the guest, and it ends at its \
                 first HLT",
            ));
            false
        }
        Irqchip::Split { .. } => {
            let routed = is_routed(&vm);
            fidelity.push(Fidelity::lost(
                &subject,
                "IOAPIC, PIC and PIT",
                "they were the VMM's: reads of them give ones, writes go nowhere",
            ));
            fidelity.push(match routed {
                true => Fidelity::reconstructed(
                    &subject,
                    "the serial port's interrupt",
                    "by the message that the VMM had set for the IOAPIC's pin 4",
                ),
                false => Fidelity::lost(
                    &subject,
                    "the serial port's interrupt",
                    "the IOAPIC's pin 4 was not in use: a driver that waits for it waits for ever",
                ),
            });
            routed
        }
    };
    Alone {
        vm,
        serial_interrupt,
        fidelity,
    }
}

/// Whether the VMM had told KVM where its IOAPIC's pin 4 leads. A pin that was
/// never in use leads to vector 0.
fn is_routed(vm: &Vm) -> bool {
    vm.routes.iter().any(|route| {
        route.gsi == COM1_GSI
            && matches!(route.target, IrqRouteTarget::Msi { address, data, .. }
                if address & 0xfff0_0000 == APIC_MESSAGES && data & 0xff >= FIRST_VECTOR)
    })
}
