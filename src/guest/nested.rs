//! A guest that runs guests: KVM_SET_NESTED_STATE's buffer.

use super::GuestError;
use super::cpuid::Cpuid;
use super::events::HFlags;
use super::field::{flag, flag_or_false, u_or_0};
use super::vmcb::Svm;
use crate::dataset::Blob;
use crate::kernel::Object;

/// `struct kvm_nested_state` before its data; the header's union has 120 bytes.
const HEADER: usize = 128;
/// KVM_STATE_NESTED_SVM_VMCB_SIZE.
const VMCB: usize = 4096;
const VMCB_SAVE: usize = 1024;
const FORMAT_SVM: u16 = 1;
const GUEST_MODE: u16 = 1;
const RUN_PENDING: u16 = 2;
const GIF_SET: u16 = 0x100;

/// What `svm_get_nested_state` gives; `None` for a vCPU that does not use SVM.
pub(super) fn state(
    svm: &Svm<'_>,
    cpuid: &Cpuid,
    hflags: HFlags,
) -> Result<Option<Blob>, GuestError> {
    const SVME: u64 = 1 << 12;
    let vcpu = &svm.vcpu;
    if !cpuid.has_svm() || vcpu.u("vcpu.arch.efer")? & SVME == 0 {
        return Ok(None);
    }
    let nested = vcpu.get("nested")?;
    let mut flags = 0;
    if global_interrupt_flag(svm)? {
        flags |= GIF_SET;
    }
    let mut buffer = vec![0; HEADER];
    if hflags.nested_guest {
        flags |= GUEST_MODE;
        if flag(&nested, "nested_run_pending")? {
            flags |= RUN_PENDING;
        }
        buffer[8..16].copy_from_slice(&nested.u("vmcb12_gpa")?.to_le_bytes());
        buffer.extend(vmcb12(svm, &nested)?);
    }
    buffer[..2].copy_from_slice(&flags.to_le_bytes());
    buffer[2..4].copy_from_slice(&FORMAT_SVM.to_le_bytes());
    let size = u32::try_from(buffer.len()).unwrap_or_default();
    buffer[4..8].copy_from_slice(&size.to_le_bytes());
    Ok(Some(Blob(buffer)))
}

/// `gif_set`.
fn global_interrupt_flag(svm: &Svm<'_>) -> Result<bool, GuestError> {
    const V_GIF: u64 = 1 << 9;
    const HF_GIF: u64 = 1;
    let vcpu = &svm.vcpu;
    if flag_or_false(vcpu, "vgif_enabled")? {
        return Ok(svm.own.u("control.int_ctl")? & V_GIF != 0);
    }
    if vcpu.has("guest_gif") {
        return flag(vcpu, "guest_gif");
    }
    Ok(vcpu.u("vcpu.arch.hflags")? & HF_GIF != 0)
}

/// The VMCB that the buffer carries: the controls are those that the guest gave its own guest, the
/// saved state is the *guest's* (its guest's is in the vCPU's registers).
fn vmcb12(svm: &Svm<'_>, nested: &Object<'_>) -> Result<Vec<u8>, GuestError> {
    let mut vmcb = vec![0; VMCB];
    let cached = nested.get("ctl")?;
    let control = svm.current.get("control")?;
    for (field, len) in [
        ("pause_filter_thresh", 2),
        ("pause_filter_count", 2),
        ("iopm_base_pa", 8),
        ("msrpm_base_pa", 8),
        ("tsc_offset", 8),
        ("asid", 4),
        ("tlb_ctl", 1),
        ("int_ctl", 4),
        ("int_vector", 4),
        ("int_state", 4),
        ("exit_code", 4),
        ("exit_code_hi", 4),
        ("exit_info_1", 8),
        ("exit_info_2", 8),
        ("exit_int_info", 4),
        ("exit_int_info_err", 4),
        ("nested_ctl", 8),
        ("event_inj", 4),
        ("event_inj_err", 4),
        ("next_rip", 8),
        ("nested_cr3", 8),
        ("virt_ext", 8),
    ] {
        if !control.has(field) {
            continue;
        }
        let at = offset(&control, field)?;
        let value = u_or_0(&cached, field)?.to_le_bytes();
        put(&mut vmcb, at, &value[..len]);
    }
    let intercepts = cached.get("intercepts")?.bytes()?;
    put(&mut vmcb, offset(&control, "intercepts")?, &intercepts);
    put(&mut vmcb, VMCB_SAVE, &svm.own.get("save")?.bytes()?);
    Ok(vmcb)
}

fn offset(obj: &Object<'_>, field: &str) -> Result<usize, GuestError> {
    let at = obj.get(field)?.addr().wrapping_sub(obj.addr());
    Ok(usize::try_from(at).unwrap_or(usize::MAX))
}

fn put(vmcb: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = vmcb.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
