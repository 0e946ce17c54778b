//! Which virtual machines there were.
//!
//! Two independent ways lead to a VM: KVM's own list of VMs, and the descriptor table of every
//! process. A healthy dump shows each VM both ways; a VM that shows only one way is reported as
//! such ([`FoundBy`]), never dropped.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::field::{kvm_object, kvm_symbol, or};
use super::memslot::{memslots, ram_bytes};
use super::{GuestError, cmdline, refusal};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// One virtual machine, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSummary {
    /// Address of `struct kvm`; what [`super::extract`] takes.
    #[serde(with = "crate::dataset::u64_hex")]
    pub vm: u64,
    /// PID of the VMM in the initial PID namespace; 0 when no process was found.
    pub pid: i32,
    /// Name of the VMM's leading thread (`task.comm`).
    pub vmm: String,
    /// Name, from the VMM's command line where it says one.
    pub name: Option<String>,
    /// UUID, from the VMM's command line where it says one.
    pub uuid: Option<String>,
    /// vCPUs that were created; 0 when the VM could not be read.
    pub vcpus: u32,
    /// Memory that the guest takes for RAM. Bytes.
    pub memory_bytes: u64,
    /// `svm` or `vmx`.
    pub vendor: String,
    /// Which ways led to it.
    pub found_by: FoundBy,
    /// Why it cannot be brought back, where a first look tells.
    pub unsupported: Option<String>,
}

/// Which ways led to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundBy {
    /// KVM's list and a process's descriptor: as it should be.
    Both,
    /// Only KVM's list: no process holds a descriptor of it (it was being torn down, or its
    /// descriptor was in flight through a socket).
    VmList,
    /// Only a process's descriptor: KVM's list does not have it (damaged, or torn down).
    Descriptor,
}

/// A process that the search came by.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub pid: i32,
    pub comm: String,
    pub arguments: Vec<String>,
}

/// Every virtual machine of the dead kernel, in the order of their VMMs' PIDs. Empty when KVM was
/// not loaded.
pub fn guests(kernel: &Kernel) -> Result<Vec<GuestSummary>, GuestError> {
    let Some(head) = kvm_symbol(kernel, "vm_list") else {
        return Ok(Vec::new());
    };
    let mut by_list = BTreeMap::new();
    match listed(kernel, head) {
        Ok(vms) => by_list.extend(vms.into_iter().map(|vm| (vm, ()))),
        Err(error) => tracing::warn!("KVM's vm_list cannot be walked: {error}"),
    }
    let Held { vms, with_io_uring } = held(kernel)?;
    let by_descriptor = vms;

    let mut all: Vec<u64> = by_list.keys().copied().collect();
    all.extend(by_descriptor.keys().filter(|vm| !by_list.contains_key(vm)));
    let mut guests = Vec::with_capacity(all.len());
    for vm in all {
        let found_by = match (by_list.contains_key(&vm), by_descriptor.contains_key(&vm)) {
            (true, true) => FoundBy::Both,
            (true, false) => FoundBy::VmList,
            _ => FoundBy::Descriptor,
        };
        if found_by != FoundBy::Both {
            tracing::warn!("VM {vm:#x} was found by {found_by:?} alone");
        }
        let holders = by_descriptor.get(&vm);
        guests.push(
            summary(kernel, vm, holders, &with_io_uring, found_by).unwrap_or_else(|error| {
                tracing::warn!("VM {vm:#x} cannot be read: {error}");
                unreadable(vm, found_by)
            }),
        );
    }
    guests.sort_by_key(|g| (g.pid, g.vm));
    Ok(guests)
}

/// The VMs on KVM's own list.
fn listed(kernel: &Kernel, head: u64) -> Result<Vec<u64>, KernelError> {
    let head = kvm_object(kernel, "list_head", head)?;
    let vms = containers::list(&head, "kvm", "vm_list")?;
    Ok(vms.iter().map(Object::addr).collect())
}

/// What the descriptors of all processes lead to. Processes are leaders' tasks.
#[derive(Default)]
struct Held {
    /// VMs, each with the processes that have a descriptor of it.
    vms: BTreeMap<u64, Vec<u64>>,
    /// Processes with an io_uring.
    with_io_uring: BTreeSet<u64>,
}

fn held(kernel: &Kernel) -> Result<Held, GuestError> {
    let uring_fops = kernel.symbol("io_uring_fops").ok();
    let vm_fops = kvm_symbol(kernel, "kvm_vm_fops");
    let vcpu_fops = kvm_symbol(kernel, "kvm_vcpu_fops");
    let mut found = Held::default();
    for leader in processes(kernel)? {
        let files = match open_files(&leader) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(
                    "descriptor table of the task at {:#x} cannot be read: {error}",
                    leader.addr()
                );
                continue;
            }
        };
        for file in files {
            // A file that cannot be read is not known to be KVM's; the task room reports it.
            let Ok((operations, data)) = operations(kernel, file) else {
                continue;
            };
            if operations.is_some() && operations == uring_fops {
                found.with_io_uring.insert(leader.addr());
            }
            let vm = if operations.is_some() && operations == vm_fops {
                Some(data)
            } else if operations.is_some() && operations == vcpu_fops {
                kvm_object(kernel, "kvm_vcpu", data)?.ptr("kvm").ok()
            } else {
                None
            };
            if let Some(vm) = vm.filter(|vm| *vm != 0) {
                let holders = found.vms.entry(vm).or_default();
                if holders.last() != Some(&leader.addr()) {
                    holders.push(leader.addr());
                }
            }
        }
    }
    Ok(found)
}

fn operations(kernel: &Kernel, file: u64) -> Result<(Option<u64>, u64), KernelError> {
    let file = kernel.object("file", file)?;
    Ok((Some(file.ptr("f_op")?), file.ptr("private_data")?))
}

/// Leaders of all thread groups that have memory of their own.
pub(super) fn processes(kernel: &Kernel) -> Result<Vec<Object<'_>>, KernelError> {
    let first = kernel.object("task_struct", kernel.symbol("init_task")?)?;
    let mut tasks = containers::list(&first.get("tasks")?, "task_struct", "tasks")?;
    tasks.retain(|task| task.ptr("mm").is_ok_and(|mm| mm != 0) || task.ptr("files").is_ok());
    Ok(tasks)
}

/// Addresses of the open files of a process.
fn open_files(leader: &Object<'_>) -> Result<Vec<u64>, KernelError> {
    /// `fs.nr_open`'s ceiling is far above; no table is longer than what fits this.
    const MOST: u64 = 1 << 22;
    let Some(files) = leader.follow_opt("files")? else {
        return Ok(Vec::new());
    };
    let table = files.follow("fdt")?;
    let (slots, array) = (table.u("max_fds")?, table.ptr("fd")?);
    if slots > MOST {
        return Err(KernelError::Damaged {
            what: "fdtable.max_fds",
            addr: table.addr(),
            detail: format!("{slots} descriptors"),
        });
    }
    let mut bytes = vec![0; usize::try_from(slots * 8).unwrap_or_default()];
    leader.kernel().read(array, &mut bytes)?;
    Ok(super::field::words(&bytes)
        .into_iter()
        .filter(|file| *file != 0)
        .collect())
}

/// The process whose memory a VM's memory is; `holders` are tasks with a descriptor of it.
pub(super) fn owner(
    kernel: &Kernel,
    vm: &Object<'_>,
    holders: &[u64],
) -> Result<Option<Owner>, GuestError> {
    let mm = vm.ptr("mm")?;
    let mut candidates = Vec::new();
    for holder in holders {
        candidates.push(kernel.object("task_struct", *holder)?);
    }
    let owns = |task: &Object<'_>| mm != 0 && task.ptr("mm").is_ok_and(|m| m == mm);
    if !candidates.iter().any(owns) {
        candidates = processes(kernel)?;
    }
    let Some(task) = candidates.iter().find(|t| owns(t)) else {
        return Ok(None);
    };
    let arguments = cmdline::arguments(task).unwrap_or_else(|error| {
        tracing::debug!("command line of the VMM cannot be read: {error}");
        Vec::new()
    });
    Ok(Some(Owner {
        pid: i32::try_from(task.i("tgid")?).unwrap_or_default(),
        comm: task.get("comm")?.string()?,
        arguments,
    }))
}

/// A VM of which no more is known than that it was there.
fn unreadable(vm: u64, found_by: FoundBy) -> GuestSummary {
    GuestSummary {
        vm,
        pid: 0,
        vmm: String::new(),
        name: None,
        uuid: None,
        vcpus: 0,
        memory_bytes: 0,
        vendor: String::new(),
        found_by,
        unsupported: None,
    }
}

fn summary(
    kernel: &Kernel,
    vm: u64,
    holders: Option<&Vec<u64>>,
    with_io_uring: &BTreeSet<u64>,
    found_by: FoundBy,
) -> Result<GuestSummary, GuestError> {
    let obj = kvm_object(kernel, "kvm", vm).map_err(GuestError::reading("struct kvm", vm))?;
    let owner = owner(kernel, &obj, holders.map_or(&[], Vec::as_slice))?;
    let identity = owner
        .as_ref()
        .map(|o| cmdline::identity(&o.arguments))
        .unwrap_or_default();
    let pid = match &owner {
        Some(owner) => owner.pid,
        None => or(&obj, "userspace_pid", 0, |o, p| {
            Ok(i32::try_from(o.i(p)?).unwrap_or_default())
        })?,
    };
    let vendor = super::vendor(kernel)?;
    let mut unsupported = match refusal::refuse(kernel, &obj, vendor) {
        Err(GuestError::Unsupported { why, .. }) => Some(why),
        Err(error) => {
            tracing::warn!("VM {vm:#x}: {error}");
            None
        }
        Ok(()) => None,
    };
    if holders.is_some_and(|h| h.iter().any(|task| with_io_uring.contains(task))) {
        unsupported.get_or_insert_with(|| {
            "its VMM uses io_uring, of which no call puts the rings' state back".to_owned()
        });
    }
    Ok(GuestSummary {
        vm,
        pid,
        vmm: owner.map(|o| o.comm).unwrap_or_default(),
        name: identity.name,
        uuid: identity.uuid,
        vcpus: super::field::narrow(&obj, "created_vcpus")?,
        memory_bytes: ram_bytes(&memslots(&obj)?),
        vendor: vendor.to_owned(),
        found_by,
        unsupported,
    })
}
