//! What the VMM turned on for the whole VM.

use super::GuestError;
use super::field::{flag_or_false, narrow, u_or_0, words};
use crate::dataset::{Blob, MsrFilter, MsrFilterRange, PmuEventFilter, VmCaps};
use crate::kernel::Object;

/// The capabilities of a `struct kvm`.
pub(super) fn caps(vm: &Object<'_>) -> Result<VmCaps, GuestError> {
    let arch = vm.get("arch")?;
    let on = |path: &str| flag_or_false(&arch, path);
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
        pmu_event_filter: pmu_event_filter(&arch)?,
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

/// `kvm_arch.pmu_event_filter`.
fn pmu_event_filter(arch: &Object<'_>) -> Result<Option<PmuEventFilter>, GuestError> {
    /// KVM_PMU_EVENT_FILTER_MAX_EVENTS.
    const MOST: u64 = 300;
    const MASKED_EVENTS: u32 = 1;
    if !arch.has("pmu_event_filter") {
        return Ok(None);
    }
    let Some(filter) = arch.follow_opt("pmu_event_filter")? else {
        return Ok(None);
    };
    let count = filter.u("nevents")?;
    if count > MOST {
        return Err(GuestError::Damaged {
            what: "kvm_pmu_event_filter.nevents",
            addr: filter.addr(),
            detail: format!("{count} events, of which KVM allows {MOST}"),
        });
    }
    let flags: u32 = narrow(&filter, "flags")?;
    // What was set without masks is kept with one of all ones in the highest byte, since
    // 14329b825ffb ("KVM: x86/pmu: Introduce masked events to the pmu event filter") (in v6.3).
    let kept = if flags & MASKED_EVENTS == 0 && filter.has("nr_includes") {
        !(0xff << 56)
    } else {
        u64::MAX
    };
    let at = filter.get("events")?.addr();
    let mut bytes = vec![0; usize::try_from(count * 8).unwrap_or_default()];
    arch.kernel()
        .read(at, &mut bytes)
        .map_err(GuestError::reading("kvm_pmu_event_filter.events", at))?;
    Ok(Some(PmuEventFilter {
        action: narrow(&filter, "action")?,
        fixed_counter_bitmap: narrow(&filter, "fixed_counter_bitmap")?,
        flags,
        events: words(&bytes)
            .into_iter()
            .map(|event| event & kept)
            .collect(),
    }))
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
