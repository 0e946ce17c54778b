//! Exits whose instruction KVM had still to finish.
//!
//! For port I/O, for MMIO reads and some rarer exits KVM leaves RIP on the
//! instruction and finishes it at the next KVM_RUN, by a function pointer
//! (`arch.complete_userspace_io`) that no ioctl can set. A new vCPU would run
//! the instruction again: a character printed twice. So KVM is made to come to
//! that point by itself: one KVM_RUN, before anything could interrupt it,
//! meets the same instruction and exits the same way. Nobody sees that exit;
//! the VMM's kvm_run page is put back as it was, and KVM now has a completion
//! of its own to call. Whether the VMM was still handling the exit or had
//! answered it already (a read's data in kvm_run) makes no difference.
//!
//! An MMIO write is another matter: its instruction is done before its exit. What
//! of it was still to come is brought about by [`super::mmio_rest`].

use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use super::mmio_rest;
use super::run_page::{
    DETAILS, EXIT_REASON, MMIO_DATA, MMIO_IS_WRITE, MMIO_LEN, MMIO_MOST, describe, u32_at,
};
use super::vcpu_state::{PAGE, Revived};
use crate::dataset::{Fidelity, MmioPart, Vcpu};
use crate::restore::Errno;
use kvm_bindings as kvm;
use std::mem::offset_of;
use std::time::Duration;

/// What is to be done about an exit in flight.
pub(super) enum InFlight {
    /// Its instruction is run again.
    Again(Again),
    /// An MMIO write, whose instruction is done, with more to come: see [`super::mmio_rest`].
    MmioRest(Vec<MmioPart>),
}

/// An exit that must come again.
pub(super) struct Again {
    reason: u32,
    /// The dumped kvm_run page.
    page: Vec<u8>,
    /// What the VMM had answered within the instruction before this exit.
    answered: Vec<u8>,
}

/// How long a guest may take for one instruction, with its pages perhaps still
/// on their way.
const LIMIT: Duration = Duration::from_secs(10);

/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;

const CR8: usize = offset_of!(kvm::kvm_run, cr8);

/// What is to be done about a vCPU's exit in flight.
///
/// # Errors
/// It cannot be brought about again, or the dataset contradicts itself.
pub(super) fn plan(subject: &str, vcpu: &Vcpu) -> Result<Option<InFlight>, KvmError> {
    let Some(exit) = &vcpu.exit_in_flight else {
        return Ok(None);
    };
    let malformed = |why: String| KvmError::Malformed {
        subject: subject.into(),
        what: format!("exit in flight ({}, {})", exit.reason, exit.completion),
        why,
    };
    let unsupported = |why: String| KvmError::Unsupported {
        subject: subject.into(),
        why,
    };
    let page = match vcpu.run_pages.first() {
        Some(page) if page.0.len() == PAGE => page.0.clone(),
        _ => return Err(malformed("the kvm_run page is not there".into())),
    };
    let reason = u32_at(&page, EXIT_REASON);
    if reason != exit.reason {
        return Err(malformed(format!(
            "the kvm_run page says exit reason {reason}"
        )));
    }
    // RIP is past the instruction already; all that the completion does is to
    // forget the transfer.
    if exit.completion == "complete_fast_pio_out_port_0x7e" {
        return Ok(None);
    }
    if let Some(why) = &exit.refused {
        return Err(unsupported(why.clone()));
    }
    // An MMIO write is carried out, registers and RIP, before its exit
    // (x86_emulate_instruction: writeback). Only further pieces of it wait.
    if reason == kvm::KVM_EXIT_MMIO && page[DETAILS + MMIO_IS_WRITE] != 0 {
        if exit.mmio_write.is_empty() {
            return Ok(None);
        }
        mmio_rest::check(&page, &exit.mmio_write).map_err(unsupported)?;
        return Ok(Some(InFlight::MmioRest(exit.mmio_write.clone())));
    }
    if inputs(reason).is_none() {
        return Err(unsupported(format!(
            "an exit of reason {reason} waits for {}, which vmrestore cannot bring about again",
            exit.completion
        )));
    }
    Ok(Some(InFlight::Again(Again {
        reason,
        page,
        answered: exit.mmio_answered.0.clone(),
    })))
}

/// Ranges of bytes (start, end) of the exit's details that say *which* exit it is: not the VMM's
/// answers. `None`: an exit that is not known to come again by itself.
fn inputs(reason: u32) -> Option<&'static [(usize, usize)]> {
    Some(match reason {
        // direction u8, size u8, port u16, count u32
        kvm::KVM_EXIT_IO => &[(0, 8)],
        // phys_addr u64, data [8], len u32, is_write u8
        kvm::KVM_EXIT_MMIO => &[(0, 8), (16, 21)],
        // nr u64, args [u64; 6]
        kvm::KVM_EXIT_HYPERCALL => &[(0, 56)],
        // error u8, pad, reason u32, index u32, data u64
        kvm::KVM_EXIT_X86_RDMSR => &[(8, 16)],
        kvm::KVM_EXIT_X86_WRMSR => &[(8, 24)],
        // type u32, pad, input u64, result u64, params [u64; 2]
        kvm::KVM_EXIT_HYPERV => &[(0, 4), (8, 16), (24, 40)],
        // type u32, pad, longmode u32, cpl u32, input u64, result u64, params [u64; 6]
        kvm::KVM_EXIT_XEN => &[(0, 4), (8, 24), (32, 80)],
        _ => return None,
    })
}

impl Again {
    pub fn fidelity(&self, subject: &str) -> Fidelity {
        Fidelity::reconstructed(
            subject,
            format!("the unfinished {}", describe(&self.page)),
            "its instruction was run again up to the same exit",
        )
    }

    fn error(&self, calls: &Calls, got: impl Into<String>) -> KvmError {
        KvmError::Rearm {
            subject: calls.subject.clone(),
            wanted: describe(&self.page),
            got: got.into(),
        }
    }
}

/// Makes the exit come again.
pub(super) fn rearm(
    calls: &mut Calls,
    revived: &Revived,
    in_flight: &Again,
) -> Result<(), KvmError> {
    let Revived { vcpu, fd, run, .. } = revived;
    let fd = *fd;

    // The dumped page must not be there yet: its immediate_exit would end the
    // call before the instruction, kvm_dirty_regs would overwrite registers,
    // request_interrupt_window would end it early. CR8 alone is taken from the
    // page by KVM, where the LAPIC is the VMM's.
    let mut blank = vec![0; PAGE];
    blank[CR8..CR8 + 8].copy_from_slice(&vcpu.sregs.cr8.to_le_bytes());
    run.write(calls, &blank)?;

    // Should the instruction not exit (because memory is not as it was), the
    // guest must not run on: single step ends the call after one instruction,
    // and no interrupt is let in meanwhile.
    // The step's trap flag would replace one of the guest's own, which could
    // not be put back: such a guest goes without.
    let stepping = vcpu.regs.rflags & TRAP_FLAG == 0 && step(calls, fd)?;
    let met = until_met(calls, revived, in_flight);
    if stepping {
        calls.set(
            fd,
            ioctls::SET_GUEST_DEBUG,
            &kvm::kvm_guest_debug::default(),
        )?;
    }
    met?;

    // The instruction must not have moved on. Registers may be read here but
    // not set: KVM_SET_REGS makes the emulator forget which registers the
    // instruction writes, and the value that an IN or a MMIO read brings would
    // go nowhere (emulator_invalidate_register_cache, Linux arch/x86/kvm/x86.c).
    let regs: kvm::kvm_regs = calls.get(fd, ioctls::GET_REGS)?;
    if regs.rip != vcpu.regs.rip {
        let got = format!("RIP went from {:#x} to {:#x}", vcpu.regs.rip, regs.rip);
        return Err(in_flight.error(calls, got));
    }
    Ok(())
}

/// Runs the instruction up to the exit that was in flight. Of an MMIO read in
/// pieces it meets the earlier ones first: they get the answers that the VMM
/// gave before the crash, and the VMM does not see them again.
fn until_met(calls: &mut Calls, revived: &Revived, in_flight: &Again) -> Result<(), KvmError> {
    let run = &revived.run;
    let mut rest = &in_flight.answered[..];
    loop {
        enter(calls, revived.fd, &|calls, got| in_flight.error(calls, got))?;
        let mut page = vec![0; PAGE];
        run.read(calls, &mut page)?;
        let reason = u32_at(&page, EXIT_REASON);
        if reason == kvm::KVM_EXIT_DEBUG {
            let got = "the guest went past the instruction (is its memory as it was?)";
            return Err(in_flight.error(calls, got));
        }
        let details = |page: &[u8], &(start, end): &(usize, usize)| {
            page.get(DETAILS + start..DETAILS + end).map(<[u8]>::to_vec)
        };
        let same = reason == in_flight.reason
            && inputs(reason).is_some_and(|ranges| {
                ranges
                    .iter()
                    .all(|r| details(&page, r) == details(&in_flight.page, r))
            });
        let given = rest.len() < in_flight.answered.len();
        // An instruction may have read memory as well, which takes no answer:
        // then there is more of the emulator's cache than exits, and they can
        // only be told apart if none came before.
        if same && (rest.is_empty() || !given) {
            return Ok(());
        }
        let earlier = (reason == kvm::KVM_EXIT_MMIO && page[DETAILS + MMIO_IS_WRITE] == 0)
            .then(|| usize::try_from(u32_at(&page, DETAILS + MMIO_LEN)).ok())
            .flatten()
            .and_then(|len| rest.split_at_checked(len.min(MMIO_MOST)));
        let Some((answer, others)) = earlier.filter(|(answer, _)| !answer.is_empty() && !same)
        else {
            return Err(in_flight.error(calls, describe(&page)));
        };
        let at = DETAILS + MMIO_DATA;
        page[at..at + answer.len()].copy_from_slice(answer);
        run.write(calls, &page)?;
        rest = others;
    }
}

/// One KVM_RUN, for a time at most.
pub(super) fn enter(
    calls: &mut Calls,
    fd: i32,
    error: &dyn Fn(&Calls, String) -> KvmError,
) -> Result<(), KvmError> {
    let args = [
        u64::from(fd.cast_unsigned()),
        ioctls::RUN.number,
        0,
        0,
        0,
        0,
    ];
    // A fault's handler would run without the step's trap flag: so a time
    // limit besides.
    match calls.sys.syscall_within(libc::SYS_ioctl, args, LIMIT) {
        Ok(_) => Ok(()),
        Err(Errno(libc::EINTR)) => {
            let got = format!("the guest ran on for {} s", LIMIT.as_secs());
            Err(error(calls, got))
        }
        Err(Errno(libc::EFAULT)) => {
            let got = "KVM met an address that is not mapped in the process";
            Err(error(calls, got.into()))
        }
        Err(errno) => Err(calls.failed("KVM_RUN (re-arm)", errno)),
    }
}

/// Turns single step on; whether this KVM can.
fn step(calls: &mut Calls, fd: i32) -> Result<bool, KvmError> {
    let on = kvm::KVM_GUESTDBG_ENABLE | kvm::KVM_GUESTDBG_SINGLESTEP;
    // Linux commit 61e5f69ef083 ("KVM: x86: implement KVM_GUESTDBG_BLOCKIRQ")
    // (in v5.15). Before it nothing is pending here either.
    for control in [on | kvm::KVM_GUESTDBG_BLOCKIRQ, on] {
        let debug = kvm::kvm_guest_debug {
            control,
            ..Default::default()
        };
        let mut bytes = crate::sys::kvm_args::bytes_of(&debug).to_vec();
        match calls.try_bytes(fd, ioctls::SET_GUEST_DEBUG, &mut bytes) {
            Ok(_) => return Ok(true),
            Err(Errno(libc::EINVAL | libc::ENOTTY)) => {}
            Err(errno) => return Err(calls.failed("KVM_SET_GUEST_DEBUG(single step)", errno)),
        }
    }
    Ok(false)
}
