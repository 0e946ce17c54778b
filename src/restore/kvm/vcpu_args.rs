//! A vCPU of the dataset as KVM's structs.

use crate::dataset::{
    DebugRegs, MsrEntry, Segment, SystemRegs, TablePointer, Vcpu, VcpuEvents, VcpuRegs,
};
use kvm_bindings as kvm;

/// `struct kvm_regs`.
pub(super) fn regs(r: &VcpuRegs) -> kvm::kvm_regs {
    kvm::kvm_regs {
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
    }
}

fn segment(s: &Segment) -> kvm::kvm_segment {
    kvm::kvm_segment {
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
        padding: 0,
    }
}

fn table(t: &TablePointer) -> kvm::kvm_dtable {
    kvm::kvm_dtable {
        base: t.base,
        limit: t.limit,
        ..Default::default()
    }
}

/// `struct kvm_sregs2`. `cr2`: CR2 after [`delivered_payload`].
pub(super) fn sregs(s: &SystemRegs, cr2: u64) -> kvm::kvm_sregs2 {
    kvm::kvm_sregs2 {
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
        cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        flags: match s.pdptrs {
            Some(_) => u64::from(kvm::KVM_SREGS2_FLAGS_PDPTRS_VALID),
            None => 0,
        },
        pdptrs: s.pdptrs.unwrap_or_default(),
    }
}

/// `struct kvm_debugregs`. `dr6`: DR6 after [`delivered_payload`].
pub(super) fn debug_regs(d: &DebugRegs, dr6: u64) -> kvm::kvm_debugregs {
    kvm::kvm_debugregs {
        db: d.db,
        dr6,
        dr7: d.dr7,
        ..Default::default()
    }
}

/// CR2 and DR6 as the guest's handler will find them: where user space did not
/// ask for payloads of its own (KVM_CAP_EXCEPTION_PAYLOAD), a pending
/// exception's payload must be delivered now, since KVM_SET_VCPU_EVENTS has no
/// room for it. KVM_GET_VCPU_EVENTS does the same
/// (kvm_deliver_exception_payload, Linux arch/x86/kvm/x86.c).
pub(super) fn delivered_payload(vcpu: &Vcpu, payload_cap: bool) -> (u64, u64) {
    let (mut cr2, mut dr6) = (vcpu.sregs.cr2, vcpu.debug.dr6);
    if let (false, Some(payload)) = (payload_cap, vcpu.events.exception_payload) {
        const DB: u8 = 1;
        const PF: u8 = 14;
        const TRAP_BITS: u64 = 0xf;
        const RTM: u64 = 1 << 16;
        const BUS_LOCK: u64 = 1 << 11;
        /// Bits that read 1 when their cause is not there (DR6_ACTIVE_LOW).
        const ACTIVE_LOW: u64 = 0xffff_0ff0 | BUS_LOCK;
        match vcpu.events.exception_nr {
            PF => cr2 = payload,
            DB => {
                dr6 = (dr6 & !TRAP_BITS) | RTM | ACTIVE_LOW | payload;
                dr6 ^= payload & ACTIVE_LOW;
                dr6 &= !(1 << 12);
            }
            _ => {}
        }
    }
    (cr2, dr6)
}

/// `struct kvm_vcpu_events`.
pub(super) fn events(
    e: &VcpuEvents,
    payload_cap: bool,
    triple_fault_cap: bool,
) -> kvm::kvm_vcpu_events {
    let mut out = kvm::kvm_vcpu_events {
        flags: kvm::KVM_VCPUEVENT_VALID_NMI_PENDING
            | kvm::KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | kvm::KVM_VCPUEVENT_VALID_SHADOW
            | kvm::KVM_VCPUEVENT_VALID_SMM,
        sipi_vector: e.sipi_vector,
        ..Default::default()
    };
    out.exception.nr = e.exception_nr;
    out.exception.has_error_code = e.exception_has_error_code.into();
    out.exception.error_code = e.exception_error_code;
    if payload_cap {
        out.flags |= kvm::KVM_VCPUEVENT_VALID_PAYLOAD;
        out.exception.pending = e.exception_pending.into();
        out.exception.injected = e.exception_injected.into();
        out.exception_has_payload = e.exception_payload.is_some().into();
        out.exception_payload = e.exception_payload.unwrap_or(0);
    } else {
        // Without the capability KVM tells the two apart no more.
        out.exception.injected = (e.exception_injected || e.exception_pending).into();
    }
    out.interrupt.injected = e.interrupt_injected.into();
    out.interrupt.nr = e.interrupt_nr;
    out.interrupt.soft = e.interrupt_soft.into();
    out.interrupt.shadow = e.interrupt_shadow;
    out.nmi.injected = e.nmi_injected.into();
    out.nmi.pending = e.nmi_pending;
    out.nmi.masked = e.nmi_masked.into();
    out.smi.smm = e.smm.into();
    out.smi.pending = e.smi_pending.into();
    out.smi.smm_inside_nmi = e.smm_inside_nmi.into();
    out.smi.latched_init = e.smi_latched_init.into();
    if triple_fault_cap {
        out.flags |= kvm::KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        out.triple_fault.pending = e.triple_fault_pending.into();
    }
    out
}

/// Those of `e` that say how the next instruction runs but bring no event.
pub(super) fn masks_only(e: &VcpuEvents) -> VcpuEvents {
    VcpuEvents {
        interrupt_shadow: e.interrupt_shadow,
        nmi_masked: e.nmi_masked,
        smm: e.smm,
        smm_inside_nmi: e.smm_inside_nmi,
        ..Default::default()
    }
}

/// `struct kvm_xcrs` with XCR0.
pub(super) fn xcrs(xcr0: u64) -> kvm::kvm_xcrs {
    let mut out = kvm::kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    out.xcrs[0].value = xcr0;
    out
}

/// `struct kvm_msrs`.
pub(super) fn msrs(entries: &[MsrEntry]) -> Vec<u8> {
    let mut bytes = super::create::header(entries.len());
    for msr in entries {
        bytes.extend(u64::from(msr.index).to_le_bytes());
        bytes.extend(msr.value.to_le_bytes());
    }
    bytes
}

/// Size of the area of KVM_SET_LAPIC. Bytes.
pub(super) const LAPIC_SIZE: usize = 1024;
/// Where the APIC's ID stands in it.
const APIC_ID: usize = 0x20;

/// `struct kvm_lapic_state`.
///
/// In x2APIC mode the ID is the vCPU's and cannot be another, but KVM takes it
/// in one of two places: as 32 bits if KVM_X2APIC_API_USE_32BIT_IDS is on for
/// the VM, else in bits 24 to 31 (kvm_apic_state_fixup, Linux
/// arch/x86/kvm/lapic.c). The kernel's own page has the former always.
pub(super) fn lapic(vcpu: &Vcpu, regs: &[u8], x2apic_api: u64) -> Option<[u8; LAPIC_SIZE]> {
    let mut out: [u8; LAPIC_SIZE] = regs.get(..LAPIC_SIZE)?.try_into().ok()?;
    if is_x2apic(vcpu) {
        let id = match x2apic_api & 1 {
            0 => vcpu.vcpu_id << 24,
            _ => vcpu.vcpu_id,
        };
        out[APIC_ID..APIC_ID + 4].copy_from_slice(&id.to_le_bytes());
    }
    Some(out)
}

/// MSR_IA32_APICBASE: enabled (bit 11) and x2APIC (bit 10).
pub(super) fn is_x2apic(vcpu: &Vcpu) -> bool {
    vcpu.sregs.apic_base & 0xc00 == 0xc00
}
