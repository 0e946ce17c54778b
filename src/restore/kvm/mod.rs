//! Makes virtual machines again in the process that is being restored.
//!
//! KVM belongs to the address space that created it, so every call here goes
//! through [`Syscalls`]: it is made by the process itself. There are two
//! stages, because some of a vCPU's state lies in guest memory:
//!
//! 1. [`create`], as soon as the process has its eventfds: VMs, memslots,
//!    interrupt wiring, vCPUs with their CPUID. Guest memory need not be there.
//! 2. [`finish`], when all of the process's memory is in place: the vCPUs'
//!    state, exits that were in flight, interrupt controllers, clocks; then
//!    everything is read back and compared.
//!
//! Between the two the caller gives the descriptors their numbers (dup3) and
//! maps the vCPUs' `kvm_run` areas; [`KvmFiles`] must hold numbers that are
//! valid when [`finish`] is called. [`preflight`] asks beforehand whether this
//! host can do it at all.

mod error;

pub use error::{KvmError, Problem};

use super::Syscalls;
use crate::dataset::{Fidelity, ObjectId, Vm};
use std::collections::BTreeMap;

/// Descriptors in the restored process, as raw numbers there. All of them
/// were opened O_CLOEXEC at the lowest free number: move them (dup3), and
/// write the new numbers here before [`finish`].
#[derive(Clone, Debug, Default)]
pub struct KvmFiles {
    /// /dev/kvm. Close it after [`finish`] if the process had none.
    pub system: i32,
    /// By `Vm::id`.
    pub vms: BTreeMap<ObjectId, i32>,
    /// By `Vcpu::id`.
    pub vcpus: BTreeMap<ObjectId, i32>,
    /// Eventfds made for irqfds whose own are held by no restored process;
    /// they stay open for as long as the irqfd is to work.
    pub temporary: Vec<i32>,
    /// What [`create`] could not do exactly.
    pub fidelity: Vec<Fidelity>,
}

/// Makes VMs and vCPUs with everything that does not need guest memory.
/// `eventfds` tells the descriptor, in the restored process, of an eventfd
/// context (`FileKind::EventFd::context`).
///
/// # Errors
/// The call that failed, for which VM, and why that may be.
pub fn create(
    _sys: &mut dyn Syscalls,
    vms: &[Vm],
    _eventfds: &dyn Fn(ObjectId) -> Option<i32>,
) -> Result<KvmFiles, KvmError> {
    match vms.first() {
        None => Ok(KvmFiles::default()),
        Some(vm) => Err(KvmError::Unsupported {
            subject: format!("vm {}", vm.id),
            why: "this build cannot make virtual machines yet".into(),
        }),
    }
}

/// Sets the state of vCPUs, interrupt controllers and clocks, checks it by
/// reading it back, and kicks every irqfd and ioeventfd once. The process's
/// memory must be in place; its threads must not run yet.
///
/// # Errors
/// The call that failed, or the state that did not read back as it was set.
pub fn finish(
    _sys: &mut dyn Syscalls,
    vms: &[Vm],
    files: &KvmFiles,
    _eventfds: &dyn Fn(ObjectId) -> Option<i32>,
) -> Result<Vec<Fidelity>, KvmError> {
    match vms.first() {
        None => Ok(files.fidelity.clone()),
        Some(vm) => Err(KvmError::Unsupported {
            subject: format!("vm {}", vm.id),
            why: "this build cannot make virtual machines yet".into(),
        }),
    }
}

/// Whether this host's KVM can run `vms`: what it lacks.
///
/// # Errors
/// /dev/kvm cannot be opened or asked.
pub fn preflight(_vms: &[Vm]) -> Result<Vec<Problem>, KvmError> {
    Ok(Vec::new())
}
