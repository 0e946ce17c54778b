//! What tells one block device from another.

use serde::{Deserialize, Serialize};

/// A block device as the dead kernel knew it. Names are dealt out anew at each
/// boot; the rest stays with the device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// Its name then: `vda1`, `dm-3`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Device mapper's UUID (`LVM-…`, `mpath-…`, `CRYPT-…`).
    pub dm_uuid: Option<String>,
    /// The partition's UUID, in lower case.
    pub partition_uuid: Option<String>,
    /// SCSI: the device identification page (0x83), in hexadecimal.
    pub scsi_id: Option<String>,
    /// SCSI: the unit serial number page (0x80), in hexadecimal.
    pub scsi_serial: Option<String>,
    /// Where it is plugged in: the names of the devices that it hangs on, but
    /// for those that are numbered as they are found: `pci0000:00/0000:00:05.0`.
    pub place: Option<String>,
    /// Number of the partition; 0: the whole disk.
    pub partition: u32,
}

impl BlockDevice {
    /// It has something that no other device has.
    #[must_use]
    pub fn has_identity(&self) -> bool {
        self.dm_uuid.is_some()
            || self.partition_uuid.is_some()
            || self.scsi_id.is_some()
            || self.scsi_serial.is_some()
            || self.place.is_some()
    }
}

/// Where a device is plugged in, from the names of the devices above it, the
/// nearest last. Names with a number that depends on the order in which devices
/// are found say nothing.
#[must_use]
pub fn place<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let counted = |name: &str| {
        [
            "virtio", "host", "target", "nvme", "ata", "session", "rport-",
        ]
        .iter()
        .any(|kind| {
            name.strip_prefix(kind)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    let names: Vec<&str> = names.filter(|name| !counted(name)).collect();
    // A PCI address; what is virtual has no place.
    let on_bus = names.iter().any(|name| name.matches(':').count() == 2);
    on_bus.then(|| names.join("/"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_place_is_where_it_is_plugged_in() {
        let names = ["pci0000:00", "0000:00:05.0", "virtio3"];
        assert_eq!(
            super::place(names.into_iter()).as_deref(),
            Some("pci0000:00/0000:00:05.0")
        );
        assert_eq!(super::place(["virtual"].into_iter()), None);
    }
}
