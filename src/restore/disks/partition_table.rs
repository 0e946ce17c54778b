//! The UUID of a partition, from the table at its disk's begin. udev and the kernel (in the partition's `uevent`,
//! since v6.13) say it too; an older kernel, before udev runs, does not.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Disk signature in a DOS partition table, and where its own signature is. Linux
/// include/linux/msdos_partition.h, block/partitions/msdos.c.
const DISK_SIGNATURE: u64 = 440;
const DOS: u64 = 510;
/// Members of a `gpt_header` and of a `gpt_entry`. Linux block/partitions/efi.h.
const ENTRIES: u64 = 72;
const ENTRY_COUNT: u64 = 80;
const ENTRY_SIZE: u64 = 84;
const ENTRY_GUID: u64 = 16;

/// Of partition `number` (from 1 on) of a disk with sectors of so many bytes, as Linux writes it.
pub(super) fn uuid(disk: &File, sector: u64, number: u32) -> Option<String> {
    gpt(disk, sector, number).or_else(|| dos(disk, number))
}

fn gpt(disk: &File, sector: u64, number: u32) -> Option<String> {
    let magic: [u8; 8] = bytes(disk, sector)?;
    let count = u32::from_le_bytes(bytes(disk, sector.checked_add(ENTRY_COUNT)?)?);
    if &magic != b"EFI PART" || number == 0 || number > count {
        return None;
    }
    let first = u64::from_le_bytes(bytes(disk, sector.checked_add(ENTRIES)?)?);
    let size = u32::from_le_bytes(bytes(disk, sector.checked_add(ENTRY_SIZE)?)?);
    let into = u64::from(number - 1).checked_mul(u64::from(size))?;
    let entry = first.checked_mul(sector)?.checked_add(into)?;
    let guid: [u8; 16] = bytes(disk, entry.checked_add(ENTRY_GUID)?)?;
    // Its first three parts are numbers, the lowest byte first.
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (place, from) in ORDER.into_iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", guid.get(from)?));
    }
    (guid != [0; 16]).then_some(text)
}

fn dos(disk: &File, number: u32) -> Option<String> {
    let magic: [u8; 2] = bytes(disk, DOS)?;
    let signature = u32::from_le_bytes(bytes(disk, DISK_SIGNATURE)?);
    (magic == [0x55, 0xaa] && number > 0).then(|| format!("{signature:08x}-{number:02x}"))
}

fn bytes<const N: usize>(disk: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    disk.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, parts: &[(u64, &[u8])]) -> File {
        let path = std::env::temp_dir().join(format!("vmrestore-{name}-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .expect("makes a file");
        std::fs::remove_file(&path).expect("removes its name");
        file.set_len(1 << 20).expect("has a length");
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).expect("writes");
        }
        file
    }

    #[test]
    fn both_tables_are_read() {
        let dos = disk(
            "dos",
            &[(440, &[0x11, 0x22, 0x33, 0x44]), (510, &[0x55, 0xaa])],
        );
        assert_eq!(uuid(&dos, 512, 2).as_deref(), Some("44332211-02"));
        assert_eq!(uuid(&dos, 512, 17).as_deref(), Some("44332211-11"));
        assert_eq!(uuid(&dos, 512, 0), None);
        // As sgdisk wrote it: C12A7328-F81F-11D2-BA4B-00C93EC93B4B, here as the second's own GUID. The
        // protective table before it is not asked.
        let guid = [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xc9, 0x3e, 0xc9,
            0x3b, 0x4b,
        ];
        for sector in [512u64, 4096] {
            let gpt = disk(
                "gpt",
                &[
                    (440, &[9; 4]),
                    (510, &[0x55, 0xaa]),
                    (sector, b"EFI PART"),
                    (sector + 72, &2u64.to_le_bytes()),
                    (sector + 80, &128u32.to_le_bytes()),
                    (sector + 84, &128u32.to_le_bytes()),
                    (2 * sector + 128 + 16, &guid),
                ],
            );
            let found = uuid(&gpt, sector, 2);
            assert_eq!(
                found.as_deref(),
                Some("c12a7328-f81f-11d2-ba4b-00c93ec93b4b")
            );
        }
        assert_eq!(uuid(&disk("none", &[]), 512, 1), None);
        // Numbers that lead nowhere.
        let far = disk(
            "far",
            &[
                (512, b"EFI PART"),
                (512 + 72, &u64::MAX.to_le_bytes()),
                (512 + 80, &u32::MAX.to_le_bytes()),
                (512 + 84, &u32::MAX.to_le_bytes()),
            ],
        );
        assert_eq!(uuid(&far, 512, 3), None);
    }
}
