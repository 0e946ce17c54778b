//! Guests of a VMM that is not QEMU: the stand-in for Firecracker and Cloud
//! Hypervisor, of `guest-images`.

use super::pc;
use crate::guest::Guest;

/// See the names.
pub(super) fn flavours() -> Vec<Guest> {
    vec![
        stand_in("stand-in", "--disk"),
        stand_in("stand-in-memfd", "--disk --shared"),
        // Its ring has nothing in flight but while the disk is at work.
        stand_in("stand-in-uring", "--disk --io-uring"),
        // A request that never ends, and the kernel thread that serves it.
        stand_in("stand-in-in-flight", "--disk --io-uring --in-flight"),
    ]
}

fn stand_in(flavour: &str, options: &str) -> Guest {
    let guest = pc();
    Guest {
        flavour: flavour.into(),
        other_vmm: format!(
            "stand-in {{name}} --cpus {} --memory {} {options}",
            guest.cpus, guest.memory_mib
        ),
        ..guest
    }
}
