//! What was this virtual machine?
//!
//! KVM's guests of a dead kernel: [`guests`] finds them, [`extract`] reads one whole into a
//! [`Vm`], [`memory_ranges`] says which memory of its VMM is the guest's.
//! Everything is found by name in the BTF of kvm.ko and kvm-amd.ko, which lies in the dump.

mod caps;
mod clock;
mod cmdline;
mod cpuid;
mod error;
mod eventfds;
mod events;
mod exit_in_flight;
mod exit_report;
mod exit_window;
mod field;
mod find;
mod fpu;
mod hyperv;
mod irqchip;
mod lapic;
mod memslot;
mod msr;
mod nested;
mod outside;
mod refusal;
mod registers;
mod routing;
mod thread;
mod user_memory;
mod vcpu;
mod vm;
mod vmcb;

pub use error::GuestError;
pub use find::{FoundBy, GuestSummary, guests};

use crate::dataset::{Fidelity, Host, Vm};
use crate::kernel::{Kernel, KernelError};

/// The addresses in its VMM of the memory of the guest at `vm` (a [`GuestSummary::vm`]), `start..end`,
/// each once and in order.
pub fn memory_ranges(kernel: &Kernel, vm: u64) -> Result<Vec<(u64, u64)>, GuestError> {
    let vm = field::kvm_object(kernel, "kvm", vm)?;
    Ok(memslot::user_ranges(&memslot::memslots(&vm)?))
}

/// Whether the VM's call KVM_SET_USER_MEMORY_REGION with the argument at `region` in its VMM has
/// deleted the slot that it was to delete. What cannot be read has not.
pub fn slot_is_deleted(kernel: &Kernel, vm: u64, region: u64) -> bool {
    let vm = field::kvm_object(kernel, "kvm", vm);
    vm.is_ok_and(|vm| memslot::is_deleted(&vm, region).unwrap_or(false))
}

/// `svm` or `vmx`: whose virtualization KVM used.
fn vendor(kernel: &Kernel) -> Result<&'static str, GuestError> {
    let modules = kernel.modules()?;
    let loaded = |name: &str| modules.iter().any(|m| m.name == name);
    Ok(match (loaded("kvm_amd"), loaded("kvm_intel")) {
        (true, false) => "svm",
        (false, true) => "vmx",
        // Both, or both built in: the one that took over says so.
        _ => {
            let ops = field::kvm_symbol(kernel, "kvm_x86_ops").ok_or(GuestError::Kernel(
                KernelError::NoModule {
                    name: "kvm_amd".into(),
                },
            ))?;
            let name = field::kvm_object(kernel, "kvm_x86_ops", ops)?
                .get("name")?
                .string()?;
            if name.contains("intel") { "vmx" } else { "svm" }
        }
    })
}

/// Reads the virtual machine at `vm` (a [`GuestSummary::vm`]) whole. `host` is the host that died,
/// at the instant of the crash. The second part of the result says what is not exactly as it was.
pub fn extract(kernel: &Kernel, vm: u64, host: &Host) -> Result<(Vm, Vec<Fidelity>), GuestError> {
    vm::extract(kernel, vm, host)
}
