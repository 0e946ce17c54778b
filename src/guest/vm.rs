//! A whole virtual machine.

use super::clock::CrashClock;
use super::field::{kvm_object, narrow, u_or_0};
use super::user_memory::UserMemory;
use super::vcpu::{Found, Reader};
use super::{GuestError, caps, cmdline, eventfds, find, irqchip, memslot, refusal, routing};
use crate::dataset::{Fidelity, Host, ObjectId, VcpuActivity, Vm, VmClock};
use crate::kernel::{Kernel, Object, XsaveLayout, containers};

/// KVM_MAX_VCPUS has been at most 4096.
const MOST_VCPUS: usize = 4096;

pub(super) fn extract(
    kernel: &Kernel,
    vm: u64,
    host: &Host,
) -> Result<(Vm, Vec<Fidelity>), GuestError> {
    let vendor = super::vendor(kernel)?;
    let kvm = &kvm_object(kernel, "kvm", vm).map_err(GuestError::reading("struct kvm", vm))?;
    refusal::refuse(kernel, kvm, vendor)?;
    let subject = &format!("vm {vm:#x}");
    let mut fidelity = Vec::new();

    let found = vcpus(kernel, kvm)?;
    let objects: Vec<Object<'_>> = found.iter().map(|f| f.vcpu.clone()).collect();
    let in_guest = found
        .iter()
        .any(|f| matches!(f.activity, VcpuActivity::GuestMode { .. }));
    let clock = &CrashClock::at(kernel, &objects, host, in_guest)?;
    fidelity.push(Fidelity::reconstructed(
        subject,
        "TSC and kvmclock",
        "from the latest time that the dead host is known to have seen",
    ));
    let layout = XsaveLayout::of(kernel)
        .inspect_err(|error| tracing::warn!("layout of the FPU's state: {error}"))
        .ok();
    let memory = &UserMemory::of(kernel, kvm);
    let reader = Reader {
        kernel,
        vm: kvm,
        clock,
        memory,
        layout: layout.as_ref(),
    };
    let vcpus = found
        .iter()
        .map(|f| reader.read(f, &mut fidelity))
        .collect::<Result<_, _>>()?;

    let owner = find::owner(kernel, kvm, &[])?;
    let identity = owner
        .as_ref()
        .map(|o| cmdline::identity(&o.arguments))
        .unwrap_or_default();
    let arch = kvm.get("arch")?;
    let memslots = memslot::memslots(kvm)?;
    dirty_logs(kvm, &memslots, subject, &mut fidelity)?;
    let extracted = Vm {
        id: ObjectId(vm),
        pid: owner.map_or(0, |o| o.pid),
        name: identity.name,
        uuid: identity.uuid,
        vendor: vendor.to_owned(),
        vm_type: u_or_0(&arch, "vm_type")?,
        memslots,
        irqchip: irqchip::irqchip(kvm)?,
        pit: irqchip::pit(kvm, subject, &mut fidelity)?,
        routes: routing::routes(kvm)?,
        irqfds: eventfds::irqfds(kvm)?,
        ioeventfds: eventfds::ioeventfds(kvm)?,
        coalesced_zones: eventfds::coalesced_zones(kvm)?,
        clock: VmClock {
            clock_ns: clock.kvmclock(kernel, kvm, &objects)?,
            realtime_ns: None,
        },
        default_tsc_khz: narrow(&arch, "default_tsc_khz")?,
        caps: caps::caps(kvm)?,
        tss_addr: None,
        identity_map_addr: None,
        vcpus,
    };
    Ok((extracted, fidelity))
}

/// The vCPUs in the order of `vcpu_idx`.
fn vcpus<'k>(kernel: &'k Kernel, kvm: &Object<'k>) -> Result<Vec<Found<'k>>, GuestError> {
    let online: usize = narrow(kvm, "online_vcpus.counter")?;
    if online > MOST_VCPUS {
        return Err(GuestError::Damaged {
            what: "kvm.online_vcpus",
            addr: kvm.addr(),
            detail: format!("{online} vCPUs, of which KVM allows {MOST_VCPUS}"),
        });
    }
    // Since c5b077549136 ("KVM: Convert the kvm->vcpus array to a xarray") (in v5.17).
    let mut addrs: Vec<(u64, u64)> = if kvm.has("vcpu_array") {
        containers::xarray(&kvm.get("vcpu_array")?)?
    } else {
        let array = kvm.get("vcpus")?;
        (0..online as u64)
            .map(|i| Ok((i, array.element(i)?.unsigned()?)))
            .collect::<Result<_, GuestError>>()?
    };
    addrs.sort_unstable();
    addrs.truncate(online);
    if addrs.len() != online {
        return Err(GuestError::Damaged {
            what: "kvm.vcpu_array",
            addr: kvm.addr(),
            detail: format!("{} vCPUs where {online} are online", addrs.len()),
        });
    }
    addrs
        .into_iter()
        .map(|(_, addr)| Found::new(kernel, kvm_object(kernel, "kvm_vcpu", addr)?))
        .collect()
}

/// A migration that was running has to begin again.
fn dirty_logs(
    kvm: &Object<'_>,
    slots: &[crate::dataset::Memslot],
    subject: &str,
    fidelity: &mut Vec<Fidelity>,
) -> Result<(), GuestError> {
    const LOG_DIRTY_PAGES: u32 = 1;
    let logged = slots.iter().any(|s| s.flags & LOG_DIRTY_PAGES != 0);
    if logged || u_or_0(kvm, "dirty_ring_size")? != 0 {
        fidelity.push(Fidelity::lost(
            subject,
            "log of dirty pages",
            "KVM cannot be told which pages it had noted: a migration that was running must be \
             started again",
        ));
    }
    Ok(())
}
