//! The rate of a guest's time-stamp counter.
//!
//! Seen under TCG, and in milder form on hardware without an invariant TSC
//! leaf: the kernel *measures* the TSC at each boot, and two boots of one
//! machine differ by up to a few parts in a thousand. A CPU with TSC scaling
//! gives the guest the rate it had. Without it the guest gets this host's rate:
//! kvmclock, whose factor KVM writes anew, stays right.

use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use crate::dataset::{Fidelity, Vcpu};
use kvm_bindings as kvm;

/// Two measurements of one counter may differ by so much. Parts in a thousand.
const SAME_COUNTER: u64 = 10;

/// This host can give a guest another rate than its own.
pub(super) fn scalable(calls: &mut Calls, vm_fd: i32) -> bool {
    calls.extension(vm_fd, kvm::KVM_CAP_TSC_CONTROL) != 0
}

/// Gives the vCPU the rate it had, where the CPU can; else says what that means.
pub(super) fn set(
    calls: &mut Calls,
    vm_fd: i32,
    fd: i32,
    vcpu: &Vcpu,
    notes: &mut Vec<Fidelity>,
) -> Result<(), KvmError> {
    let wanted = u64::from(vcpu.tsc_khz);
    if wanted == 0 {
        return Ok(());
    }
    let now = calls.value(fd, ioctls::GET_TSC_KHZ, 0)?;
    if now == wanted {
        return Ok(());
    }
    if scalable(calls, vm_fd) {
        calls.value(fd, ioctls::SET_TSC_KHZ, wanted)?;
        return Ok(());
    }
    let subject = calls.subject.clone();
    if now.abs_diff(wanted).saturating_mul(1000) <= wanted.saturating_mul(SAME_COUNTER) {
        notes.push(Fidelity::reconstructed(
            subject,
            "TSC rate",
            format!(
                "the dead host had measured {wanted} kHz, this one measures {now} kHz and cannot scale it; kvmclock is right"
            ),
        ));
    } else {
        notes.push(Fidelity::lost(
            subject,
            "TSC rate",
            format!(
                "it was {wanted} kHz and is {now} kHz, which this CPU cannot scale: a guest that keeps time by the TSC itself, not by kvmclock, runs at another pace"
            ),
        ));
    }
    Ok(())
}
