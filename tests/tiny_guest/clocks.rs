//! What time it is after a restore: as it was, or as it would be.

use crate::kvm_is_here;
use crate::machine::{Chips, Machine};
use crate::programs::Mode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const VCPUS: usize = 4;

struct Readings {
    tsc: Vec<u64>,
    kvmclock: u64,
}

fn readings(machine: &Machine) -> Readings {
    Readings {
        kvmclock: machine.vm.get_clock().expect("clock").clock,
        tsc: (0..VCPUS).map(|n| machine.tsc(n)).collect(),
    }
}

/// A machine before and after, its clocks having been told that the crash was
/// `ago`.
fn restored(ago: Option<Duration>) -> (Readings, Readings, u64) {
    let machine = Machine::new(Mode::Long, &["exits"; VCPUS], Chips::Kernel);
    let khz = u64::from(machine.vcpus[0].get_tsc_khz().expect("TSC kHz"));
    let before = readings(&machine);
    let crash = ago.map(|ago| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("1970");
        i64::try_from((now - ago).as_nanos()).expect("63 bits")
    });
    let machine = machine
        .crash_and_restore_edited(|vm, _| vm.clock.realtime_ns = crash)
        .expect("restored");
    let after = readings(&machine);
    (before, after, khz)
}

/// Nothing goes back, and vCPUs agree with each other as they did.
fn agree(before: &Readings, after: &Readings, khz: u64) {
    assert!(after.kvmclock >= before.kvmclock);
    for (n, (then, now)) in before.tsc.iter().zip(&after.tsc).enumerate() {
        assert!(now >= then, "TSC of vCPU {n}: {then} then, {now} now");
    }
    // Read one after the other, so later ones may be ahead, by what a busy
    // machine takes for it.
    let spread = after.tsc.iter().max().zip(after.tsc.iter().min());
    let (most, least) = spread.expect("vCPUs");
    assert!(most - least < khz * 2000, "{:?}", after.tsc);
}

#[test]
fn clocks_stand_still() {
    if !kvm_is_here("clocks_stand_still") {
        return;
    }
    let (before, after, khz) = restored(None);
    agree(&before, &after, khz);
    assert!(after.kvmclock - before.kvmclock < 60_000_000_000);
    assert!(after.tsc[0] - before.tsc[0] < khz * 1000 * 60);
}

#[test]
fn clocks_catch_up() {
    if !kvm_is_here("clocks_catch_up") {
        return;
    }
    const HOUR: u64 = 3600;
    let (before, after, khz) = restored(Some(Duration::from_secs(HOUR)));
    agree(&before, &after, khz);
    let passed = (after.kvmclock - before.kvmclock) / 1_000_000_000;
    assert!((HOUR..HOUR + 60).contains(&passed), "kvmclock: {passed} s");
    if !crate::has_hardware_kvm() {
        eprintln!(
            "\n*** SKIPPED in clocks_catch_up: this KVM gives guests the host's TSC; the lab runs \
             it inside its host ***\n"
        );
        return;
    }
    let passed = (after.tsc[0] - before.tsc[0]) / (khz * 1000);
    assert!((HOUR..HOUR + 60).contains(&passed), "TSC: {passed} s");
}
