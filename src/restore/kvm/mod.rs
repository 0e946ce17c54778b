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

mod calls;
mod caps;
mod catch_up;
mod cpu_features;
mod create;
mod error;
mod ioctls;
mod kick;
mod mmio_rest;
mod msr_filter;
mod msrs;
mod preflight;
mod rearm;
mod run_page;
mod shared_state;
mod tsc_rate;
mod vcpu_args;
mod vcpu_state;
mod verify;
mod wiring;

pub use error::{KvmError, Problem};
pub use preflight::preflight;

use super::Syscalls;
use crate::dataset::{Fidelity, ObjectId, Vcpu, Vm};
use calls::{Calls, RunArea};
use std::collections::BTreeMap;
use vcpu_state::Revived;

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
/// The call that failed, for which VM, and why that may be. What was made
/// until then stays open in the process, which is to be killed.
pub fn create(
    sys: &mut dyn Syscalls,
    vms: &[Vm],
    eventfds: &dyn Fn(ObjectId) -> Option<i32>,
) -> Result<KvmFiles, KvmError> {
    let mut files = KvmFiles {
        system: create::open_system(sys)?,
        ..KvmFiles::default()
    };
    for vm in vms {
        create::create_vm(sys, vm, eventfds, &mut files)?;
    }
    Ok(files)
}

/// Sets the state of vCPUs, interrupt controllers and clocks, checks it by
/// reading it back, and kicks every irqfd and ioeventfd once. The process's
/// memory must be in place; its threads must not run yet.
///
/// # Errors
/// The call that failed, or the state that did not read back as it was set.
pub fn finish(
    sys: &mut dyn Syscalls,
    vms: &[Vm],
    files: &KvmFiles,
    eventfds: &dyn Fn(ObjectId) -> Option<i32>,
) -> Result<Vec<Fidelity>, KvmError> {
    let mut notes = files.fidelity.clone();
    for vm in vms {
        let subject = vm_subject(vm);
        let mut calls = Calls {
            sys: &mut *sys,
            subject,
        };
        finish_vm(&mut calls, vm, files, eventfds, &mut notes)?;
    }
    Ok(notes)
}

fn finish_vm(
    calls: &mut Calls,
    vm: &Vm,
    files: &KvmFiles,
    eventfds: &dyn Fn(ObjectId) -> Option<i32>,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    let vm_fd = descriptor(calls, &files.vms, vm.id)?;
    // As late as can be: from here on KVM's clocks run by themselves.
    let vm = &*catch_up::caught_up(vm);
    let run_len = calls.value(files.system, ioctls::GET_VCPU_MMAP_SIZE, 0)?;
    let mut revived = Vec::with_capacity(vm.vcpus.len());
    for vcpu in &vm.vcpus {
        calls.subject = vcpu_subject(vm, vcpu);
        let fd = descriptor(calls, &files.vcpus, vcpu.id)?;
        let run = RunArea::map(calls, fd, run_len)?;
        revived.push(Revived {
            vm,
            vcpu,
            vm_fd,
            fd,
            run,
        });
    }

    // The unfinished exits of all vCPUs come again before any vCPU has state
    // that could send another one an interrupt.
    for vcpu in &revived {
        calls.subject = vcpu_subject(vm, vcpu.vcpu);
        vcpu.set_core(calls, notes)?;
    }
    let mut tsc = msrs::CommonTsc::default();
    for vcpu in &revived {
        calls.subject = vcpu_subject(vm, vcpu.vcpu);
        vcpu.set_events(calls, &mut tsc, notes)?;
    }
    // After all LAPICs, to which the controllers' lines lead.
    calls.subject = vm_subject(vm);
    shared_state::set(calls, vm, vm_fd)?;
    if vm.clock.realtime_ns.is_some() {
        for vcpu in &revived {
            calls.subject = vcpu_subject(vm, vcpu.vcpu);
            catch_up::tell_watchdog(calls, vcpu)?;
        }
    }

    for vcpu in &revived {
        calls.subject = vcpu_subject(vm, vcpu.vcpu);
        verify::vcpu(calls, vcpu, notes)?;
    }
    calls.subject = vm_subject(vm);
    verify::shared(calls, vm, vm_fd)?;

    // After the comparison, since a kick may raise an interrupt.
    kick::kick(calls, vm, eventfds)?;
    notes.extend(shared_state::notes(&calls.subject, vm));
    for vcpu in revived {
        vcpu.run.unmap(calls)?;
    }
    Ok(())
}

fn descriptor(calls: &Calls, fds: &BTreeMap<ObjectId, i32>, id: ObjectId) -> Result<i32, KvmError> {
    fds.get(&id).copied().ok_or_else(|| KvmError::Malformed {
        subject: calls.subject.clone(),
        what: format!("object {id}"),
        why: "it has no descriptor; `create` was given other VMs".into(),
    })
}

/// How reports call a VM.
fn vm_subject(vm: &Vm) -> String {
    match &vm.name {
        Some(name) => format!("vm {name}"),
        None => format!("vm {}", vm.id),
    }
}

/// How reports call a vCPU.
fn vcpu_subject(vm: &Vm, vcpu: &Vcpu) -> String {
    format!("{} vcpu {}", vm_subject(vm), vcpu.vcpu_id)
}
