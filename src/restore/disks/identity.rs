//! Is this file still the one of the crash, and is it what it was then?

use super::{DiskError, ctime, mtime, seconds};
use crate::dataset::Inode;
use crate::sys::file_facts::{self, FileSystemId};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;

/// The file's identity and times against the dead inode's.
pub(super) fn unchanged(inode: &Inode, now: &Metadata, file: &File) -> Result<(), DiskError> {
    same_file(inode, now, file)?;
    if mtime(now) > inode.mtime_ns {
        return Err(changed(
            inode,
            "its modification time",
            seconds(inode.mtime_ns),
            seconds(mtime(now)),
        ));
    }
    if ctime(now) > inode.ctime_ns {
        return Err(changed(
            inode,
            "its change time",
            seconds(inode.ctime_ns),
            seconds(ctime(now)),
        ));
    }
    // Equal times and another size cannot be a write that was lost: without
    // dirty pages to explain it, the size must be the same.
    if mtime(now) == inode.mtime_ns
        && inode.dirty.is_empty()
        && inode.uncommitted.is_empty()
        && now.size() != inode.size
    {
        return Err(changed(
            inode,
            "its size",
            inode.size.to_string(),
            now.size().to_string(),
        ));
    }
    Ok(())
}

/// The file system that a file, or a directory, is on: by its UUID.
pub(super) fn same_file_system(inode: &Inode, file: &File) -> Result<(), DiskError> {
    match file_systems(inode, file) {
        Some((then, Err(here))) => Err(changed(
            inode,
            "the UUID of its file system",
            text(&then),
            here,
        )),
        _ => Ok(()),
    }
}

/// Whether it is on the file system of then; `None` where that cannot be told.
pub(in crate::restore) fn is_on_same_file_system(inode: &Inode, file: &File) -> Option<bool> {
    /// Linux include/uapi/linux/magic.h, RAMFS_MAGIC.
    const RAMFS: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x8584_58f6);
    // A copy in memory, as an initramfs has it, of what was on a disk.
    let here = nix::sys::statfs::fstatfs(file).map(|stat| stat.filesystem_type());
    if matches!(here, Ok(nix::sys::statfs::TMPFS_MAGIC | RAMFS))
        && !super::lives_in_memory(&inode.fs_type)
    {
        return Some(false);
    }
    file_systems(inode, file).map(|(_, here)| here.is_ok())
}

/// The UUID of then, and if the one here is another, what it is.
fn file_systems(inode: &Inode, file: &File) -> Option<([u8; 16], Result<(), String>)> {
    let then = inode.fs_uuid.as_deref().and_then(parse)?;
    let (same, here) = match file_facts::file_system(file)? {
        FileSystemId::Uuid(uuid) => (uuid == then, text(&uuid)),
        FileSystemId::Folded(id) => (id == fold(&then), format!("another ({id:016x})")),
    };
    Some((then, if same { Ok(()) } else { Err(here) }))
}

/// The file system by its UUID, the inode by its number and generation: a path
/// alone may lead to a copy, or to a file that was given a freed number.
fn same_file(inode: &Inode, now: &Metadata, file: &File) -> Result<(), DiskError> {
    same_file_system(inode, file)?;
    if now.ino() != inode.number {
        return Err(changed(
            inode,
            "its inode number",
            inode.number.to_string(),
            now.ino().to_string(),
        ));
    }
    if let Some(then) = inode.generation
        && matches!(inode.fs_type.as_str(), "ext4" | "xfs" | "btrfs")
        && let Some(here) = file_facts::generation(file)
        && here != then
    {
        return Err(changed(
            inode,
            "its inode's generation",
            then.to_string(),
            here.to_string(),
        ));
    }
    Ok(())
}

fn changed(inode: &Inode, what: &'static str, then: String, now: String) -> DiskError {
    DiskError::Changed {
        path: inode.path.clone(),
        what,
        then,
        now,
    }
}

/// A UUID from its 36 characters.
fn parse(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok()?;
    (digits.len() == 32).then(|| number.to_be_bytes())
}

fn text(uuid: &[u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(*uuid));
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| &digits[part]).join("-")
}

/// What ext4 makes of its UUID for statfs(2). Linux include/linux/statfs.h,
/// `uuid_to_fsid`.
fn fold(uuid: &[u8; 16]) -> u64 {
    let number = u128::from_le_bytes(*uuid);
    (number as u64) ^ (number >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_and_written() {
        let uuid = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        let bytes = parse(uuid).expect("a UUID");
        assert_eq!(bytes[15], 15);
        assert_eq!(text(&bytes), uuid);
        assert_eq!(fold(&bytes), 0x0706_0504_0302_0100 ^ 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(parse("0001"), None);
        assert_eq!(parse(&"g".repeat(32)), None);
    }
}
