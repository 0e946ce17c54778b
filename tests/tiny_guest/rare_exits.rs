//! Exits on MSRs and hypercalls, which few guests make; and writes that make none, since KVM
//! batches them.

use crate::device::Device;
use crate::in_flight::each_comes_again;
use crate::machine::{Chips, Machine, step};
use crate::programs::Mode;
use crate::{has_hardware_kvm, kvm_is_here};

#[test]
fn an_msr_exit_comes_again() {
    if !kvm_is_here("an_msr_exit_comes_again") {
        return;
    }
    each_comes_again(3, || {
        let mut machine = Machine::new(Mode::Long, &["msrs"], Chips::Kernel);
        machine.filter();
        assert_ne!(machine.caps.user_space_msr_mask, 0, "Linux 5.10");
        machine
    });
}

#[test]
fn a_hypercall_comes_again() {
    if !kvm_is_here("a_hypercall_comes_again") {
        return;
    }
    if !has_hardware_kvm() {
        eprintln!(
            "\n*** SKIPPED a_hypercall_comes_again: this KVM interprets guests, and takes \
             their hypercalls for its own; the lab runs it inside its host ***\n"
        );
        return;
    }
    for mode in [Mode::Long, Mode::Protected] {
        each_comes_again(2, || {
            let mut machine = Machine::new(mode, &["hypercalls"], Chips::Kernel);
            assert!(machine.pass_hypercalls(), "Linux 5.13");
            machine
        });
    }
}

/// What the ring held is still to be taken by the VMM, once; what the guest
/// writes afterwards comes behind it.
#[test]
fn coalesced_writes_come_once() {
    if !kvm_is_here("coalesced_writes_come_once") {
        return;
    }
    let mut machine = Machine::new(Mode::Long, &["batcher"], Chips::Kernel);
    machine.coalesce(0x1000_2000, 8);
    let mut device = Device::default();
    while device.log.len() < 3 {
        step(&mut machine.vcpus[0], &mut device);
    }
    machine = machine.crash_and_restore();
    let drain = |machine: &mut Machine| -> Vec<(u64, u32)> {
        let vcpu = &mut machine.vcpus[0];
        vcpu.map_coalesced_mmio_ring().expect("ring");
        std::iter::from_fn(|| vcpu.coalesced_mmio_read().expect("ring"))
            .map(|entry| {
                let value = u32::from_le_bytes(entry.data[..4].try_into().expect("4 bytes"));
                (entry.phys_addr & 0xfff, value)
            })
            .collect()
    };
    assert_eq!(
        drain(&mut machine),
        [(0, 1), (4, 1), (0, 2), (4, 2), (0, 3), (4, 3)]
    );
    while device.log.len() < 5 {
        step(&mut machine.vcpus[0], &mut device);
    }
    assert_eq!(drain(&mut machine), [(0, 4), (4, 4), (0, 5), (4, 5)]);
}
