//! Sets what one vCPU held.

use super::calls::{Calls, RunArea};
use super::error::KvmError;
use super::rearm::InFlight;
use super::{ioctls, mmio_rest, msrs, rearm, tsc_rate, vcpu_args};
use crate::dataset::{Fidelity, Irqchip, Vcpu, Vm};
use kvm_bindings as kvm;

/// KVM_MP_STATE_RUNNABLE.
const RUNNABLE: u32 = 0;
/// `struct kvm_xsave`; larger only with AMX. Bytes.
const XSAVE_SIZE: usize = 4096;

/// A vCPU on its way back.
pub(super) struct Revived<'v> {
    pub vm: &'v Vm,
    pub vcpu: &'v Vcpu,
    pub vm_fd: i32,
    pub fd: i32,
    pub run: RunArea,
}

impl Revived<'_> {
    /// State that brings no interrupt, and the exit that was in flight.
    ///
    /// Nothing here may make an event pending: the re-armed KVM_RUN must meet
    /// the very instruction that had exited.
    pub fn set_core(&self, calls: &mut Calls, notes: &mut Vec<Fidelity>) -> Result<(), KvmError> {
        let Self { vcpu, fd, .. } = *self;
        let caps = &self.vm.caps;
        let (cr2, dr6) = vcpu_args::delivered_payload(vcpu, caps.exception_payload);

        // A new application processor waits for INIT; KVM_RUN would sleep.
        let in_flight = rearm::plan(&calls.subject, vcpu)?;
        if in_flight.is_some() {
            let state = kvm::kvm_mp_state { mp_state: RUNNABLE };
            calls.set(fd, ioctls::SET_MP_STATE, &state)?;
        }

        // Before the TSC, whose value is scaled by it.
        tsc_rate::set(calls, self.vm_fd, fd, vcpu, notes)?;
        // Before MSRs: without it IA32_MCG_CTL does not exist.
        if vcpu.mcg_cap != 0 {
            calls.set_bytes(fd, ioctls::X86_SETUP_MCE, &vcpu.mcg_cap.to_le_bytes())?;
        }
        // Before the first KVM_RUN, after which they are fixed (Linux 6.4),
        // and before nested state, which they describe.
        msrs::set_features(calls, fd, vcpu, notes)?;

        // Before all that the guest had, which it replaces for a moment: what
        // it leaves behind is only what KVM holds of the write.
        if let Some(InFlight::MmioRest(parts)) = &in_flight {
            notes.push(mmio_rest::bring_about(calls, self, parts)?);
        }

        // Before events: it clears pending exceptions.
        let regs = vcpu_args::regs(&vcpu.regs);
        calls.set(fd, ioctls::SET_REGS, &regs)?;
        // Before the LAPIC, which exists only where APICBASE enables it, and
        // before nested state, which wants EFER.SVME. In this form PDPTRs come
        // along, where the older one would read them from guest memory.
        let sregs = vcpu_args::sregs(&vcpu.sregs, cr2);
        calls.set(fd, ioctls::SET_SREGS2, &sregs)?;
        // After SREGS, and before the re-arm: the exit may be a nested guest's.
        if let Some(nested) = &vcpu.nested {
            calls.set_bytes(fd, ioctls::SET_NESTED_STATE, &nested.0)?;
        }
        // After nested state: it may have switched register sets.
        if vcpu.nested.is_some() {
            calls.set(fd, ioctls::SET_REGS, &regs)?;
        }
        let xsave = self.xsave(calls)?;
        calls.set_bytes(fd, ioctls::SET_XSAVE, &xsave)?;
        calls.set(fd, ioctls::SET_XCRS, &vcpu_args::xcrs(vcpu.xcr0))?;
        let debug = vcpu_args::debug_regs(&vcpu.debug, dr6);
        calls.set(fd, ioctls::SET_DEBUGREGS, &debug)?;

        // After all that the instruction needs, before all that could
        // interrupt it.
        if let Some(InFlight::Again(in_flight)) = in_flight {
            // SMM decides which memory the guest sees.
            let masks = vcpu_args::masks_only(&vcpu.events);
            let events = vcpu_args::events(&masks, caps.exception_payload, false);
            calls.set(fd, ioctls::SET_VCPU_EVENTS, &events)?;
            rearm::rearm(calls, self, &in_flight)?;
            notes.push(in_flight.fidelity(&calls.subject));
        }
        Ok(())
    }

    /// State that may bring interrupts, and what the VMM set for the vCPU.
    pub fn set_events(
        &self,
        calls: &mut Calls,
        tsc: &mut msrs::CommonTsc,
        notes: &mut Vec<Fidelity>,
    ) -> Result<(), KvmError> {
        let Self { vcpu, fd, .. } = *self;
        let caps = &self.vm.caps;

        // After SREGS (APICBASE), before the TSC-deadline MSR, which is
        // ignored unless LVTT says that it is in use.
        if let Some(lapic) = self.lapic()? {
            calls.set_bytes(fd, ioctls::SET_LAPIC, &lapic)?;
        }
        // With guest memory in place: system time, steal time and async page
        // faults look theirs up.
        msrs::set(calls, fd, vcpu, notes)?;
        tsc.set(calls, fd, vcpu, notes)?;
        // After the TSC, against which it is measured.
        msrs::set_deadline(calls, fd, vcpu, notes)?;
        // With guest memory in place.
        if vcpu.vapic_addr != 0 {
            let vapic_addr = vcpu.vapic_addr;
            let vapic = kvm::kvm_vapic_addr { vapic_addr };
            calls.set(fd, ioctls::SET_VAPIC_ADDR, &vapic)?;
        }
        if vcpu.tpr_access_reporting {
            let enabled = 1;
            let reporting = kvm::kvm_tpr_access_ctl {
                enabled,
                ..Default::default()
            };
            calls.set(fd, ioctls::TPR_ACCESS_REPORTING, &reporting)?;
        }
        if let Some(mask) = vcpu.signal_mask {
            // struct kvm_signal_mask: u32 len, u8 sigset[len].
            let mut bytes = [0; 12];
            bytes[..4].copy_from_slice(&8_u32.to_le_bytes());
            bytes[4..].copy_from_slice(&mask.to_le_bytes());
            calls.set_bytes(fd, ioctls::SET_SIGNAL_MASK, &bytes)?;
        }
        // Before events: both change what is pending.
        if vcpu.guest_debug != 0 {
            let control = vcpu.guest_debug;
            let debug = kvm::kvm_guest_debug {
                control,
                ..Default::default()
            };
            calls.set(fd, ioctls::SET_GUEST_DEBUG, &debug)?;
            if control & kvm::KVM_GUESTDBG_USE_HW_BP != 0 {
                notes.push(Fidelity::lost(
                    &calls.subject,
                    "hardware breakpoints of the VMM's debugger",
                    "their addresses are not in the dataset",
                ));
            }
        }
        // After REGS, which clears pending exceptions, and after the LAPIC,
        // which holds the SIPI's vector.
        let events = vcpu_args::events(
            &vcpu.events,
            caps.exception_payload,
            caps.triple_fault_event,
        );
        calls.set(fd, ioctls::SET_VCPU_EVENTS, &events)?;
        // Last: events that a state forbids (an SMI while INIT is waited for)
        // are checked against the state that was.
        let mp_state = vcpu.mp_state;
        calls.set(fd, ioctls::SET_MP_STATE, &kvm::kvm_mp_state { mp_state })?;
        // The VMM finds kvm_run as it left it: exit reason and data of an exit
        // that it is handling, and its answer to one that it has handled.
        for (page, at) in vcpu.run_pages.iter().zip((0..).step_by(PAGE)) {
            self.write_run_page(calls, &page.0, at)?;
        }
        Ok(())
    }

    fn write_run_page(&self, calls: &mut Calls, page: &[u8], at: usize) -> Result<(), KvmError> {
        let at = at as u64;
        let fits = page.len() == PAGE && at + page.len() as u64 <= self.run.len;
        if !fits {
            return Err(KvmError::Malformed {
                subject: calls.subject.clone(),
                what: format!("kvm_run area of {} pages", self.vcpu.run_pages.len()),
                why: format!("here a vCPU's is {} bytes", self.run.len),
            });
        }
        calls
            .sys
            .write(self.run.address + at, page)
            .map_err(|errno| calls.failed("writing kvm_run", errno))
    }

    /// The argument of KVM_SET_LAPIC.
    pub fn lapic(&self) -> Result<Option<[u8; vcpu_args::LAPIC_SIZE]>, KvmError> {
        let malformed = |why: &str| KvmError::Malformed {
            subject: super::vcpu_subject(self.vm, self.vcpu),
            what: "LAPIC".into(),
            why: why.into(),
        };
        match (&self.vcpu.lapic, &self.vm.irqchip) {
            (None, Irqchip::None) => Ok(None),
            (Some(_), Irqchip::None) => Err(malformed("the VM has no irqchip in the kernel")),
            (None, _) => Err(malformed(
                "it is missing, but the VM's irqchip is the kernel's",
            )),
            (Some(lapic), _) => vcpu_args::lapic(self.vcpu, &lapic.regs.0, self.vm.caps.x2apic_api)
                .map(Some)
                .ok_or_else(|| malformed("shorter than 1024 bytes")),
        }
    }

    /// The argument of KVM_SET_XSAVE: at least as long as KVM reads.
    pub fn xsave(&self, calls: &mut Calls) -> Result<Vec<u8>, KvmError> {
        let len = xsave_len(calls, self.vm_fd);
        let state = &self.vcpu.xsave.0;
        let (kept, rest) = state.split_at_checked(len).unwrap_or((state, &[]));
        if rest.iter().any(|&b| b != 0) {
            return Err(KvmError::Unsupported {
                subject: calls.subject.clone(),
                why: format!(
                    "its XSAVE area has {} bytes, this host's KVM takes {len} (a CPU with fewer \
                     register sets?)",
                    state.len()
                ),
            });
        }
        let mut out = kept.to_vec();
        out.resize(len, 0);
        Ok(out)
    }
}

/// Bytes of an XSAVE area here: what KVM_CAP_XSAVE2 says, once the VM is there.
pub(super) fn xsave_len(calls: &mut Calls, vm_fd: i32) -> usize {
    usize::try_from(calls.extension(vm_fd, kvm::KVM_CAP_XSAVE2))
        .unwrap_or(0)
        .clamp(XSAVE_SIZE, 1 << 20)
}

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
