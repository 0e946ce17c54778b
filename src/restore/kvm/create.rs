//! The VM and what its vCPUs share, made before guest memory is there.

use super::KvmFiles;
use super::calls::Calls;
use super::error::KvmError;
use super::{caps, ioctls, wiring};
use crate::dataset::{CpuidEntry, Irqchip, ObjectId, Vcpu, Vm};
use crate::restore::Syscalls;
use kvm_bindings as kvm;

/// Opens /dev/kvm there.
pub(super) fn open_system(sys: &mut dyn Syscalls) -> Result<i32, KvmError> {
    let calls = Calls {
        sys,
        subject: "KVM".into(),
    };
    let (scratch, _) = calls.sys.scratch();
    let flags = u64::from((libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned());
    let here = i64::from(libc::AT_FDCWD).cast_unsigned();
    let opened = calls
        .sys
        .write(scratch, b"/dev/kvm\0")
        .and_then(|()| {
            calls
                .sys
                .syscall(libc::SYS_openat, [here, scratch, flags, 0, 0, 0])
        })
        .map_err(|errno| calls.failed("open(/dev/kvm)", errno))?;
    calls.descriptor("open(/dev/kvm)", opened)
}

/// Makes one VM. Each step's comment says what it must come before or after,
/// and why.
pub(super) fn create_vm(
    sys: &mut dyn Syscalls,
    vm: &Vm,
    eventfds: &dyn Fn(ObjectId) -> Option<i32>,
    files: &mut KvmFiles,
) -> Result<(), KvmError> {
    let subject = super::vm_subject(vm);
    let mut calls = Calls { sys, subject };
    let calls = &mut calls;

    // First of all, since it is for the whole process and KVM looks at it when
    // a vCPU is made: leave to use AMX state, which is off by default.
    if vm.vcpus.iter().any(uses_amx) {
        request_amx(calls)?;
    }

    let fd = calls.value(files.system, ioctls::CREATE_VM, vm.vm_type)?;
    let fd = calls.descriptor("KVM_CREATE_VM", fd)?;
    files.vms.insert(vm.id, fd);

    // Before vCPUs, which take their shape from them: KVM refuses most of
    // these once a vCPU is there. Before the irqchip: quirks change how it is
    // made.
    caps::enable(calls, fd, &vm.caps, &mut files.fidelity)?;

    // Before vCPUs (KVM_SET_IDENTITY_MAP_ADDR is refused afterwards). Intel's
    // real mode needs both; KVM's own slots for them are not in `memslots`.
    if let Some(address) = vm.identity_map_addr {
        calls.set_bytes(fd, ioctls::SET_IDENTITY_MAP_ADDR, &address.to_le_bytes())?;
    }
    if let Some(address) = vm.tss_addr {
        calls.value(fd, ioctls::SET_TSS_ADDR, address)?;
    }

    // Before vCPUs: a vCPU gets its LAPIC when it is made, and only if there
    // is an irqchip by then. Before routing, which it would overwrite with its
    // defaults, and before the PIT, which needs its lines.
    match &vm.irqchip {
        Irqchip::None => {}
        Irqchip::Split { ioapic_pins } => calls.enable(
            fd,
            "SPLIT_IRQCHIP",
            kvm::KVM_CAP_SPLIT_IRQCHIP,
            [u64::from(*ioapic_pins), 0],
        )?,
        Irqchip::Kernel { .. } => {
            calls.value(fd, ioctls::CREATE_IRQCHIP, 0)?;
        }
    }
    if let Some(pit) = &vm.pit {
        let config = kvm::kvm_pit_config {
            flags: pit.create_flags,
            ..Default::default()
        };
        calls.set(fd, ioctls::CREATE_PIT2, &config)?;
    }

    // Memslots name addresses in the process; what is mapped there may come
    // later, since KVM looks when the guest does (mmu notifiers follow).
    // Before vCPU state: MSRs that name guest memory look it up when set.
    for slot in &vm.memslots {
        let region = kvm::kvm_userspace_memory_region {
            slot: u32::from(slot.address_space) << 16 | u32::from(slot.slot),
            flags: slot.flags,
            guest_phys_addr: slot.guest_address,
            memory_size: slot.size,
            userspace_addr: slot.user_address,
        };
        calls.set(fd, ioctls::SET_USER_MEMORY_REGION, &region)?;
    }

    // Before vCPUs, whose first TSC takes this frequency. Each vCPU's own is
    // set in `finish`, so a host that has no such call loses only the default
    // for vCPUs that the VMM adds later.
    if vm.default_tsc_khz != 0
        && calls.extension(fd, kvm::KVM_CAP_VM_TSC_CONTROL) != 0
        && super::tsc_rate::scalable(calls, fd)
    {
        calls.value(fd, ioctls::SET_TSC_KHZ, u64::from(vm.default_tsc_khz))?;
    }

    // vCPUs in their first order: `vcpu_idx` follows from it. CPUID before all
    // their other state, whose checks ask it, and before their first KVM_RUN,
    // after which it cannot be changed.
    for vcpu in &vm.vcpus {
        create_vcpu(calls, vm, vcpu, fd, files)?;
    }

    // After the irqchip and the vCPUs, to which interrupts go.
    wiring::wire(calls, vm, fd, eventfds, files)?;
    for zone in &vm.coalesced_zones {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&zone.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&zone.size.to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(zone.pio).to_le_bytes());
        calls.set_bytes(fd, ioctls::REGISTER_COALESCED_MMIO, &bytes)?;
    }
    Ok(())
}

/// XTILEDATA, the state component of AMX that needs leave.
const XTILEDATA: u32 = 18;

/// Whether CPUID tells the guest of AMX's tile data.
fn uses_amx(vcpu: &Vcpu) -> bool {
    vcpu.xcr0 & 1 << XTILEDATA != 0
        || vcpu
            .cpuid
            .iter()
            .any(|e| e.function == 0xd && e.index == 0 && e.eax & 1 << XTILEDATA != 0)
}

fn request_amx(calls: &mut Calls) -> Result<(), KvmError> {
    /// Linux arch/x86/include/uapi/asm/prctl.h
    const ARCH_REQ_XCOMP_GUEST_PERM: u64 = 0x1025;
    let args = [ARCH_REQ_XCOMP_GUEST_PERM, u64::from(XTILEDATA), 0, 0, 0, 0];
    calls
        .sys
        .syscall(libc::SYS_arch_prctl, args)
        .map(|_| ())
        .map_err(|errno| calls.failed("arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM, AMX)", errno))
}

fn create_vcpu(
    calls: &mut Calls,
    vm: &Vm,
    vcpu: &Vcpu,
    vm_fd: i32,
    files: &mut KvmFiles,
) -> Result<(), KvmError> {
    let vm_subject = std::mem::replace(&mut calls.subject, super::vcpu_subject(vm, vcpu));
    let fd = calls.value(vm_fd, ioctls::CREATE_VCPU, u64::from(vcpu.vcpu_id))?;
    let fd = calls.descriptor("KVM_CREATE_VCPU", fd)?;
    files.vcpus.insert(vcpu.id, fd);

    // Before CPUID: SynIC's MSRs and CPUID bits are checked against it.
    if uses_synic(vcpu) {
        let cap = kvm::KVM_CAP_HYPERV_SYNIC2;
        calls.enable(fd, "HYPERV_SYNIC2", cap, [0, 0])?;
    }
    // Once, and before everything else of the vCPU: KVM derives from it which
    // bits of CR4, XCR0 and the MSRs are legal.
    if !vcpu.cpuid.is_empty() {
        calls.set_bytes(fd, ioctls::SET_CPUID2, &encode_cpuid(&vcpu.cpuid))?;
    }
    // After CPUID, from which it takes the features that it enforces.
    if vcpu.enforce_pv_cpuid {
        let cap = kvm::KVM_CAP_ENFORCE_PV_FEATURE_CPUID;
        calls.enable(fd, "ENFORCE_PV_FEATURE_CPUID", cap, [1, 0])?;
    }
    calls.subject = vm_subject;
    Ok(())
}

/// HV_X64_MSR_SCONTROL to HV_X64_MSR_SINT15: they exist only once KVM's SynIC
/// has been turned on.
fn uses_synic(vcpu: &Vcpu) -> bool {
    vcpu.msrs
        .iter()
        .any(|m| (0x4000_0080..=0x4000_009f).contains(&m.index) && m.value != 0)
}

/// `struct kvm_cpuid2`.
fn encode_cpuid(entries: &[CpuidEntry]) -> Vec<u8> {
    let mut bytes = header(entries.len());
    for e in entries {
        let words = [
            e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, 0, 0, 0,
        ];
        bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }
    bytes
}

/// `u32 count, u32 flags or padding`.
pub(super) fn header(count: usize) -> Vec<u8> {
    let mut bytes = u32::try_from(count)
        .unwrap_or(u32::MAX)
        .to_le_bytes()
        .to_vec();
    bytes.extend([0; 4]);
    bytes
}
