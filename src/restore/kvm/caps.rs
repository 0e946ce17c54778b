//! What was turned on for a whole VM.

use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use crate::dataset::{Fidelity, PmuEventFilter, VmCaps};
use kvm_bindings as kvm;

/// Turns on what the VM had; before its vCPUs, most of which look at it when
/// they are made.
pub(super) fn enable(
    calls: &mut Calls,
    fd: i32,
    caps: &VmCaps,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    let flag = u64::from;
    // Only what differs from a new VM's state is asked for: a host that lacks
    // a capability which the guest never had is no worse for it.
    let table: [(&str, u32, [u64; 2], bool); 13] = [
        (
            "DISABLE_QUIRKS2",
            kvm::KVM_CAP_DISABLE_QUIRKS2,
            [caps.disabled_quirks, 0],
            caps.disabled_quirks != 0,
        ),
        (
            "X2APIC_API",
            kvm::KVM_CAP_X2APIC_API,
            [caps.x2apic_api, 0],
            caps.x2apic_api != 0,
        ),
        (
            "X86_DISABLE_EXITS",
            kvm::KVM_CAP_X86_DISABLE_EXITS,
            [caps.disabled_exits, 0],
            caps.disabled_exits != 0,
        ),
        (
            "X86_USER_SPACE_MSR",
            kvm::KVM_CAP_X86_USER_SPACE_MSR,
            [caps.user_space_msr_mask, 0],
            caps.user_space_msr_mask != 0,
        ),
        (
            "EXCEPTION_PAYLOAD",
            kvm::KVM_CAP_EXCEPTION_PAYLOAD,
            [flag(caps.exception_payload), 0],
            caps.exception_payload,
        ),
        (
            "X86_TRIPLE_FAULT_EVENT",
            kvm::KVM_CAP_X86_TRIPLE_FAULT_EVENT,
            [flag(caps.triple_fault_event), 0],
            caps.triple_fault_event,
        ),
        (
            "X86_BUS_LOCK_EXIT",
            kvm::KVM_CAP_X86_BUS_LOCK_EXIT,
            // KVM_BUS_LOCK_DETECTION_EXIT; off (the default) is 1.
            [2, 0],
            caps.bus_lock_exit,
        ),
        (
            "X86_NOTIFY_VMEXIT",
            kvm::KVM_CAP_X86_NOTIFY_VMEXIT,
            [caps.notify_vmexit, 0],
            caps.notify_vmexit != 0,
        ),
        (
            "EXIT_HYPERCALL",
            kvm::KVM_CAP_EXIT_HYPERCALL,
            [caps.exit_hypercall, 0],
            caps.exit_hypercall != 0,
        ),
        (
            "EXIT_ON_EMULATION_FAILURE",
            kvm::KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            [1, 0],
            caps.exit_on_emulation_failure,
        ),
        (
            "MANUAL_DIRTY_LOG_PROTECT2",
            kvm::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            [caps.manual_dirty_log_protect, 0],
            caps.manual_dirty_log_protect != 0,
        ),
        (
            "DIRTY_LOG_RING",
            kvm::KVM_CAP_DIRTY_LOG_RING,
            [u64::from(caps.dirty_ring_size), 0],
            caps.dirty_ring_size != 0,
        ),
        (
            "MSR_PLATFORM_INFO",
            kvm::KVM_CAP_MSR_PLATFORM_INFO,
            // On is the default of a new VM, so off is what is asked for.
            [0, 0],
            !caps.guest_can_read_msr_platform_info,
        ),
    ];
    for (name, cap, args, wanted) in table {
        if wanted {
            calls.enable(fd, name, cap, args)?;
        }
    }
    // Before vCPUs. Not there where the host has no PMU for guests at all.
    let pmu = u64::from(kvm::KVM_PMU_CAP_DISABLE);
    if caps.disable_pmu && calls.extension(fd, kvm::KVM_CAP_PMU_CAPABILITY) & pmu != 0 {
        calls.enable(fd, "PMU_CAPABILITY", kvm::KVM_CAP_PMU_CAPABILITY, [pmu, 0])?;
    }
    // Before vCPUs. It spares the host a workaround; the guest cannot tell.
    let nx = kvm::KVM_CAP_VM_DISABLE_NX_HUGE_PAGES;
    if caps.disable_nx_huge_pages && calls.extension(fd, nx) != 0 {
        calls.enable(fd, "VM_DISABLE_NX_HUGE_PAGES", nx, [0, 0])?;
    }
    // After X86_USER_SPACE_MSR, which says what becomes of what it filters.
    if let Some(filter) = &caps.msr_filter {
        super::msr_filter::set(calls, fd, filter)?;
    }
    if let Some(filter) = &caps.pmu_event_filter {
        calls.set_bytes(fd, ioctls::SET_PMU_EVENT_FILTER, &event_filter(filter))?;
    }
    // These save memory or time and change nothing that a guest or a VMM sees:
    // an older kernel may do without.
    for (name, cap, value) in [
        (
            "MAX_VCPU_ID",
            kvm::KVM_CAP_MAX_VCPU_ID,
            Some(caps.max_vcpu_ids).filter(|&ids| ids != 0),
        ),
        ("HALT_POLL", kvm::KVM_CAP_HALT_POLL, caps.max_halt_poll_ns),
    ] {
        let Some(value) = value else { continue };
        if let Err(error) = calls.enable(fd, name, cap, [u64::from(value), 0]) {
            let what = format!("KVM_CAP_{name} = {value}");
            let how = format!("this host's default is used instead: {error}");
            notes.push(Fidelity::reconstructed(&calls.subject, what, how));
        }
    }
    // Before vCPUs: the one with this id is made the bootstrap processor.
    if caps.bsp_vcpu_id != 0 {
        calls.value(fd, ioctls::SET_BOOT_CPU_ID, u64::from(caps.bsp_vcpu_id))?;
    }
    Ok(())
}

/// `struct kvm_pmu_event_filter`.
fn event_filter(filter: &PmuEventFilter) -> Vec<u8> {
    let count = u32::try_from(filter.events.len()).unwrap_or(u32::MAX);
    let head = [
        filter.action,
        count,
        filter.fixed_counter_bitmap,
        filter.flags,
        0,
        0,
        0,
        0,
    ];
    let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(filter.events.iter().flat_map(|event| event.to_le_bytes()));
    bytes
}
