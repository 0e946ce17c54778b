//! Machines in every state that KVM can be told of, none of which a new one
//! has.

use crate::boot::{DATA, IDT};
use crate::machine::{Chips, Machine};
use crate::programs::Mode;
use crate::state::{all_msrs, read_msr, write_msr};
use kvm_bindings::*;

/// A machine that is in one of them.
pub struct Odd {
    pub name: &'static str,
    pub machine: Machine,
    /// KVM_GET_MP_STATE lets a start-up IPI that waits be taken.
    pub asking_changes_it: bool,
}

/// What makes a machine odd.
type Make = fn(&mut Machine);

/// All of them, one machine each.
pub fn machines() -> Vec<Odd> {
    let all: [(&'static str, Chips, Make); 22] = [
        (
            "interrupt in delivery, in STI's shadow",
            Chips::Kernel,
            |m| {
                events(m, |e| {
                    e.interrupt.injected = 1;
                    e.interrupt.nr = 0x77;
                    e.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
                    e.flags |= KVM_VCPUEVENT_VALID_SHADOW;
                });
            },
        ),
        ("page fault in delivery", Chips::Split, |m| {
            events(m, |e| {
                e.exception.injected = 1;
                e.exception.nr = 14;
                e.exception.has_error_code = 1;
                e.exception.error_code = 6;
            });
            let mut sregs = m.vcpus[0].get_sregs().expect("sregs");
            sregs.cr2 = 0xdead_b000;
            m.vcpus[0].set_sregs(&sregs).expect("sregs");
        }),
        ("exception with a payload", Chips::Split, |m| {
            m.deliver_payloads();
            events(m, |e| {
                e.exception.pending = 1;
                e.exception.nr = 1;
                e.exception_has_payload = 1;
                e.exception_payload = 0x4000;
                e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
            });
        }),
        ("NMI in delivery, another waiting", Chips::Split, |m| {
            events(m, |e| {
                e.nmi.injected = 1;
                e.nmi.pending = 1;
                e.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
            });
        }),
        ("NMI masked, one waiting", Chips::Kernel, |m| {
            events(m, |e| {
                e.nmi.masked = 1;
                e.nmi.pending = 1;
                e.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
            });
        }),
        ("SMI waiting", Chips::Kernel, |m| {
            events(m, |e| {
                e.smi.pending = 1;
                e.flags |= KVM_VCPUEVENT_VALID_SMM;
            });
        }),
        (
            "in system management mode, inside an NMI",
            Chips::Kernel,
            |m| {
                events(m, |e| {
                    e.smi.smm = 1;
                    e.smi.smm_inside_nmi = 1;
                    e.nmi.masked = 1;
                    e.flags |= KVM_VCPUEVENT_VALID_SMM;
                });
            },
        ),
        ("triple fault waiting", Chips::Kernel, |m| {
            // Since Linux 6.0.
            if !m.report_triple_faults() {
                return;
            }
            events(m, |e| {
                e.triple_fault.pending = 1;
                e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            });
        }),
        ("halted", Chips::Kernel, |m| {
            mp_state(m, KVM_MP_STATE_HALTED)
        }),
        ("waiting for INIT", Chips::Kernel, |m| {
            mp_state(m, KVM_MP_STATE_UNINITIALIZED);
        }),
        ("waiting for SIPI", Chips::Kernel, |m| {
            mp_state(m, KVM_MP_STATE_INIT_RECEIVED);
        }),
        ("SIPI received", Chips::Kernel, |m| {
            events(m, |e| {
                e.sipi_vector = 0x9a;
                e.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
            });
            mp_state(m, KVM_MP_STATE_SIPI_RECEIVED);
        }),
        ("debug registers", Chips::Kernel, |m| {
            let debug = kvm_debugregs {
                db: [0x1111, 0x2222, 0x3333, 0x4444],
                dr6: 0xffff_4ff1,
                dr7: 0x0333_0455,
                ..Default::default()
            };
            m.vcpus[0].set_debug_regs(&debug).expect("debug registers");
        }),
        ("segments", Chips::Split, segments),
        ("registers and vector registers", Chips::None, registers),
        ("one-shot timer", Chips::Split, |m| timer(m, 0x40)),
        ("periodic timer", Chips::Kernel, |m| timer(m, 0x2_0040)),
        ("timer at a TSC deadline", Chips::Kernel, deadline),
        (
            "LAPIC with interrupts requested and in service",
            Chips::Kernel,
            lapic,
        ),
        ("PICs, IOAPIC and PIT", Chips::Kernel, chips),
        ("every MSR changed", Chips::Kernel, msrs),
        ("filters and switches of the VM", Chips::Kernel, |m| {
            m.filter()
        }),
    ];
    all.into_iter()
        .map(|(name, chips, make)| {
            let mut machine = Machine::new(Mode::Long, &["exits"], chips);
            make(&mut machine);
            Odd {
                name,
                machine,
                asking_changes_it: name.starts_with("SIPI"),
            }
        })
        .collect()
}

fn events(machine: &mut Machine, change: impl Fn(&mut kvm_vcpu_events)) {
    let mut events = machine.vcpus[0].get_vcpu_events().expect("events");
    change(&mut events);
    // A KVM without SMM, say, has no such state to bring back.
    if let Err(error) = machine.vcpus[0].set_vcpu_events(&events) {
        eprintln!("\n*** this KVM takes no such events ({error}): {events:?} ***\n");
    }
}

fn mp_state(machine: &mut Machine, mp_state: u32) {
    let state = kvm_mp_state { mp_state };
    machine.vcpus[0].set_mp_state(state).expect("mp_state");
}

fn segments(machine: &mut Machine) {
    let mut s = machine.vcpus[0].get_sregs().expect("sregs");
    let data = s.ds;
    s.fs = kvm_segment {
        base: 0x7fff_1234_5000,
        selector: 0x2b,
        dpl: 3,
        ..data
    };
    s.gs = kvm_segment {
        base: 0xffff_8880_0000_1000,
        selector: 0,
        ..data
    };
    s.es = kvm_segment {
        limit: 0x1_2fff,
        g: 0,
        type_: 1,
        avl: 1,
        ..data
    };
    s.tr = kvm_segment {
        base: 0x5000,
        limit: 0x67,
        selector: 0x40,
        type_: 11,
        present: 1,
        s: 0,
        ..Default::default()
    };
    s.ldt = kvm_segment {
        base: 0x6000,
        limit: 0xfff,
        selector: 0x48,
        type_: 2,
        present: 1,
        s: 0,
        ..Default::default()
    };
    s.gdt = kvm_dtable {
        base: 0x500,
        limit: 0x77,
        ..Default::default()
    };
    s.idt = kvm_dtable {
        base: IDT,
        limit: 0x123,
        ..Default::default()
    };
    s.cr2 = 0x1234_5678_9abc;
    s.cr8 = 0x9;
    s.cr4 |= 1 << 2 | 1 << 7; // TSD, PGE
    s.efer |= 1 << 11 | 1; // NXE, SCE
    machine.vcpus[0].set_sregs(&s).expect("sregs");
}

fn registers(machine: &mut Machine) {
    let old = machine.vcpus[0].get_regs().expect("regs");
    let regs = kvm_regs {
        rax: 0x0101_0101_0101_0101,
        rcx: 0x0202_0202_0202_0202,
        rdx: 0x0303_0303_0303_0303,
        rsi: 0x0404_0404_0404_0404,
        rdi: 0x0505_0505_0505_0505,
        r8: 0x0808_0808_0808_0808,
        r9: 0x0909_0909_0909_0909,
        r10: 0x1010_1010_1010_1010,
        r11: 0x1111_1111_1111_1111,
        r12: 0x1212_1212_1212_1212,
        r13: 0x1313_1313_1313_1313,
        r14: 0x1414_1414_1414_1414,
        r15: 0x1515_1515_1515_1515,
        rflags: 0x0021_0cd7,
        ..old
    };
    machine.vcpus[0].set_regs(&regs).expect("regs");
    // As many of XCR0's components as the CPU has, each with a pattern.
    let mut xcrs = machine.vcpus[0].get_xcrs().expect("XCRS");
    xcrs.xcrs[0].value = 7;
    let avx = machine.vcpus[0].set_xcrs(&xcrs).is_ok();
    let mut xsave = machine.vcpus[0].get_xsave().expect("XSAVE");
    let words = if avx { 832 / 4 } else { 416 / 4 };
    for (at, word) in xsave.region.iter_mut().enumerate().take(words) {
        let registers = (40..104).contains(&at) || (144..208).contains(&at);
        if registers {
            *word = 0x0107_0d13_u32.wrapping_mul(at as u32 + 1);
        }
    }
    // FCW, FSW, FTW; MXCSR; which components are in use.
    xsave.region[0] = 0x0001_037e;
    xsave.region[1] = 0x0000_0080;
    xsave.region[6] = 0x0000_1fa1;
    xsave.region[128] = if avx { 7 } else { 3 };
    // SAFETY: without AMX, KVM reads no more than the struct's 4096 bytes.
    unsafe { machine.vcpus[0].set_xsave(&xsave) }.expect("XSAVE");
}

fn set_lapic(machine: &mut Machine, registers: &[(usize, u32)]) {
    let mut lapic = machine.vcpus[0].get_lapic().expect("LAPIC");
    for &(register, value) in registers {
        for (byte, place) in value.to_le_bytes().iter().zip(&mut lapic.regs[register..]) {
            *place = *byte as _;
        }
    }
    machine.vcpus[0].set_lapic(&lapic).expect("LAPIC");
}

/// 549 s by a bus of 1 GHz, divided by 128: more than any test takes.
fn timer(machine: &mut Machine, lvt: u32) {
    const LONGEST: u32 = u32::MAX;
    set_lapic(
        machine,
        &[
            (0xf0, 0x1ff),
            (0x320, lvt),
            (0x3e0, 0xa),
            (0x380, LONGEST),
            // What is left of it.
            (0x390, LONGEST),
        ],
    );
}

fn deadline(machine: &mut Machine) {
    set_lapic(machine, &[(0xf0, 0x1ff), (0x320, 0x4_0040)]);
    let khz = u64::from(machine.vcpus[0].get_tsc_khz().expect("TSC kHz"));
    let then = machine.tsc(0) + khz * 1000 * 3000;
    assert!(write_msr(machine, 0, 0x6e0, then), "TSC deadline");
    assert_eq!(machine.msr(0, 0x6e0), then, "TSC deadline");
}

fn lapic(machine: &mut Machine) {
    set_lapic(
        machine,
        &[
            (0x80, 0x20),      // TPR
            (0xf0, 0x1ff),     // enabled
            (0x110, 1 << 8),   // in service: 0x28
            (0x180, 1 << 1),   // level-triggered: 0x81
            (0x210, 1 << 8),   // requested: 0x28, below the TPR's class or in service
            (0x240, 1 << 1),   // requested: 0x81
            (0x340, 0x1_0400), // performance counters: NMI, masked
            (0x350, 0x700),    // LINT0: ExtINT
            (0x360, 0x400),    // LINT1: NMI
            (0x370, 0xfe),     // error
            (0x310, 3),        // ICR's upper half
            (0x300, 0x4_00f3), // and lower
        ],
    );
}

fn chips(machine: &mut Machine) {
    for chip_id in 0..2_u32 {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        machine.vm.get_irqchip(&mut chip).expect("PIC");
        let pic = kvm_pic_state {
            imr: 0xb8 + chip_id as u8,
            isr: 0x04,
            irq_base: 0x30 + 8 * chip_id as u8,
            read_reg_select: 1,
            init4: 1,
            elcr: if chip_id == 0 { 0x20 } else { 0x0c },
            elcr_mask: if chip_id == 0 { 0xf8 } else { 0xde },
            special_mask: 1,
            priority_add: 3,
            ..Default::default()
        };
        chip.chip.pic = pic;
        machine.vm.set_irqchip(&chip).expect("PIC");
    }
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    machine.vm.get_irqchip(&mut chip).expect("IOAPIC");
    // SAFETY: KVM has filled this member.
    let mut ioapic = unsafe { chip.chip.ioapic };
    ioapic.id = 5;
    ioapic.ioregsel = 0x12;
    for pin in 0..24_u64 {
        // Level-triggered and in service (remote IRR) where the pin is odd; masked.
        let level = if pin % 2 == 1 { 1 << 15 | 1 << 14 } else { 0 };
        ioapic.redirtbl[pin as usize].bits = (pin + 0x50) | level | 1 << 16 | pin << 56;
    }
    // One that is not masked, whose handler runs.
    ioapic.redirtbl[11].bits = 0x61 | 1 << 15 | 1 << 14;
    chip.chip.ioapic = ioapic;
    machine.vm.set_irqchip(&chip).expect("IOAPIC");

    let mut pit = machine.vm.get_pit2().expect("PIT");
    for (n, channel) in pit.channels.iter_mut().enumerate() {
        channel.count = 0x1234 + n as u32;
        channel.mode = [2, 0, 3][n];
        channel.rw_mode = 3;
        channel.gate = 1;
        channel.latched_count = 0x4321;
        channel.count_latched = 1;
        channel.read_state = 3;
        channel.write_state = 3;
        channel.write_latch = 0x5a;
        channel.status_latched = 1;
        channel.status = 0xb4;
        channel.bcd = 0;
    }
    machine.vm.set_pit2(&pit).expect("PIT");
}

/// Gives every MSR that this KVM lists another value, where it takes one.
fn msrs(machine: &mut Machine) {
    // Those that mean an address in the guest's memory, or that depend on others.
    let page = DATA + 0x8000;
    let special = [
        (0x1b, None),        // the LAPIC's mode: `apic_base` says it
        (0x10, None),        // a clock
        (0x6e0, None),       // `deadline`
        (0xc000_0080, None), // `efer`
        (0x4b56_4d00, Some(page)),
        (0x4b56_4d01, Some((page + 0x40) | 1)),
        (0x11, Some(page + 0x80)),
        (0x12, None), // the older number of 0x4b564d01
        (0x4b56_4d02, Some((page + 0x100) | 1)),
        (0x4b56_4d03, Some((page + 0x140) | 1)),
        (0x4b56_4d04, Some((page + 0x180) | 1)),
        (0x4b56_4d05, Some(0)),
        (0x4b56_4d06, Some(0x60)),
        (0x4b56_4d07, None), // a command
        (0x277, Some(0x0001_0406_0007_0406)),
    ];
    for (index, was) in all_msrs(machine, 0) {
        if let Some((_, value)) = special.iter().find(|(special, _)| *special == index) {
            if let Some(value) = value {
                write_msr(machine, 0, index, *value);
            }
            continue;
        }
        let tries = [
            was ^ 0x0000_7f12_3456_7000,
            was ^ 0x1234_5678,
            was ^ 0x7000,
            was ^ 0x1000,
            was ^ 0x800,
            was ^ 0x100,
            was ^ 6,
            was ^ 1,
        ];
        tries.into_iter().any(|value| {
            write_msr(machine, 0, index, value) && read_msr(machine, 0, index) == Some(value)
        });
    }
}
