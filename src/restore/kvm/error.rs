//! What can go wrong while a virtual machine is made again.

use crate::restore::Errno;

/// Why a VM could not be made as it was.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// A system call was refused.
    #[error("{subject}: {call}: {hint}")]
    Call {
        /// Which VM or vCPU.
        subject: String,
        /// Which call, with the argument that matters.
        call: String,
        /// The likely cause.
        hint: String,
        #[source]
        errno: Errno,
    },
    /// The vCPU's unfinished exit did not come again when its instruction was
    /// run once more.
    #[error("{subject}: the exit in flight ({wanted}) did not come again: {got}")]
    Rearm {
        subject: String,
        wanted: String,
        got: String,
    },
    /// What was read back is not what was set.
    #[error("{subject}: {what} reads back as {got} (was set to {wanted})")]
    Differs {
        subject: String,
        what: String,
        wanted: String,
        got: String,
    },
    /// An MSR that the guest relies on is refused by this host.
    #[error("{subject}: this host refuses MSR {index:#x} = {value:#x} (different CPU or kernel?)")]
    MsrRefused {
        subject: String,
        index: u32,
        value: u64,
    },
    /// State that no call can set.
    #[error("{subject}: {why}")]
    Unsupported { subject: String, why: String },
    /// The dataset contradicts itself.
    #[error("{subject}: {what} in the dataset is not possible: {why}")]
    Malformed {
        subject: String,
        what: String,
        why: String,
    },
    /// This host's /dev/kvm does not answer.
    #[error("/dev/kvm: {what}")]
    Host {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

/// Something that this host lacks for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which VM or vCPU.
    pub subject: String,
    /// What is missing, and what follows from it.
    pub what: String,
    /// The restore would fail, or the guest when it comes to use it; else the
    /// guest may notice.
    pub fatal: bool,
    /// The restore has a line of its own for it in the fidelity report.
    pub said_when_set: bool,
}

/// The likely cause of a refusal.
pub(super) fn hint(call: &str, errno: Errno) -> &'static str {
    let is = |name: &str| call.starts_with(name);
    match errno.0 {
        libc::EIO => "the VM belongs to another address space (made by another process?)",
        libc::ESRCH => "the process being restored has gone",
        libc::ENOTTY => "this kernel's KVM does not know the call",
        libc::ENODEV | libc::ENOENT if is("open") => {
            "no /dev/kvm here (module not loaded, or not in the process's mount namespace?)"
        }
        libc::EACCES | libc::EPERM if is("open") => "no permission for /dev/kvm",
        libc::ENOMEM => "out of memory, or over a cgroup's limit",
        libc::EINVAL if is("KVM_CREATE_VM") => "this host has no such type of VM",
        libc::EEXIST if is("KVM_CREATE_VCPU") => "two vCPUs with one id",
        libc::EEXIST if is("KVM_SET_USER_MEMORY_REGION") => "memslots overlap",
        libc::EBUSY if is("KVM_IRQFD") => "an eventfd with two irqfds on one GSI",
        libc::EEXIST if is("KVM_IOEVENTFD") => "two ioeventfds for the same write",
        libc::EINVAL if is("KVM_SET_SREGS2") => {
            "this CPU or KVM lacks a CR4 or EFER bit that the guest has on"
        }
        libc::EINVAL if is("KVM_SET_XSAVE") || is("KVM_SET_XCRS") => {
            "this CPU lacks a register set (AVX, AVX-512, AMX…) that the guest uses"
        }
        libc::EINVAL if is("KVM_SET_TSC_KHZ") => {
            "this CPU's TSC has another frequency and cannot be scaled"
        }
        libc::EINVAL if is("KVM_ENABLE_CAP") => "this kernel or CPU lacks the capability",
        libc::EINVAL if is("KVM_SET_NESTED_STATE") => {
            "nested virtualization is off here, or differs"
        }
        libc::E2BIG => "more entries than this kernel takes",
        _ => "refused",
    }
}
