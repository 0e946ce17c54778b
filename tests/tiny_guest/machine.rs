//! A VMM of the smallest kind: memory, vCPUs and one device.

use crate::programs::{FAULT_PORT, Mode, program};
use kvm_bindings::*;
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmrestore::dataset::{FidelityLevel, IoEventFd, IrqFd, IrqRoute, IrqRouteTarget, ObjectId, Vm};
use vmrestore::restore::kvm::{self, KvmError};
use vmrestore::sys::local_syscalls::LocalSyscalls;

pub const MEMORY: usize = 1 << 20;
const GDT: u64 = 0x500;
pub const IDT: u64 = 0x600;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
pub const CODE: u64 = 0x8000;
const CODE_SIZE: usize = 0x800;
const HANDLER: u64 = 0x9000;
const STACK_TOP: u64 = 0x7ff0;
pub const DATA: u64 = 0x10000;

/// What crossed the border between guest and device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Out { port: u16, data: Vec<u8> },
    In { port: u16, data: Vec<u8> },
    Write { address: u64, data: Vec<u8> },
    Read { address: u64, data: Vec<u8> },
}

/// A device whose every answer is another, so that an answer given twice, or
/// one that the guest never got, shows.
#[derive(Default)]
pub struct Device {
    answers: u32,
    pub log: Vec<Event>,
}

impl Device {
    fn answer(&mut self, data: &mut [u8]) -> Vec<u8> {
        for byte in data.iter_mut() {
            self.answers = self
                .answers
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            *byte = (self.answers >> 24) as u8;
        }
        data.to_vec()
    }

    fn handle(&mut self, exit: VcpuExit) {
        let event = match exit {
            VcpuExit::IoOut(FAULT_PORT, data) => panic!("the guest found fault {data:?}"),
            VcpuExit::IoOut(port, data) => Event::Out {
                port,
                data: data.to_vec(),
            },
            VcpuExit::IoIn(port, data) => Event::In {
                port,
                data: self.answer(data),
            },
            VcpuExit::MmioWrite(address, data) => Event::Write {
                address,
                data: data.to_vec(),
            },
            VcpuExit::MmioRead(address, data) => Event::Read {
                address,
                data: self.answer(data),
            },
            other => panic!("unexpected exit {other:?}; log ends {:?}", self.tail()),
        };
        self.log.push(event);
    }

    fn tail(&self) -> &[Event] {
        &self.log[self.log.len().saturating_sub(3)..]
    }

    /// The bytes written to a port.
    pub fn said(&self, wanted: u16) -> String {
        let bytes = self.log.iter().filter_map(|event| match event {
            Event::Out { port, data } if *port == wanted => Some(data.as_slice()),
            _ => None,
        });
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>().concat()).into_owned()
    }
}

/// A VM with its memory. Fields are dropped in this order.
pub struct Machine {
    pub vcpus: Vec<VcpuFd>,
    pub vm: VmFd,
    pub kvm: Kvm,
    pub memory: GuestMemoryMmap,
    pub chips: Chips,
    pub wiring: Wiring,
}

/// What was wired to the VM; KVM has no call that would say.
#[derive(Default)]
pub struct Wiring {
    pub routes: Vec<IrqRoute>,
    pub irqfds: Vec<IrqFd>,
    pub ioeventfds: Vec<IoEventFd>,
    pub eventfds: BTreeMap<ObjectId, EventFd>,
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
        put(&memory);
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

/// Handles an exit.
///
/// # Safety
/// `run` is the start of a vCPU's area, or of a copy of its first two pages,
/// as the kernel wrote it.
pub unsafe fn handle_exit(run: *mut kvm_run, device: &mut Device) {
    // SAFETY: the caller's promise; the exit reason names the union's member,
    // and data_offset lies within the area.
    let exit = unsafe {
        match (*run).exit_reason {
            KVM_EXIT_IO => {
                let io = (*run).__bindgen_anon_1.io;
                let at = run.cast::<u8>().add(io.data_offset as usize);
                let len = usize::from(io.size) * io.count as usize;
                let data = std::slice::from_raw_parts_mut(at, len);
                match u32::from(io.direction) {
                    KVM_EXIT_IO_IN => VcpuExit::IoIn(io.port, data),
                    _ => VcpuExit::IoOut(io.port, data),
                }
            }
            KVM_EXIT_MMIO => {
                let mmio = &mut (*run).__bindgen_anon_1.mmio;
                let data = &mut mmio.data[..mmio.len as usize];
                match mmio.is_write {
                    0 => VcpuExit::MmioRead(mmio.phys_addr, data),
                    _ => VcpuExit::MmioWrite(mmio.phys_addr, data),
                }
            }
            reason => panic!("no exit of a device waits, but reason {reason}"),
        }
    };
    device.handle(exit);
}

const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;

fn descriptor(mode: Mode, code: bool) -> (u64, kvm_segment) {
    let long = u8::from(code && mode == Mode::Long);
    let type_ = if code { 0xb } else { 3 };
    let db = 1 - long;
    let flags = 0xc000 & !(u64::from(long) << 14) | u64::from(long) << 13;
    let access = 0x90 | u64::from(type_);
    let raw = 0xffff | (access | flags | 0xf00) << 40;
    let segment = kvm_segment {
        limit: 0xffff_ffff,
        selector: if code { CODE_SELECTOR } else { DATA_SELECTOR },
        type_,
        present: 1,
        db,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    };
    (raw, segment)
}

fn write_tables(memory: &GuestMemoryMmap, mode: Mode) {
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).expect("tables");
    put(GDT + u64::from(CODE_SELECTOR), descriptor(mode, true).0);
    put(GDT + u64::from(DATA_SELECTOR), descriptor(mode, false).0);
    // Present, writable; the first GiB in pages of 2 MiB.
    put(PML4, PDPT | 3);
    put(PDPT, PAGE_DIRECTORY | 3);
    for n in 0..512 {
        put(PAGE_DIRECTORY + n * 8, n << 21 | 0x83);
    }
}

fn write_gate(memory: &GuestMemoryMmap, mode: Mode, vector: u8, handler: u64) {
    let low = handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32;
    let (size, raw) = match mode {
        Mode::Long => (16, low),
        Mode::Protected => (8, low),
    };
    let at = IDT + u64::from(vector) * size;
    memory.write_obj(raw, GuestAddress(at)).expect("IDT");
}

fn start(vcpu: &VcpuFd, mode: Mode, id: u64, chips: Chips) {
    let mut sregs = vcpu.get_sregs().expect("sregs");
    let data = descriptor(mode, false).1;
    sregs.cs = descriptor(mode, true).1;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 23,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 0x4ff,
        ..Default::default()
    };
    const PE_MP_ET_NE: u64 = 0x33;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const OSFXSR_OSXMMEXCPT: u64 = 0x600;
    const LME_LMA: u64 = 0x500;
    const X2APIC_ENABLED: u64 = 0xc00;
    sregs.cr0 = PE_MP_ET_NE;
    sregs.cr4 = OSFXSR_OSXMMEXCPT;
    if mode == Mode::Long {
        sregs.cr0 |= PG;
        sregs.cr3 = PML4;
        sregs.cr4 |= PAE;
        sregs.efer = LME_LMA;
    }
    if chips != Chips::None {
        sregs.apic_base |= X2APIC_ENABLED;
    }
    vcpu.set_sregs(&sregs).expect("sregs");
    vcpu.set_regs(&kvm_regs {
        rip: CODE + id * CODE_SIZE as u64,
        rflags: 2,
        rsp: STACK_TOP - id * 0x400,
        rbx: DATA + id * 0x4000,
        rbp: 0x1234_5678,
        ..Default::default()
    })
    .expect("regs");
    // XMM1: each 32-bit lane 1. (KVM_SET_FPU would leave XSTATE_BV alone, and
    // the CPU take the registers for unused.)
    const MXCSR: usize = 24 / 4;
    const XMM1: usize = 176 / 4;
    const XSTATE_BV: usize = 512 / 4;
    let mut xsave = vcpu.get_xsave().expect("XSAVE");
    xsave.region[MXCSR] = 0x1f80;
    xsave.region[XMM1..XMM1 + 4].fill(1);
    xsave.region[XSTATE_BV] |= 3;
    // SAFETY: without AMX, KVM reads no more than the struct's 4096 bytes.
    unsafe { vcpu.set_xsave(&xsave) }.expect("XSAVE");
    if chips != Chips::None {
        let state = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.set_mp_state(state).expect("mp_state");
    }
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
