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

use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use super::vcpu_state::{PAGE, Revived};
use crate::dataset::{Fidelity, Vcpu};
use crate::restore::Errno;
use kvm_bindings as kvm;
use std::mem::offset_of;
use std::time::Duration;

/// An exit that must come again.
pub(super) struct InFlight {
    reason: u32,
    /// The dumped kvm_run page.
    page: Vec<u8>,
}

/// How long a guest may take for one instruction, with its pages perhaps still
/// on their way.
const LIMIT: Duration = Duration::from_secs(10);

/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;

const EXIT_REASON: usize = offset_of!(kvm::kvm_run, exit_reason);
const CR8: usize = offset_of!(kvm::kvm_run, cr8);
/// Where the union of the exits' details starts.
const DETAILS: usize = offset_of!(kvm::kvm_run, __bindgen_anon_1);

/// Whether an exit must come again; what cannot be had is noted.
pub(super) fn plan(
    calls: &mut Calls,
    vcpu: &Vcpu,
    notes: &mut Vec<Fidelity>,
) -> Result<Option<InFlight>, KvmError> {
    let Some(exit) = &vcpu.exit_in_flight else {
        return Ok(None);
    };
    let malformed = |why: String| KvmError::Malformed {
        subject: calls.subject.clone(),
        what: format!("exit in flight ({}, {})", exit.reason, exit.completion),
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
    if reason == kvm::KVM_EXIT_MMIO {
        let is_write = page[DETAILS + 20] != 0;
        // An MMIO write is carried out, registers and RIP, before its exit.
        // Only further pieces of it wait (x86_emulate_instruction: writeback).
        if is_write {
            if exit.mmio_pieces_left != 0 {
                notes.push(Fidelity::lost(
                    &calls.subject,
                    format!("the last {} pieces of an MMIO write", exit.mmio_pieces_left),
                    "KVM held them where no call can put them; the device sees the first only",
                ));
            }
            return Ok(None);
        }
        // The pieces read before are with KVM's emulator, which is gone.
        if exit.mmio_pieces_done != 0 {
            notes.push(Fidelity::lost(
                &calls.subject,
                "an MMIO read in pieces",
                "its first pieces are lost; the whole read is made again, so the device sees \
                 some of it twice",
            ));
            return Ok(None);
        }
    }
    if inputs(reason).is_none() {
        return Err(KvmError::Unsupported {
            subject: calls.subject.clone(),
            why: format!(
                "an exit of reason {reason} waits for {}, which vmrestore cannot bring about again",
                exit.completion
            ),
        });
    }
    Ok(Some(InFlight { reason, page }))
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

impl InFlight {
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
    in_flight: &InFlight,
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
    let request = ioctls::RUN.number;
    let args = [u64::from(fd.cast_unsigned()), request, 0, 0, 0, 0];
    // A fault's handler would run without the step's trap flag: so a time
    // limit besides.
    let result = calls.sys.syscall_within(libc::SYS_ioctl, args, LIMIT);
    if stepping {
        calls.set(
            fd,
            ioctls::SET_GUEST_DEBUG,
            &kvm::kvm_guest_debug::default(),
        )?;
    }
    match result {
        Ok(_) => {}
        Err(Errno(libc::EINTR)) => {
            let got = format!("the guest ran on for {} s", LIMIT.as_secs());
            return Err(in_flight.error(calls, got));
        }
        Err(Errno(libc::EFAULT)) => {
            let got = "KVM met an address that is not mapped in the process";
            return Err(in_flight.error(calls, got));
        }
        Err(errno) => return Err(calls.failed("KVM_RUN (re-arm)", errno)),
    }

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
    if !same {
        return Err(in_flight.error(calls, describe(&page)));
    }

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

/// An exit in words.
fn describe(page: &[u8]) -> String {
    let at = |offset| DETAILS + offset;
    match u32_at(page, EXIT_REASON) {
        kvm::KVM_EXIT_IO => format!(
            "{} of {} × {} bytes at port {:#x}",
            if page[at(0)] == 0 { "in" } else { "out" },
            u32_at(page, at(4)),
            page[at(1)],
            u32_at(page, at(0)) >> 16,
        ),
        kvm::KVM_EXIT_MMIO => format!(
            "MMIO {} of {} bytes at {:#x}",
            if page[at(20)] == 0 { "read" } else { "write" },
            u32_at(page, at(16)),
            u64_at(page, at(0)),
        ),
        kvm::KVM_EXIT_X86_RDMSR => format!("read of MSR {:#x}", u32_at(page, at(12))),
        kvm::KVM_EXIT_X86_WRMSR => format!("write of MSR {:#x}", u32_at(page, at(12))),
        kvm::KVM_EXIT_HYPERCALL => format!("hypercall {:#x}", u64_at(page, at(0))),
        kvm::KVM_EXIT_INTERNAL_ERROR => {
            format!("internal error of KVM, suberror {}", u32_at(page, at(0)))
        }
        kvm::KVM_EXIT_FAIL_ENTRY => {
            format!("the CPU refused to enter, {:#x}", u64_at(page, at(0)))
        }
        kvm::KVM_EXIT_SHUTDOWN => "triple fault".into(),
        reason => format!("exit of reason {reason}"),
    }
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    page.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    page.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
