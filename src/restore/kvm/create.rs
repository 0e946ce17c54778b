//! The VM and what its vCPUs share, made before guest memory is there.

use super::KvmFiles;
use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use crate::dataset::{
    CpuidEntry, Fidelity, IrqRoute, IrqRouteTarget, Irqchip, ObjectId, Vcpu, Vm, VmCaps,
};
use crate::restore::Syscalls;
use crate::sys::kvm_args::{bytes_of, bytes_of_mut};
use kvm_bindings as kvm;
use std::collections::BTreeMap;

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
    enable_caps(calls, fd, &vm.caps, &mut files.fidelity)?;

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

    // Routing before irqfds, which look their route up when they are made.
    if !vm.routes.is_empty() {
        calls.set_bytes(fd, ioctls::SET_GSI_ROUTING, &encode_routes(&vm.routes))?;
    }
    wire_irqfds(calls, vm, fd, eventfds, files)?;
    wire_ioeventfds(calls, vm, fd, eventfds, files)?;
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

fn enable_caps(
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

/// `struct kvm_irq_routing`.
fn encode_routes(routes: &[IrqRoute]) -> Vec<u8> {
    let mut bytes = header(routes.len());
    for route in routes {
        let (kind, flags, content) = match route.target {
            IrqRouteTarget::Irqchip { chip, pin } => {
                (kvm::KVM_IRQ_ROUTING_IRQCHIP, 0, [chip, pin, 0, 0])
            }
            IrqRouteTarget::Msi {
                address,
                data,
                devid,
                flags,
            } => {
                let [low, high] = [address & 0xffff_ffff, address >> 32].map(|half| half as u32);
                (kvm::KVM_IRQ_ROUTING_MSI, flags, [low, high, data, devid])
            }
            IrqRouteTarget::HypervSint { vcpu, sint } => {
                (kvm::KVM_IRQ_ROUTING_HV_SINT, 0, [vcpu, sint, 0, 0])
            }
        };
        let mut words = [0; 12];
        words[..4].copy_from_slice(&[route.gsi, kind, flags, 0]);
        words[4..8].copy_from_slice(&content);
        bytes.extend(words.iter().flat_map(|w: &u32| w.to_le_bytes()));
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

/// Finds eventfds, and makes one where no restored process holds it.
struct Eventfds<'a> {
    known: &'a dyn Fn(ObjectId) -> Option<i32>,
    made: BTreeMap<ObjectId, i32>,
}

impl Eventfds<'_> {
    /// The descriptor, and whether it had to be made.
    fn find(&mut self, calls: &mut Calls, context: ObjectId) -> Result<(i32, bool), KvmError> {
        if let Some(fd) = (self.known)(context) {
            return Ok((fd, false));
        }
        if let Some(&fd) = self.made.get(&context) {
            return Ok((fd, true));
        }
        let flags = u64::from((libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).cast_unsigned());
        let fd = calls
            .sys
            .syscall(libc::SYS_eventfd2, [0, flags, 0, 0, 0, 0])
            .map_err(|errno| calls.failed("eventfd2", errno))?;
        let fd = calls.descriptor("eventfd2", fd)?;
        self.made.insert(context, fd);
        Ok((fd, true))
    }
}

fn wire_irqfds(
    calls: &mut Calls,
    vm: &Vm,
    fd: i32,
    known: &dyn Fn(ObjectId) -> Option<i32>,
    files: &mut KvmFiles,
) -> Result<(), KvmError> {
    let made = BTreeMap::new();
    let mut eventfds = Eventfds { known, made };
    for irqfd in &vm.irqfds {
        let (event, made) = eventfds.find(calls, irqfd.eventfd)?;
        let mut argument = kvm::kvm_irqfd {
            fd: event.cast_unsigned(),
            gsi: irqfd.gsi,
            ..Default::default()
        };
        if let Some(resample) = irqfd.resample {
            let (resample, _) = eventfds.find(calls, resample)?;
            argument.flags = kvm::KVM_IRQFD_FLAG_RESAMPLE;
            argument.resamplefd = resample.cast_unsigned();
        }
        if made {
            // An irqfd goes when its eventfd is closed, so somebody holds it:
            // a process outside the dataset (a vhost-user back end, say).
            files.fidelity.push(Fidelity::lost(
                &calls.subject,
                format!(
                    "eventfd {} of the irqfd on GSI {}",
                    irqfd.eventfd, irqfd.gsi
                ),
                "no restored process holds it; interrupts from its other holder will not come",
            ));
        }
        match calls.try_bytes(fd, ioctls::IRQFD, bytes_of_mut(&mut argument)) {
            Ok(_) => {}
            Err(errno) => {
                let call = format!("KVM_IRQFD(gsi {}, eventfd {event})", irqfd.gsi);
                return Err(calls.failed(call, errno));
            }
        }
    }
    files.temporary.extend(eventfds.made.values());
    Ok(())
}

fn wire_ioeventfds(
    calls: &mut Calls,
    vm: &Vm,
    fd: i32,
    known: &dyn Fn(ObjectId) -> Option<i32>,
    files: &mut KvmFiles,
) -> Result<(), KvmError> {
    let made = BTreeMap::new();
    let mut eventfds = Eventfds { known, made };
    for io in &vm.ioeventfds {
        let (event, made) = eventfds.find(calls, io.eventfd)?;
        let mut flags = 0;
        if io.pio {
            flags |= 1 << kvm::kvm_ioeventfd_flag_nr_pio;
        }
        if io.datamatch.is_some() {
            flags |= 1 << kvm::kvm_ioeventfd_flag_nr_datamatch;
        }
        let argument = kvm::kvm_ioeventfd {
            datamatch: io.datamatch.unwrap_or(0),
            addr: io.address,
            len: io.len,
            fd: event,
            flags,
            ..Default::default()
        };
        let mut bytes = bytes_of(&argument).to_vec();
        if let Err(errno) = calls.try_bytes(fd, ioctls::IOEVENTFD, &mut bytes) {
            let call = format!("KVM_IOEVENTFD({:#x}, {} bytes)", io.address, io.len);
            return Err(calls.failed(call, errno));
        }
        if made {
            // KVM keeps an ioeventfd whose descriptors are all closed: the
            // guest's writes are swallowed, as they were before.
            files.fidelity.push(Fidelity::reconstructed(
                &calls.subject,
                format!(
                    "eventfd {} of the ioeventfd at {:#x}",
                    io.eventfd, io.address
                ),
                "no restored process holds it; made anew, so that the guest's writes go nowhere \
                 without an exit",
            ));
        }
    }
    // KVM holds them; with their descriptors closed they are as they were.
    for fd in eventfds.made.into_values() {
        let fd = u64::from(fd.cast_unsigned());
        calls
            .sys
            .syscall(libc::SYS_close, [fd, 0, 0, 0, 0, 0])
            .map_err(|errno| calls.failed("close of a temporary eventfd", errno))?;
    }
    Ok(())
}
