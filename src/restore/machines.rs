//! Virtual machines: what lies between the KVM stage and the rest.

use super::error::Context;
use super::files::Workshop;
use super::objects::Objects;
use super::stub::Family;
use super::{RestoreError, calls, kvm};
use crate::dataset::{Dataset, FileKind, MappingKind, ObjectId, Process, Vm};

fn vms_of(dataset: &Dataset, process: &Process) -> Vec<Vm> {
    let own = dataset.vms.iter().filter(|vm| vm.pid == process.pid);
    own.cloned().collect()
}

/// The descriptor of an eventfd in a process.
fn eventfd_of(dataset: &Dataset, process: &Process, context: ObjectId) -> Option<i32> {
    process.fds.iter().find_map(|fd| {
        let file = dataset.file(fd.file)?;
        match file.kind {
            FileKind::EventFd { context: c, .. } if c == context => Some(fd.fd),
            _ => None,
        }
    })
}

/// Makes the VMs of a process, without what lies in guest memory.
///
/// # Errors
/// What KVM refused.
pub fn make(
    dataset: &Dataset,
    stub: usize,
    family: &mut Family<'_>,
    workshop: &mut Workshop<'_>,
    objects: &Objects,
) -> Result<(), RestoreError> {
    let process = family.process(stub)?;
    let vms = vms_of(dataset, process);
    if vms.is_empty() {
        return Ok(());
    }
    let eventfds = |context| eventfd_of(dataset, process, context);
    let files =
        kvm::create(family.leader(stub)?, &vms, &eventfds).map_err(|source| RestoreError::Kvm {
            pid: process.pid,
            source,
        })?;
    workshop.add_kvm(stub, files);
    workshop.settle_kvm(stub, family, objects)
}

/// Maps the vCPUs' `kvm_run` areas where they were.
///
/// # Errors
/// mmap refused, or the descriptor is not there.
pub fn map_vcpus(
    family: &mut Family<'_>,
    stub: usize,
    objects: &mut Objects,
) -> Result<(), RestoreError> {
    let process = family.process(stub)?;
    let pid = process.pid;
    for vma in &process.mm.vmas {
        let MappingKind::KvmVcpu { file, offset } = vma.kind else {
            continue;
        };
        let holder = objects.files.get(&file).copied();
        let holder = holder.ok_or_else(|| RestoreError::Malformed {
            pid,
            what: format!("the vCPU's mapping at {:#x}", vma.start),
            why: "its descriptor is closed".into(),
        })?;
        let fd = objects.lend(family, holder, stub)?;
        let sys = family.leader(stub)?;
        calls::map(
            sys,
            vma.start,
            vma.len(),
            vma.prot(),
            libc::MAP_SHARED,
            fd,
            offset,
        )
        .during(pid, || format!("mmap of a vCPU at {:#x}", vma.start))?;
        for advice in super::vma_flags::advice_after(vma.flags) {
            // DONTFORK and the like; nothing that a vCPU's page lives by.
            let _ = calls::advise(sys, vma.start, vma.len(), advice);
        }
    }
    Ok(())
}

/// Gives the vCPUs of all processes their state.
///
/// # Errors
/// What KVM refused.
pub fn finish(
    dataset: &Dataset,
    family: &mut Family<'_>,
    workshop: &mut Workshop<'_>,
) -> Result<(), RestoreError> {
    for stub in 0..family.stubs.len() {
        let process = family.process(stub)?;
        let vms = vms_of(dataset, process);
        let Some(files) = workshop.kvm(stub).filter(|_| !vms.is_empty()) else {
            continue;
        };
        let eventfds = |context| eventfd_of(dataset, process, context);
        let notes =
            kvm::finish(family.leader(stub)?, &vms, files, &eventfds).map_err(|source| {
                RestoreError::Kvm {
                    pid: process.pid,
                    source,
                }
            })?;
        workshop.notes.extend(notes.into_iter().map(|mut note| {
            note.subject = format!("pid {} {}", process.pid, note.subject);
            note
        }));
    }
    Ok(())
}
