//! Stops a small guest, makes it anew through `restore::kvm`, and lets it go on.

mod machine;
mod programs;
mod snapshot;

use machine::{Chips, DATA, Device, Machine};
use programs::Mode;
use vm_memory::{Bytes, GuestAddress};

/// Whether a test can run here; if not, says so.
fn kvm_is_here(test: &str) -> bool {
    match kvm_ioctls::Kvm::new() {
        Ok(_) => true,
        Err(e) => {
            eprintln!(
                "\n*** SKIPPED {test}: no /dev/kvm here ({e}); the lab runs it inside its host ***\n"
            );
            false
        }
    }
}

/// Whether KVM runs guests by the CPU, rather than by interpreting them.
fn has_hardware_kvm() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo
        .split_whitespace()
        .any(|flag| flag == "svm" || flag == "vmx")
}

fn exits_machine(mode: Mode, chips: Chips) -> Machine {
    let machine = Machine::new(mode, "exits", 1, chips);
    let has_sse = u32::from(has_hardware_kvm());
    machine
        .memory
        .write_obj(has_sse, GuestAddress(DATA + 4))
        .expect("memory");
    machine
}

/// At every exit of two rounds of the program, before and after the VMM has
/// handled it: what crosses the border afterwards, and all memory in the end,
/// are those of a guest that was never interrupted.
fn every_exit_in_flight(mode: Mode, chips: Chips) {
    const FIRST: usize = 24;
    const ROUND: usize = 24;
    const TOTAL: usize = 120;
    let mut device = Device::default();
    let mut reference = exits_machine(mode, chips);
    while device.log.len() < TOTAL {
        reference.step(0, &mut device);
    }
    let (log, memory) = (device.log, reference.memory_bytes());

    for stop in FIRST..FIRST + ROUND {
        for handled in [false, true] {
            let mut device = Device::default();
            let mut machine = exits_machine(mode, chips);
            while device.log.len() < stop {
                machine.step(0, &mut device);
            }
            assert!(machine.run(0).is_some());
            if handled {
                machine.handle_pending(0, &mut device);
            }
            machine = machine.crash_and_restore();
            if !handled {
                machine.handle_pending(0, &mut device);
            }
            while device.log.len() < TOTAL {
                machine.step(0, &mut device);
            }
            let at = (0..TOTAL).find(|&n| device.log[n] != log[n]);
            let around = at.map(|n| (&log[n], &device.log[n]));
            assert_eq!(
                at, None,
                "{mode:?}: stopped at {stop} ({:?}), handled {handled}: (wanted, got) {around:?}",
                log[stop]
            );
            assert!(
                machine.memory_bytes() == memory,
                "{mode:?}: stopped at {stop}, handled {handled}: memory differs"
            );
        }
    }
}

#[test]
fn every_exit_in_flight_long_mode() {
    if kvm_is_here("every_exit_in_flight_long_mode") {
        every_exit_in_flight(Mode::Long, Chips::Kernel);
    }
}

#[test]
fn every_exit_in_flight_protected_mode() {
    if kvm_is_here("every_exit_in_flight_protected_mode") {
        every_exit_in_flight(Mode::Protected, Chips::Split);
    }
}

#[test]
fn every_exit_in_flight_without_irqchip() {
    if kvm_is_here("every_exit_in_flight_without_irqchip") {
        every_exit_in_flight(Mode::Long, Chips::None);
    }
}
