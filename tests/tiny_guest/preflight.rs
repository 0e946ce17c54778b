//! Whether this host has what a guest uses.

use crate::machine::Chips;
use crate::programs::Mode;
use crate::{exits_machine, kvm_is_here, snapshot};
use vmrestore::dataset::{ExitInFlight, Vm};
use vmrestore::restore::kvm::preflight;

fn problems(vm: &Vm, fatal: bool) -> Vec<String> {
    let problems = preflight(std::slice::from_ref(vm)).expect("preflight");
    let of = problems.into_iter().filter(|p| p.fatal == fatal);
    of.map(|p| p.what).collect()
}

fn here() -> Vm {
    snapshot::read(&mut exits_machine(Mode::Long, 1, Chips::Kernel))
}

/// The host that a guest ran on has all that the guest needs; a guest with an
/// instruction or a register set that it lacks is found out.
#[test]
fn preflight_knows_this_host() {
    if !kvm_is_here("preflight_knows_this_host") {
        return;
    }
    let mut vm = here();
    assert_eq!(problems(&vm, true), [""; 0]);

    // XCR0 bit 62 is LWP's, which no CPU has had for long.
    vm.vcpus[0].xcr0 |= 1 << 62;
    vm.vm_type = 31;
    let found = problems(&vm, true).join("; ");
    assert!(found.contains("0x4000000000000000"), "{found}");
    assert!(found.contains("type 31"), "{found}");
}

/// Features that this host lacks, one at a time: those with a name, those
/// without, and those that only describe.
#[test]
fn every_missing_feature_is_named() {
    if !kvm_is_here("every_missing_feature_is_named") {
        return;
    }
    let supported = kvm_ioctls::Kvm::new()
        .and_then(|kvm| kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES))
        .expect("KVM_GET_SUPPORTED_CPUID");
    let value = |entry: &kvm_bindings::kvm_cpuid_entry2, register| {
        [entry.eax, entry.ebx, entry.ecx, entry.edx][register]
    };
    // function, index, register (EAX to EDX), bit, fatal, what is said
    let everywhere = [
        // A feature of KVM's that does not exist yet.
        (0x4000_0001, 0, 0, 23, true, "CPUID 0x40000001.0 Eax bit 23"),
        // CPUID.1:EDX bit 10 is reserved since ever.
        (1, 0, 3, 10, true, "CPUID 0x1.0 Edx bit 10"),
        // The processor serial number: described, of no use.
        (1, 0, 3, 18, false, "CPUID 0x1.0 Edx bit 18"),
    ];
    // Long gone from real CPUs, but not from every emulated one.
    let somewhere = [
        (0x8000_0001, 0, 3, 31, true, "3DNow!"),
        (0x8000_0001, 0, 2, 11, true, "XOP"),
        (0x8000_0001, 0, 2, 15, true, "bit 15"),
    ]
    .into_iter()
    .filter(|&(function, index, register, bit, ..)| {
        !supported.as_slice().iter().any(|e| {
            (e.function, e.index) == (function, index) && value(e, register) & 1 << bit != 0
        })
    })
    .collect::<Vec<_>>();
    assert!(!somewhere.is_empty(), "a host with 3DNow!, XOP and LWP");
    for (function, index, register, bit, fatal, wanted) in somewhere.into_iter().chain(everywhere) {
        let mut vm = here();
        let entry = vm.vcpus[0]
            .cpuid
            .iter_mut()
            .find(|e| e.function == function && e.index == index)
            .unwrap_or_else(|| panic!("no CPUID {function:#x}.{index}"));
        *[
            &mut entry.eax,
            &mut entry.ebx,
            &mut entry.ecx,
            &mut entry.edx,
        ][register] |= 1 << bit;
        let found = problems(&vm, fatal).join("; ");
        assert!(found.contains(wanted), "{wanted}: {found:?}");
        if !fatal {
            assert_eq!(problems(&vm, true), [""; 0]);
        }
    }
}

/// KVM's features are found behind another hypervisor's leaves too.
#[test]
fn kvms_leaves_behind_hyper_vs() {
    if !kvm_is_here("kvms_leaves_behind_hyper_vs") {
        return;
    }
    let mut vm = here();
    for entry in &mut vm.vcpus[0].cpuid {
        match entry.function {
            0x4000_0000 => entry.function = 0x4000_0100,
            0x4000_0001 => {
                entry.function = 0x4000_0101;
                entry.eax |= 1 << 23;
            }
            _ => {}
        }
    }
    let found = problems(&vm, true).join("; ");
    assert!(found.contains("Eax bit 23"), "{found:?}");
}

/// An exit that cannot be brought about again is found before anything starts.
#[test]
fn an_exit_that_cannot_come_again_is_a_problem() {
    if !kvm_is_here("an_exit_that_cannot_come_again_is_a_problem") {
        return;
    }
    const KVM_EXIT_EPR: u8 = 23;
    let mut vm = here();
    vm.vcpus[0].run_pages[0].0[8] = KVM_EXIT_EPR;
    vm.vcpus[0].exit_in_flight = Some(ExitInFlight {
        reason: KVM_EXIT_EPR.into(),
        completion: "complete_something".into(),
        mmio_write: Vec::new(),
        mmio_answered: Default::default(),
        refused: None,
    });
    let found = problems(&vm, true).join("; ");
    assert!(found.contains("complete_something"), "{found:?}");
}
