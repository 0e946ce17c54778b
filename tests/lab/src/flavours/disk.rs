//! Guests that differ in their storage.

use super::{microvm, pc, q35};
use crate::guest::Guest;

/// See the names.
pub(super) fn flavours() -> Vec<Guest> {
    vec![
        drive("disk-none", "format=raw,cache=none,aio=threads"),
        drive("disk-writethrough", "format=raw,cache=writethrough"),
        drive("disk-native", "format=raw,cache=none,aio=native"),
        drive("disk-directsync", "format=raw,cache=directsync,aio=native"),
        Guest {
            append: "lab.load=disk".into(),
            ..drive("disk-load", "format=raw,cache=writeback")
        },
        Guest {
            append: "lab.load=disk".into(),
            ..drive("disk-native-load", "format=raw,cache=none,aio=native")
        },
        drive("disk-io-uring", "format=raw,cache=none,aio=io_uring"),
        // Every block is new when it is written to.
        Guest {
            prepare: String::new(),
            ..drive("disk-sparse", "format=raw,cache=none,aio=threads")
        },
        // Requests are handled by a thread of their own.
        Guest {
            flavour: "disk-iothread".into(),
            disk_mib: 0,
            prepare: RAW.into(),
            options: "-object iothread,id=io0 \
                      -drive if=none,id=disk0,file=/data/{name}.disk,format=raw,cache=none,aio=native \
                      -device virtio-blk-pci,drive=disk0,iothread=io0"
                .into(),
            collect: "true".into(),
            append: "lab.disks=1".into(),
            ..q35()
        },
        Guest {
            flavour: "disk-microvm".into(),
            disk_mib: 16,
            ..microvm()
        },
        Guest {
            flavour: "disk-scsi".into(),
            disk_mib: 0,
            prepare: RAW.into(),
            options: "-device virtio-scsi-pci,id=scsi0 \
                      -drive if=none,id=disk0,file=/data/{name}.disk,format=raw,cache=writeback \
                      -device scsi-hd,bus=scsi0.0,drive=disk0"
                .into(),
            append: "lab.disks=1".into(),
            collect: "true".into(),
            ..pc()
        },
        Guest {
            flavour: "disk-scsi-native".into(),
            disk_mib: 0,
            prepare: RAW.into(),
            options: "-object iothread,id=io0 -device virtio-scsi-pci,id=scsi0,iothread=io0 \
                      -drive if=none,id=disk0,file=/data/{name}.disk,format=raw,cache=none,aio=native \
                      -device scsi-hd,bus=scsi0.0,drive=disk0"
                .into(),
            append: "lab.disks=1".into(),
            collect: "true".into(),
            ..q35()
        },
        Guest {
            flavour: "disk-qcow2".into(),
            prepare: "qemu-img create -q -f qcow2 /data/{name}.disk 16M".into(),
            collect: QCOW2.into(),
            ..drive("disk-qcow2", "format=qcow2,cache=writeback")
        },
        Guest {
            prepare: "qemu-img create -q -f qcow2 -o preallocation=full /data/{name}.disk 16M; \
                      sync"
                .into(),
            collect: QCOW2.into(),
            ..drive("disk-qcow2-native", "format=qcow2,cache=none,aio=native")
        },
        // A read-only base, a snapshot of it, and what is written now.
        Guest {
            prepare: "dd if=/dev/urandom of=/data/{name}.base bs=1M count=16 2>/dev/null; \
                      chmod 444 /data/{name}.base; \
                      qemu-img create -q -f qcow2 -b /data/{name}.base -F raw /data/{name}.snap && \
                      qemu-img create -q -f qcow2 -b /data/{name}.snap -F qcow2 /data/{name}.disk"
                .into(),
            collect: QCOW2.into(),
            ..drive("disk-snapshots", "format=qcow2,cache=writeback")
        },
        // Three disks on two kinds of bus, each of its own kind.
        Guest {
            prepare: "dd if=/dev/zero of=/data/{name}.disk bs=1M count=16 2>/dev/null; \
                      dd if=/dev/zero of=/data/{name}.second bs=1M count=8 2>/dev/null; sync; \
                      qemu-img create -q -f qcow2 /data/{name}.third 8M"
                .into(),
            options: "-drive if=none,id=disk1,file=/data/{name}.second,format=raw,cache=none,aio=native \
                      -device virtio-blk-pci,drive=disk1 \
                      -device virtio-scsi-pci,id=scsi0 \
                      -drive if=none,id=disk2,file=/data/{name}.third,format=qcow2,cache=writethrough \
                      -device scsi-hd,bus=scsi0.0,drive=disk2"
                .into(),
            append: "lab.disks=3".into(),
            ..drive("disk-three", "format=raw,cache=writeback")
        },
        on_xfs("xfs", "format=raw,cache=writeback"),
        on_xfs("xfs-none", "format=raw,cache=none,aio=native"),
        on_xfs("xfs-qcow2", "format=qcow2,cache=writeback"),
        on_device("device", "cache=writeback", "$d"),
        on_device("device-native", "cache=none,aio=native", "$d"),
        on_device("device-dm", "cache=writeback", "/dev/mapper/{name}"),
    ]
}

/// The flavours that share a host in a scenario.
pub(crate) fn several(scenario: &str) -> &'static [&'static str] {
    match scenario {
        "disks" => &["disk-native-load", "disk-iothread", "disk-writethrough"],
        "disks-images" => &[
            "disk-scsi-native",
            "disk-qcow2-native",
            "disk-snapshots",
            "disk-three",
        ],
        "disks-xfs" => &["xfs", "xfs-none", "xfs-qcow2"],
        "disks-devices" => &["device", "device-native", "device-dm"],
        _ => &[],
    }
}

/// An image of 16 MiB whose blocks are all written. What is written to a new
/// block past the page cache is lost with the host, see docs/disks.md.
const RAW: &str = "dd if=/dev/zero of=/data/{name}.disk bs=1M count=16 2>/dev/null; sync";

/// The blocks of a qcow2 image, for the judge.
const QCOW2: &str = "qemu-img check -q /data/{name}.disk && \
     qemu-img convert -O raw /data/{name}.disk /data/{name}.raw && \
     mv /data/{name}.raw /data/{name}.disk";

/// Sets `d` to the guest's own disk of the host.
const FIND: &str = "for b in /sys/block/vd*; do \
     [ \"$(cat $b/serial)\" = {name} ] && d=/dev/${b##*/}; done; ";

/// A pc whose disk is used so.
fn drive(flavour: &str, drive: &str) -> Guest {
    Guest {
        flavour: flavour.into(),
        drive: drive.into(),
        prepare: if drive.contains("raw") { RAW } else { "" }.into(),
        ..pc()
    }
}

/// The guest's image is on an xfs of its own. (xfs is at least 300 MiB.)
fn on_xfs(flavour: &str, how: &str) -> Guest {
    let image = if how.contains("qcow2") {
        "qemu-img create -q -f qcow2 /data/{name}.xfs/disk 16M"
    } else {
        "dd if=/dev/zero of=/data/{name}.xfs/disk bs=1M count=16 2>/dev/null; sync"
    };
    Guest {
        disk_mib: 0,
        host_disk_mib: 320,
        host_setup: format!(
            "{FIND} mkdir -p /data/{{name}}.xfs; \
             [ -e /data/{{name}}.made ] || {{ mkfs.xfs -q $d && touch /data/{{name}}.made; }}; \
             mount -t xfs $d /data/{{name}}.xfs"
        ),
        prepare: image.into(),
        options: format!(
            "-drive if=none,id=disk0,file=/data/{{name}}.xfs/disk,{how} \
             -device virtio-blk-pci,drive=disk0"
        ),
        collect: "qemu-img convert -O raw /data/{name}.xfs/disk /data/{name}.disk".into(),
        ..drive(flavour, how)
    }
}

/// The guest has a block device of the host.
fn on_device(flavour: &str, how: &str, device: &str) -> Guest {
    let mut host_setup = FIND.to_owned();
    // No udev makes links here: the guest's administrator does.
    host_setup += if device == "$d" {
        "mkdir -p /dev/disk/by-id; ln -sf $d /dev/disk/by-id/virtio-{name}"
    } else {
        "echo \"0 32768 linear $d 0\" | dmsetup --noudevsync --noudevrules create {name} --uuid LVM-{name}-lab; \
         dmsetup mknodes"
    };
    let path = if device == "$d" {
        "/dev/disk/by-id/virtio-{name}"
    } else {
        device
    };
    Guest {
        disk_mib: 0,
        host_disk_mib: 16,
        host_setup,
        options: format!(
            "-drive if=none,id=disk0,file={path},format=raw,{how} \
             -device virtio-blk-pci,drive=disk0"
        ),
        collect: format!("dd if={path} of=/data/{{name}}.disk bs=1M count=16 2>/dev/null"),
        ..drive(flavour, how)
    }
}
