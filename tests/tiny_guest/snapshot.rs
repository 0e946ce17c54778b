//! Reads a stopped VM as a dump's reader would describe it: with KVM's own GET
//! calls and none of vmrestore's code but the dataset's types.

use crate::machine::{Chips, Machine};
use kvm_bindings::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmrestore::dataset as d;

pub const VM_ID: d::ObjectId = d::ObjectId(0xffff_8880_0001_0000);

fn vcpu_id(n: usize) -> d::ObjectId {
    d::ObjectId(VM_ID.0 + 0x1000 * (n as u64 + 1))
}

/// The VM, and its vCPUs in order.
pub fn read(machine: &mut Machine) -> d::Vm {
    let vcpus: Vec<_> = (0..machine.vcpus.len())
        .map(|n| read_vcpu(machine, n))
        .collect();
    let (irqchip, pit) = read_irqchip(machine);
    d::Vm {
        id: VM_ID,
        pid: 1,
        name: Some("tiny".into()),
        uuid: None,
        vendor: "svm".into(),
        vm_type: 0,
        memslots: vec![d::Memslot {
            slot: 0,
            address_space: 0,
            flags: 0,
            guest_address: 0,
            size: crate::machine::MEMORY as u64,
            user_address: machine
                .memory
                .get_host_address(GuestAddress(0))
                .expect("address") as u64,
        }],
        irqchip,
        pit,
        routes: machine.wiring.routes.clone(),
        irqfds: machine.wiring.irqfds.clone(),
        ioeventfds: machine.wiring.ioeventfds.clone(),
        coalesced_zones: machine.wiring.zones.clone(),
        clock: d::VmClock {
            clock_ns: machine.vm.get_clock().expect("clock").clock,
            realtime_ns: None,
        },
        default_tsc_khz: 0,
        caps: machine.caps.clone(),
        tss_addr: (machine.chips == Chips::Kernel).then_some(0xfffb_d000),
        identity_map_addr: None,
        vcpus,
    }
}

fn read_vcpu(machine: &mut Machine, n: usize) -> d::Vcpu {
    let exit_in_flight = exit_in_flight(machine, n);
    let msr_indices = machine.kvm.get_msr_index_list().expect("MSR list");
    let vcpu = &mut machine.vcpus[n];
    // SAFETY: three pages of the vCPU's area are mapped as long as it lives,
    // and its thread does not run.
    let run_pages = unsafe {
        let start = std::ptr::from_mut(vcpu.get_kvm_run()).cast::<u8>();
        (0..3)
            .map(|page| std::slice::from_raw_parts(start.add(page * 4096), 4096).to_vec())
            .map(d::Blob)
            .collect()
    };
    let msrs: Vec<_> = msr_indices
        .as_slice()
        .iter()
        .filter_map(|&index| {
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            let mut one = Msrs::from_entries(&[entry]).expect("MSRs");
            (vcpu.get_msrs(&mut one).ok()? == 1).then(|| d::MsrEntry {
                index,
                value: one.as_slice()[0].data,
            })
        })
        .collect();
    // First: a start-up IPI that waits is taken now, and changes registers.
    let mp_state = vcpu.get_mp_state().expect("mp_state").mp_state;
    let r = vcpu.get_regs().expect("regs");
    let debug = vcpu.get_debug_regs().expect("debug registers");
    let xsave = vcpu.get_xsave().expect("XSAVE");
    let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).expect("CPUID");
    let nested = nested(vcpu).map(d::Blob);
    let lapic = (machine.chips != Chips::None).then(|| d::Lapic {
        regs: d::Blob(
            (vcpu.get_lapic().expect("LAPIC").regs.iter())
                .map(|b| *b as u8)
                .collect(),
        ),
    });
    // Machine checks as far as the VMM has set them up: MCG_CAP.
    let mcg_cap = msrs
        .iter()
        .find(|m: &&d::MsrEntry| m.index == 0x179)
        .map_or(0, |m| m.value);
    d::Vcpu {
        id: vcpu_id(n),
        vcpu_id: n as u32,
        tid: 1,
        activity: d::VcpuActivity::InVmm,
        regs: d::VcpuRegs {
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rsp: r.rsp,
            rbp: r.rbp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            rip: r.rip,
            rflags: r.rflags,
        },
        sregs: system_regs(&vcpu.get_sregs().expect("sregs")),
        debug: d::DebugRegs {
            db: debug.db,
            dr6: debug.dr6,
            dr7: debug.dr7,
        },
        xcr0: vcpu.get_xcrs().expect("XCRS").xcrs[0].value,
        xsave: d::Blob(xsave.region.iter().flat_map(|w| w.to_le_bytes()).collect()),
        fpu_stale: false,
        cpuid: cpuid
            .as_slice()
            .iter()
            .map(|e| d::CpuidEntry {
                function: e.function,
                index: e.index,
                flags: e.flags,
                eax: e.eax,
                ebx: e.ebx,
                ecx: e.ecx,
                edx: e.edx,
            })
            .collect(),
        lapic,
        msrs,
        tsc_khz: vcpu.get_tsc_khz().expect("TSC kHz"),
        mcg_cap,
        events: events(&vcpu.get_vcpu_events().expect("events")),
        mp_state,
        nested,
        signal_mask: None,
        vapic_addr: 0,
        tpr_access_reporting: false,
        guest_debug: 0,
        enforce_pv_cpuid: false,
        run_pages,
        exit_in_flight,
        exit_unreported: false,
    }
}

/// What KVM_GET_NESTED_STATE says of a vCPU that has SVM on.
pub fn nested(vcpu: &kvm_ioctls::VcpuFd) -> Option<Vec<u8>> {
    const SVME: u64 = 1 << 12;
    if vcpu.get_sregs().expect("sregs").efer & SVME == 0 {
        return None;
    }
    // struct kvm_nested_state with one VMCB: flags, format, size; header; data.
    const KVM_GET_NESTED_STATE: u64 = 0xc080_aebe;
    let mut words = vec![0_u64; (128 + 8192) / 8];
    words[0] = (128 + 8192) << 32;
    // SAFETY: KVM writes no more than the size that it is told.
    let done = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(vcpu),
            KVM_GET_NESTED_STATE as _,
            words.as_mut_ptr(),
        )
    };
    assert_eq!(done, 0, "KVM_GET_NESTED_STATE");
    let len = (words[0] >> 32) as usize;
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.truncate(len);
    Some(bytes)
}

/// What `arch.complete_userspace_io` of the dead kernel would have been. KVM
/// sets it for reads of any kind, for MMIO writes, and for those port writes
/// whose instruction it has not gone past: RIP is at an OUT still.
fn exit_in_flight(machine: &mut Machine, n: usize) -> Option<d::ExitInFlight> {
    let rip = machine.vcpus[n].get_regs().expect("regs").rip;
    let opcode: u8 = machine.memory.read_obj(GuestAddress(rip)).expect("opcode");
    let run = machine.vcpus[n].get_kvm_run();
    let reason = run.exit_reason;
    let completion = match reason {
        KVM_EXIT_MMIO => "complete_emulated_mmio",
        KVM_EXIT_IO => {
            // SAFETY: the exit reason says that this member was written.
            let io = unsafe { run.__bindgen_anon_1.io };
            match (u32::from(io.direction), opcode, io.port) {
                (KVM_EXIT_IO_IN, ..) => "complete_fast_pio_in",
                (_, _, 0x7e) => "complete_fast_pio_out_port_0x7e",
                (_, 0xe6 | 0xe7 | 0xee | 0xef, _) => "complete_fast_pio_out",
                _ => return None,
            }
        }
        KVM_EXIT_X86_RDMSR => "complete_fast_rdmsr",
        KVM_EXIT_X86_WRMSR => "complete_fast_msr_access",
        KVM_EXIT_HYPERCALL => "complete_hypercall_exit",
        _ => return None,
    };
    Some(d::ExitInFlight {
        reason,
        completion: completion.into(),
        mmio_write: Vec::new(),
        mmio_answered: d::Blob(Vec::new()),
        refused: None,
    })
}

fn segment(s: &kvm_segment) -> d::Segment {
    d::Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_,
        present: s.present,
        dpl: s.dpl,
        db: s.db,
        s: s.s,
        l: s.l,
        g: s.g,
        avl: s.avl,
        unusable: s.unusable,
    }
}

fn system_regs(s: &kvm_sregs) -> d::SystemRegs {
    let table = |t: &kvm_dtable| d::TablePointer {
        base: t.base,
        limit: t.limit,
    };
    d::SystemRegs {
        cs: segment(&s.cs),
        ds: segment(&s.ds),
        es: segment(&s.es),
        fs: segment(&s.fs),
        gs: segment(&s.gs),
        ss: segment(&s.ss),
        tr: segment(&s.tr),
        ldt: segment(&s.ldt),
        gdt: table(&s.gdt),
        idt: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        pdptrs: None,
    }
}

fn events(e: &kvm_vcpu_events) -> d::VcpuEvents {
    d::VcpuEvents {
        exception_injected: e.exception.injected != 0,
        exception_pending: e.exception.pending != 0,
        exception_nr: e.exception.nr,
        exception_has_error_code: e.exception.has_error_code != 0,
        exception_error_code: e.exception.error_code,
        exception_payload: (e.exception_has_payload != 0).then_some(e.exception_payload),
        interrupt_injected: e.interrupt.injected != 0,
        interrupt_nr: e.interrupt.nr,
        interrupt_soft: e.interrupt.soft != 0,
        interrupt_shadow: e.interrupt.shadow,
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: e.nmi.pending,
        nmi_masked: e.nmi.masked != 0,
        sipi_vector: e.sipi_vector,
        smm: e.smi.smm != 0,
        smi_pending: e.smi.pending != 0,
        smm_inside_nmi: e.smi.smm_inside_nmi != 0,
        smi_latched_init: e.smi.latched_init != 0,
        triple_fault_pending: e.triple_fault.pending != 0,
    }
}

fn read_irqchip(machine: &Machine) -> (d::Irqchip, Option<d::Pit>) {
    match machine.chips {
        Chips::None => return (d::Irqchip::None, None),
        Chips::Split => return (d::Irqchip::Split { ioapic_pins: 24 }, None),
        Chips::Kernel => {}
    }
    let chip = |chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        machine.vm.get_irqchip(&mut chip).expect("irqchip");
        // SAFETY: the dummy covers the whole union.
        unsafe { chip.chip.dummy }.map(|c| c as u8)
    };
    let pic = |n| d::Pic {
        bytes: chip(n)[..16].try_into().expect("16 bytes"),
    };
    let io = chip(KVM_IRQCHIP_IOAPIC);
    let u32_at = |at: usize| u32::from_le_bytes(io[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(io[at..at + 8].try_into().expect("8 bytes"));
    let ioapic = d::IoApic {
        base_address: u64_at(0),
        ioregsel: u32_at(8),
        id: u32_at(12),
        irr: u32_at(16),
        redirection: std::array::from_fn(|n| u64_at(24 + n * 8)),
    };
    let pit = machine.vm.get_pit2().expect("PIT");
    let pit = d::Pit {
        channels: pit.channels.map(|c| d::PitChannel {
            count: c.count,
            latched_count: c.latched_count,
            count_latched: c.count_latched,
            status_latched: c.status_latched,
            status: c.status,
            read_state: c.read_state,
            write_state: c.write_state,
            write_latch: c.write_latch,
            rw_mode: c.rw_mode,
            mode: c.mode,
            bcd: c.bcd,
            gate: c.gate,
            count_load_time: c.count_load_time,
        }),
        flags: pit.flags,
        reinject: true,
        create_flags: 0,
    };
    let pics = Box::new([pic(0), pic(1)]);
    let ioapic = Box::new(ioapic);
    (d::Irqchip::Kernel { pics, ioapic }, Some(pit))
}
