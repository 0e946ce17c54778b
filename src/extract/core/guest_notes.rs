//! The notes of a guest's core, as QEMU writes them.

use super::elf::{Status, note};
use crate::dataset::{Segment, TablePointer, Vcpu, Vm};

/// `MSR_KERNEL_GS_BASE`.
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// All notes: those of one kind after those of the other.
pub(super) fn notes(vm: &Vm, vmcoreinfo: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, vcpu) in (1..).zip(&vm.vcpus) {
        status(vcpu, n).put(&mut out);
    }
    for vcpu in &vm.vcpus {
        note(&mut out, b"QEMU\0", 0, &cpu_state(vcpu));
    }
    if let Some(text) = vmcoreinfo {
        note(&mut out, b"VMCOREINFO\0", 0, text.as_bytes());
    }
    out
}

/// The PID is the number of the CPU, counted from 1.
fn status(vcpu: &Vcpu, number: u32) -> Status {
    let (r, s) = (&vcpu.regs, &vcpu.sregs);
    let selector = |segment: &Segment| u64::from(segment.selector);
    let orig_rax = 0;
    let registers = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        orig_rax,
        r.rip,
        selector(&s.cs),
        r.rflags,
        r.rsp,
        selector(&s.ss),
        s.fs.base,
        s.gs.base,
        selector(&s.ds),
        selector(&s.es),
        selector(&s.fs),
        selector(&s.gs),
    ];
    Status {
        pid: number,
        registers,
        ..Status::default()
    }
}

/// `struct QEMUCPUState`. QEMU target/i386/arch_dump.c.
fn cpu_state(vcpu: &Vcpu) -> Vec<u8> {
    const VERSION: u32 = 1;
    const SIZE: u32 = 440;
    let (r, s) = (&vcpu.regs, &vcpu.sregs);
    let mut out = Vec::with_capacity(SIZE as usize);
    out.extend(VERSION.to_le_bytes());
    out.extend(SIZE.to_le_bytes());
    let general = [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15, r.rip, r.rflags,
    ];
    out.extend(general.iter().flat_map(|w| w.to_le_bytes()));
    for segment in [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.ldt, &s.tr] {
        let selector = u32::from(segment.selector);
        put_segment(
            &mut out,
            selector,
            segment.limit,
            flags(segment),
            segment.base,
        );
    }
    for TablePointer { base, limit } in [s.gdt, s.idt] {
        put_segment(&mut out, 0, u32::from(limit), 0, base);
    }
    let kernel_gs_base = vcpu
        .msrs
        .iter()
        .find(|msr| msr.index == KERNEL_GS_BASE)
        .map_or(0, |msr| msr.value);
    let control = [s.cr0, 0, s.cr2, s.cr3, s.cr4, kernel_gs_base];
    out.extend(control.iter().flat_map(|w| w.to_le_bytes()));
    out
}

fn put_segment(out: &mut Vec<u8>, selector: u32, limit: u32, flags: u32, base: u64) {
    let pad = 0;
    for word in [selector, limit, flags, pad] {
        out.extend(word.to_le_bytes());
    }
    out.extend(base.to_le_bytes());
}

/// As in the second word of a descriptor.
fn flags(s: &Segment) -> u32 {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    u32::from(s.type_ & 0xf) << 8
        | bit(s.s, 12)
        | u32::from(s.dpl & 3) << 13
        | bit(s.present, 15)
        | bit(s.avl, 20)
        | bit(s.l, 21)
        | bit(s.db, 22)
        | bit(s.g, 23)
}
