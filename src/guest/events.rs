//! What was about to happen to a vCPU: exceptions, interrupts, NMIs, SMIs.
//!
//! As KVM_GET_VCPU_EVENTS gives it, with what the crash forestalled made up for (see
//! [`super::exit_window`]).

use super::GuestError;
use super::exit_window::Window;
use super::field::{flag, flag_or_false, narrow, u_or_0};
use super::lapic::LapicState;
use super::vmcb::Svm;
use crate::dataset::{DebugRegs, SystemRegs, VcpuEvents, VcpuRegs};
use crate::kernel::Object;

/// KVM's `vcpu->arch.hflags`, by name: the numbers have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HFlags {
    /// The vCPU runs a guest of its own.
    pub nested_guest: bool,
    /// It is in system management mode.
    pub smm: bool,
    /// It was handling an NMI when it came there.
    pub smm_inside_nmi: bool,
    /// NMIs are masked: one is being handled.
    nmi_masked: bool,
    /// … and it is returning: once RIP has moved on, the mask is off.
    awaiting_iret: bool,
}

impl HFlags {
    pub fn of(arch: &Object<'_>, svm: &Object<'_>) -> Result<HFlags, GuestError> {
        let flags = arch.u("hflags")?;
        let bit = |n: u32| flags >> n & 1 != 0;
        // Since 916b54a7688b ("KVM: x86: Move HF_NMI_MASK and HF_IRET_MASK into "struct vcpu_svm"")
        // (in v6.3); the others were renumbered with it.
        if svm.has("nmi_masked") {
            return Ok(HFlags {
                nested_guest: bit(0),
                smm: bit(1),
                smm_inside_nmi: bit(2),
                nmi_masked: flag(svm, "nmi_masked")?,
                awaiting_iret: flag(svm, "awaiting_iret_completion")?,
            });
        }
        Ok(HFlags {
            nested_guest: bit(5),
            smm: bit(6),
            smm_inside_nmi: bit(7),
            nmi_masked: bit(3),
            awaiting_iret: bit(4),
        })
    }
}

/// What has to be known to say what was about to happen.
pub(super) struct Source<'a, 'k> {
    /// `struct kvm`.
    pub vm: &'a Object<'k>,
    /// `struct kvm_vcpu`.
    pub vcpu: &'a Object<'k>,
    pub svm: &'a Svm<'k>,
    pub window: Window,
    pub hflags: HFlags,
    pub lapic: Option<&'a LapicState>,
}

/// The registers that an event may still change: the payload of an exception, a soft interrupt
/// that is undone.
pub(super) struct Registers<'a> {
    pub regs: &'a mut VcpuRegs,
    pub sregs: &'a mut SystemRegs,
    pub debug: &'a mut DebugRegs,
}

/// Bits of `kvm_vcpu.requests`. KVM_ARCH_REQ(n) is bit 8 + n. Linux
/// arch/x86/include/asm/kvm_host.h.
const REQUEST_TRIPLE_FAULT: u64 = 1 << 10;
const REQUEST_SMI: u64 = 1 << 20;

pub(super) fn events(
    source: &Source<'_, '_>,
    registers: &mut Registers<'_>,
) -> Result<VcpuEvents, GuestError> {
    let arch = source.vcpu.get("arch")?;
    let control = source.svm.current.get("control")?;
    let requests = source.vcpu.u("requests")?;

    let mut events = VcpuEvents {
        nmi_masked: nmi_masked(source, registers.regs.rip)?,
        smm: source.hflags.smm,
        smm_inside_nmi: source.hflags.smm_inside_nmi,
        smi_pending: flag_or_false(&arch, "smi_pending")? || requests & REQUEST_SMI != 0,
        triple_fault_pending: requests & REQUEST_TRIPLE_FAULT != 0,
        ..VcpuEvents::default()
    };
    if let Some(lapic) = source.lapic {
        events.sipi_vector = lapic.sipi_vector;
        events.smi_latched_init = source.hflags.smm && lapic.pending_events & 1 != 0;
    }
    // SVM_INTERRUPT_SHADOW_MASK. The CPU does not say which kind; KVM reports both.
    const SHADOW_STI_AND_MOV_SS: u8 = 3;
    if control.u("int_state")? & 1 != 0 {
        events.interrupt_shadow = SHADOW_STI_AND_MOV_SS;
    }

    if source.window == Window::AfterExit {
        let info = ExitEvent::of(&control)?;
        info.requeue(&mut events);
        undo_soft_interrupt(source, &info, registers)?;
        trapped_debug_exception(source, &control, &mut events)?;
    } else {
        queued(&arch, &mut events)?;
    }
    deliver_payload(source.vm, &mut events, registers)?;

    // process_nmi: at most two can wait, one while another is being handled.
    let limit = if events.nmi_masked || events.nmi_injected {
        1
    } else {
        2
    };
    let mut waiting = arch.u("nmi_pending")? + arch.u("nmi_queued.counter")?;
    const V_NMI_PENDING: u64 = 1 << 11;
    const V_NMI_ENABLE: u64 = 1 << 26;
    let virtual_nmi = control.u("int_ctl")?;
    if virtual_nmi & V_NMI_ENABLE != 0 && virtual_nmi & V_NMI_PENDING != 0 {
        waiting += 1;
    }
    events.nmi_pending = u8::try_from(waiting.min(limit)).unwrap_or(1);
    Ok(events)
}

/// `svm_get_nmi_mask`, after what `svm_complete_interrupts` does to the mask.
fn nmi_masked(source: &Source<'_, '_>, rip: u64) -> Result<bool, GuestError> {
    // Since fa4c027a7956 ("KVM: x86: Add support for SVM's Virtual NMI") (in v6.4) the CPU may
    // keep the mask.
    const V_NMI_BLOCKING: u64 = 1 << 12;
    const V_NMI_ENABLE: u64 = 1 << 26;
    let int_ctl = source.svm.current.u("control.int_ctl")?;
    if int_ctl & V_NMI_ENABLE != 0 {
        return Ok(int_ctl & V_NMI_BLOCKING != 0);
    }
    let returned = source.window == Window::AfterExit
        && source.hflags.awaiting_iret
        && rip != source.svm.vcpu.u("nmi_iret_rip")?;
    Ok(source.hflags.nmi_masked && !returned)
}

/// What KVM had queued. `kvm_vcpu_ioctl_x86_get_vcpu_events`.
fn queued(arch: &Object<'_>, events: &mut VcpuEvents) -> Result<(), GuestError> {
    let first = arch.get("exception")?;
    let exception = if arch.has("exception_vmexit")
        && flag(arch, "exception_vmexit.pending")?
        && !flag(&first, "pending")?
        && !flag(&first, "injected")?
    {
        arch.get("exception_vmexit")?
    } else {
        first
    };
    // `nr` became `vector` with d4963e319f1f ("KVM: x86: Make kvm_queued_exception a properly
    // named, visible struct") (in v6.1).
    let number = if exception.has("vector") {
        "vector"
    } else {
        "nr"
    };
    events.exception_nr = narrow(&exception, number)?;
    // #BP and #OF come again when the instruction does.
    if !is_soft_exception(events.exception_nr) {
        events.exception_injected = flag(&exception, "injected")?;
        events.exception_pending = flag(&exception, "pending")?;
    }
    events.exception_has_error_code = flag(&exception, "has_error_code")?;
    events.exception_error_code = narrow(&exception, "error_code")?;
    if events.exception_pending && flag_or_false(&exception, "has_payload")? {
        events.exception_payload = Some(exception.u("payload")?);
    }
    let interrupt = arch.get("interrupt")?;
    // So does a software interrupt.
    events.interrupt_injected = flag(&interrupt, "injected")? && !flag(&interrupt, "soft")?;
    events.interrupt_nr = narrow(&interrupt, "nr")?;
    events.nmi_injected = flag(arch, "nmi_injected")?;
    Ok(())
}

fn is_soft_exception(vector: u8) -> bool {
    matches!(vector, 3 | 4)
}

/// EXITINTINFO: the event whose delivery the exit interrupted. AMD64 APM volume 2, 15.7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ExitEvent {
    kind: ExitEventKind,
    vector: u8,
    error_code: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExitEventKind {
    None,
    Interrupt,
    Nmi,
    Exception,
    Software,
}

impl ExitEvent {
    fn of(control: &Object<'_>) -> Result<ExitEvent, GuestError> {
        Ok(ExitEvent::decode(
            narrow(control, "exit_int_info")?,
            narrow(control, "exit_int_info_err")?,
        ))
    }

    fn decode(info: u32, error_code: u32) -> ExitEvent {
        const VALID: u32 = 1 << 31;
        const ERROR_CODE: u32 = 1 << 11;
        let kind = match (info & VALID != 0, info >> 8 & 7) {
            (true, 0) => ExitEventKind::Interrupt,
            (true, 2) => ExitEventKind::Nmi,
            (true, 3) => ExitEventKind::Exception,
            (true, 4) => ExitEventKind::Software,
            _ => ExitEventKind::None,
        };
        ExitEvent {
            kind,
            vector: (info & 0xff) as u8,
            error_code: (info & ERROR_CODE != 0).then_some(error_code),
        }
    }

    /// `svm_complete_interrupts`: it is delivered anew.
    fn requeue(&self, events: &mut VcpuEvents) {
        /// #VC belongs to encrypted guests, and is never injected again.
        const VC: u8 = 29;
        match self.kind {
            ExitEventKind::None | ExitEventKind::Software => {}
            ExitEventKind::Interrupt => {
                events.interrupt_injected = true;
                events.interrupt_nr = self.vector;
            }
            ExitEventKind::Nmi => events.nmi_injected = true,
            ExitEventKind::Exception => {
                if self.vector != VC && !is_soft_exception(self.vector) {
                    events.exception_injected = true;
                }
                events.exception_nr = self.vector;
                events.exception_has_error_code = self.error_code.is_some();
                events.exception_error_code = self.error_code.unwrap_or_default();
            }
        }
    }
}

/// `svm_complete_soft_interrupt`: without help from the CPU, KVM moves RIP on before it injects a
/// software interrupt, and back when the delivery failed.
fn undo_soft_interrupt(
    source: &Source<'_, '_>,
    event: &ExitEvent,
    registers: &mut Registers<'_>,
) -> Result<(), GuestError> {
    let vcpu = &source.svm.vcpu;
    if source.svm.next_rip_saved
        || !flag_or_false(vcpu, "soft_int_injected")?
        || !matches!(
            event.kind,
            ExitEventKind::Exception | ExitEventKind::Software
        )
    {
        return Ok(());
    }
    let base = registers.sregs.cs.base;
    let next = vcpu
        .u("soft_int_next_rip")?
        .wrapping_add(vcpu.u("soft_int_csbase")?);
    if registers.regs.rip.wrapping_add(base) == next {
        registers.regs.rip = vcpu.u("soft_int_old_rip")?;
    }
    Ok(())
}

/// DR6's bits that are 1 when nothing happened.
const DR6_ACTIVE_LOW: u64 = 0xffff_0ff0;

/// `db_interception`, which the crash forestalled: a #DB that the guest's own debug registers
/// raised. It is a trap, so the instruction would not raise it again.
fn trapped_debug_exception(
    source: &Source<'_, '_>,
    control: &Object<'_>,
    events: &mut VcpuEvents,
) -> Result<(), GuestError> {
    const EXIT_DB: u64 = 0x41;
    const DB: u8 = 1;
    /// KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP: then it is the VMM's.
    const OF_THE_VMM: u64 = 2 | 0x2_0000;
    if control.u("exit_code")? != EXIT_DB
        || source.vcpu.u("guest_debug")? & OF_THE_VMM != 0
        || flag_or_false(&source.svm.vcpu, "nmi_singlestep")?
    {
        return Ok(());
    }
    events.exception_pending = true;
    events.exception_nr = DB;
    events.exception_has_error_code = false;
    events.exception_payload = Some(source.svm.current.u("save.dr6")? ^ DR6_ACTIVE_LOW);
    Ok(())
}

/// `kvm_deliver_exception_payload`: a VMM that does not know of payloads must find them delivered.
fn deliver_payload(
    vm: &Object<'_>,
    events: &mut VcpuEvents,
    registers: &mut Registers<'_>,
) -> Result<(), GuestError> {
    const DB: u8 = 1;
    const PF: u8 = 14;
    const TRAP_BITS: u64 = 15;
    const RESERVED: u64 = 1 << 12;
    if u_or_0(vm, "arch.exception_payload_enabled")? != 0 {
        return Ok(());
    }
    if let Some(payload) = events.exception_payload.take() {
        match events.exception_nr {
            DB => {
                let dr6 = registers.debug.dr6 & !TRAP_BITS | DR6_ACTIVE_LOW;
                registers.debug.dr6 = ((dr6 | payload) ^ payload & DR6_ACTIVE_LOW) & !RESERVED;
            }
            PF => registers.sregs.cr2 = payload,
            _ => {}
        }
    }
    events.exception_injected |= events.exception_pending;
    events.exception_pending = false;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are the APM's: figure 15-4, "EXITINTINFO for all intercepts".
    #[test]
    fn interrupted_deliveries() {
        let timer = ExitEvent::decode(0x8000_00ec, 0);
        let mut events = VcpuEvents::default();
        timer.requeue(&mut events);
        assert!(events.interrupt_injected && !events.exception_injected);
        assert_eq!(events.interrupt_nr, 0xec);

        let fault = ExitEvent::decode(0x8000_0b0e, 2);
        let mut events = VcpuEvents::default();
        fault.requeue(&mut events);
        assert!(events.exception_injected && events.exception_has_error_code);
        assert_eq!((events.exception_nr, events.exception_error_code), (14, 2));

        let nmi = ExitEvent::decode(0x8000_0202, 0);
        let mut events = VcpuEvents::default();
        nmi.requeue(&mut events);
        assert!(events.nmi_injected);
    }

    #[test]
    fn nothing_was_interrupted() {
        let mut events = VcpuEvents::default();
        // The vector of an event that is not valid says nothing.
        ExitEvent::decode(0x0000_00ec, 0).requeue(&mut events);
        // INT 0x80 comes again with its instruction.
        ExitEvent::decode(0x8000_0480, 0).requeue(&mut events);
        // So does INT3.
        ExitEvent::decode(0x8000_0303, 0).requeue(&mut events);
        assert!(!events.interrupt_injected && !events.exception_injected);
    }
}
