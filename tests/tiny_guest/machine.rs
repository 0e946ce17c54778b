//! A VMM of the smallest kind: memory, vCPUs and one device.

use crate::arriving;
use crate::boot::{CODE, CODE_SIZE, HANDLER, start, write_gate, write_tables};
use crate::device::{Device, handle_exit};
use crate::programs::{Mode, program};
use kvm_bindings::*;
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmrestore::dataset::{
    CoalescedZone, FidelityLevel, IoEventFd, IrqFd, IrqRoute, IrqRouteTarget, ObjectId,
    PmuEventFilter, Vm, VmCaps,
};
use vmrestore::restore::kvm::{self, KvmError};
use vmrestore::sys::local_syscalls::LocalSyscalls;

pub const MEMORY: usize = 1 << 20;

/// A VM with its memory. Fields are dropped in this order.
pub struct Machine {
    pub vcpus: Vec<VcpuFd>,
    pub vm: VmFd,
    pub kvm: Kvm,
    pub memory: GuestMemoryMmap,
    pub chips: Chips,
    pub wiring: Wiring,
    pub caps: VmCaps,
}

/// What was wired to the VM; KVM has no call that would say.
#[derive(Default)]
pub struct Wiring {
    pub routes: Vec<IrqRoute>,
    pub irqfds: Vec<IrqFd>,
    pub ioeventfds: Vec<IoEventFd>,
    pub eventfds: BTreeMap<ObjectId, EventFd>,
    pub zones: Vec<CoalescedZone>,
}

/// The device's interrupt vector.
pub const DEVICE_VECTOR: u8 = 0x41;

/// What is in the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chips {
    None,
    Split,
    Kernel,
}

impl Machine {
    /// A VM with a vCPU for each program.
    pub fn new(mode: Mode, programs: &[&str], chips: Chips) -> Self {
        let kvm = Kvm::new().expect("/dev/kvm");
        let vm = kvm.create_vm().expect("VM");
        match chips {
            Chips::None => {}
            Chips::Split => {
                let mut cap = kvm_enable_cap {
                    cap: KVM_CAP_SPLIT_IRQCHIP,
                    ..Default::default()
                };
                cap.args[0] = 24;
                vm.enable_cap(&cap).expect("split irqchip");
            }
            Chips::Kernel => {
                vm.set_tss_address(0xfffb_d000).expect("TSS");
                vm.create_irq_chip().expect("irqchip");
                vm.create_pit2(kvm_pit_config::default()).expect("PIT");
            }
        }
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).expect("address") as u64,
            ..Default::default()
        };
        // SAFETY: the memory outlives the VM: `Machine` drops it last.
        unsafe { vm.set_user_memory_region(region) }.expect("memslot");

        write_tables(&memory, mode);
        let put = |at, code: &[u8]| memory.write_slice(code, GuestAddress(at)).expect("code");
        for (name, at) in programs.iter().zip((CODE..).step_by(CODE_SIZE)) {
            put(at, program(name, mode));
        }
        put(HANDLER, program("device_handler", mode));
        write_gate(&memory, mode, DEVICE_VECTOR, HANDLER);

        let mut cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("CPUID");
        // KVM has the TSC deadline always, but before Linux 6.16 it left it to
        // the VMM to tell the guest.
        for entry in cpuid.as_mut_slice().iter_mut().filter(|e| e.function == 1) {
            entry.ecx |= 1 << 24;
        }
        let vcpus = (0..programs.len() as u64)
            .map(|id| {
                let vcpu = vm.create_vcpu(id).expect("vCPU");
                vcpu.set_cpuid2(&cpuid).expect("CPUID");
                start(&vcpu, mode, id, chips);
                vcpu
            })
            .collect();
        Self {
            vcpus,
            vm,
            kvm,
            memory,
            chips,
            wiring: Wiring::default(),
            caps: VmCaps {
                guest_can_read_msr_platform_info: true,
                ..Default::default()
            },
        }
    }

    /// Wires an eventfd, under an identity, to vector 0x41 of CPU 0.
    pub fn wire_irqfd(&mut self, id: ObjectId, gsi: u32) {
        let target = IrqRouteTarget::Msi {
            address: 0xfee0_0000,
            data: DEVICE_VECTOR.into(),
            devid: 0,
            flags: 0,
        };
        self.wiring.routes.push(IrqRoute { gsi, target });
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        entry.u.msi = kvm_irq_routing_msi {
            address_lo: 0xfee0_0000,
            data: DEVICE_VECTOR.into(),
            ..Default::default()
        };
        let routing = KvmIrqRouting::from_entries(&[entry]).expect("routing");
        self.vm.set_gsi_routing(&routing).expect("routing");
        let eventfd = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        self.vm.register_irqfd(&eventfd, gsi).expect("irqfd");
        self.wiring.eventfds.insert(id, eventfd);
        self.wiring.irqfds.push(IrqFd {
            gsi,
            eventfd: id,
            resample: None,
        });
    }

    /// Wires an eventfd to 4-byte writes.
    pub fn wire_ioeventfd(&mut self, id: ObjectId, at: IoEventAddress, value: Option<u32>) {
        let eventfd = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        match value {
            Some(value) => self.vm.register_ioevent(&eventfd, &at, value),
            None => self.vm.register_ioevent(&eventfd, &at, NoDatamatch),
        }
        .expect("ioeventfd");
        let (address, pio) = match at {
            IoEventAddress::Pio(port) => (port, true),
            IoEventAddress::Mmio(address) => (address, false),
        };
        self.wiring.eventfds.insert(id, eventfd);
        self.wiring.ioeventfds.push(IoEventFd {
            address,
            len: if value.is_some() { 4 } else { 0 },
            pio,
            datamatch: value.map(u64::from),
            eventfd: id,
        });
    }

    /// Writes to this range are batched.
    pub fn coalesce(&mut self, address: u64, size: u32) {
        let at = IoEventAddress::Mmio(address);
        self.vm.register_coalesced_mmio(at, size).expect("zone");
        self.wiring.zones.push(CoalescedZone {
            address,
            size,
            pio: false,
        });
    }

    fn enable(&self, cap: u32, value: u64) -> bool {
        let mut argument = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        argument.args[0] = value;
        self.vm.enable_cap(&argument).is_ok()
    }

    /// Exceptions' payloads are the VMM's to deliver.
    pub fn deliver_payloads(&mut self) {
        assert!(self.enable(KVM_CAP_EXCEPTION_PAYLOAD, 1));
        self.caps.exception_payload = true;
    }

    /// Triple faults that wait are told.
    pub fn report_triple_faults(&mut self) -> bool {
        self.caps.triple_fault_event = self.enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1);
        self.caps.triple_fault_event
    }

    /// Sets filters, for which KVM has no call that would tell them.
    pub fn filter(&mut self) {
        if self.enable(KVM_CAP_X86_USER_SPACE_MSR, 7) {
            self.caps.user_space_msr_mask = 7;
        }
        let filter = PmuEventFilter {
            action: 1,
            fixed_counter_bitmap: 5,
            flags: 0,
            events: vec![0x00c0, 0x01c2, 0x4f2e],
        };
        let mut words = vec![filter.action, 3, filter.fixed_counter_bitmap, 0, 0, 0, 0, 0];
        for event in &filter.events {
            words.extend([*event as u32, 0]);
        }
        const KVM_SET_PMU_EVENT_FILTER: u64 = 0x4020_aeb2;
        // SAFETY: KVM reads the filter's 32 bytes and the three events behind.
        let done = unsafe {
            libc::ioctl(
                self.vm.as_raw_fd(),
                KVM_SET_PMU_EVENT_FILTER as _,
                words.as_ptr(),
            )
        };
        if done == 0 {
            self.caps.pmu_event_filter = Some(filter);
        }
    }

    /// Lets the VMM answer hypercalls; whether this KVM does.
    pub fn pass_hypercalls(&mut self) -> bool {
        // KVM_HC_MAP_GPA_RANGE (linux/kvm_para.h).
        const MAP_GPA_RANGE: u64 = 1 << 12;
        let passes = self.enable(KVM_CAP_EXIT_HYPERCALL, MAP_GPA_RANGE);
        if passes {
            self.caps.exit_hypercall = MAP_GPA_RANGE;
        }
        passes
    }

    /// What has been signalled on an eventfd since it was last asked.
    pub fn rings(&self, id: ObjectId) -> u64 {
        self.wiring.eventfds[&id].read().unwrap_or(0)
    }

    /// A vCPU's TSC now.
    pub fn tsc(&self, vcpu: usize) -> u64 {
        self.msr(vcpu, 0x10)
    }

    /// One of a vCPU's MSRs.
    pub fn msr(&self, vcpu: usize, index: u32) -> u64 {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).expect("MSRs");
        assert_eq!(self.vcpus[vcpu].get_msrs(&mut msrs).expect("TSC"), 1);
        msrs.as_slice()[0].data
    }

    /// What a crash, a dump and a restore do: the VM goes, its memory is
    /// somewhere else for a while, and all is made anew from the dataset.
    pub fn crash_and_restore(self) -> Self {
        self.crash_and_restore_edited(|_, _| {})
            .unwrap_or_else(|e| panic!("{}", chain(&e)))
    }

    /// The same, of a dataset and memory that were changed on their way.
    pub fn crash_and_restore_edited(
        mut self,
        edit: impl FnOnce(&mut Vm, &mut [u8]),
    ) -> Result<Self, KvmError> {
        let mut snapshot = crate::snapshot::read(&mut self);
        let mut memory = self.memory_bytes();
        edit(&mut snapshot, &mut memory);
        let Self {
            vcpus,
            vm,
            kvm,
            memory: mapping,
            chips,
            wiring,
            caps,
        } = self;
        drop((vcpus, vm, kvm));
        let put = |bytes: &[u8]| mapping.write_slice(bytes, GuestAddress(0)).expect("memory");
        put(&vec![0xcc; MEMORY]);

        let json = serde_json::to_string(&[snapshot]).expect("JSON");
        let vms: Vec<Vm> = serde_json::from_str(&json).expect("JSON");
        // SAFETY: the calls are KVM's, on descriptors that they make.
        let mut sys = unsafe { LocalSyscalls::new() };
        let eventfds = |id| wiring.eventfds.get(&id).map(AsRawFd::as_raw_fd);
        let files = kvm::create(&mut sys, &vms, &eventfds)?;
        if arriving::wanted() {
            let at = mapping.get_host_address(GuestAddress(0)).expect("address");
            arriving::later(at as u64, memory);
        } else {
            put(&memory);
        }
        let notes = kvm::finish(&mut sys, &vms, &files, &eventfds)?;
        for note in notes.iter().filter(|n| n.level == FidelityLevel::Lost) {
            eprintln!("lost: {} {}: {}", note.subject, note.what, note.how);
        }

        // SAFETY: the descriptors are fresh, and nobody else owns them.
        unsafe {
            let kvm = Kvm::from_raw_fd(files.system);
            let vm = kvm
                .create_vmfd_from_rawfd(files.vms[&vms[0].id])
                .expect("VM");
            let vcpus = (vms[0].vcpus.iter())
                .map(|vcpu| {
                    vm.create_vcpu_from_rawfd(files.vcpus[&vcpu.id])
                        .expect("vCPU")
                })
                .collect();
            Ok(Self {
                vcpus,
                vm,
                kvm,
                memory: mapping,
                chips,
                wiring,
                caps,
            })
        }
    }

    /// All of the guest's memory.
    pub fn memory_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY];
        self.memory
            .read_slice(&mut bytes, GuestAddress(0))
            .expect("memory");
        bytes
    }
}

/// Runs a vCPU up to its next exit, which stays unhandled; whether there was
/// one.
pub fn run(vcpu: &mut VcpuFd) -> bool {
    match vcpu.run() {
        Ok(VcpuExit::Intr) => false,
        Ok(_) => true,
        Err(e) if e.errno() == libc::EINTR => false,
        Err(e) => panic!("KVM_RUN: {e}"),
    }
}

/// Runs a vCPU through one exit; whether there was one.
pub fn step(vcpu: &mut VcpuFd, device: &mut Device) -> bool {
    let exited = run(vcpu);
    if exited {
        handle_pending(vcpu, device);
    }
    exited
}

/// Handles the exit that waits in kvm_run.
pub fn handle_pending(vcpu: &mut VcpuFd, device: &mut Device) {
    let run = std::ptr::from_mut(vcpu.get_kvm_run());
    // SAFETY: the run area is mapped as long as the vCPU; nobody else has
    // a reference to it; the kernel wrote it.
    unsafe { handle_exit(run, device) };
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
