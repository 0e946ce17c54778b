//! Which block device it was: `struct block_device`, and what its driver knows.

use crate::dataset::{BlockDevice, place};
use crate::kernel::{Kernel, KernelError, Object};

/// Longest chain of devices above a disk.
const MAX_PARENTS: usize = 32;
/// Longest page of a SCSI device's product data.
const MAX_PAGE: u64 = 4096;

/// The device whose page cache is `mapping` (a `struct address_space`).
pub(super) fn read(mapping: &Object<'_>) -> Result<BlockDevice, KernelError> {
    let host = mapping.follow("host")?;
    of(&host.container_of("bdev_inode", "vfs_inode")?.get("bdev")?)
}

/// What is known of a `struct block_device`.
pub(super) fn of(device: &Object<'_>) -> Result<BlockDevice, KernelError> {
    let disk = device.follow("bd_disk")?;
    let name = disk.get("disk_name")?.string()?;
    // A byte of the flags since Linux commit 1116b9fa15c0 ("bdev: infrastructure
    // for flags") (in v6.10).
    let partition = match device.has("bd_partno") {
        true => device.u("bd_partno")?,
        false => device.u("__bd_flags.counter")? & 0xff,
    };
    let text = |result: Result<Option<String>, KernelError>| {
        result.ok().flatten().filter(|text| !text.is_empty())
    };
    let scsi = name.starts_with("sd").then(|| scsi_device(&disk));
    let scsi = scsi.and_then(Result::ok);
    let page = |member: &str| {
        let device = scsi.as_ref()?;
        text(product_data(device, member))
    };
    Ok(BlockDevice {
        size: device.u("bd_nr_sectors")?.saturating_mul(512),
        dm_uuid: text(dm_uuid(&disk, &name)),
        partition_uuid: text(partition_uuid(device)),
        scsi_id: page("vpd_pg83"),
        scsi_serial: page("vpd_pg80"),
        place: text(where_plugged(&disk)),
        partition: u32::try_from(partition).unwrap_or(0),
        name: match partition {
            0 => name,
            n if name.ends_with(|c: char| c.is_ascii_digit()) => format!("{name}p{n}"),
            n => format!("{name}{n}"),
        },
    })
}

fn dm_uuid(disk: &Object<'_>, name: &str) -> Result<Option<String>, KernelError> {
    if !name.starts_with("dm-") {
        return Ok(None);
    }
    let kernel = disk.kernel();
    let mapped = kernel.object("mapped_device", disk.ptr("private_data")?)?;
    let cell = mapped.ptr("interface_ptr")?;
    if cell == 0 {
        return Ok(None);
    }
    let uuid = kernel.object("hash_cell", cell)?.ptr("uuid")?;
    if uuid == 0 {
        return Ok(None);
    }
    // DM_UUID_LEN
    kernel.read_cstr(uuid, 129).map(Some)
}

fn partition_uuid(device: &Object<'_>) -> Result<Option<String>, KernelError> {
    let Some(info) = device.follow_opt("bd_meta_info")? else {
        return Ok(None);
    };
    Ok(Some(info.get("uuid")?.string()?.to_lowercase()))
}

/// The `struct scsi_device` is its queue's owner.
fn scsi_device<'k>(disk: &Object<'k>) -> Result<Object<'k>, KernelError> {
    let kernel: &'k Kernel = disk.kernel();
    kernel.object("scsi_device", disk.follow("queue")?.ptr("queuedata")?)
}

/// A page of vital product data, in hexadecimal.
fn product_data(device: &Object<'_>, member: &str) -> Result<Option<String>, KernelError> {
    let Some(page) = device.follow_opt(member)? else {
        return Ok(None);
    };
    let len = page.u("len")?;
    if len > MAX_PAGE {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    page.kernel().read(page.get("data")?.addr(), &mut bytes)?;
    Ok(Some(bytes.iter().map(|b| format!("{b:02x}")).collect()))
}

/// The names of the devices above the disk's own.
fn where_plugged(disk: &Object<'_>) -> Result<Option<String>, KernelError> {
    let mut names = Vec::new();
    let mut next = disk
        .follow("part0")?
        .get("bd_device")?
        .follow_opt("parent")?;
    while let Some(device) = next {
        if names.len() >= MAX_PARENTS {
            return Err(KernelError::Damaged {
                what: "struct device",
                addr: device.addr(),
                detail: "its parents have no end".into(),
            });
        }
        names.push(disk.kernel().read_cstr(device.ptr("kobj.name")?, 128)?);
        next = device.follow_opt("parent")?;
    }
    Ok(place(names.iter().rev().map(String::as_str)))
}
