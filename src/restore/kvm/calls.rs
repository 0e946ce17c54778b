//! KVM's ioctls through [`Syscalls`], with errors that say what was asked.

use super::error::{KvmError, hint};
use super::ioctls::{self, Ioctl};
use crate::restore::{Errno, Syscalls};
use crate::sys::kvm_args::{Plain, bytes_of, bytes_of_mut};
use kvm_bindings::kvm_enable_cap;

const PROT_READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;

/// The process being restored, as KVM's caller, on behalf of one VM or vCPU.
pub(super) struct Calls<'a> {
    pub sys: &'a mut dyn Syscalls,
    /// Which VM or vCPU errors are about.
    pub subject: String,
}

impl Calls<'_> {
    /// An error about `call`.
    pub fn failed(&self, call: impl Into<String>, errno: Errno) -> KvmError {
        let call = call.into();
        KvmError::Call {
            subject: self.subject.clone(),
            hint: hint(&call, errno).into(),
            call,
            errno,
        }
    }

    /// `ioctl(fd, request, value)`.
    pub fn value(&mut self, fd: i32, ioctl: Ioctl, value: u64) -> Result<u64, KvmError> {
        self.sys
            .ioctl_value(fd, ioctl.number, value)
            .map_err(|errno| self.failed(format!("{}({value:#x})", ioctl.name), errno))
    }

    /// `ioctl(fd, request, &argument)`.
    pub fn set<T: Plain>(&mut self, fd: i32, ioctl: Ioctl, argument: &T) -> Result<u64, KvmError> {
        self.set_bytes(fd, ioctl, bytes_of(argument))
    }

    /// `ioctl(fd, request, &mut argument)` of an argument that starts as zeros.
    pub fn get<T: Plain>(&mut self, fd: i32, ioctl: Ioctl) -> Result<T, KvmError> {
        let mut argument = T::default();
        self.bytes(fd, ioctl, bytes_of_mut(&mut argument))?;
        Ok(argument)
    }

    /// As [`Self::set`], of raw bytes.
    pub fn set_bytes(&mut self, fd: i32, ioctl: Ioctl, argument: &[u8]) -> Result<u64, KvmError> {
        self.bytes(fd, ioctl, &mut argument.to_vec())
    }

    /// `ioctl(fd, request, argument)`; what the kernel wrote comes back.
    pub fn bytes(&mut self, fd: i32, ioctl: Ioctl, argument: &mut [u8]) -> Result<u64, KvmError> {
        self.try_bytes(fd, ioctl, argument)
            .map_err(|errno| self.failed(ioctl.name, errno))
    }

    /// As [`Self::bytes`], for callers who know what to do about an errno.
    pub fn try_bytes(&mut self, fd: i32, ioctl: Ioctl, argument: &mut [u8]) -> Result<u64, Errno> {
        if argument.len() <= self.sys.scratch().1 {
            return self.sys.ioctl(fd, ioctl.number, argument);
        }
        // Routing tables and AMX state may outgrow the scratch memory.
        let len = argument.len() as u64;
        let at = map_anonymous(self.sys, len)?;
        let fd = u64::from(fd.cast_unsigned());
        let result = self.sys.write(at, argument).and_then(|()| {
            let value = self
                .sys
                .syscall(libc::SYS_ioctl, [fd, ioctl.number, at, 0, 0, 0])?;
            self.sys.read(at, argument)?;
            Ok(value)
        });
        self.sys.syscall(libc::SYS_munmap, [at, len, 0, 0, 0, 0])?;
        result
    }

    /// KVM_ENABLE_CAP on a VM or a vCPU.
    pub fn enable(
        &mut self,
        fd: i32,
        name: &str,
        cap: u32,
        args: [u64; 2],
    ) -> Result<(), KvmError> {
        let mut argument = kvm_enable_cap {
            cap,
            args: [args[0], args[1], 0, 0],
            ..Default::default()
        };
        let bytes = bytes_of_mut(&mut argument);
        match self.try_bytes(fd, ioctls::ENABLE_CAP, bytes) {
            Ok(_) => Ok(()),
            Err(errno) => Err(self.failed(
                format!("KVM_ENABLE_CAP(KVM_CAP_{name}, {:#x})", args[0]),
                errno,
            )),
        }
    }

    /// KVM_CHECK_EXTENSION: 0 where the capability is not there.
    pub fn extension(&mut self, fd: i32, cap: u32) -> u64 {
        self.sys
            .ioctl_value(fd, ioctls::CHECK_EXTENSION.number, u64::from(cap))
            .unwrap_or(0)
    }

    /// A descriptor that a call returned.
    pub fn descriptor(&self, call: &str, value: u64) -> Result<i32, KvmError> {
        i32::try_from(value).map_err(|_| self.failed(call, Errno(libc::EBADF)))
    }
}

/// Maps fresh anonymous memory, where the kernel likes.
pub(super) fn map_anonymous(sys: &mut dyn Syscalls, len: u64) -> Result<u64, Errno> {
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    sys.syscall(
        libc::SYS_mmap,
        [0, len, PROT_READ_WRITE, flags, u64::MAX, 0],
    )
}

/// A vCPU's shared area, mapped for the time of the restore alone: whether and
/// where the VMM has it mapped is then of no matter here.
pub(super) struct RunArea {
    pub address: u64,
    pub len: u64,
}

impl RunArea {
    /// Maps it. `len`: KVM_GET_VCPU_MMAP_SIZE.
    pub fn map(calls: &mut Calls, vcpu: i32, len: u64) -> Result<Self, KvmError> {
        let fd = u64::from(vcpu.cast_unsigned());
        let shared = libc::MAP_SHARED as u64;
        calls
            .sys
            .syscall(libc::SYS_mmap, [0, len, PROT_READ_WRITE, shared, fd, 0])
            .map(|address| Self { address, len })
            .map_err(|errno| calls.failed("mmap of the vCPU's kvm_run area", errno))
    }

    /// Reads `out.len()` bytes from its start.
    pub fn read(&self, calls: &mut Calls, out: &mut [u8]) -> Result<(), KvmError> {
        calls
            .sys
            .read(self.address, out)
            .map_err(|errno| calls.failed("reading kvm_run", errno))
    }

    /// Writes at its start.
    pub fn write(&self, calls: &mut Calls, bytes: &[u8]) -> Result<(), KvmError> {
        calls
            .sys
            .write(self.address, bytes)
            .map_err(|errno| calls.failed("writing kvm_run", errno))
    }

    /// Unmaps it.
    pub fn unmap(self, calls: &mut Calls) -> Result<(), KvmError> {
        calls
            .sys
            .syscall(libc::SYS_munmap, [self.address, self.len, 0, 0, 0, 0])
            .map(|_| ())
            .map_err(|errno| calls.failed("munmap of the kvm_run area", errno))
    }
}
