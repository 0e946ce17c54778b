//! How a guest's CPUs and memory look when it starts.

use crate::machine::Chips;
use crate::programs::Mode;
use kvm_bindings::*;
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const GDT: u64 = 0x500;
pub const IDT: u64 = 0x600;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
pub const CODE: u64 = 0x8000;
pub const CODE_SIZE: usize = 0x800;
/// Behind the programs of 8 vCPUs.
pub const HANDLER: u64 = 0xe000;
const STACK_TOP: u64 = 0x7ff0;
pub const DATA: u64 = 0x10000;

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

/// Segment descriptors, and page tables of the first GiB.
pub fn write_tables(memory: &GuestMemoryMmap, mode: Mode) {
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

/// Lets a vector lead to a handler.
pub fn write_gate(memory: &GuestMemoryMmap, mode: Mode, vector: u8, handler: u64) {
    let low = handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32;
    let (size, raw) = match mode {
        Mode::Long => (16, low),
        Mode::Protected => (8, low),
    };
    let at = IDT + u64::from(vector) * size;
    memory.write_obj(raw, GuestAddress(at)).expect("IDT");
}

/// Puts a vCPU at its program's start.
pub fn start(vcpu: &VcpuFd, mode: Mode, id: u64, chips: Chips) {
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
