//! Guests that cannot be brought back: found before anything of them is read.

use super::GuestError;
use super::field::{flag_or_false, svm_object, u_or_0};
use super::memslot;
use crate::kernel::{Kernel, Object, containers};

/// KVM_MAX_DEVICES of any kind: what a VM has of them is a handful.
const KVM_VFIO: &str = "kvm-vfio";

/// Why the VM of this `struct kvm` cannot be brought back, if it cannot.
pub(super) fn refuse(kernel: &Kernel, kvm: &Object<'_>, vendor: &str) -> Result<(), GuestError> {
    let unsupported = |why: &str| {
        Err(GuestError::Unsupported {
            vm: kvm.addr(),
            why: why.to_owned(),
        })
    };
    if vendor != "svm" {
        return unsupported(
            "it ran on an Intel CPU (kvm_intel), whose guests are found and shown but not yet \
             read: the layout of the VMCS is the CPU's secret",
        );
    }
    let svm = svm_object(kernel, "kvm_svm", kvm.addr())?;
    if let Some(kind) = encrypted(&svm)? {
        return unsupported(&format!(
            "its memory is encrypted ({kind}), and the keys died with the machine"
        ));
    }
    if u_or_0(kvm, "arch.vm_type")? != 0 || flag_or_false(kvm, "arch.has_protected_state")? {
        return unsupported("it is a protected VM, whose state the host cannot read");
    }
    if flag_or_false(kvm, "vm_dead")? || flag_or_false(kvm, "vm_bugged")? {
        return unsupported("KVM had given it up after an internal error, before the crash");
    }
    if memslot::uses_guest_memfd(kvm)? {
        return unsupported(
            "part of its memory is in a guest_memfd, which its VMM has no mapping of: it is not \
             read",
        );
    }
    if let Some(name) = passed_through(kvm)? {
        return unsupported(&format!(
            "a device is passed through to it ({name}): what the device held is gone, and it \
             must not be let loose on the guest's memory"
        ));
    }
    if u_or_0(kvm, "arch.xen_hvm_config.msr")? != 0
        || u_or_0(kvm, "arch.xen_hvm_config.flags")? != 0
        || flag_or_false(kvm, "arch.xen.long_mode")?
    {
        return unsupported(
            "it was given a Xen interface (KVM_XEN_HVM_CONFIG), whose event channels and shared \
             pages are not read",
        );
    }
    if kvm.has("arch.hyperv.conn_to_evt")
        && !containers::idr(&kvm.get("arch.hyperv.conn_to_evt")?)?.is_empty()
    {
        return unsupported(
            "its VMM had bound eventfds to Hyper-V connections (KVM_HYPERV_EVENTFD), which are \
             not read",
        );
    }
    Ok(())
}

/// Which of AMD's encryptions, if any.
fn encrypted(svm: &Object<'_>) -> Result<Option<&'static str>, GuestError> {
    if !flag_or_false(svm, "sev_info.active")? {
        return Ok(None);
    }
    // SVM_SEV_FEAT_SNP_ACTIVE, since 1dfe571c12cf ("KVM: SEV: Add initial SEV-SNP support") (in
    // v6.11).
    const SNP_ACTIVE: u64 = 1;
    Ok(Some(
        if u_or_0(svm, "sev_info.vmsa_features")? & SNP_ACTIVE != 0 {
            "SEV-SNP"
        } else if flag_or_false(svm, "sev_info.es_active")? {
            "SEV-ES"
        } else {
            "SEV"
        },
    ))
}

/// The name of a device of KVM's that stands for hardware: `kvm-vfio`.
fn passed_through(kvm: &Object<'_>) -> Result<Option<String>, GuestError> {
    if !kvm.has("devices") {
        return Ok(None);
    }
    for device in containers::list(&kvm.get("devices")?, "kvm_device", "vm_node")? {
        let name = device.follow("ops")?.get("name")?.string()?;
        // QEMU makes one for every VM that may get a device later; it binds
        // the VM to groups only then.
        if name == KVM_VFIO && has_vfio_files(&device)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether a `kvm-vfio` device has a VFIO group or device.
fn has_vfio_files(device: &Object<'_>) -> Result<bool, GuestError> {
    let private = device.ptr("private")?;
    if private == 0 {
        return Ok(false);
    }
    let vfio = super::field::kvm_object(device.kernel(), "kvm_vfio", private)?;
    // `group_list` until a905ad043f32 ("kvm/vfio: Rename kvm_vfio_group to prepare for accepting
    // vfio device fd") (in v6.6).
    let list = ["file_list", "group_list"]
        .into_iter()
        .find(|name| vfio.has(name));
    let Some(list) = list else {
        return Ok(true);
    };
    let head = vfio.get(list)?;
    Ok(head.ptr("next")? != head.addr())
}
