//! System calls with names and types, on top of [`Syscalls`].
//!
//! Paths and structures go through the scratch memory, so each call here may
//! overwrite what an earlier one left there.

use super::{Errno, Syscalls};
use crate::dataset::OpenFile;

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

fn as_fd(value: u64) -> Result<i32, Errno> {
    i32::try_from(value).map_err(|_| Errno(libc::EBADF))
}

/// Puts `bytes` at the start of the scratch memory and gives its address.
pub fn put(sys: &mut dyn Syscalls, bytes: &[u8]) -> Result<u64, Errno> {
    let (at, len) = sys.scratch();
    if bytes.len() > len {
        return Err(Errno(libc::E2BIG));
    }
    sys.write(at, bytes)?;
    Ok(at)
}

/// Puts a path there, NUL-terminated.
fn put_path(sys: &mut dyn Syscalls, path: &str) -> Result<u64, Errno> {
    if path.as_bytes().contains(&0) {
        return Err(Errno(libc::EINVAL));
    }
    let mut bytes = path.as_bytes().to_vec();
    bytes.push(0);
    put(sys, &bytes)
}

/// `open(path, flags, 0)`.
pub fn open(sys: &mut dyn Syscalls, path: &str, flags: i32) -> Result<i32, Errno> {
    let at = put_path(sys, path)?;
    let call = [arg(libc::AT_FDCWD), at, arg(flags), 0, 0, 0];
    as_fd(sys.syscall(libc::SYS_openat, call)?)
}

/// Opens a path below a directory that is held open.
fn open_below(sys: &mut dyn Syscalls, dir: i32, path: &str, flags: i32) -> Result<i32, Errno> {
    let path = path.trim_start_matches('/');
    let at = put_path(sys, if path.is_empty() { "." } else { path })?;
    let call = [arg(dir), at, arg(flags), 0, 0, 0];
    as_fd(sys.syscall(libc::SYS_openat, call)?)
}

/// Opens a file of procfs, by its path below /proc. `self` is the process.
pub fn open_in_proc(sys: &mut dyn Syscalls, path: &str, flags: i32) -> Result<i32, Errno> {
    match sys.doors().proc {
        Some(proc) => open_below(sys, proc, path, flags),
        None => open(sys, &format!("/proc/{path}"), flags),
    }
}

/// Opens a path of the host's, wherever the process's own root is.
pub fn open_of_host(sys: &mut dyn Syscalls, path: &str, flags: i32) -> Result<i32, Errno> {
    match sys.doors().host {
        Some(root) => open_below(sys, root, path, flags),
        None => open(sys, path, flags),
    }
}

/// Opens what an open file of the dataset was opened by.
pub fn open_file(sys: &mut dyn Syscalls, file: &OpenFile, flags: i32) -> Result<i32, Errno> {
    match file.of_host {
        true => open_of_host(sys, &file.path, flags),
        false => open(sys, &file.path, flags),
    }
}

/// A call whose only argument is a path: chdir, chroot, unlink.
pub fn with_path(sys: &mut dyn Syscalls, number: i64, path: &str) -> Result<u64, Errno> {
    let at = put_path(sys, path)?;
    sys.syscall(number, [at, 0, 0, 0, 0, 0])
}

/// A call with up to six plain numbers.
pub fn plain<const N: usize>(
    sys: &mut dyn Syscalls,
    number: i64,
    args: [u64; N],
) -> Result<u64, Errno> {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(args) {
        *to = from;
    }
    sys.syscall(number, all)
}

/// A call that makes a descriptor from plain numbers.
pub fn make_fd<const N: usize>(
    sys: &mut dyn Syscalls,
    number: i64,
    args: [u64; N],
) -> Result<i32, Errno> {
    as_fd(plain(sys, number, args)?)
}

/// `fcntl(fd, command, value)`.
pub fn fcntl(sys: &mut dyn Syscalls, fd: i32, command: i32, value: u64) -> Result<u64, Errno> {
    plain(sys, libc::SYS_fcntl, [arg(fd), arg(command), value])
}

/// Another descriptor of the same open file, at or above `base`.
pub fn duplicate(sys: &mut dyn Syscalls, fd: i32, base: i32) -> Result<i32, Errno> {
    as_fd(fcntl(sys, fd, libc::F_DUPFD_CLOEXEC, arg(base))?)
}

/// `close(fd)`.
pub fn close(sys: &mut dyn Syscalls, fd: i32) -> Result<(), Errno> {
    plain(sys, libc::SYS_close, [arg(fd)]).map(drop)
}

/// `dup3(from, to, O_CLOEXEC or 0)`, also where they are the same.
pub fn dup_to(sys: &mut dyn Syscalls, from: i32, to: i32, cloexec: bool) -> Result<(), Errno> {
    if from == to {
        let flag = if cloexec { libc::FD_CLOEXEC } else { 0 };
        return fcntl(sys, from, libc::F_SETFD, arg(flag)).map(drop);
    }
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    plain(sys, libc::SYS_dup3, [arg(from), arg(to), arg(flags)]).map(drop)
}

/// Moves a descriptor to the lowest free number at or above `base`.
pub fn raise(sys: &mut dyn Syscalls, fd: i32, base: i32) -> Result<i32, Errno> {
    let high = duplicate(sys, fd, base)?;
    close(sys, fd)?;
    Ok(high)
}

/// `mmap`; the answer must be the address asked for.
pub fn map(
    sys: &mut dyn Syscalls,
    address: u64,
    len: u64,
    prot: i32,
    flags: i32,
    fd: i32,
    offset: u64,
) -> Result<(), Errno> {
    let flags = flags | libc::MAP_FIXED_NOREPLACE;
    let call = [address, len, arg(prot), arg(flags), arg(fd), offset];
    let got = sys.syscall(libc::SYS_mmap, call)?;
    if got == address {
        Ok(())
    } else {
        // A kernel before 4.17 takes MAP_FIXED_NOREPLACE for a mere hint.
        Err(Errno(libc::EEXIST))
    }
}

/// `mmap` of a device or a file, shared, over whatever is there.
pub fn map_over(
    sys: &mut dyn Syscalls,
    address: u64,
    len: u64,
    prot: i32,
    fd: i32,
    offset: u64,
) -> Result<(), Errno> {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let call = [address, len, arg(prot), arg(flags), arg(fd), offset];
    sys.syscall(libc::SYS_mmap, call).map(drop)
}

/// `munmap`.
pub fn unmap(sys: &mut dyn Syscalls, address: u64, len: u64) -> Result<(), Errno> {
    plain(sys, libc::SYS_munmap, [address, len]).map(drop)
}

/// `mprotect`.
pub fn protect(sys: &mut dyn Syscalls, address: u64, len: u64, prot: i32) -> Result<(), Errno> {
    plain(sys, libc::SYS_mprotect, [address, len, arg(prot)]).map(drop)
}

/// `madvise`.
pub fn advise(sys: &mut dyn Syscalls, address: u64, len: u64, advice: i32) -> Result<(), Errno> {
    plain(sys, libc::SYS_madvise, [address, len, arg(advice)]).map(drop)
}

/// `prctl` with plain numbers.
pub fn prctl<const N: usize>(
    sys: &mut dyn Syscalls,
    option: i32,
    args: [u64; N],
) -> Result<u64, Errno> {
    let mut all = [0; 6];
    all[0] = arg(option);
    for (to, from) in all.iter_mut().skip(1).zip(args) {
        *to = from;
    }
    sys.syscall(libc::SYS_prctl, all)
}

/// `prctl(option, &bytes)`.
pub fn prctl_bytes(sys: &mut dyn Syscalls, option: i32, bytes: &[u8]) -> Result<u64, Errno> {
    let at = put(sys, bytes)?;
    prctl(sys, option, [at])
}

/// A call that fills two descriptors (pipe2, socketpair): `args` come before
/// and behind the array's address.
pub fn two_fds(
    sys: &mut dyn Syscalls,
    number: i64,
    before: &[u64],
    after: &[u64],
) -> Result<[i32; 2], Errno> {
    let at = put(sys, &[0; 8])?;
    let mut all = [0; 6];
    let args = before.iter().chain([&at]).chain(after);
    for (to, from) in all.iter_mut().zip(args) {
        *to = *from;
    }
    sys.syscall(number, all)?;
    let mut raw = [0; 8];
    sys.read(at, &mut raw)?;
    let [a, b, c, d, e, f, g, h] = raw;
    Ok([
        i32::from_ne_bytes([a, b, c, d]),
        i32::from_ne_bytes([e, f, g, h]),
    ])
}
