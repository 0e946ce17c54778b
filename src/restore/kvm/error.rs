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
    /// The restore would fail; else the guest may notice.
    pub fatal: bool,
}
