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
//! dump, a CPU that did not answer the NMI) can be caught between the two flags. Then what the
//! hypervisor says of the CPU decides, if it says anything ([`super::outside`]).

use super::GuestError;
use super::field::svm_symbol;
use super::outside::{OnCpu, on_cpu};
use super::thread::{VcpuThread, stack_words};
use crate::kernel::{Kernel, Object, StoppedAt};

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

/// The window of a vCPU, and the guest's registers where a hypervisor found them in the CPU.
pub(super) fn window(
    kernel: &Kernel,
    vcpu: &Object<'_>,
    thread: Option<&VcpuThread<'_>>,
) -> Result<(Window, Option<OnCpu>), GuestError> {
    let Some((thread, cpu)) = thread.and_then(|t| Some((t, t.on_cpu?))) else {
        // Preemption is off from before the mode changes until after it changes back.
        return Ok((Window::Closed, None));
    };
    if !matches!(vcpu.u("mode")?, IN_GUEST_MODE | EXITING_GUEST_MODE) {
        return Ok((Window::Closed, None));
    }
    let run = RunFunction::find(kernel);
    let Some(stopped) = kernel.stopped_at(cpu) else {
        let found = on_cpu(kernel, thread, cpu)?;
        let window = match (&found, run, kernel.stopped_anyhow(cpu)) {
            (OnCpu::Host, Some(run), Some(stopped)) => run.window_from_outside(kernel, stopped),
            _ => Window::Inside,
        };
        return Ok((window, Some(found)));
    };
    let Some(run) = run else {
        // Without it, what the mode says must do: KVM was about to enter or had just left.
        return Ok((Window::AfterExit, None));
    };
    Ok((run.window(kernel, stopped), None))
}

/// Where the code of `svm_vcpu_run` stands, and its two instructions.
struct RunFunction {
    start: u64,
    end: u64,
    /// First address behind the `clgi`.
    behind_clgi: Option<u64>,
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
        let (behind_clgi, behind_stgi) = kernel
            .read(start, &mut code)
            .ok()
            .and_then(|()| behind_clgi_and_stgi(&code))
            .map(|(clgi, stgi)| (start.wrapping_add(clgi), start.wrapping_add(stgi)))
            .unzip();
        Some(RunFunction {
            start,
            end: start.wrapping_add(len),
            behind_clgi,
            behind_stgi,
        })
    }

    /// Where it was in the function: in it, or in what it called, or in an NMI's handler that
    /// panicked; then the address to return to is on the stack.
    fn place(&self, kernel: &Kernel, stopped: StoppedAt) -> Option<u64> {
        let within = |addr: &u64| (self.start..self.end).contains(addr);
        Some(stopped.rip)
            .filter(within)
            .or_else(|| stack_words(kernel, stopped.rsp).into_iter().find(within))
    }

    /// The same of a CPU that had the host's registers and was not stopped by an NMI, so between
    /// the two flags as well. There the guest's registers may be in KVM's structures or on their
    /// way into them.
    fn window_from_outside(&self, kernel: &Kernel, stopped: StoppedAt) -> Window {
        match (self.place(kernel, stopped), self.behind_clgi) {
            (Some(addr), Some(clgi)) if addr < clgi => Window::Closed,
            (Some(addr), _) if self.behind_stgi.is_none_or(|stgi| addr < stgi) => Window::Inside,
            _ => self.window(kernel, stopped),
        }
    }

    fn window(&self, kernel: &Kernel, stopped: StoppedAt) -> Window {
        let addr = self.place(kernel, stopped);
        match (addr, self.behind_stgi) {
            (None, _) => Window::Closed,
            (Some(addr), Some(behind)) if addr < behind => Window::Closed,
            (Some(_), _) => Window::AfterExit,
        }
    }
}

/// Offsets of the first bytes behind the first `clgi` and the `stgi` that follows it.
fn behind_clgi_and_stgi(code: &[u8]) -> Option<(u64, u64)> {
    const CLGI: [u8; 3] = [0x0f, 0x01, 0xdd];
    const STGI: [u8; 3] = [0x0f, 0x01, 0xdc];
    let clgi = code.windows(3).position(|w| w == CLGI)?;
    let stgi = code.get(clgi..)?.windows(3).position(|w| w == STGI)?;
    let clgi = u64::try_from(clgi).ok()?;
    Some((clgi + 3, clgi + u64::try_from(stgi).ok()? + 3))
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
        assert_eq!(behind_clgi_and_stgi(&code), Some((6, 10)));
        assert_eq!(behind_clgi_and_stgi(&code[..7]), None);
        assert_eq!(behind_clgi_and_stgi(&[]), None);
    }
}
