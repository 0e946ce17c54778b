//! Clocks that catch up with the time since the crash.
//!
//! kvmclock and the TSCs of all vCPUs jump by the same time, so they agree with
//! each other as before; a guest that keeps time by either sees its monotonic
//! clock, and with it its wall clock, that much further on. TSC deadlines stay
//! what they are, and may have passed.

use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use super::vcpu_state::Revived;
use crate::dataset::Vm;
use crate::restore::Errno;
use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

const TSC: u32 = 0x10;

/// `vm` as it would be now, had it run on; itself where its clocks are to go on
/// from the crash.
pub(super) fn caught_up(vm: &Vm) -> Cow<'_, Vm> {
    let Some(since) = vm.clock.realtime_ns else {
        return Cow::Borrowed(vm);
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos());
    let since = u128::try_from(since).unwrap_or_default();
    let passed = u64::try_from(now.saturating_sub(since)).unwrap_or(u64::MAX);
    Cow::Owned(later(vm, passed))
}

/// `vm` with all its clocks `passed` ns on.
fn later(vm: &Vm, passed: u64) -> Vm {
    /// Cycles in a nanosecond are kHz over this.
    const NS_KHZ: u128 = 1_000_000;
    let mut vm = vm.clone();
    vm.clock.clock_ns = vm.clock.clock_ns.wrapping_add(passed);
    for vcpu in &mut vm.vcpus {
        let cycles = u128::from(passed) * u128::from(vcpu.tsc_khz) / NS_KHZ;
        // As KVM's own counter does.
        let cycles = (cycles & u128::from(u64::MAX)) as u64;
        for msr in vcpu.msrs.iter_mut().filter(|m| m.index == TSC) {
            msr.value = msr.value.wrapping_add(cycles);
        }
    }
    vm
}

/// Sets the flag in the vCPU's clock page that says "the host had stopped
/// you", so that a guest's soft-lockup watchdog does not take the jump for a
/// hang.
pub(super) fn tell_watchdog(calls: &mut Calls, vcpu: &Revived) -> Result<(), KvmError> {
    match calls
        .sys
        .ioctl_value(vcpu.fd, ioctls::KVMCLOCK_CTRL.number, 0)
    {
        // EINVAL: the guest has no kvmclock.
        Ok(_) | Err(Errno(libc::EINVAL)) => Ok(()),
        Err(errno) => Err(calls.failed(ioctls::KVMCLOCK_CTRL.name, errno)),
    }
}
