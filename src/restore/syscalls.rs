//! System calls made on behalf of a process that is being restored.
//!
//! The stages of a restore are written against this trait. In earnest they are
//! injected into the stub by ptrace; the fast tests make them in the test's
//! own process.

/// An error number of the kernel (positive), e.g. `Errno(14)` is EFAULT.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Errno {}

/// Directories that a process in the making holds open, and closes at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// This host's /proc: there may be none where the process lives.
    pub proc: Option<i32>,
    /// This host's root directory, when that is not the process's.
    pub host: Option<i32>,
}

/// Who makes system calls in the address space that is being restored.
pub trait Syscalls {
    /// Makes one system call there. `args`: rdi, rsi, rdx, r10, r8, r9;
    /// addresses are of that address space.
    ///
    /// # Errors
    /// The call's errno. If the process itself has gone, `Errno(ESRCH)`.
    fn syscall(&mut self, number: i64, args: [u64; 6]) -> Result<u64, Errno>;

    /// Makes one system call that might not return by itself (KVM_RUN), and
    /// interrupts it after `limit`: it then fails with EINTR.
    ///
    /// An implementation by ptrace interrupts the thread (PTRACE_INTERRUPT);
    /// a signal sent to it would do as well. The default does not bound it.
    ///
    /// # Errors
    /// The call's errno; EINTR when it was interrupted.
    fn syscall_within(
        &mut self,
        number: i64,
        args: [u64; 6],
        limit: std::time::Duration,
    ) -> Result<u64, Errno> {
        let _ = limit;
        self.syscall(number, args)
    }

    /// Address and length of memory there that stages may use for arguments
    /// (at least 64 KiB).
    fn scratch(&self) -> (u64, usize);

    /// Directories that it holds open.
    fn doors(&self) -> Doors {
        Doors::default()
    }

    /// Writes into that address space.
    ///
    /// # Errors
    /// EFAULT where nothing is mapped.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Reads from that address space.
    ///
    /// # Errors
    /// EFAULT where nothing is mapped.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno>;

    /// `ioctl(fd, request, &mut argument)`: the argument goes through the
    /// scratch memory and what the kernel wrote comes back.
    ///
    /// # Errors
    /// The ioctl's errno; ENOMEM when the argument does not fit the scratch.
    fn ioctl(&mut self, fd: i32, request: u64, argument: &mut [u8]) -> Result<u64, Errno> {
        let (at, len) = self.scratch();
        if argument.len() > len {
            return Err(Errno(libc::ENOMEM));
        }
        self.write(at, argument)?;
        let fd = u64::from(fd.cast_unsigned());
        let value = self.syscall(libc::SYS_ioctl, [fd, request, at, 0, 0, 0])?;
        self.read(at, argument)?;
        Ok(value)
    }

    /// `ioctl(fd, request, value)`.
    ///
    /// # Errors
    /// The ioctl's errno.
    fn ioctl_value(&mut self, fd: i32, request: u64, value: u64) -> Result<u64, Errno> {
        let fd = u64::from(fd.cast_unsigned());
        self.syscall(libc::SYS_ioctl, [fd, request, value, 0, 0, 0])
    }
}
