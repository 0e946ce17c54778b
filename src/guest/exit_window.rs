//! Which registers are the guest's, when its CPU was stopped while it ran.
//!
//! KVM keeps a guest's registers in `kvm_vcpu.arch` *and* in the VMCB, and which copy counts
//! depends on where in `svm_vcpu_run` the CPU was (Linux arch/x86/kvm/svm/svm.c):
//!
//! ```text
//!  arch.regs → vmcb.save (RAX, RSP, RIP, CR2)
//!  clgi ─────────────── no interrupt, no NMI from here
//!    VMRUN … #VMEXIT    the CPU writes vmcb.save; the assembly saves the other registers
//!    vmcb.save → arch.regs (RAX, RSP, RIP, CR2)
//!  stgi ─────────────── a pending NMI is taken here
//!  sync_cr8_to_lapic    vmcb.control.int_ctl → LAPIC's TPR
//!  svm_complete_interrupts   vmcb.control.exit_int_info → arch.{exception,interrupt,nmi_injected}
//! ```
//!
//! The NMI by which a dying kernel stops its CPUs forces a #VMEXIT from a guest, stays pending
//! while the global interrupt flag is clear, and is taken at the `stgi`. So in a dump that kdump
//! made, `arch.regs` is always complete, but what the last two steps do may not have been done:
//! that is [`Window::AfterExit`], and [`super::events`] and [`super::lapic`] do it in their stead.
//! Doing it twice does no harm. Only a machine that was stopped from outside (a hypervisor's
//! dump, a CPU that did not answer the NMI) can be caught between the two flags.

use super::GuestError;
use super::field::svm_symbol;
use super::thread::{StoppedAt, VcpuThread, stack_words, stopped_at};
use crate::kernel::{Kernel, Object};

/// Where a vCPU's last entry into the guest had got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// Outside: `kvm_vcpu.arch` is right in all that it holds.
    Closed,
    /// Behind the `stgi`: the exit's event and the guest's TPR are still in the VMCB alone.
    AfterExit,
    /// The CPU had the guest's registers when it stopped, and nobody saved them: KVM's copies are
    /// those of the last entry.
    Inside,
}

/// `kvm_vcpu.mode`. Linux include/linux/kvm_host.h.
const IN_GUEST_MODE: u64 = 1;
const EXITING_GUEST_MODE: u64 = 2;

/// The window of a vCPU.
pub(super) fn window(
    kernel: &Kernel,
    vcpu: &Object<'_>,
    thread: Option<&VcpuThread<'_>>,
) -> Result<Window, GuestError> {
    let Some(cpu) = thread.and_then(|t| t.on_cpu) else {
        // Preemption is off from before the mode changes until after it changes back.
        return Ok(Window::Closed);
    };
    if !matches!(vcpu.u("mode")?, IN_GUEST_MODE | EXITING_GUEST_MODE) {
        return Ok(Window::Closed);
    }
    let Some(stopped) = stopped_at(kernel, cpu) else {
        return Ok(Window::Inside);
    };
    let Some(run) = RunFunction::find(kernel) else {
        // Without it, what the mode says must do: KVM was about to enter or had just left.
        return Ok(Window::AfterExit);
    };
    Ok(run.window(kernel, stopped))
}

/// Where the code of `svm_vcpu_run` stands, and its two instructions.
struct RunFunction {
    start: u64,
    end: u64,
    /// First address behind the `stgi`.
    behind_stgi: Option<u64>,
}

impl RunFunction {
    fn find(kernel: &Kernel) -> Option<RunFunction> {
        /// Its length is 1 to 2 KiB.
        const MOST: u64 = 8192;
        let start = svm_symbol(kernel, "svm_vcpu_run")?;
        let mine = |addr| {
            kernel
                .symbol_at(addr)
                .is_some_and(|(n, _)| n == "svm_vcpu_run")
        };
        let mut len = 0;
        while len < MOST && mine(start.wrapping_add(len)) {
            len += 16;
        }
        let mut code = vec![0; usize::try_from(len).ok()?];
        let behind_stgi = kernel
            .read(start, &mut code)
            .ok()
            .and_then(|()| behind_stgi(&code))
            .map(|offset| start.wrapping_add(offset));
        Some(RunFunction {
            start,
            end: start.wrapping_add(len),
            behind_stgi,
        })
    }

    fn window(&self, kernel: &Kernel, stopped: StoppedAt) -> Window {
        let within = |addr: &u64| (self.start..self.end).contains(addr);
        // Either in the function itself, or in what it called, or in an NMI's handler that
        // panicked: then the address to return to is on the stack.
        let addr = Some(stopped.rip)
            .filter(within)
            .or_else(|| stack_words(kernel, stopped.rsp).into_iter().find(within));
        match (addr, self.behind_stgi) {
            (None, _) => Window::Closed,
            (Some(addr), Some(behind)) if addr < behind => Window::Closed,
            (Some(_), _) => Window::AfterExit,
        }
    }
}

/// Offset of the first byte behind the `stgi` that follows the first `clgi`.
fn behind_stgi(code: &[u8]) -> Option<u64> {
    const CLGI: [u8; 3] = [0x0f, 0x01, 0xdd];
    const STGI: [u8; 3] = [0x0f, 0x01, 0xdc];
    let clgi = code.windows(3).position(|w| w == CLGI)?;
    let stgi = code.get(clgi..)?.windows(3).position(|w| w == STGI)?;
    u64::try_from(clgi + stgi + 3).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stgi_is_looked_for_behind_clgi() {
        // stgi; clgi; nop; stgi; ret
        let code = [
            0x0f, 0x01, 0xdc, 0x0f, 0x01, 0xdd, 0x90, 0x0f, 0x01, 0xdc, 0xc3,
        ];
        assert_eq!(behind_stgi(&code), Some(10));
        assert_eq!(behind_stgi(&code[..7]), None);
        assert_eq!(behind_stgi(&[]), None);
    }
}
