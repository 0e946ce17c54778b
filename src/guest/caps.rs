//! What the VMM turned on for the whole VM.

use super::GuestError;
use super::field::{flag_or_false, narrow, u_or_0};
use crate::dataset::{Blob, Fidelity, MsrFilter, MsrFilterRange, VmCaps};
use crate::kernel::Object;

/// The capabilities of a `struct kvm`.
pub(super) fn caps(
    vm: &Object<'_>,
    subject: &str,
    fidelity: &mut Vec<Fidelity>,
) -> Result<VmCaps, GuestError> {
    let arch = vm.get("arch")?;
    let on = |path: &str| flag_or_false(&arch, path);
    not_carried_over(&arch, subject, fidelity)?;
    let bits = |list: &[(&str, u64)]| -> Result<u64, GuestError> {
        list.iter().try_fold(0, |sum, (path, bit)| {
            Ok(if on(path)? { sum | bit } else { sum })
        })
    };
    let disabled_exits = if arch.has("disabled_exits") {
        arch.u("disabled_exits")?
    } else {
        bits(&[
            ("mwait_in_guest", 1),
            ("hlt_in_guest", 2),
            ("pause_in_guest", 4),
            ("cstate_in_guest", 8),
        ])?
    };
    let notify_flags = u_or_0(&arch, "notify_vmexit_flags")?;
    Ok(VmCaps {
        x2apic_api: bits(&[("x2apic_format", 1), ("x2apic_broadcast_quirk_disabled", 2)])?,
        disabled_exits,
        disabled_quirks: u_or_0(&arch, "disabled_quirks")?,
        user_space_msr_mask: u_or_0(&arch, "user_space_msr_mask")?,
        exception_payload: on("exception_payload_enabled")?,
        triple_fault_event: on("triple_fault_event")?,
        bus_lock_exit: on("bus_lock_detection_enabled")?,
        notify_vmexit: if notify_flags == 0 {
            0
        } else {
            u_or_0(&arch, "notify_window")? << 32 | notify_flags
        },
        exit_hypercall: u_or_0(&arch, "hypercall_exit_enabled")?,
        exit_on_emulation_failure: on("exit_on_emulation_error")?,
        manual_dirty_log_protect: u_or_0(vm, "manual_dirty_log_protect")?,
        dirty_ring_size: narrow(vm, "dirty_ring_size")?,
        bsp_vcpu_id: narrow(&arch, "bsp_vcpu_id")?,
        max_vcpu_ids: max_vcpu_ids(u_or_0(&arch, "max_vcpu_ids")?),
        max_halt_poll_ns: flag_or_false(vm, "override_halt_poll_ns")?
            .then(|| narrow(vm, "max_halt_poll_ns"))
            .transpose()?,
        guest_can_read_msr_platform_info: on("guest_can_read_msr_platform_info")?,
        disable_pmu: arch.has("enable_pmu") && !on("enable_pmu")?,
        disable_nx_huge_pages: on("disable_nx_huge_pages")?,
        msr_filter: msr_filter(&arch)?,
    })
}

/// KVM fills in its own limit, 4096 or a multiple, when the first vCPU is made: that is no setting.
fn max_vcpu_ids(value: u64) -> u32 {
    const DEFAULT: u64 = 4096;
    match u32::try_from(value) {
        Ok(set) if value < DEFAULT => set,
        _ => 0,
    }
}

/// Says what was set up and cannot be handed on.
fn not_carried_over(
    arch: &Object<'_>,
    subject: &str,
    fidelity: &mut Vec<Fidelity>,
) -> Result<(), GuestError> {
    if u_or_0(arch, "pmu_event_filter")? != 0 {
        fidelity.push(Fidelity::lost(
            subject,
            "filter of performance events",
            "the guest may count events that it was denied",
        ));
    }
    if u_or_0(arch, "xen_hvm_config.msr")? != 0 {
        fidelity.push(Fidelity::lost(
            subject,
            "Xen interface",
            "event channels and shared pages of a guest under a Xen interface are not read",
        ));
    }
    Ok(())
}

/// `kvm_arch.msr_filter`.
fn msr_filter(arch: &Object<'_>) -> Result<Option<MsrFilter>, GuestError> {
    /// KVM_MSR_FILTER_MAX_RANGES.
    const MOST_RANGES: u64 = 16;
    /// KVM_MSR_FILTER_MAX_BITMAP_SIZE is 0x600 bytes.
    const MOST_MSRS: u64 = 0x600 * 8;
    if !arch.has("msr_filter") {
        return Ok(None);
    }
    let Some(filter) = arch.follow_opt("msr_filter")? else {
        return Ok(None);
    };
    let mut ranges = Vec::new();
    for number in 0..filter.u("count")?.min(MOST_RANGES) {
        let range = filter.get(&format!("ranges[{number}]"))?;
        let count = range.u("nmsrs")?;
        if count > MOST_MSRS {
            return Err(GuestError::Damaged {
                what: "msr_bitmap_range.nmsrs",
                addr: range.addr(),
                detail: format!("{count} MSRs, of which KVM allows {MOST_MSRS}"),
            });
        }
        let bitmap = range.ptr("bitmap")?;
        let mut bytes = vec![0; usize::try_from(count.div_ceil(64) * 8).unwrap_or_default()];
        arch.kernel()
            .read(bitmap, &mut bytes)
            .map_err(GuestError::reading("msr_bitmap_range.bitmap", bitmap))?;
        ranges.push(MsrFilterRange {
            flags: narrow(&range, "flags")?,
            base: narrow(&range, "base")?,
            count: narrow(&range, "nmsrs")?,
            bitmap: Blob(bytes),
        });
    }
    Ok(Some(MsrFilter {
        default_allow: filter.u("default_allow")? != 0,
        ranges,
    }))
}
