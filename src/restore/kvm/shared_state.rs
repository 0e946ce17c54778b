//! What a VM's vCPUs share and what runs by itself: interrupt controllers, the
//! PIT, the clock.

use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use crate::dataset::{Fidelity, IoApic, Irqchip, Pit, Vm};
use kvm_bindings as kvm;

/// `struct kvm_irqchip`: u32 chip, u32 pad, 512 bytes.
const IRQCHIP_SIZE: usize = 520;
pub(super) const IOAPIC_CHIP: u32 = 2;

/// Sets them. After the LAPICs, which the lines lead to.
pub(super) fn set(calls: &mut Calls, vm: &Vm, fd: i32) -> Result<(), KvmError> {
    if let Irqchip::Kernel { pics, ioapic } = &vm.irqchip {
        // PICs before the IOAPIC: setting either may raise an interrupt that
        // was pending, and in this order the legacy ones come first, as they
        // do at a reset.
        for (chip, pic) in (0..).zip(pics.iter()) {
            calls.set_bytes(fd, ioctls::SET_IRQCHIP, &irqchip(chip, &pic.bytes))?;
        }
        let argument = irqchip(IOAPIC_CHIP, &ioapic_state(ioapic));
        calls.set_bytes(fd, ioctls::SET_IRQCHIP, &argument)?;
    }
    // After the controllers: it starts ticking.
    if let Some(pit) = &vm.pit {
        calls.set(fd, ioctls::SET_PIT2, &pit_state(pit))?;
        let control = kvm::kvm_reinject_control {
            pit_reinject: pit.reinject.into(),
            ..Default::default()
        };
        calls.set(fd, ioctls::REINJECT_CONTROL, &control)?;
    }
    // Last, and before any vCPU runs: from here on kvmclock counts.
    let clock = kvm::kvm_clock_data {
        clock: vm.clock.clock_ns,
        ..Default::default()
    };
    calls.set(fd, ioctls::SET_CLOCK, &clock)?;
    Ok(())
}

/// Reads one controller's state.
pub(super) fn read_irqchip(calls: &mut Calls, fd: i32, chip: u32) -> Result<Vec<u8>, KvmError> {
    let mut argument = irqchip(chip, &[]);
    calls.bytes(fd, ioctls::GET_IRQCHIP, &mut argument)?;
    Ok(argument.split_off(8))
}

fn irqchip(chip: u32, state: &[u8]) -> Vec<u8> {
    let mut bytes = chip.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(state);
    bytes.resize(IRQCHIP_SIZE, 0);
    bytes
}

/// `struct kvm_ioapic_state`.
pub(super) fn ioapic_state(ioapic: &IoApic) -> Vec<u8> {
    let mut bytes = ioapic.base_address.to_le_bytes().to_vec();
    for word in [ioapic.ioregsel, ioapic.id, ioapic.irr, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for entry in ioapic.redirection {
        bytes.extend(entry.to_le_bytes());
    }
    bytes
}

/// `struct kvm_pit_state2`. KVM loads each count anew, so a channel's phase
/// starts over.
pub(super) fn pit_state(pit: &Pit) -> kvm::kvm_pit_state2 {
    let channel = |n: usize| {
        let c = &pit.channels[n];
        kvm::kvm_pit_channel_state {
            count: c.count,
            latched_count: c.latched_count,
            count_latched: c.count_latched,
            status_latched: c.status_latched,
            status: c.status,
            read_state: c.read_state,
            write_state: c.write_state,
            write_latch: c.write_latch,
            rw_mode: c.rw_mode,
            mode: c.mode,
            bcd: c.bcd,
            gate: c.gate,
            count_load_time: c.count_load_time,
        }
    };
    kvm::kvm_pit_state2 {
        channels: [channel(0), channel(1), channel(2)],
        flags: pit.flags,
        ..Default::default()
    }
}

/// `KVM_MEM_LOG_DIRTY_PAGES`.
const LOG_DIRTY_PAGES: u32 = 1;

/// What KVM keeps of a VM but lets nobody set.
pub(super) fn notes(subject: &str, vm: &Vm) -> Vec<Fidelity> {
    let mut notes = Vec::new();
    let mut rebuilt = |what: &str, how: &str| {
        notes.push(Fidelity::reconstructed(subject, what, how));
    };
    if vm.pit.is_some() {
        rebuilt(
            "PIT",
            "its channels count from the start of their period; ticks not delivered yet are lost",
        );
    }
    if matches!(vm.irqchip, Irqchip::Kernel { .. }) {
        rebuilt(
            "interrupt lines of the PICs and the IOAPIC",
            "pending interrupts are raised again; who holds a line up is known again when the \
             VMM next changes it",
        );
    }
    if !vm.irqfds.is_empty() || !vm.ioeventfds.is_empty() {
        rebuilt(
            "interrupts and notifications that were on their way",
            "each irqfd and ioeventfd got one signal, which drivers and devices take for \
             nothing new where there is nothing",
        );
    }
    if vm
        .memslots
        .iter()
        .any(|slot| slot.flags & LOG_DIRTY_PAGES != 0)
        || vm.caps.dirty_ring_size != 0
    {
        notes.push(Fidelity::lost(
            subject,
            "log of dirty pages",
            "no call can set it; a live migration that was running must be started again",
        ));
    }
    notes
}
