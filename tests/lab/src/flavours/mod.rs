//! The configurations of guests that the lab knows by name, for scenarios,
//! tests and the campaign. Each is a whole [`Guest`], numbered by whoever puts
//! several on one host.

mod disk;
mod firmware;
mod memory;
mod net;
mod stand_in;

use crate::guest::{Board, Guest};

/// All flavours: those below, and those of each kind of resource.
#[must_use]
pub fn all() -> Vec<Guest> {
    let mut all = vec![microvm(), pc(), q35()];
    all.extend(firmware::flavours());
    all.extend(memory::flavours());
    all.extend(disk::flavours());
    all.extend(net::flavours());
    all.extend(stand_in::flavours());
    all
}

pub(crate) use disk::several as several_disks;

/// A flavour by its name.
#[must_use]
pub fn named(name: &str) -> Option<Guest> {
    all().into_iter().find(|guest| guest.flavour == name)
}

/// A microvm with one vCPU.
#[must_use]
pub fn microvm() -> Guest {
    Guest::default()
}

/// A pc with two vCPUs and a disk whose blocks are in the host's page cache.
#[must_use]
pub fn pc() -> Guest {
    Guest {
        flavour: "pc".into(),
        board: Board::Pc,
        cpus: 2,
        disk_mib: 16,
        ..Guest::default()
    }
}

/// A q35 with two vCPUs and such a disk.
#[must_use]
pub fn q35() -> Guest {
    Guest {
        flavour: "q35".into(),
        board: Board::Q35,
        ..pc()
    }
}

/// A small guest of many on one host: the odd ones have a disk.
#[must_use]
pub fn one_of_a_dozen(n: u32) -> Guest {
    Guest {
        memory_mib: 112,
        simd: "off".into(),
        append: "lab.pause=1000".into(),
        disk_mib: 8 * (n % 2),
        ..microvm().numbered(n)
    }
}

/// A microvm of that size, all of whose memory the host has touched.
#[must_use]
pub fn all_touched(memory_mib: u32) -> Guest {
    Guest {
        memory_mib,
        board_options: ",memory-backend=ram0".into(),
        options: format!("-object memory-backend-ram,prealloc=on,id=ram0,size={memory_mib}M"),
        ..microvm().numbered(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let all = all();
        let names: BTreeSet<&str> = all.iter().map(|guest| guest.flavour.as_str()).collect();
        assert_eq!(names.len(), all.len());
    }
}
