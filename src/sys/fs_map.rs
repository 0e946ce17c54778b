//! What a file system's device is used for, range by range (`FS_IOC_GETFSMAP`).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// `struct fsmap`. Linux include/uapi/linux/fsmap.h.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Record {
    device: u32,
    flags: u32,
    physical: u64,
    owner: u64,
    offset: u64,
    length: u64,
    reserved: [u64; 3],
}

const RECORDS: usize = 64;

/// `struct fsmap_head` with its records.
#[repr(C)]
struct Map {
    input_flags: u32,
    output_flags: u32,
    count: u32,
    entries: u32,
    reserved: [u64; 6],
    keys: [Record; 2],
    records: [Record; RECORDS],
}

/// _IOWR('X', 59, struct fsmap_head), of 192 bytes without records.
const FS_IOC_GETFSMAP: libc::c_ulong = 0xc0c0_583b;
/// The owner is not an inode, but one of `FMR_OWN_*`.
const SPECIAL_OWNER: u32 = 0x10;
/// The last record of all.
const LAST: u32 = 0x20;
/// `FMR_OWNER(0, 1)`: nobody's.
const FREE: u64 = 1;
/// Questions for one range: a range is a few extents of a file.
const MOST_CALLS: usize = 4096;

/// Whether nothing of the file system that `file` is on uses any of `len` bytes
/// at `start` of its device.
///
/// # Errors
/// EOPNOTSUPP or ENOTTY where the file system does not say; EIO and others.
pub fn is_free(file: &File, start: u64, len: u64) -> io::Result<bool> {
    let device = file.metadata()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    // `new_encode_dev` of include/linux/kdev_t.h.
    let device = minor & 0xff | major << 8 | (minor & !0xff) << 12;
    let end = start.saturating_add(len);
    let mut map = Box::new(Map {
        input_flags: 0,
        output_flags: 0,
        count: RECORDS as u32,
        entries: 0,
        reserved: [0; 6],
        keys: [Record::default(); 2],
        records: [Record::default(); RECORDS],
    });
    map.keys = [
        Record {
            device,
            physical: start,
            ..Record::default()
        },
        Record {
            device,
            flags: u32::MAX,
            physical: end.saturating_sub(1),
            owner: u64::MAX,
            offset: u64::MAX,
            ..Record::default()
        },
    ];
    // Free ranges come in order; each must begin where the one before ended.
    let mut free_until = start;
    for _ in 0..MOST_CALLS {
        // SAFETY: the ioctl writes the header and at most `count` records
        // behind it, for which there is room.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSMAP, &raw mut *map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let entries = usize::try_from(map.entries).unwrap_or(0).min(RECORDS);
        for record in map.records.iter().take(entries) {
            let behind = record.physical.saturating_add(record.length);
            let nobodys = record.flags & SPECIAL_OWNER != 0 && record.owner == FREE;
            if record.device == device
                && nobodys
                && record.physical <= free_until
                && behind > free_until
            {
                free_until = behind;
            }
        }
        let last = map.records.get(entries.saturating_sub(1)).copied();
        match last {
            Some(last) if entries > 0 && last.flags & LAST == 0 && free_until < end => {
                map.keys[0] = last;
            }
            _ => break,
        }
    }
    Ok(free_until >= end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<Record>(), 64);
        assert_eq!(size_of::<Map>(), 192 + RECORDS * 64);
        assert_eq!(FS_IOC_GETFSMAP >> 16 & 0x3fff, 192);
    }

    /// A file's own blocks are not free, nor is a range beyond the device.
    #[test]
    fn a_files_blocks_are_not_free() {
        let path = std::env::current_exe().expect("this program");
        let file = File::open(path).expect("opens");
        let extents = crate::sys::file_facts::extents(&file).unwrap_or_default();
        for extent in extents.iter().filter(|e| e.written).take(8) {
            match is_free(&file, extent.place, extent.len) {
                Ok(free) => assert!(!free, "{extent:?}"),
                // This file system does not say.
                Err(_) => return,
            }
        }
    }
}
