//! Stops a guest at each exit of a round of its program, before and after the
//! VMM has handled it: what crosses the border afterwards, and all memory in the
//! end, must be those of a guest that was never interrupted.

use crate::device::{Device, Event};
use crate::machine::{Machine, chain, handle_pending, run, step};
use vmrestore::dataset::Vm;

/// Rounds that each guest goes through; it is stopped in the second.
const ROUNDS: usize = 4;

/// At every exit of a round of `round` exits of the guest that `make` makes.
pub fn each_comes_again(round: usize, make: impl Fn() -> Machine) {
    each_comes_again_edited(round, make, |_, _, _| {});
}

/// The same; `edit` adds to the dataset what no call tells: it is given the log
/// of a guest that was never stopped, and the number of the exit.
pub fn each_comes_again_edited(
    round: usize,
    make: impl Fn() -> Machine,
    edit: impl Fn(&mut Vm, &[Event], usize),
) {
    let total = ROUNDS * round;
    let mut device = Device::default();
    let mut reference = make();
    while device.log.len() < total {
        step(&mut reference.vcpus[0], &mut device);
    }
    let (log, memory) = (device.log, reference.memory_bytes());
    for (stop, handled) in (round..2 * round).flat_map(|n| [(n, false), (n, true)]) {
        let mut device = Device::default();
        let mut machine = make();
        while device.log.len() < stop {
            step(&mut machine.vcpus[0], &mut device);
        }
        assert!(run(&mut machine.vcpus[0]));
        if handled {
            handle_pending(&mut machine.vcpus[0], &mut device);
        }
        let at = format!("stopped at {stop} ({:?}), handled {handled}", log[stop]);
        machine = machine
            .crash_and_restore_edited(|vm, _| edit(vm, &log, stop))
            .unwrap_or_else(|e| panic!("{at}: {}", chain(&e)));
        if !handled {
            handle_pending(&mut machine.vcpus[0], &mut device);
        }
        while device.log.len() < total {
            step(&mut machine.vcpus[0], &mut device);
        }
        let differs = (0..total).find(|&n| device.log[n] != log[n]);
        let around = differs.map(|n| (n, &log[n], &device.log[n]));
        assert_eq!(differs, None, "{at}: (which, wanted, got) {around:?}");
        assert!(machine.memory_bytes() == memory, "{at}: memory differs");
    }
}
