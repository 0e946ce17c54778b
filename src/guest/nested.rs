//! A guest that runs guests: KVM_SET_NESTED_STATE's buffer.

use super::GuestError;
use super::cpuid::Cpuid;
use super::events::HFlags;
use super::field::{flag, flag_or_false};
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
    if global_interrupt_flag(svm, hflags)? {
        flags |= GIF_SET;
    }
    let mut buffer = vec![0; HEADER];
    if hflags.nested_guest {
        flags |= GUEST_MODE;
        // In v7.2 it is in `kvm_vcpu_arch`.
        if flag_or_false(&nested, "nested_run_pending")?
            || flag_or_false(vcpu, "vcpu.arch.nested_run_pending")?
        {
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
fn global_interrupt_flag(svm: &Svm<'_>, hflags: HFlags) -> Result<bool, GuestError> {
    const V_GIF: u64 = 1 << 9;
    const V_GIF_ENABLE: u64 = 1 << 25;
    const HF_GIF: u64 = 1;
    let vcpu = &svm.vcpu;
    if svm.virtual_gif {
        // The CPU keeps it, for the guest itself unless the guest keeps one for its own guest.
        let kept_for_own = hflags.nested_guest && vcpu.u("nested.ctl.int_ctl")? & V_GIF_ENABLE == 0;
        let vmcb = if kept_for_own { &svm.current } else { &svm.own };
        return Ok(vmcb.u("control.int_ctl")? & V_GIF != 0);
    }
    // Since c760e86f27fe ("KVM: x86: Move HF_GIF_MASK into "struct vcpu_svm" as "guest_gif"") (in
    // v6.3).
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
    for field in [
        "pause_filter_thresh",
        "pause_filter_count",
        "iopm_base_pa",
        "msrpm_base_pa",
        "tsc_offset",
        "asid",
        "tlb_ctl",
        "int_ctl",
        "int_vector",
        "int_state",
        // One word of 64 bits in v7.2, two of 32 before.
        "exit_code",
        "exit_code_hi",
        "exit_info_1",
        "exit_info_2",
        "exit_int_info",
        "exit_int_info_err",
        "event_inj",
        "event_inj_err",
        "next_rip",
        "nested_cr3",
        // Renamed to the second two.
        "nested_ctl",
        "virt_ext",
        "misc_ctl",
        "misc_ctl2",
    ] {
        if !control.has(field) || !cached.has(field) {
            continue;
        }
        let place = control.get(field)?;
        let at = usize::try_from(place.addr().wrapping_sub(control.addr())).unwrap_or(usize::MAX);
        let len = usize::try_from(place.size()).unwrap_or(8).min(8);
        put(&mut vmcb, at, &cached.u(field)?.to_le_bytes()[..len]);
    }
    // They stand first.
    put(&mut vmcb, 0, &cached.get("intercepts")?.bytes()?);
    put(&mut vmcb, VMCB_SAVE, &svm.own.get("save")?.bytes()?);
    Ok(vmcb)
}

fn put(vmcb: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = vmcb.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
