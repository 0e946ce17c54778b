//! Why a virtual machine could not be read.

use crate::kernel::KernelError;

/// Why a question about a dead virtual machine has no answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// A structure of KVM's could not be read.
    #[error("cannot read {what} at {addr:#x}")]
    Read {
        /// Structure, and field where one is meant.
        what: String,
        /// Its address in the dead kernel.
        addr: u64,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The dead kernel itself could not be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A structure contradicts itself or what is known of it.
    #[error(
        "{what} at {addr:#x} is damaged: {detail} (overwritten, or changing when the host died?)"
    )]
    Damaged {
        /// Structure and field.
        what: &'static str,
        /// Address.
        addr: u64,
        /// The contradiction, with its numbers.
        detail: String,
    },
    /// No VM lives at this address.
    #[error(
        "no virtual machine at {vm:#x}: neither KVM's vm_list nor any descriptor table leads there"
    )]
    NoSuchVm {
        /// Address asked for.
        vm: u64,
    },
    /// A guest of a kind that cannot be brought back, or not yet.
    #[error("VM {vm:#x} cannot be restored: {why}")]
    Unsupported {
        /// Address of `struct kvm`.
        vm: u64,
        /// What it is, and why that is the end of it.
        why: String,
    },
}

impl GuestError {
    /// For `map_err`: which structure was being read.
    pub(super) fn reading(
        what: impl Into<String>,
        addr: u64,
    ) -> impl FnOnce(KernelError) -> GuestError {
        let what = what.into();
        move |source| GuestError::Read { what, addr, source }
    }
}
