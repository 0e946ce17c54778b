//! Bare mode: a guest's memory and vCPUs, alone, under a small VMM in this
//! process. For a look inside, and for a guest whose own VMM cannot come back.
//!
//! The VM is made and set by [`crate::restore::kvm`], the code that does it for
//! whole restores; here the "process being restored" is this one
//! ([`crate::sys::own_vm`]). Guest memory is mapped afresh and filled from the
//! dump ([`memory`]); there is a serial port ([`serial`]) and no other device.
//! No file of the guest's is ever opened, so it can be done again and again.

mod alone;
mod devices;
mod exit;
mod memory;
mod run;
mod serial;

pub use devices::{Access, Counts, Output};
pub use run::{Ending, Outcome, Settings, standard_input};

use crate::dataset::{
    Dataset, Fidelity, GuestMemory, PageSource, PageSourceError, Vcpu, VcpuActivity, Vm,
};
use crate::restore::kvm::KvmError;
use crate::sys::interrupt;
use crate::sys::own_vm::{OwnVcpu, OwnVm, Shared};
use std::sync::Arc;

/// Why a guest could not be run bare.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The VMM's mappings are not in the dataset.
    #[error("vm {name}: the process that it belonged to is not there")]
    NoOwner { name: String },
    /// A memslot leads nowhere.
    #[error("vm {name}: memslot {slot} of {bytes:#x} bytes at {address:#x} is not possible")]
    Slot {
        name: String,
        slot: u16,
        bytes: u64,
        address: u64,
    },
    /// Guest memory is not in the dump.
    #[error("vm {name}: {bytes} bytes of its memory are missing ({why})")]
    Missing {
        name: String,
        bytes: u64,
        why: &'static str,
    },
    /// No room for the guest's memory.
    #[error("{bytes} bytes of memory for the guest cannot be had: {why}")]
    Memory { bytes: u64, why: String },
    /// A page cannot be read.
    #[error("guest memory cannot be read")]
    Page(#[source] PageSourceError),
    /// KVM refused something.
    #[error("the VM cannot be made here")]
    Kvm(#[from] KvmError),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// A guest that is ready to run.
pub struct Machine {
    vcpus: Vec<OwnVcpu>,
    /// By vCPU: the dead VMM had an exit to answer, or KVM an answer to take.
    pending: Vec<bool>,
    shared: Arc<Shared>,
    serial_interrupt: bool,
    /// What bare mode has not got.
    pub absent: Vec<Fidelity>,
    /// What else is exact, reconstructed or lost.
    pub fidelity: Vec<Fidelity>,
}

impl Machine {
    /// Makes the VM with everything it held at the crash. `forced`: memory
    /// that is missing reads as zeros.
    ///
    /// # Errors
    /// Memory that is missing or cannot be read; what KVM refuses; Ctrl-C.
    pub fn build(
        dataset: &Dataset,
        vm: &Vm,
        pages: &dyn PageSource,
        forced: bool,
        guard: &interrupt::Guard,
    ) -> Result<Self, BareError> {
        let name = vm.name.clone().unwrap_or_else(|| vm.id.to_string());
        let Some(memory) = GuestMemory::of(dataset, vm) else {
            return Err(BareError::NoOwner { name });
        };
        if let Some(slot) = vm
            .memslots
            .iter()
            .find(|s| !memory.slots.iter().any(|placed| placed.slot == **s))
        {
            return Err(BareError::Slot {
                name,
                slot: slot.slot,
                bytes: slot.size,
                address: slot.user_address,
            });
        }
        let alone = alone::alone(vm);
        let mut fidelity = Vec::new();
        for (why, bytes) in memory.missing() {
            if !forced {
                return Err(BareError::Missing { name, bytes, why });
            }
            fidelity.push(Fidelity::lost(
                format!("vm {name}"),
                format!("{bytes} bytes of memory"),
                format!("{why}; overridden by --force: zeros"),
            ));
        }
        let regions = memory::map(&memory)?;
        let places: Vec<(usize, u64)> = memory.slots.iter().map(|s| (s.area, s.offset)).collect();
        let pending = alone.vm.vcpus.iter().map(had_exited).collect();
        let made = OwnVm::create(alone.vm, regions, &places)?;
        memory::fill(&memory, made.memory(), pages, guard)?;
        let finished = made.finish()?;
        fidelity.extend(finished.fidelity);
        Ok(Self {
            vcpus: finished.vcpus,
            pending,
            shared: finished.shared,
            serial_interrupt: alone.serial_interrupt,
            absent: alone.fidelity,
            fidelity,
        })
    }
}

/// An exit waits in the `kvm_run` page, or has waited there. KVM forgets a port
/// write that its emulator carried out, so the place of the thread counts too.
fn had_exited(vcpu: &Vcpu) -> bool {
    vcpu.exit_in_flight.is_some()
        || vcpu.exit_unreported
        || matches!(
            vcpu.activity,
            VcpuActivity::InVmm | VcpuActivity::HostUser { .. }
        )
}
