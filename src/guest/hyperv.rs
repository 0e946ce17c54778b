//! KVM's Hyper-V interface, which Windows guests use: MSRs of the VM and of its vCPUs.
//!
//! Hypervisor Top-Level Functional Specification; Linux arch/x86/kvm/hyperv.c.

use super::GuestError;
use super::field::u_or_0;
use crate::dataset::MsrEntry;
use crate::kernel::Object;

/// The MSRs that one vCPU says about the whole VM, and its own; empty where the guest does not use
/// the interface. The order is that of QEMU's migration.
pub(super) fn msrs(
    vm: &Object<'_>,
    arch: &Object<'_>,
    first_vcpu: bool,
) -> Result<Vec<MsrEntry>, GuestError> {
    let mut list = Vec::new();
    if !vm.has("arch.hyperv") || !arch.has("hyperv") {
        return Ok(list);
    }
    let Some(vcpu) = arch.follow_opt("hyperv")? else {
        return Ok(list);
    };
    let whole = vm.get("arch.hyperv")?;
    let mut set = |index: u32, value: u64| {
        if value != 0 {
            list.push(MsrEntry { index, value });
        }
    };
    if first_vcpu {
        // The hypercall page's write is ignored before the guest's identity is known.
        for (index, field) in [
            (0x4000_0000, "hv_guest_os_id"),
            (0x4000_0001, "hv_hypercall"),
            (0x4000_0021, "hv_tsc_page"),
            (0x4000_0106, "hv_reenlightenment_control"),
            (0x4000_0107, "hv_tsc_emulation_control"),
            (0x4000_0108, "hv_tsc_emulation_status"),
            (0x4000_0118, "hv_invtsc_control"),
            (0x4000_0105, "hv_crash_ctl"),
            (0x4000_00f1, "hv_syndbg.control.control"),
            (0x4000_00f2, "hv_syndbg.control.status"),
            (0x4000_00f3, "hv_syndbg.control.send_page"),
            (0x4000_00f4, "hv_syndbg.control.recv_page"),
            (0x4000_00f5, "hv_syndbg.control.pending_page"),
            (0x4000_00ff, "hv_syndbg.options"),
        ] {
            set(index, u_or_0(&whole, field)?);
        }
        for number in 0..5 {
            let value = whole.u(&format!("hv_crash_param[{number}]"))?;
            set(0x4000_0100 + number, value);
        }
    }
    set(0x4000_0002, vcpu.u("vp_index")?);
    set(0x4000_0073, vcpu.u("hv_vapic")?);
    let synic = vcpu.get("synic")?;
    if synic.u("active")? != 0 {
        set(0x4000_0080, synic.u("control")?);
        set(0x4000_0082, synic.u("evt_page")?);
        set(0x4000_0083, synic.u("msg_page")?);
        for number in 0..16 {
            let value = synic.u(&format!("sint[{number}].counter"))?;
            set(0x4000_0090 + number, value);
        }
    }
    for number in 0..4 {
        let timer = vcpu.get(&format!("stimer[{number}]"))?;
        let config = if timer.has("config.as_uint64") {
            timer.u("config.as_uint64")?
        } else {
            timer.u("config")?
        };
        // Its configuration first: the count starts it.
        set(0x4000_00b0 + 2 * number, config);
        set(0x4000_00b1 + 2 * number, timer.u("count")?);
    }
    Ok(list)
}
