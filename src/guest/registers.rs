//! The registers that KVM keeps in `struct kvm_vcpu_arch` in a form of its own.

use super::GuestError;
use super::exit_window::Window;
use super::field::words;
use super::thread::VcpuThread;
use super::vcpu::Found;
use super::vmcb::Svm;
use crate::dataset::{DebugRegs, Fidelity, SystemRegs, VcpuRegs};
use crate::kernel::Object;

/// `arch.regs`, in the order of `enum kvm_reg`, which is that of x86's encoding.
pub(super) fn general(arch: &Object<'_>) -> Result<VcpuRegs, GuestError> {
    let field = arch.get("regs")?;
    let words = words(&field.bytes()?);
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        ..,
    ] = words[..]
    else {
        return Err(GuestError::Damaged {
            what: "kvm_vcpu_arch.regs",
            addr: field.addr(),
            detail: format!("{} registers where there are 17", words.len()),
        });
    };
    Ok(VcpuRegs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags: 0,
    })
}

/// DR0 to DR7, from the copy that counts.
pub(super) fn debug(
    arch: &Object<'_>,
    svm: &Svm<'_>,
    found: &Found<'_>,
    subject: &str,
    fidelity: &mut Vec<Fidelity>,
) -> Result<DebugRegs, GuestError> {
    /// KVM_DEBUGREG_WONT_EXIT: the guest writes the registers themselves.
    const WONT_EXIT: u64 = 2;
    let mut regs = DebugRegs {
        db: [0; 4],
        dr6: arch.u("dr6")?,
        dr7: arch.u("dr7")?,
    };
    for (value, word) in regs.db.iter_mut().zip(words(&arch.get("db")?.bytes()?)) {
        *value = word;
    }
    if found.window != Window::Closed && arch.u("switch_db_regs")? & WONT_EXIT != 0 {
        regs.dr6 = svm.current.u("save.dr6")?;
        regs.dr7 = svm.current.u("save.dr7")?;
        // KVM puts the host's back later than anything that stops a CPU here.
        let kept = found.thread.as_ref().and_then(VcpuThread::cpu_state);
        if let Some(db) = kept.and_then(|state| state.debug) {
            regs.db = db;
            return Ok(regs);
        }
        fidelity.push(Fidelity::lost(
            subject,
            "DR0–DR3",
            "the guest was using them, and they were in the CPU; these are the last that were \
             saved",
        ));
    }
    Ok(regs)
}

/// CR0.PG, CR4.PAE, and no long mode.
pub(super) fn in_pae_mode(sregs: &SystemRegs) -> bool {
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LMA: u64 = 1 << 10;
    sregs.cr0 & PG != 0 && sregs.cr4 & PAE != 0 && sregs.efer & LMA == 0
}
