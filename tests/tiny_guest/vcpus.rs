//! Several vCPUs, each on a thread of its own, each stopped at another exit.

use crate::device::Device;
use crate::machine::{Chips, Machine, handle_pending, run, step};
use crate::programs::Mode;
use crate::{exits_machine, kvm_is_here};

/// Lets each vCPU go on up to its number of exits.
fn run_all(machine: &mut Machine, devices: &mut [Device], until: &[usize]) {
    std::thread::scope(|scope| {
        let all = machine.vcpus.iter_mut().zip(devices).zip(until);
        for ((vcpu, device), &until) in all {
            scope.spawn(move || {
                while device.log.len() < until {
                    step(vcpu, device);
                }
            });
        }
    });
}

fn go_on_where_they_were(vcpus: usize) {
    const TOTAL: usize = 200;
    let devices = || -> Vec<Device> { (0..vcpus).map(|_| Device::default()).collect() };
    let mut wanted = devices();
    let mut reference = exits_machine(Mode::Long, vcpus, Chips::Kernel);
    run_all(&mut reference, &mut wanted, &vec![TOTAL; vcpus]);

    let mut got = devices();
    let mut machine = exits_machine(Mode::Long, vcpus, Chips::Kernel);
    for (round, base) in [31, 80, 102].into_iter().enumerate() {
        // Another exit for each, and another in each round.
        let until: Vec<usize> = (0..vcpus).map(|n| base + n * (5 + round) % 24).collect();
        run_all(&mut machine, &mut got, &until);
        for vcpu in &mut machine.vcpus {
            assert!(run(vcpu));
        }
        let before: Vec<u64> = (0..vcpus).map(|n| machine.tsc(n)).collect();
        machine = machine.crash_and_restore();
        for (n, before) in before.into_iter().enumerate() {
            let ran = machine.tsc(n).wrapping_sub(before);
            assert!(ran < 60_000_000_000, "TSC of vCPU {n} ran {ran:#x}");
        }
        for (vcpu, device) in machine.vcpus.iter_mut().zip(&mut got) {
            handle_pending(vcpu, device);
        }
    }
    run_all(&mut machine, &mut got, &vec![TOTAL; vcpus]);
    for (n, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        assert!(got.log == wanted.log, "log of vCPU {n} of {vcpus} differs");
    }
    assert!(machine.memory_bytes() == reference.memory_bytes());
}

#[test]
fn two_vcpus() {
    if kvm_is_here("two_vcpus") {
        go_on_where_they_were(2);
    }
}

#[test]
fn four_vcpus() {
    if kvm_is_here("four_vcpus") {
        go_on_where_they_were(4);
    }
}

#[test]
fn eight_vcpus() {
    if kvm_is_here("eight_vcpus") {
        go_on_where_they_were(8);
    }
}
