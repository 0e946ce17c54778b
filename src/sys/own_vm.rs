//! A virtual machine of this very process: made and set by the code that
//! restores guests elsewhere, then run by this one's threads.

use super::local_syscalls::LocalSyscalls;
use crate::dataset::{Fidelity, Vm};
use crate::restore::kvm::{self, KvmError};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use vm_memory::MmapRegion;

/// `KVM_RUN`. Linux include/uapi/linux/kvm.h.
const RUN: u64 = 0xae80;
/// `KVM_IRQ_LINE`, `_IOW(KVMIO, 0x61, struct kvm_irq_level)`.
const IRQ_LINE: u64 = 0x4008_ae61;
/// The part of a vCPU's area that is used: `kvm_run` and the page of port I/O.
const AREA: usize = 2 * 4096;
/// What wakes a vCPU's thread out of KVM_RUN.
const KICK: i32 = libc::SIGURG;

/// A VM with its memory.
pub struct OwnVm {
    vm: Vm,
    files: kvm::KvmFiles,
    shared: Arc<Shared>,
}

/// A VM that has all its state.
pub struct Finished {
    /// In the order of `Vm::vcpus`.
    pub vcpus: Vec<OwnVcpu>,
    pub shared: Arc<Shared>,
    /// What could not be set exactly.
    pub fidelity: Vec<Fidelity>,
}

/// What the VM's vCPUs have in common; the last of them that goes takes the
/// memory along.
pub struct Shared {
    vm: OwnedFd,
    memory: Vec<MmapRegion>,
}

/// A vCPU that is ready to run.
pub struct OwnVcpu {
    fd: OwnedFd,
    area: NonNull<u8>,
    shared: Arc<Shared>,
}

// SAFETY: the area is the vCPU's own mapping, which any thread may use, and
// nobody else has its address.
unsafe impl Send for OwnVcpu {}

impl OwnVm {
    /// Makes the VM, its vCPUs and its memslots. The slot number `n` of
    /// `vm.memslots` shows the region `places[n].0` from the offset
    /// `places[n].1` on.
    ///
    /// # Errors
    /// A slot that does not fit its region; the call that failed.
    pub fn create(
        mut vm: Vm,
        memory: Vec<MmapRegion>,
        places: &[(usize, u64)],
    ) -> Result<Self, KvmError> {
        let subject = format!("vm {}", vm.name.as_deref().unwrap_or("of the dump"));
        if places.len() != vm.memslots.len() {
            return Err(KvmError::Malformed {
                subject,
                what: format!("{} memslots", vm.memslots.len()),
                why: format!("{} of them have memory", places.len()),
            });
        }
        for (slot, (region, offset)) in vm.memslots.iter_mut().zip(places) {
            let fits = memory.get(*region).filter(|region| {
                offset
                    .checked_add(slot.size)
                    .is_some_and(|end| end <= region.size() as u64)
            });
            let Some(region) = fits else {
                return Err(KvmError::Malformed {
                    subject,
                    what: format!("memslot {} of {:#x} bytes", slot.slot, slot.size),
                    why: "its memory is smaller".into(),
                });
            };
            slot.user_address = region.as_ptr() as u64 + offset;
        }
        // SAFETY: `kvm::create` makes calls of KVM's on descriptors that it
        // opens, and maps memory where the kernel likes. The memslots were just
        // found to lie in `memory`, which lives as long as the VM's descriptor.
        let mut sys = unsafe { LocalSyscalls::new() };
        let files = kvm::create(&mut sys, std::slice::from_ref(&vm), &|_| None)?;
        let fd = files.vms.get(&vm.id).copied().unwrap_or(-1);
        if fd < 0 {
            return Err(KvmError::Malformed {
                subject,
                what: "VM".into(),
                why: "it has no descriptor".into(),
            });
        }
        // SAFETY: the descriptor is fresh, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let shared = Arc::new(Shared { vm: fd, memory });
        Ok(Self { vm, files, shared })
    }

    /// The memory, to be filled.
    pub fn memory(&self) -> &[MmapRegion] {
        &self.shared.memory
    }

    /// Sets the state of vCPUs, interrupt controllers and clocks, when the
    /// memory is in place.
    ///
    /// # Errors
    /// The call that failed, or the state that did not read back as it was set.
    pub fn finish(self) -> Result<Finished, KvmError> {
        // SAFETY: as in `create`; KVM writes to the guest's memory, which
        // nobody has a Rust reference to.
        let mut sys = unsafe { LocalSyscalls::new() };
        let vms = std::slice::from_ref(&self.vm);
        let fidelity = kvm::finish(&mut sys, vms, &self.files, &|_| None)?;
        let mut vcpus = Vec::with_capacity(self.vm.vcpus.len());
        for vcpu in &self.vm.vcpus {
            let fd = self.files.vcpus.get(&vcpu.id).copied().unwrap_or(-1);
            // SAFETY: no preconditions: a descriptor that is none is refused.
            let area = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    AREA,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    fd,
                    0,
                )
            };
            let Some(area) = NonNull::new(area.cast()).filter(|_| area != libc::MAP_FAILED) else {
                return Err(KvmError::Host {
                    what: format!("mmap of the kvm_run area of vCPU {}", vcpu.vcpu_id),
                    source: io::Error::last_os_error(),
                });
            };
            vcpus.push(OwnVcpu {
                // SAFETY: it could be mapped, so it is open; it was made for
                // this VM, and nobody else owns it.
                fd: unsafe { OwnedFd::from_raw_fd(fd) },
                area,
                shared: Arc::clone(&self.shared),
            });
        }
        Ok(Finished {
            vcpus,
            shared: self.shared,
            fidelity,
        })
    }
}

impl Shared {
    /// Raises or lowers an interrupt line.
    pub fn irq_line(&self, gsi: u32, high: bool) {
        let level: [u32; 2] = [gsi, u32::from(high)];
        // SAFETY: the argument is `struct kvm_irq_level`, which KVM reads. Its
        // one error is that there is no interrupt controller to tell.
        unsafe { libc::ioctl(self.vm.as_raw_fd(), IRQ_LINE, level.as_ptr()) };
    }
}

impl OwnVcpu {
    /// `kvm_run` and, behind its page, the data of port I/O.
    pub fn area(&mut self) -> &mut [u8] {
        // SAFETY: AREA bytes are mapped as long as `self` lives; the kernel
        // writes them in KVM_RUN alone, for which `self` is borrowed too.
        unsafe { std::slice::from_raw_parts_mut(self.area.as_ptr(), AREA) }
    }

    /// Runs the vCPU until it exits.
    ///
    /// # Errors
    /// KVM_RUN's, EINTR when the thread was kicked.
    pub fn run(&mut self) -> io::Result<()> {
        // SAFETY: the VM's memslots lie in `self.shared.memory`, which is there;
        // nobody has a Rust reference into it, nor into the area.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), RUN, 0) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The VM.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for OwnVcpu {
    fn drop(&mut self) {
        // SAFETY: the mapping is this vCPU's own, and nobody has a reference
        // into it any more.
        unsafe { libc::munmap(self.area.as_ptr().cast(), AREA) };
    }
}

/// Makes a kick end a system call of this thread, rather than the process; the
/// thread's number for [`kick`].
pub fn can_be_kicked() -> i32 {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: zeros are a valid sigaction; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(KICK, &raw const action, std::ptr::null_mut());
    }
    // SAFETY: no preconditions.
    unsafe { libc::gettid() }
}

/// Interrupts a thread of this process. A number that is none does no harm.
pub fn kick(thread: i32) {
    // SAFETY: the signal has a handler that does nothing, and its default is to
    // be ignored.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, KICK) };
}
