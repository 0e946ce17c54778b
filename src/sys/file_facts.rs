//! What the kernel knows of an open file beyond stat(2): its file system's
//! UUID, its generation, and whether somebody else has it open.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// `struct fsuuid2`. Linux include/uapi/linux/fs.h, since v6.9.
#[repr(C)]
struct FsUuid2 {
    len: u8,
    uuid: [u8; 16],
}

/// _IOR(0x15, 0, struct fsuuid2).
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
/// _IOR('v', 1, long): the kernel writes an int.
const FS_IOC_GETVERSION: libc::c_ulong = 0x8008_7601;
/// _IOR('X', 100, struct `xfs_fsop_geom_v1`), of 112 bytes with the UUID at 64.
/// Linux fs/xfs/libxfs/xfs_fs.h.
const XFS_IOC_FSGEOMETRY_V1: libc::c_ulong = 0x8070_5864;
/// _IOR(0x94, 31, struct `btrfs_ioctl_fs_info_args`), of 1024 bytes with the
/// UUID at 16. Linux include/uapi/linux/btrfs.h.
const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;

const EXT4_SUPER_MAGIC: i64 = 0xef53;
const XFS_SUPER_MAGIC: i64 = 0x5846_5342;
const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;

/// Linux include/uapi/asm-generic/fcntl.h.
const F_SETSIG: libc::c_int = 10;

/// What names a mounted file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystemId {
    Uuid([u8; 16]),
    /// Both halves of the UUID, one XORed with the other: what ext4 says in
    /// `statfs.f_fsid`.
    Folded(u64),
}

/// The file system that a file is on; `None` where it does not say.
pub fn file_system(file: &File) -> Option<FileSystemId> {
    let fd = file.as_raw_fd();
    let mut new = FsUuid2 {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the ioctl writes one `struct fsuuid2`, which lives.
    if unsafe { libc::ioctl(fd, FS_IOC_GETFSUUID, &raw mut new) } == 0 && new.len == 16 {
        return Some(FileSystemId::Uuid(new.uuid));
    }
    // SAFETY: made of integers; zero is a value of each.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` lives.
    if unsafe { libc::fstatfs(fd, &raw mut stat) } != 0 {
        return None;
    }
    match stat.f_type {
        EXT4_SUPER_MAGIC => {
            // SAFETY: `fsid_t` is two ints, whatever it calls them.
            let halves: [u32; 2] = unsafe { std::mem::transmute(stat.f_fsid) };
            Some(FileSystemId::Folded(
                u64::from(halves[0]) | u64::from(halves[1]) << 32,
            ))
        }
        XFS_SUPER_MAGIC => uuid_at::<112>(fd, XFS_IOC_FSGEOMETRY_V1, 64),
        BTRFS_SUPER_MAGIC => uuid_at::<1024>(fd, BTRFS_IOC_FS_INFO, 16),
        _ => None,
    }
}

/// A UUID out of the `SIZE` bytes that an ioctl writes.
fn uuid_at<const SIZE: usize>(
    fd: libc::c_int,
    request: libc::c_ulong,
    at: usize,
) -> Option<FileSystemId> {
    let mut answer = [0u64; 128];
    assert!(SIZE <= size_of_val(&answer));
    // SAFETY: the callers' requests write `SIZE` bytes, as is encoded in them.
    if unsafe { libc::ioctl(fd, request, answer.as_mut_ptr()) } != 0 {
        return None;
    }
    let bytes: Vec<u8> = answer.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let uuid = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(FileSystemId::Uuid(uuid))
}

/// `i_generation` of a file on ext4, xfs or btrfs: another one means that the
/// inode number was given to another file since.
pub fn generation(file: &File) -> Option<u32> {
    let mut answer = [0u32; 2];
    // SAFETY: the ioctl writes an int, and has room for a long.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETVERSION, answer.as_mut_ptr()) };
    (result == 0).then_some(answer[0])
}

/// A file by the number and generation of its inode, on the file system of `directory`: ext4's
/// file handles, or with `xfs` those of xfs. `None`: there is none, or this process may not ask.
pub fn by_number(directory: &File, number: u64, generation: u32, xfs: bool) -> Option<File> {
    // enum fid_type: FILEID_INO32_GEN, and FILEID_INO64_GEN | XFS_FILEID_TYPE_64FLAG.
    const INO32_GEN: i32 = 1;
    const XFS_INO64_GEN: i32 = 0x81;
    #[repr(C)]
    struct FileHandle {
        bytes: u32,
        kind: i32,
        handle: [u32; 3],
    }
    let (low, high) = (number as u32, (number >> 32) as u32);
    let mut handle = match (xfs, high) {
        (true, _) => FileHandle {
            bytes: 12,
            kind: XFS_INO64_GEN,
            handle: [low, high, generation],
        },
        (false, 0) => FileHandle {
            bytes: 8,
            kind: INO32_GEN,
            handle: [low, generation, 0],
        },
        (false, _) => return None,
    };
    // SAFETY: `handle` has room for the bytes that it says, and lives.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            directory.as_raw_fd(),
            &raw mut handle,
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel gave us this descriptor, and nobody else has it.
    Some(unsafe { File::from_raw_fd(fd) })
}

/// Whether anybody on this host, in whatever container, and be it the kernel
/// itself (a loop device, an NFS server), has a regular file open for writing.
/// `file` must be open for reading alone.
///
/// The kernel gives a read lease only on a file that nobody writes to; the
/// lease is given back at once.
///
/// # Errors
/// EINVAL and others where the file system knows no leases.
pub fn is_written_elsewhere(file: &File) -> io::Result<bool> {
    let fd = file.as_raw_fd();
    // Were somebody to open the file right now, the kernel would tell us by a
    // signal that does nothing, instead of SIGIO, which kills.
    // SAFETY: no memory arguments.
    unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) };
    // SAFETY: no memory arguments.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) } == 0 {
        // SAFETY: no memory arguments.
        unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
        return Ok(false);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        e => Err(e),
    }
}

/// Whether a POSIX or OFD lock of somebody else is on any part of a file, and
/// the holder's PID where it is one process's.
///
/// # Errors
/// Where the file system knows no locks.
pub fn locked_elsewhere(file: &File) -> io::Result<Option<i32>> {
    // SAFETY: made of integers; zero is a value of each: the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: `lock` lives.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let held = lock.l_type != libc::F_UNLCK as libc::c_short;
    Ok(held.then_some(lock.l_pid))
}

/// Sets an extended attribute.
///
/// # Errors
/// EOPNOTSUPP where the file system knows none; ENOSPC and others.
pub fn set_attribute(file: &File, name: &std::ffi::CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` ends with NUL; `value` lives and its length is passed.
    let result = unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An extended attribute; `None` where there is none. At most 4 KiB.
///
/// # Errors
/// ERANGE when it is longer; EIO and others.
pub fn attribute(file: &File, name: &std::ffi::CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; 4096];
    // SAFETY: `name` ends with NUL; `value` lives and its length is passed.
    let len = unsafe {
        libc::fgetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    match usize::try_from(len) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
            e => Err(e),
        },
    }
}

/// Removes an extended attribute; it is no error when there is none.
///
/// # Errors
/// EROFS, EIO and others.
pub fn remove_attribute(file: &File, name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: `name` ends with NUL.
    if unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(()),
        e => Err(e),
    }
}

/// A part of a file and where it is on its device. Bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// Offset on the device.
    pub place: u64,
    /// It holds data, and is no mere reservation.
    pub written: bool,
    /// The place is the file's, and what stands there is not read (it was
    /// preallocated).
    pub reserved: bool,
}

/// `struct fiemap` and `struct fiemap_extent`. Linux include/uapi/linux/fiemap.h.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; FIEMAP_EXTENTS],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const FIEMAP_EXTENTS: usize = 128;
/// _IOWR('f', 11, struct fiemap), of 32 bytes without extents.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;
/// Where it is is not known yet (UNKNOWN, DELALLOC), or not what it says
/// (ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, INLINE, TAIL, UNWRITTEN).
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
const FIEMAP_EXTENT_NOT_THERE: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800;

/// Where a file's data is on its device (`FS_IOC_FIEMAP`), in order.
///
/// # Errors
/// EOPNOTSUPP where the file system does not say; EIO and others.
pub fn extents(file: &File) -> io::Result<Vec<Extent>> {
    let mut out: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        let none = FiemapExtent {
            logical: 0,
            physical: 0,
            length: 0,
            reserved64: [0; 2],
            flags: 0,
            reserved: [0; 3],
        };
        let mut map = Box::new(Fiemap {
            start,
            length: u64::MAX - start,
            flags: FIEMAP_FLAG_SYNC,
            mapped: 0,
            count: FIEMAP_EXTENTS as u32,
            reserved: 0,
            extents: [none; FIEMAP_EXTENTS],
        });
        // SAFETY: the ioctl writes the header and at most `count` extents
        // behind it, for which there is room.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *map) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = usize::try_from(map.mapped).unwrap_or(0);
        let mut last = true;
        for extent in map.extents.iter().take(mapped) {
            out.push(Extent {
                start: extent.logical,
                len: extent.length,
                place: extent.physical,
                written: extent.flags & FIEMAP_EXTENT_NOT_THERE == 0,
                reserved: extent.flags & FIEMAP_EXTENT_NOT_THERE == FIEMAP_EXTENT_UNWRITTEN,
            });
            start = extent.logical.saturating_add(extent.length);
            last = extent.flags & FIEMAP_EXTENT_LAST != 0;
        }
        if last || mapped == 0 {
            return Ok(out);
        }
    }
}
