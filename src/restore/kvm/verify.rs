//! Reads back what was set, and compares.
//!
//! KVM accepts some state and changes it in silence. Everything here is a
//! difference that is known to be harmless (and says why), or a line of the
//! fidelity report, or an error.

use super::calls::Calls;
use super::error::KvmError;
use super::vcpu_state::{Revived, xsave_len};
use super::{ioctls, msrs, shared_state, vcpu_args};
use crate::dataset::{Fidelity, Irqchip, Vm};
use crate::sys::kvm_args::bytes_of;
use kvm_bindings as kvm;
use std::fmt::LowerHex;

/// Of one vCPU. All of its state has been set, and it has not run since.
pub(super) fn vcpu(
    calls: &mut Calls,
    revived: &Revived,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    let Revived { vcpu, fd, vm, .. } = *revived;
    let (cr2, dr6) = vcpu_args::delivered_payload(vcpu, vm.caps.exception_payload);

    let wanted = vcpu_args::regs(&vcpu.regs);
    let got: kvm::kvm_regs = calls.get(fd, ioctls::GET_REGS)?;
    if wanted != got {
        // Bit 1 of RFLAGS is 1 in every CPU.
        same(calls, "RIP", wanted.rip, got.rip)?;
        same(calls, "RFLAGS", wanted.rflags | 2, got.rflags)?;
        for (n, (wanted, got)) in words(bytes_of(&wanted))
            .zip(words(bytes_of(&got)))
            .take(16)
            .enumerate()
        {
            same(calls, &format!("general register {n}"), wanted, got)?;
        }
    }

    sregs(calls, revived, cr2)?;
    let wanted = vcpu_args::debug_regs(&vcpu.debug, dr6);
    let got: kvm::kvm_debugregs = calls.get(fd, ioctls::GET_DEBUGREGS)?;
    for (n, (&wanted, &got)) in wanted.db.iter().zip(&got.db).enumerate() {
        same(calls, &format!("DR{n}"), wanted, got)?;
    }
    same(calls, "DR6", wanted.dr6, got.dr6)?;
    same(calls, "DR7", wanted.dr7, got.dr7)?;

    let got: kvm::kvm_xcrs = calls.get(fd, ioctls::GET_XCRS)?;
    same(calls, "XCR0", vcpu.xcr0, got.xcrs[0].value)?;
    xsave(calls, revived)?;
    events(calls, revived)?;
    // To ask for it lets a start-up IPI that waits be taken: the vCPU would be
    // running by the answer, at the IPI's vector.
    if vcpu.mp_state != kvm::KVM_MP_STATE_SIPI_RECEIVED {
        let got: kvm::kvm_mp_state = calls.get(fd, ioctls::GET_MP_STATE)?;
        same(calls, "mp_state", vcpu.mp_state, got.mp_state)?;
    }
    lapic(calls, revived)?;
    check_msrs(calls, revived, notes)
}

/// Of what the vCPUs share.
pub(super) fn shared(calls: &mut Calls, vm: &Vm, fd: i32) -> Result<(), KvmError> {
    if let Irqchip::Kernel { pics, ioapic } = &vm.irqchip {
        for (chip, pic) in (0..).zip(pics.iter()) {
            let got = shared_state::read_irqchip(calls, fd, chip)?;
            // Bytes 0 and 1 (last_irr, irr) follow the lines, and the PIT's
            // moves already.
            for (n, (&wanted, &got)) in pic.bytes.iter().zip(&got).enumerate().skip(2) {
                same(calls, &format!("PIC {chip} byte {n}"), wanted, got)?;
            }
        }
        let got = shared_state::read_irqchip(calls, fd, shared_state::IOAPIC_CHIP)?;
        let wanted = shared_state::ioapic_state(ioapic);
        for (n, (wanted, got)) in words(&wanted).zip(words(&got)).enumerate() {
            // Delivery status (bit 12) and remote IRR (bit 14) follow the
            // lines. Words: base, id:ioregsel, pad:irr, redirections.
            const MOVING: u64 = 1 << 12 | 1 << 14;
            match n {
                0 | 1 => same(calls, &format!("IOAPIC word {n}"), wanted, got)?,
                2 => {}
                _ => same(
                    calls,
                    &format!("IOAPIC redirection {}", n - 3),
                    wanted & !MOVING,
                    got & !MOVING,
                )?,
            }
        }
    }
    if let Some(pit) = &vm.pit {
        let wanted = shared_state::pit_state(pit);
        let got: kvm::kvm_pit_state2 = calls.get(fd, ioctls::GET_PIT2)?;
        for (n, (wanted, got)) in wanted.channels.iter().zip(&got.channels).enumerate() {
            // A count of 0 stands for 65536, and is written so.
            let count = |count| if count == 0 { 0x1_0000 } else { count };
            let what = format!("PIT channel {n}");
            same(calls, &what, count(wanted.count), count(got.count))?;
            same(calls, &what, wanted.mode, got.mode)?;
            same(calls, &what, wanted.gate, got.gate)?;
        }
        same(calls, "PIT flags", wanted.flags, got.flags)?;
    }
    let clock: kvm::kvm_clock_data = calls.get(fd, ioctls::GET_CLOCK)?;
    let ran = clock.clock.wrapping_sub(vm.clock.clock_ns);
    // It runs from the moment it is set.
    if ran > 10_000_000_000 {
        same(calls, "kvmclock", vm.clock.clock_ns, clock.clock)?;
    }
    Ok(())
}

fn same<T: PartialEq + LowerHex>(
    calls: &Calls,
    what: &str,
    wanted: T,
    got: T,
) -> Result<(), KvmError> {
    if wanted == got {
        return Ok(());
    }
    Err(KvmError::Differs {
        subject: calls.subject.clone(),
        what: what.into(),
        wanted: format!("{wanted:#x}"),
        got: format!("{got:#x}"),
    })
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .filter_map(|w| w.try_into().ok().map(u64::from_le_bytes))
}

fn sregs(calls: &mut Calls, revived: &Revived, cr2: u64) -> Result<(), KvmError> {
    let wanted = vcpu_args::sregs(&revived.vcpu.sregs, cr2);
    let got: kvm::kvm_sregs2 = calls.get(revived.fd, ioctls::GET_SREGS2)?;
    for (name, w, g) in [
        ("CS", wanted.cs, got.cs),
        ("DS", wanted.ds, got.ds),
        ("ES", wanted.es, got.es),
        ("FS", wanted.fs, got.fs),
        ("GS", wanted.gs, got.gs),
        ("SS", wanted.ss, got.ss),
        ("TR", wanted.tr, got.tr),
        ("LDT", wanted.ldt, got.ldt),
    ] {
        same(calls, &format!("{name} base"), w.base, g.base)?;
        same(calls, &format!("{name} selector"), w.selector, g.selector)?;
        // Of a segment that is not usable nothing else counts, and CPUs keep
        // different bits of it.
        if w.unusable != 0 && (g.unusable != 0 || g.present == 0) {
            continue;
        }
        same(calls, &format!("{name} limit"), w.limit, g.limit)?;
        // SVM reports user segments as accessed and TR as busy.
        let kind = |s: &kvm::kvm_segment| if s.s != 0 { s.type_ | 1 } else { s.type_ | 2 };
        let bits = |s: &kvm::kvm_segment| {
            u32::from(kind(s))
                | u32::from(s.s) << 4
                | u32::from(s.dpl) << 5
                | u32::from(s.present) << 7
                | u32::from(s.avl) << 8
                | u32::from(s.l) << 9
                | u32::from(s.db) << 10
        };
        // G is not compared: SVM keeps it in the limit alone.
        same(calls, &format!("{name} attributes"), bits(&w), bits(&g))?;
    }
    for (name, wanted, got) in [
        ("GDT base", wanted.gdt.base, got.gdt.base),
        ("GDT limit", wanted.gdt.limit.into(), got.gdt.limit.into()),
        ("IDT base", wanted.idt.base, got.idt.base),
        ("IDT limit", wanted.idt.limit.into(), got.idt.limit.into()),
        ("CR0", wanted.cr0, got.cr0),
        ("CR2", wanted.cr2, got.cr2),
        ("CR3", wanted.cr3, got.cr3),
        ("CR4", wanted.cr4, got.cr4),
        ("CR8", wanted.cr8, got.cr8),
        ("EFER", wanted.efer, got.efer),
        ("APICBASE", wanted.apic_base, got.apic_base),
    ] {
        same(calls, name, wanted, got)?;
    }
    if wanted.flags & got.flags & u64::from(kvm::KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 {
        for (n, (&wanted, &got)) in wanted.pdptrs.iter().zip(&got.pdptrs).enumerate() {
            same(calls, &format!("PDPTR {n}"), wanted, got)?;
        }
    }
    Ok(())
}

/// Compares each component that the dump's XSTATE_BV says is in use; the
/// others are in their initial state, which KVM writes out or not as it likes.
fn xsave(calls: &mut Calls, revived: &Revived) -> Result<(), KvmError> {
    const XSTATE_BV: usize = 512;
    /// FCW to the last data pointer, without MXCSR and its mask.
    const X87: [(usize, usize); 2] = [(0, 24), (32, 160)];
    const SSE: [(usize, usize); 2] = [(24, 28), (160, 416)];

    let wanted = revived.xsave(calls)?;
    let len = xsave_len(calls, revived.vm_fd);
    let mut got = vec![0; len];
    let get = if len > 4096 {
        ioctls::GET_XSAVE2
    } else {
        ioctls::GET_XSAVE
    };
    calls.bytes(revived.fd, get, &mut got)?;
    let in_use = words(&wanted[XSTATE_BV..XSTATE_BV + 8]).next().unwrap_or(0);
    let mut parts: Vec<(u32, usize, usize)> = Vec::new();
    let legacy = [(0, X87), (1, SSE)];
    parts.extend(
        legacy
            .iter()
            .flat_map(|&(bit, ranges)| ranges.map(|(start, end)| (bit, start, end))),
    );
    // Where the others lie, the guest's CPUID leaf 0xd says: EAX size, EBX
    // offset; ECX bit 0: not in the user format.
    parts.extend(revived.vcpu.cpuid.iter().filter_map(|e| {
        let is_component = e.function == 0xd && (2..63).contains(&e.index) && e.ecx & 1 == 0;
        let start = usize::try_from(e.ebx).ok()?;
        let end = start.checked_add(usize::try_from(e.eax).ok()?)?;
        is_component.then_some((e.index, start, end))
    }));
    for (component, start, end) in parts {
        if in_use & 1 << component == 0 {
            continue;
        }
        if wanted.get(start..end) != got.get(start..end) {
            return Err(KvmError::Differs {
                subject: calls.subject.clone(),
                what: format!("XSAVE component {component} (bytes {start}..{end})"),
                wanted: "the dumped registers".into(),
                got: "others".into(),
            });
        }
    }
    Ok(())
}

fn events(calls: &mut Calls, revived: &Revived) -> Result<(), KvmError> {
    let caps = &revived.vm.caps;
    let wanted = vcpu_args::events(
        &revived.vcpu.events,
        caps.exception_payload,
        caps.triple_fault_event,
    );
    let got: kvm::kvm_vcpu_events = calls.get(revived.fd, ioctls::GET_VCPU_EVENTS)?;
    // Pending or injected is one thing to whoever did not ask for payloads.
    let exception =
        |e: &kvm::kvm_vcpu_events| u8::from(e.exception.injected | e.exception.pending != 0);
    let mut table = vec![
        ("exception", exception(&wanted), exception(&got)),
        (
            "interrupt",
            wanted.interrupt.injected,
            got.interrupt.injected,
        ),
        // SVM does not know which kind it is, VMX takes one.
        (
            "interrupt shadow",
            wanted.interrupt.shadow.min(1),
            got.interrupt.shadow.min(1),
        ),
        ("NMI injected", wanted.nmi.injected, got.nmi.injected),
        // Two wait as one, where the CPU queues it.
        (
            "NMI pending",
            wanted.nmi.pending.min(1),
            got.nmi.pending.min(1),
        ),
        ("NMI mask", wanted.nmi.masked, got.nmi.masked),
        ("SMM", wanted.smi.smm, got.smi.smm),
        ("SMI pending", wanted.smi.pending, got.smi.pending),
        (
            "INIT latched",
            wanted.smi.latched_init,
            got.smi.latched_init,
        ),
        (
            "triple fault",
            wanted.triple_fault.pending,
            got.triple_fault.pending,
        ),
    ];
    if wanted.exception.injected | wanted.exception.pending != 0 {
        table.push(("exception number", wanted.exception.nr, got.exception.nr));
    }
    if wanted.interrupt.injected != 0 {
        table.push(("interrupt vector", wanted.interrupt.nr, got.interrupt.nr));
    }
    for (what, wanted, got) in table {
        same(calls, what, wanted, got)?;
    }
    Ok(())
}

fn lapic(calls: &mut Calls, revived: &Revived) -> Result<(), KvmError> {
    let Some(wanted) = revived.lapic()? else {
        return Ok(());
    };
    let mut got = [0; vcpu_args::LAPIC_SIZE];
    calls.bytes(revived.fd, ioctls::GET_LAPIC, &mut got)?;
    let at = |page: &[u8], register: usize| {
        page.get(register..register + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    };
    for register in (0..vcpu_args::LAPIC_SIZE).step_by(16) {
        let (wanted, got) = (at(&wanted, register), at(&got, register));
        let what = format!("LAPIC register {register:#x}");
        match register {
            // Version: KVM's own. PPR: computed from TPR and ISR. LDR in
            // x2APIC mode: from the ID. ESR: latches. TMCCT: counts.
            0x30 | 0xa0 | 0x280 | 0x390 => {}
            0xd0 if vcpu_args::is_x2apic(revived.vcpu) => {}
            // IRR: what came since (the timer, the PIT) is there besides.
            0x200..=0x270 => same(calls, &what, wanted, got & wanted)?,
            // ICR: the delivery-status bit is never busy in KVM.
            0x300 => same(calls, &what, wanted & !(1 << 12), got & !(1 << 12))?,
            _ => same(calls, &what, wanted, got)?,
        }
    }
    Ok(())
}

/// Which MSRs need not read back as they were set.
fn moves(index: u32) -> bool {
    matches!(index,
        0x10 | 0x6e0            // TSC; TSC deadline: 0 once it has passed
        | 0x49 | 0x10b          // PRED_CMD, FLUSH_CMD: commands
        | 0xe7 | 0xe8           // MPERF, APERF
        | 0xc1..=0xc8 | 0x309..=0x30c | 0x4c1..=0x4c8 // performance counters
        | 0xc001_0004..=0xc001_0007 | 0xc001_0201 | 0xc001_0203 | 0xc001_0205
        | 0xc001_0207 | 0xc001_0209 | 0xc001_020b
        | 0x34                  // SMI_COUNT
        | 0x4000_0020 | 0x4000_0010 // Hyper-V reference counter, run time
        | 0x4b56_4d07           // KVM_ASYNC_PF_ACK: a command
    )
}

/// MSRs without which a guest does not go on as it was.
fn is_vital(index: u32) -> bool {
    matches!(index,
        0x1b | 0x174..=0x176 | 0x277 | 0xc000_0080..=0xc000_0084
        | 0xc000_0100..=0xc000_0103 | 0x12 | 0x4b56_4d01 | 0x3b | 0xda0)
}

fn check_msrs(
    calls: &mut Calls,
    revived: &Revived,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    let wanted: Vec<_> = revived
        .vcpu
        .msrs
        .iter()
        .filter(|m| !moves(m.index))
        .collect();
    let indices: Vec<u32> = wanted.iter().map(|m| m.index).collect();
    let got = msrs::read(calls, revived.fd, &indices)?;
    for (msr, got) in wanted.into_iter().zip(got) {
        let what = format!("MSR {:#x}", msr.index);
        match got {
            Some(got) if got == msr.value => {}
            // One that was refused when set: it has its line already.
            None => {}
            Some(got) if is_vital(msr.index) => same(calls, &what, msr.value, got)?,
            Some(got) => notes.push(Fidelity::lost(
                &calls.subject,
                format!("{what} = {:#x}", msr.value),
                format!("it reads back as {got:#x}"),
            )),
        }
    }
    Ok(())
}
