//! Whether this host's KVM can run a guest of the dataset: asked before
//! anything is touched.

use super::cpu_features::{FEATURES, KVM_FEATURES, Leaf, Register, SVM_FEATURES};
use super::error::{KvmError, Problem};
use super::{rearm, vcpu_subject, vm_subject};
use crate::dataset::{Irqchip, Vcpu, Vm};
use kvm_bindings as kvm;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::collections::BTreeSet;

/// What this host lacks for `vms`.
///
/// # Errors
/// /dev/kvm cannot be opened or asked.
pub fn preflight(vms: &[Vm]) -> Result<Vec<Problem>, KvmError> {
    if vms.is_empty() {
        return Ok(Vec::new());
    }
    let host = Host::new()?;
    let mut problems = Vec::new();
    for vm in vms {
        let subject = vm_subject(vm);
        host.capabilities(vm, &mut |what| {
            problems.push(Problem {
                subject: subject.clone(),
                what,
                fatal: true,
                said_when_set: false,
            });
        });
        for vcpu in &vm.vcpus {
            let subject = vcpu_subject(vm, vcpu);
            if let Err(error) = rearm::plan(&subject, vcpu) {
                problems.push(Problem {
                    subject: subject.clone(),
                    what: error.to_string(),
                    fatal: true,
                    said_when_set: false,
                });
            }
            host.cpu(vcpu, &mut |what, weight| {
                problems.push(Problem {
                    subject: subject.clone(),
                    what,
                    fatal: weight == Weight::Fatal,
                    said_when_set: weight == Weight::SaidWhenSet,
                });
            });
        }
    }
    Ok(problems)
}

/// How much a lack weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Fatal,
    Noticed,
    /// Noticed, and the restore says so when it comes to it.
    SaidWhenSet,
}

/// This host, with a VM and a vCPU of its own to ask: some answers are only
/// there once a VM is.
struct Host {
    system: Kvm,
    vm: VmFd,
    /// What KVM says that it supports, and what a vCPU then has.
    cpuid: Vec<kvm::kvm_cpuid_entry2>,
    msrs: BTreeSet<u32>,
    tsc_khz: u32,
}

/// The only version there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

impl Host {
    fn new() -> Result<Self, KvmError> {
        let failed = |what: &str| {
            let what = what.to_string();
            move |e: kvm_ioctls::Error| KvmError::Host {
                what,
                source: std::io::Error::from_raw_os_error(e.errno()),
            }
        };
        let system = Kvm::new().map_err(failed(
            "it cannot be opened (kvm modules not loaded, or no permission?)",
        ))?;
        let version = system.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::Host {
                what: format!("it speaks API version {version}, not {API_VERSION}"),
                source: std::io::ErrorKind::Unsupported.into(),
            });
        }
        let vm = system.create_vm().map_err(failed(
            "it makes no VM (virtualization off in the firmware?)",
        ))?;
        let vcpu: VcpuFd = vm.create_vcpu(0).map_err(failed("it makes no vCPU"))?;
        let cpuid = system
            .get_supported_cpuid(kvm::KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
        // A KVM that cannot hide the CPU from its guests (PVM) gives a vCPU
        // more than it says that it supports.
        let given = vcpu
            .set_cpuid2(&cpuid)
            .and_then(|()| vcpu.get_cpuid2(kvm::KVM_MAX_CPUID_ENTRIES))
            .map_err(failed("KVM_SET_CPUID2 of what it supports"))?;
        let known = system
            .get_msr_index_list()
            .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        // Old kernels (before 4.17) have no list of feature MSRs.
        let features = system.get_msr_feature_index_list().ok();
        let msrs = known
            .as_slice()
            .iter()
            .chain(features.iter().flat_map(|list| list.as_slice()))
            .copied()
            .collect();
        Ok(Self {
            cpuid: [cpuid.as_slice(), given.as_slice()].concat(),
            msrs,
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            vm,
            system,
        })
    }

    fn extension(&self, cap: u32) -> i32 {
        self.vm.check_extension_raw(cap.into())
    }

    fn capabilities(&self, vm: &Vm, problem: &mut dyn FnMut(String)) {
        let any_irqfd = !vm.irqfds.is_empty();
        let caps = &vm.caps;
        let vcpus = &vm.vcpus;
        let needed = [
            ("SREGS2 (Linux 5.14)", kvm::KVM_CAP_SREGS2, true),
            ("XSAVE", kvm::KVM_CAP_XSAVE, true),
            ("XCRS", kvm::KVM_CAP_XCRS, true),
            ("VCPU_EVENTS", kvm::KVM_CAP_VCPU_EVENTS, true),
            ("ADJUST_CLOCK", kvm::KVM_CAP_ADJUST_CLOCK, true),
            ("IRQFD", kvm::KVM_CAP_IRQFD, any_irqfd),
            (
                "IRQFD_RESAMPLE",
                kvm::KVM_CAP_IRQFD_RESAMPLE,
                vm.irqfds.iter().any(|irqfd| irqfd.resample.is_some()),
            ),
            (
                "IOEVENTFD",
                kvm::KVM_CAP_IOEVENTFD,
                !vm.ioeventfds.is_empty(),
            ),
            (
                "IOEVENTFD_ANY_LENGTH",
                kvm::KVM_CAP_IOEVENTFD_ANY_LENGTH,
                vm.ioeventfds.iter().any(|io| io.len == 0),
            ),
            (
                "IRQCHIP",
                kvm::KVM_CAP_IRQCHIP,
                matches!(vm.irqchip, Irqchip::Kernel { .. }),
            ),
            (
                "SPLIT_IRQCHIP",
                kvm::KVM_CAP_SPLIT_IRQCHIP,
                matches!(vm.irqchip, Irqchip::Split { .. }),
            ),
            ("PIT_STATE2", kvm::KVM_CAP_PIT_STATE2, vm.pit.is_some()),
            (
                "IRQ_ROUTING",
                kvm::KVM_CAP_IRQ_ROUTING,
                !vm.routes.is_empty(),
            ),
            (
                "COALESCED_MMIO",
                kvm::KVM_CAP_COALESCED_MMIO,
                !vm.coalesced_zones.is_empty(),
            ),
            (
                "COALESCED_PIO",
                kvm::KVM_CAP_COALESCED_PIO,
                vm.coalesced_zones.iter().any(|zone| zone.pio),
            ),
            (
                "MULTI_ADDRESS_SPACE (SMM)",
                kvm::KVM_CAP_MULTI_ADDRESS_SPACE,
                vm.memslots.iter().any(|slot| slot.address_space != 0),
            ),
            (
                "NESTED_STATE (the guest runs guests)",
                kvm::KVM_CAP_NESTED_STATE,
                vcpus.iter().any(|vcpu| vcpu.nested.is_some()),
            ),
            ("X2APIC_API", kvm::KVM_CAP_X2APIC_API, caps.x2apic_api != 0),
            (
                "DISABLE_QUIRKS2",
                kvm::KVM_CAP_DISABLE_QUIRKS2,
                caps.disabled_quirks != 0,
            ),
            (
                "EXCEPTION_PAYLOAD",
                kvm::KVM_CAP_EXCEPTION_PAYLOAD,
                caps.exception_payload,
            ),
            (
                "X86_TRIPLE_FAULT_EVENT",
                kvm::KVM_CAP_X86_TRIPLE_FAULT_EVENT,
                caps.triple_fault_event,
            ),
            (
                "X86_USER_SPACE_MSR",
                kvm::KVM_CAP_X86_USER_SPACE_MSR,
                caps.user_space_msr_mask != 0,
            ),
            (
                "X86_NOTIFY_VMEXIT",
                kvm::KVM_CAP_X86_NOTIFY_VMEXIT,
                caps.notify_vmexit != 0,
            ),
            (
                "X86_BUS_LOCK_EXIT",
                kvm::KVM_CAP_X86_BUS_LOCK_EXIT,
                caps.bus_lock_exit,
            ),
            (
                "PMU_EVENT_FILTER",
                kvm::KVM_CAP_PMU_EVENT_FILTER,
                caps.pmu_event_filter.is_some(),
            ),
            (
                "DIRTY_LOG_RING",
                kvm::KVM_CAP_DIRTY_LOG_RING,
                caps.dirty_ring_size != 0,
            ),
        ];
        for (name, cap, wanted) in needed {
            if wanted && self.extension(cap) <= 0 {
                problem(format!("this host's KVM has no KVM_CAP_{name}"));
            }
        }
        // Each bit of the answer is one that may be asked for.
        for (name, cap, wanted) in [
            (
                "X86_DISABLE_EXITS",
                kvm::KVM_CAP_X86_DISABLE_EXITS,
                caps.disabled_exits,
            ),
            (
                "EXIT_HYPERCALL",
                kvm::KVM_CAP_EXIT_HYPERCALL,
                caps.exit_hypercall,
            ),
        ] {
            let offered = u64::from(self.extension(cap).max(0).cast_unsigned());
            if wanted & !offered != 0 {
                problem(format!(
                    "KVM_CAP_{name}: the VM has {wanted:#x} on, this host offers {offered:#x}"
                ));
            }
        }
        if vm.vm_type != 0 {
            let types = self.extension(kvm::KVM_CAP_VM_TYPES).max(0).cast_unsigned();
            if vm.vm_type >= 32 || types >> vm.vm_type & 1 == 0 {
                problem(format!("this host has no VMs of type {}", vm.vm_type));
            }
        }
        for (what, wanted, most) in [
            ("vCPUs", vcpus.len(), self.system.get_max_vcpus()),
            ("memslots", vm.memslots.len(), self.system.get_nr_memslots()),
        ] {
            if wanted > most {
                problem(format!("it has {wanted} {what}, this host takes {most}"));
            }
        }
        let ids = self.system.get_max_vcpu_id();
        if let Some(vcpu) = vcpus.iter().find(|v| v.vcpu_id as usize >= ids) {
            let id = vcpu.vcpu_id;
            problem(format!("vCPU id {id} is beyond this host's {ids}"));
        }
    }

    fn cpu(&self, vcpu: &Vcpu, problem: &mut dyn FnMut(String, Weight)) {
        // Behind another hypervisor's leaves (Hyper-V's) KVM's stand 0x100 further on.
        let own_leaves = vcpu
            .cpuid
            .iter()
            .find(|e| {
                e.function & 0xffff_00ff == 0x4000_0000 && e.ebx == u32::from_le_bytes(*b"KVMK")
            })
            .map(|e| e.function | 1);
        let guest = |function: u32, index: u32| {
            vcpu.cpuid
                .iter()
                .find(move |e| e.function == function && e.index == index)
        };
        let runs_guests = guest(0x8000_0001, 0).is_some_and(|e| e.ecx & 1 << 2 != 0);
        for leaf in FEATURES {
            let function = match leaf.function {
                KVM_FEATURES => own_leaves,
                SVM_FEATURES if !runs_guests => None,
                function => Some(function),
            };
            let Some(entry) = function.and_then(|f| guest(f, leaf.index)) else {
                continue;
            };
            let missing = leaf.register.of_guest(entry) & !self.register(leaf) & !leaf.made_up;
            for bit in (0..32).filter(|bit| missing & !leaf.describes & 1 << bit != 0) {
                let name = leaf.names.iter().find(|(number, _)| *number == bit);
                let name = name.map_or_else(|| leaf.bit(bit), |(_, name)| (*name).into());
                let what = format!("the guest uses {name}, which this host's CPU or KVM lacks");
                problem(what, Weight::Fatal);
            }
            let told = missing & leaf.describes;
            for bit in (0..32).filter(|bit| told & 1 << bit != 0) {
                let what = format!(
                    "the guest was told of {}, which is not so on this host; nothing that it can \
                     do hangs on it",
                    leaf.bit(bit)
                );
                problem(what, Weight::Noticed);
            }
        }

        let xcr0 = |register| self.register(&Leaf::plain(0xd, 0, register));
        let offered = u64::from(xcr0(Register::Edx)) << 32 | u64::from(xcr0(Register::Eax));
        // Bits 0 (x87) and 1 (SSE) are every CPU's.
        let missing = vcpu.xcr0 & !(offered | 3);
        if missing != 0 {
            problem(
                format!("XCR0 bits {missing:#x}: this CPU has no such registers"),
                Weight::Fatal,
            );
        }
        let room = self.extension(kvm::KVM_CAP_XSAVE2).max(4096);
        let used = vcpu
            .xsave
            .0
            .iter()
            .rposition(|&b| b != 0)
            .map_or(0, |n| n + 1);
        // AMX's part is only offered to a process that has asked for it.
        const AMX: u64 = 3 << 17;
        if used > room.cast_unsigned() as usize && vcpu.xcr0 & AMX == 0 {
            problem(
                format!("{used} bytes of XSAVE state, this host takes {room}"),
                Weight::Fatal,
            );
        }

        for msr in &vcpu.msrs {
            if msr.value != 0 && !self.msrs.contains(&msr.index) && !always_there(msr.index) {
                let what = format!(
                    "MSR {:#x} = {:#x} may be refused: this host's KVM does not list it",
                    msr.index, msr.value
                );
                problem(what, Weight::SaidWhenSet);
            }
        }
        self.tsc(vcpu, problem);
    }

    fn tsc(&self, vcpu: &Vcpu, problem: &mut dyn FnMut(String, Weight)) {
        let (guest, host) = (u64::from(vcpu.tsc_khz), u64::from(self.tsc_khz));
        // KVM lets differences of 250 ppm pass (kvm.tsc_tolerance_ppm).
        let same = guest.abs_diff(host) <= host / 4000;
        if guest == 0 || host == 0 || same || self.extension(kvm::KVM_CAP_TSC_CONTROL) > 0 {
            return;
        }
        let what = format!(
            "its TSC runs at {guest} kHz, this host's at {host} kHz, and this CPU cannot scale it"
        );
        // It runs at this host's rate then (`tsc_rate`).
        problem(what, Weight::SaidWhenSet);
    }

    fn register(&self, leaf: &Leaf) -> u32 {
        self.cpuid
            .iter()
            .filter(|e| e.function == leaf.function && e.index == leaf.index)
            .fold(0, |bits, e| bits | leaf.register.of_host(e))
    }
}

/// MSRs that KVM has for every guest without listing them: APIC, MTRRs, MCE
/// banks, x2APIC, performance counters, those of KVM itself.
fn always_there(index: u32) -> bool {
    matches!(index,
        0x10 | 0x17 | 0x1b | 0x2a | 0x8b | 0xfe | 0x179..=0x17f | 0x1d9 | 0x200..=0x2ff
        | 0x400..=0x47f | 0x4d0 | 0x6e0 | 0x800..=0x8ff
        | 0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30c | 0x38d..=0x390
        | 0xc000_0080..=0xc000_0104 | 0xc001_0000..=0xc001_020b | 0x4b56_4d00..=0x4b56_4d08
        | 0x11 | 0x12 | 0x4000_0000..=0x4000_0fff)
}
