use super::*;
use serde_json::{Value, json};

/// A VMM with one VM whose memory is a shared memfd, and one descriptor.
fn doctored(file: Value, outside: Vec<Outside>) -> Dataset {
    let vm = json!({
        "id": "0x100", "pid": 7, "name": "g", "uuid": null, "vendor": "svm", "vm_type": 0,
        "memslots": [{
            "slot": 0, "address_space": 0, "flags": 0, "guest_address": "0x0",
            "size": "0x10000", "user_address": "0x7f0000001000",
        }],
        "irqchip": {"mode": "none"}, "pit": null, "routes": [], "irqfds": [], "ioeventfds": [],
        "coalesced_zones": [], "clock": {"clock_ns": 0}, "default_tsc_khz": 0,
        "caps": serde_json::to_value(crate::dataset::VmCaps::default()).expect("caps"),
        "tss_addr": null, "identity_map_addr": null, "vcpus": [],
    });
    let mut dataset: Dataset = serde_json::from_value(json!({
        "schema_version": 1, "crash_id": "c",
        "host": {
            "release": "", "version": "", "hostname": "", "realtime_ns": 0, "monotonic_ns": 0,
            "boottime_ns": 0, "tsc_khz": 0, "tsc": 0,
        },
        "processes": [], "files": [file], "pipes": [], "inodes": [], "shared_memory": [],
        "vms": [vm], "fidelity": [],
    }))
    .expect("a dataset");
    dataset.outside = outside;
    dataset
}

fn file(path: &str, kind: Value) -> Value {
    json!({
        "id": "0x200", "path": path, "deleted": false, "flags": 2, "position": 0, "inode": null,
        "owner": null, "locks": [], "kind": kind,
    })
}

fn parsed(value: Value) -> OpenFile {
    serde_json::from_value(value).expect("an open file")
}

fn unsupported(path: &str, operations: &str) -> OpenFile {
    parsed(file(
        path,
        json!({"type": "unsupported", "operations": operations, "private_data": "0x0", "why": "w"}),
    ))
}

#[test]
fn hardware_and_hidden_memory_are_known_by_path_or_operations() {
    for (path, operations, wanted) in [
        ("/dev/vfio/12", "0xffffffffc0100000", "VFIO"),
        ("/dev/vfio/vfio", "vfio_fops", "VFIO"),
        ("anon_inode:[vfio-device]", "vfio_device_fops", "VFIO"),
        ("/dev/iommu", "iommufd_fops", "iommufd"),
        ("/dev/vhost-vdpa-0", "vhost_vdpa_fops", "vDPA"),
        ("anon_inode:[kvm-gmem]", "kvm_gmem_fops", "guest_memfd"),
        ("/dev/sev", "sev_fops", "SEV"),
    ] {
        let found = hardware(&unsupported(path, operations));
        assert!(
            found.as_ref().is_some_and(|f| f.contains(wanted)),
            "{path}: {found:?}"
        );
    }
    assert_eq!(
        hardware(&unsupported("anon_inode:inotify", "inotify_fops")),
        None
    );
}

fn socket() -> Value {
    file(
        "socket:[1]",
        json!({"type": "unix_socket",
            "socket": "0x300", "socket_type": 1, "address": "", "state": {"connected": {"peer": "0x301"}},
        }),
    )
}

fn outside(command: &str, tie: Tie) -> Outside {
    Outside {
        pid: 99,
        command: command.into(),
        tie,
    }
}

#[test]
fn a_helper_at_the_other_end_is_known_by_its_name() {
    let tie = Tie::Socket {
        socket: ObjectId(0x300),
    };
    for (command, needed) in [
        ("swtpm", true),
        ("virtiofsd", true),
        ("vhost-user-blk", true),
        ("virt-viewer", false),
        ("libvirtd", false),
        ("socat", false),
    ] {
        let dataset = doctored(socket(), vec![outside(command, tie)]);
        let found = helper(&dataset, &parsed(socket()));
        assert_eq!(found.is_some(), needed, "{command}: {found:?}");
    }
    let nobody = doctored(socket(), Vec::new());
    assert_eq!(helper(&nobody, &parsed(socket())), None);
}

/// A vhost-user back end has the guest's memory mapped; a process that only
/// shares some other memory of the VMM's is no device.
#[test]
fn another_process_in_the_guests_memory_is_seen() {
    let mapped = |start, memory| Vma {
        start,
        end: start + 0x10000,
        flags: 0xfb,
        kind: MappingKind::Shared { memory, offset: 0 },
        pages: Vec::new(),
        huge_page: 0,
    };
    let (guests, others) = (ObjectId(0x400), ObjectId(0x401));
    let vmas = [
        mapped(0x7f00_0000_1000, guests),
        mapped(0x7f00_1000_0000, others),
    ];
    let vm = doctored(socket(), Vec::new()).vms.remove(0);
    let with = |object| in_its_memory(&[outside("dpdk-vhost", Tie::Memory { object })], &vm, &vmas);
    let found = with(guests);
    assert!(found[0].contains("dpdk-vhost (pid 99)"), "{found:?}");
    assert_eq!(with(others), [""; 0]);
}
