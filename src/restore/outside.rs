//! What a guest depends on that does not come back with it.
//!
//! A VMM may leave a device to hardware (VFIO) or to another process: a
//! vhost-user back end moves packets or blocks in the guest's own memory, swtpm
//! holds its keys, virtiofsd its shared directory. Without them the guest would
//! wait for a device for ever, or take an error for the disk's. Such a guest is
//! refused before anything starts. A monitor or a display that has hung up is
//! no such thing.

use crate::dataset::{Dataset, FileKind, MappingKind, ObjectId, OpenFile, Outside, Tie, Vm, Vma};

/// Programs that are a guest's device, by the beginning of their names (`comm`
/// has 15 characters).
const HELPERS: [(&str, &str); 10] = [
    ("swtpm", "its TPM"),
    ("virtiofsd", "a directory shared with it"),
    ("vhost-user", "a device"),
    ("vhost-device", "a device"),
    ("qemu-storage-da", "a disk"),
    ("spdk", "a disk"),
    ("vhost", "a device"),
    ("ovs-vswitchd", "its network"),
    ("dpdk", "its network"),
    ("qemu-pr-helper", "persistent reservations of its disk"),
];

/// Files that stand for hardware, or for memory that no process can read, by
/// their path or by their operations.
const HARDWARE: [(&str, &str); 9] = [
    ("/dev/vfio", "a device is passed through to it (VFIO)"),
    ("vfio", "a device is passed through to it (VFIO)"),
    ("/dev/iommu", "a device is passed through to it (iommufd)"),
    ("iommufd", "a device is passed through to it (iommufd)"),
    ("/dev/vhost-vdpa", "a vDPA device is given to it"),
    ("kvm_gmem", "part of its memory is in a guest_memfd"),
    ("[kvm-gmem]", "part of its memory is in a guest_memfd"),
    (
        "/dev/sev",
        "it was given the keys of encrypted memory (SEV)",
    ),
    ("/dev/sgx", "it has enclaves (SGX)"),
];

/// Why the guests of a dataset cannot come back, with what of them lives
/// elsewhere; nothing where they can.
pub fn missing(dataset: &Dataset) -> Vec<String> {
    let mut found = Vec::new();
    for vm in &dataset.vms {
        let Some(process) = dataset.process(vm.pid) else {
            continue;
        };
        let files = process.fds.iter().filter_map(|fd| dataset.file(fd.file));
        for file in files {
            found.extend(hardware(file));
            found.extend(helper(dataset, file));
        }
        found.extend(in_its_memory(&dataset.outside, vm, &process.mm.vmas));
    }
    found.sort();
    found.dedup();
    found
}

fn hardware(file: &OpenFile) -> Option<String> {
    let FileKind::Unsupported { operations, .. } = &file.kind else {
        return None;
    };
    let name = file.path.strip_prefix("anon_inode:").unwrap_or(&file.path);
    let name = name.trim_start_matches('[');
    HARDWARE
        .iter()
        .find(|(start, _)| {
            let start = start.trim_start_matches('[');
            name.starts_with(start) || operations.starts_with(start)
        })
        .map(|(_, what)| format!("{what}: {}, which cannot be brought back", file.path))
}

fn helper(dataset: &Dataset, file: &OpenFile) -> Option<String> {
    let FileKind::UnixSocket(socket) = &file.kind else {
        return None;
    };
    let other = dataset.outside.iter().find(|other| {
        other.tie
            == Tie::Socket {
                socket: socket.socket,
            }
    })?;
    let (_, what) = HELPERS
        .iter()
        .find(|(name, _)| other.command.starts_with(name))?;
    Some(format!(
        "{what} is served by {} (pid {}), which is not restored with it",
        other.command, other.pid
    ))
}

/// Other processes that write to the guest's memory.
fn in_its_memory(outside: &[Outside], vm: &Vm, vmas: &[Vma]) -> Vec<String> {
    let backs_it = |object: ObjectId| {
        vmas.iter().any(|vma| {
            let mapped = match vma.kind {
                MappingKind::Shared { memory, .. } | MappingKind::Segment { memory, .. } => memory,
                MappingKind::File { inode, .. } => inode,
                _ => return false,
            };
            mapped == object
                && vm.memslots.iter().any(|slot| {
                    slot.user_address < vma.end
                        && vma.start < slot.user_address.saturating_add(slot.size)
                })
        })
    };
    outside
        .iter()
        .filter(|other| matches!(other.tie, Tie::Memory { object } if backs_it(object)))
        .map(|other| {
            format!(
                "{} (pid {}) works in its memory, as a vhost-user device does, and is not \
                 restored with it",
                other.command, other.pid
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
