//! Whether the VMM has yet to hear of a vCPU's last exit.
//!
//! A thread that a crash finds in KVM_RUN makes that call again when it is restored. That is wrong
//! for one that was on its way *out* of it: KVM would take the exit for handled, and a byte that
//! the guest wrote would be lost, or a register filled with what the VMM never answered. Such a
//! call must return 0 instead, and the VMM finds the exit in the kvm_run page.
//!
//! ```text
//!  kvm_vcpu_ioctl
//!   kvm_arch_vcpu_ioctl_run
//!     vcpu_load           loaded: the preempt notifier is registered
//!     kvm_load_guest_fpu  the thread works on the guest's FPU state
//!     complete_userspace_io of the last exit, cleared
//!     vcpu_run            enters the guest, exits, and sets complete_userspace_io
//!     kvm_put_guest_fpu
//!     vcpu_put            last_host_tsc = now
//! ```
//!
//! On the way in, the vCPU was put (`last_host_tsc`) after its last exit (`last_guest_tsc`); on
//! the way out, before.

use super::GuestError;
use super::clock::CrashClock;
use super::field::{kvm_symbol, narrow};
use super::thread::{VcpuThread, stack_words};
use crate::kernel::{Kernel, Object};

// KVM_EXIT_*. Linux include/uapi/linux/kvm.h.
const EXIT_UNKNOWN: u32 = 0;
/// Interrupted by a signal: KVM_RUN fails with EINTR, and is as well made again.
const EXIT_INTR: u32 = 10;

/// Whether the thread's KVM_RUN was about to return 0, with an exit that the VMM has not seen.
pub(super) fn unreported(
    kernel: &Kernel,
    vcpu: &Object<'_>,
    thread: Option<&VcpuThread<'_>>,
    clock: &CrashClock,
) -> Result<bool, GuestError> {
    let arch = vcpu.get("arch")?;
    let Some(thread) = thread else {
        return Ok(false);
    };
    let reason: u32 = narrow(&vcpu.follow("run")?, "exit_reason")?;
    if matches!(reason, EXIT_UNKNOWN | EXIT_INTR) {
        return Ok(false);
    }
    let state = State {
        has_guest_fpu: thread.works_on(arch.ptr("guest_fpu.fpstate")?)?,
        loaded: thread.has_loaded(vcpu)?,
        completion_set: arch.ptr("complete_userspace_io")? != 0,
        exited_at: clock.host_tsc_of(&arch, arch.u("last_guest_tsc")?)?,
        put_at: arch.u("last_host_tsc")?,
    };
    Ok(match state.way() {
        Way::Out => true,
        Way::In => false,
        Way::OutsideOfRun => behind_the_call(kernel, thread)?.unwrap_or(false),
    })
}

struct State {
    has_guest_fpu: bool,
    loaded: bool,
    completion_set: bool,
    /// Host TSC.
    exited_at: u64,
    /// Host TSC.
    put_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// On the way in, or running the guest.
    In,
    /// `vcpu_run` is done, or as good as.
    Out,
    /// Before `vcpu_load` or behind `vcpu_put`, or not in KVM_RUN at all.
    OutsideOfRun,
}

impl State {
    fn way(&self) -> Way {
        let since_put = self.exited_at > self.put_at;
        match (self.loaded, self.has_guest_fpu) {
            (false, _) => Way::OutsideOfRun,
            (true, false) if since_put => Way::Out,
            // With the guest's FPU state it is within vcpu_run; what is left to be completed was
            // set at its end.
            (true, true) if since_put && self.completion_set => Way::Out,
            (true, _) => Way::In,
        }
    }
}

/// Whether the thread is in `kvm_vcpu_ioctl`, behind its call of `kvm_arch_vcpu_ioctl_run`. `None`
/// when it is not in that function, or the call cannot be found in it.
fn behind_the_call(kernel: &Kernel, thread: &VcpuThread<'_>) -> Result<Option<bool>, GuestError> {
    const FUNCTION: &str = "kvm_vcpu_ioctl";
    /// Its length is 3 to 4 KiB.
    const MOST: u64 = 16384;
    let (Some(start), Some(run)) = (
        kvm_symbol(kernel, FUNCTION),
        kvm_symbol(kernel, "kvm_arch_vcpu_ioctl_run"),
    ) else {
        return Ok(None);
    };
    let stopped = thread.on_cpu.and_then(|cpu| kernel.stopped_at(cpu));
    let (rip, rsp) = match stopped {
        Some(stopped) => (stopped.rip, stopped.rsp),
        None => (0, thread.switched_stack()?),
    };
    let mine = |addr: &u64| {
        (start..start.wrapping_add(MOST)).contains(addr)
            && kernel
                .symbol_at(*addr)
                .is_some_and(|(name, _)| name == FUNCTION)
    };
    let Some(at) = std::iter::once(rip)
        .chain(stack_words(kernel, rsp))
        .find(mine)
    else {
        return Ok(None);
    };
    let mut code = vec![0; usize::try_from(MOST).unwrap_or_default()];
    kernel.read(start, &mut code)?;
    Ok(end_of_call(&code, start, run).map(|end| at > end))
}

/// The address behind the first `call rel32` in `code`, which stands at `start`, that leads to
/// `target`.
fn end_of_call(code: &[u8], start: u64, target: u64) -> Option<u64> {
    const CALL: u8 = 0xe8;
    code.windows(5).enumerate().find_map(|(offset, bytes)| {
        let &[CALL, a, b, c, d] = bytes else {
            return None;
        };
        let end = start.wrapping_add(offset as u64 + 5);
        let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
        (end.wrapping_add_signed(distance) == target).then_some(end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(loaded: bool, has_guest_fpu: bool, exited_at: u64, put_at: u64) -> State {
        State {
            has_guest_fpu,
            loaded,
            completion_set: true,
            exited_at,
            put_at,
        }
    }

    #[test]
    fn ways_in_and_out() {
        let exit_then_put = (1000, 2000);
        let put_then_exit = (2000, 1000);
        let way = |loaded, fpu, (exit, put)| state(loaded, fpu, exit, put).way();
        assert_eq!(way(true, false, put_then_exit), Way::Out, "FPU put back");
        assert_eq!(way(true, true, put_then_exit), Way::Out, "not yet");
        assert_eq!(way(true, false, exit_then_put), Way::In, "just loaded");
        assert_eq!(way(true, true, exit_then_put), Way::In, "not completed yet");
        assert_eq!(way(false, false, exit_then_put), Way::OutsideOfRun);
        let running = State {
            completion_set: false,
            ..state(true, true, 2000, 1000)
        };
        assert_eq!(running.way(), Way::In, "about to enter again");
    }

    #[test]
    fn the_call_is_found_by_its_target() {
        // nop; call +0x100; call -0x200; ret
        let code = [0x90, 0xe8, 0, 1, 0, 0, 0xe8, 0x00, 0xfe, 0xff, 0xff, 0xc3];
        let start = 0xffff_ffff_c000_1000;
        assert_eq!(
            end_of_call(&code, start, start + 6 + 0x100),
            Some(start + 6)
        );
        assert_eq!(
            end_of_call(&code, start, start + 11 - 0x200),
            Some(start + 11)
        );
        assert_eq!(end_of_call(&code, start, start), None);
    }
}
