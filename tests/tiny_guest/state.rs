//! Everything that KVM says of a VM, read before and after, and compared.
//!
//! Values are kept by name, as KVM_GET_* gave them; what may differ, and by how
//! much, is said here and nowhere else.

use crate::machine::{Chips, Machine};
use kvm_bindings::*;
use std::collections::BTreeMap;

/// Values by name: "vcpu 0 rax".
pub struct State(BTreeMap<String, u64>);

/// How long the machine may have been away while its clocks ran. Seconds.
const AWAY_S: u64 = 300;

impl State {
    /// Reads all of it.
    pub fn of(machine: &mut Machine) -> State {
        let mut state = State(BTreeMap::new());
        for n in 0..machine.vcpus.len() {
            state.vcpu(machine, n);
        }
        state.shared(machine);
        state
    }

    fn put(&mut self, name: impl Into<String>, value: impl Into<u64>) {
        self.0.insert(name.into(), value.into());
    }

    fn vcpu(&mut self, machine: &mut Machine, n: usize) {
        let vcpu = &machine.vcpus[n];
        // First: a start-up IPI that waits is taken now, and changes registers.
        let mp_state = vcpu.get_mp_state().expect("mp_state").mp_state;
        self.put(format!("vcpu {n} mp_state"), mp_state);
        let regs = vcpu.get_regs().expect("regs");
        for (name, value) in [
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
            ("rsi", regs.rsi),
            ("rdi", regs.rdi),
            ("rsp", regs.rsp),
            ("rbp", regs.rbp),
            ("r8", regs.r8),
            ("r9", regs.r9),
            ("r10", regs.r10),
            ("r11", regs.r11),
            ("r12", regs.r12),
            ("r13", regs.r13),
            ("r14", regs.r14),
            ("r15", regs.r15),
            ("rip", regs.rip),
            ("rflags", regs.rflags),
        ] {
            self.put(format!("vcpu {n} {name}"), value);
        }
        self.system(n, &vcpu.get_sregs().expect("sregs"));
        let debug = vcpu.get_debug_regs().expect("debug registers");
        for (number, value) in debug.db.iter().enumerate() {
            self.put(format!("vcpu {n} dr{number}"), *value);
        }
        self.put(format!("vcpu {n} dr6"), debug.dr6);
        self.put(format!("vcpu {n} dr7"), debug.dr7);
        let xcrs = vcpu.get_xcrs().expect("XCRS");
        self.put(format!("vcpu {n} xcr0"), xcrs.xcrs[0].value);
        let xsave = vcpu.get_xsave().expect("XSAVE");
        // Bytes 464 to 511 are the software's.
        for (at, word) in xsave
            .region
            .iter()
            .enumerate()
            .filter(|(at, _)| !(116..128).contains(at))
        {
            self.put(format!("vcpu {n} xsave {:#06x}", at * 4), *word);
        }
        self.events(n, &vcpu.get_vcpu_events().expect("events"));
        self.put(
            format!("vcpu {n} tsc_khz"),
            vcpu.get_tsc_khz().expect("TSC kHz"),
        );
        if machine.chips != Chips::None {
            let lapic = vcpu.get_lapic().expect("LAPIC");
            let bytes: Vec<u8> = lapic.regs.iter().map(|b| *b as u8).collect();
            for (number, register) in bytes.chunks_exact(16).enumerate() {
                let value = u32::from_le_bytes(register[..4].try_into().expect("4 bytes"));
                self.put(format!("vcpu {n} lapic {:#05x}", number * 16), value);
            }
        }
        // KVM writes all zeros of a vCPU that never ran a guest; its flags say whether it did.
        let nested = crate::snapshot::nested(vcpu).unwrap_or_default();
        for (at, word) in nested.chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
            self.put(format!("vcpu {n} nested {:#06x}", at * 8), word);
        }
        for (index, value) in all_msrs(machine, n) {
            self.put(format!("vcpu {n} msr {index:#010x}"), value);
        }
    }

    fn system(&mut self, n: usize, s: &kvm_sregs) {
        for (name, seg) in [
            ("cs", s.cs),
            ("ds", s.ds),
            ("es", s.es),
            ("fs", s.fs),
            ("gs", s.gs),
            ("ss", s.ss),
            ("tr", s.tr),
            ("ldt", s.ldt),
        ] {
            self.put(format!("vcpu {n} {name} base"), seg.base);
            self.put(format!("vcpu {n} {name} selector"), seg.selector);
            if seg.unusable == 0 {
                self.put(format!("vcpu {n} {name} limit"), seg.limit);
                let attributes = u64::from(seg.type_)
                    | u64::from(seg.s) << 4
                    | u64::from(seg.dpl) << 5
                    | u64::from(seg.present) << 7
                    | u64::from(seg.avl) << 8
                    | u64::from(seg.l) << 9
                    | u64::from(seg.db) << 10;
                self.put(format!("vcpu {n} {name} attributes"), attributes);
            }
        }
        for (name, value) in [
            ("gdt base", s.gdt.base),
            ("gdt limit", s.gdt.limit.into()),
            ("idt base", s.idt.base),
            ("idt limit", s.idt.limit.into()),
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("cr8", s.cr8),
            ("efer", s.efer),
            ("apic_base", s.apic_base),
        ] {
            self.put(format!("vcpu {n} {name}"), value);
        }
    }

    fn events(&mut self, n: usize, e: &kvm_vcpu_events) {
        let payload = if e.exception_has_payload != 0 {
            e.exception_payload
        } else {
            0
        };
        for (name, value) in [
            ("exception injected", e.exception.injected),
            ("exception pending", e.exception.pending),
            ("exception has payload", e.exception_has_payload),
            ("interrupt injected", e.interrupt.injected),
            ("interrupt shadow", e.interrupt.shadow),
            ("nmi injected", e.nmi.injected),
            ("nmi pending", e.nmi.pending),
            ("nmi masked", e.nmi.masked),
            ("smm", e.smi.smm),
            ("smi pending", e.smi.pending),
            ("smm inside nmi", e.smi.smm_inside_nmi),
            ("init latched", e.smi.latched_init),
            ("triple fault", e.triple_fault.pending),
        ] {
            self.put(format!("vcpu {n} {name}"), value);
        }
        if e.exception.injected | e.exception.pending != 0 {
            self.put(format!("vcpu {n} exception number"), e.exception.nr);
            self.put(
                format!("vcpu {n} exception error"),
                u64::from(e.exception.has_error_code) << 32 | u64::from(e.exception.error_code),
            );
            self.put(format!("vcpu {n} exception payload"), payload);
        }
        if e.interrupt.injected != 0 {
            self.put(format!("vcpu {n} interrupt number"), e.interrupt.nr);
        }
        self.put(format!("vcpu {n} sipi vector"), e.sipi_vector);
    }

    fn shared(&mut self, machine: &Machine) {
        let clock = machine.vm.get_clock().expect("clock").clock;
        self.put("kvmclock", clock);
        if machine.chips != Chips::Kernel {
            return;
        }
        for chip_id in 0..3 {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            machine.vm.get_irqchip(&mut chip).expect("irqchip");
            // SAFETY: the dummy covers the whole union.
            let bytes = unsafe { chip.chip.dummy };
            let len = if chip_id == 2 { 216 } else { 16 };
            for (at, byte) in bytes[..len].iter().enumerate() {
                self.put(format!("irqchip {chip_id} {at:#04x}"), *byte as u8);
            }
        }
        let pit = machine.vm.get_pit2().expect("PIT");
        for (n, c) in pit.channels.iter().enumerate() {
            for (name, value) in [
                // Written, 0 stands for 65536, and KVM shows it so or so.
                ("count", u64::from(c.count) % 0x1_0000),
                ("latched count", c.latched_count.into()),
                ("count latched", c.count_latched.into()),
                ("status latched", c.status_latched.into()),
                ("status", c.status.into()),
                ("read state", c.read_state.into()),
                ("write state", c.write_state.into()),
                ("write latch", c.write_latch.into()),
                ("rw mode", c.rw_mode.into()),
                ("mode", c.mode.into()),
                ("bcd", c.bcd.into()),
                ("gate", c.gate.into()),
            ] {
                self.put(format!("pit {n} {name}"), value);
            }
        }
        self.put("pit flags", pit.flags);
    }

    /// What is not as it was, in words.
    pub fn differences(&self, after: &State) -> Vec<String> {
        let khz = |name: &str| {
            let vcpu = &name[..name.find(" msr").unwrap_or(0)];
            self.0.get(&format!("{vcpu} tsc_khz")).copied().unwrap_or(0)
        };
        let mut found = Vec::new();
        for (name, &was) in &self.0 {
            let Some(&is) = after.0.get(name) else {
                found.push(format!("{name}: was {was:#x}, is gone"));
                continue;
            };
            let ran = is.wrapping_sub(was);
            let good = match name.rsplit_once(' ') {
                _ if was == is => true,
                // Clocks: they went on, and were not away for longer than that.
                _ if name == "kvmclock" => ran < AWAY_S * 1_000_000_000,
                Some((_, "0x00000010")) => ran < AWAY_S * 1000 * khz(name).max(1_000_000),
                // The host's rate, measured at each boot, where its CPU cannot scale it: the report
                // says so. (Hz in Hyper-V's MSR.)
                Some((_, "tsc_khz" | "0x40000022")) => was.abs_diff(is) <= was / 100,
                // Hyper-V's reference count is kvmclock in units of 100 ns; run time is computed.
                Some((_, "0x40000020")) => ran < AWAY_S * 10_000_000,
                Some((_, "0x40000010")) => true,
                // APERF and MPERF, and what counts events.
                Some((_, "0x000000e7" | "0x000000e8")) => true,
                // A one-shot timer counts down; what it shows is what is left, in units of 128 ns.
                Some((_, "0x390")) if name.contains("lapic") => {
                    was.wrapping_sub(is) < AWAY_S * 1_000_000_000 / 128
                }
                // PPR: KVM computes it when asked.
                Some((_, "0x0a0")) if name.contains("lapic") => true,
                _ => false,
            };
            if !good {
                found.push(format!("{name}: was {was:#x}, is {is:#x}"));
            }
        }
        found
    }
}

/// Every MSR that this KVM lists, with its value, where it can be read.
pub fn all_msrs(machine: &Machine, n: usize) -> Vec<(u32, u64)> {
    let list = machine.kvm.get_msr_index_list().expect("MSR list");
    let features = machine.kvm.get_msr_feature_index_list().ok();
    let mut indices: Vec<u32> = list.as_slice().to_vec();
    indices.extend(features.iter().flat_map(|f| f.as_slice()));
    indices.sort_unstable();
    indices.dedup();
    indices
        .into_iter()
        .filter_map(|index| Some((index, read_msr(machine, n, index)?)))
        .collect()
}

/// An MSR; `None` where KVM refuses to tell.
pub fn read_msr(machine: &Machine, n: usize, index: u32) -> Option<u64> {
    let entry = kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut one = Msrs::from_entries(&[entry]).expect("MSRs");
    let read = machine.vcpus[n].get_msrs(&mut one).ok()?;
    (read == 1).then(|| one.as_slice()[0].data)
}

/// Whether KVM took it.
pub fn write_msr(machine: &Machine, n: usize, index: u32, data: u64) -> bool {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let one = Msrs::from_entries(&[entry]).expect("MSRs");
    machine.vcpus[n].set_msrs(&one).is_ok_and(|n| n == 1)
}
