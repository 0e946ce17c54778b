//! What the kernel knows of an open file beyond stat(2): its file system's
//! UUID, its generation, and whether somebody else has it open.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

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
