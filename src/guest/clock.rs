//! What time it was: for the host's TSC, for the guest's TSC, for kvmclock.
//!
//! Nothing writes the TSC down at the instant of a crash. What is known are marks that it had
//! passed: the last tick of the timekeeper, the last exit and the last switch of each vCPU. The
//! highest of them is taken, and where a vCPU was in the guest, which could read the TSC until it
//! was stopped, a little is added, so that the guest never sees time go back. Going forward does
//! no harm: to the guest it is as if it had not been scheduled for that while.

use super::GuestError;
use super::field::{narrow, or, u_or_0};
use crate::dataset::Host;
use crate::kernel::{Kernel, Object};

/// Longer than a guest runs without an exit, which is a tick of its CPU (at most 10 ms).
const UNSEEN_MS: u64 = 10;
/// Marks further ahead than this of what the timekeeper says are damage, not time.
const PLAUSIBLE_S: u64 = 3600;
const NS_PER_MS: u64 = 1_000_000;

/// The clocks at the crash.
pub(super) struct CrashClock {
    /// The host's TSC, at least what any guest can have seen.
    pub host_tsc: u64,
    /// The host's CLOCK_MONOTONIC, in which KVM's timers are set. Nanoseconds.
    pub monotonic_ns: i64,
    /// kHz.
    pub tsc_khz: u64,
    /// Bits behind the point in TSC scaling ratios.
    ratio_bits: u32,
}

impl CrashClock {
    /// `vcpus` are `struct kvm_vcpu`s; `in_guest`: one of them was in guest mode.
    pub fn at(
        kernel: &Kernel,
        vcpus: &[Object<'_>],
        host: &Host,
        in_guest: bool,
    ) -> Result<CrashClock, GuestError> {
        let tsc_khz = match host.tsc_khz {
            0 => u64::from(
                kernel
                    .symbol("tsc_khz")
                    .and_then(|a| kernel.read_u32(a))
                    .unwrap_or_default(),
            ),
            khz => khz,
        };
        let mut clock = CrashClock {
            host_tsc: 0,
            monotonic_ns: host.monotonic_ns,
            tsc_khz,
            // SVM's ratios have 32 bits behind the point, VMX's 48.
            ratio_bits: 32,
        };
        let timekeeper = Timekeeper::of(kernel).ok();
        let tick = timekeeper.as_ref().map_or(0, |t| t.tsc_at_tick());
        let known = host.tsc.max(tick);
        let limit = match known {
            0 => u64::MAX,
            known => known.saturating_add(tsc_khz.saturating_mul(1000 * PLAUSIBLE_S)),
        };
        let mut latest = known;
        for vcpu in vcpus {
            let arch = vcpu.get("arch")?;
            for mark in [
                u_or_0(&arch, "last_host_tsc")?,
                clock.host_tsc_of(&arch, arch.u("last_guest_tsc")?)?,
            ] {
                if mark <= limit {
                    latest = latest.max(mark);
                }
            }
        }
        if in_guest {
            latest = latest.saturating_add(tsc_khz.saturating_mul(UNSEEN_MS));
        }
        clock.host_tsc = latest;
        Ok(clock)
    }

    /// The guest's TSC on the vCPU of this `struct kvm_vcpu_arch`.
    pub fn guest_tsc(&self, arch: &Object<'_>) -> Result<u64, GuestError> {
        let ratio = u_or_0(arch, "l1_tsc_scaling_ratio")?;
        let scaled = scale(self.host_tsc, ratio, self.ratio_bits);
        Ok(scaled.wrapping_add(arch.u("l1_tsc_offset")?))
    }

    /// The host's TSC when the guest's had this value; 0 for 0, which a vCPU that never ran has.
    pub fn host_tsc_of(&self, arch: &Object<'_>, guest: u64) -> Result<u64, GuestError> {
        if guest == 0 {
            return Ok(0);
        }
        let ratio = u_or_0(arch, "l1_tsc_scaling_ratio")?;
        let scaled = guest.wrapping_sub(arch.u("l1_tsc_offset")?);
        Ok(unscale(scaled, ratio, self.ratio_bits))
    }

    /// What KVM_GET_CLOCK would have said of this `struct kvm`. Nanoseconds.
    /// `get_kvmclock` in Linux arch/x86/kvm/x86.c.
    pub fn kvmclock(
        &self,
        kernel: &Kernel,
        vm: &Object<'_>,
        vcpus: &[Object<'_>],
    ) -> Result<u64, GuestError> {
        let arch = vm.get("arch")?;
        let offset = arch.i("kvmclock_offset")?;
        let base = if arch.u("use_master_clock")? != 0 && self.tsc_khz != 0 {
            let passed = self.host_tsc.saturating_sub(arch.u("master_cycle_now")?);
            arch.u("master_kernel_ns")?
                .saturating_add(self.tsc_to_ns(passed))
        } else {
            Timekeeper::of(kernel)?.raw_boot_ns(self)
        };
        let mut clock = base.wrapping_add_signed(offset);
        // Without the master clock each vCPU's page counts on from when it was last written, at
        // the rate of its TSC, and may be ahead of the host's clock.
        let limit = clock.saturating_add(PLAUSIBLE_S * 1000 * NS_PER_MS);
        for vcpu in vcpus {
            let arch = vcpu.get("arch")?;
            let Some(page) = PvClock::of(&arch)? else {
                continue;
            };
            let seen = page.at(self.guest_tsc(&arch)?);
            if seen <= limit {
                clock = clock.max(seen);
            }
        }
        Ok(clock)
    }

    fn tsc_to_ns(&self, cycles: u64) -> u64 {
        if self.tsc_khz == 0 {
            return 0;
        }
        let ns = u128::from(cycles) * u128::from(NS_PER_MS) / u128::from(self.tsc_khz);
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

/// `kvm_scale_tsc`. A ratio of 0 stands for 1: the field is missing or was never set.
fn scale(tsc: u64, ratio: u64, bits: u32) -> u64 {
    match ratio {
        0 => tsc,
        ratio => ((u128::from(tsc) * u128::from(ratio)) >> bits) as u64,
    }
}

fn unscale(tsc: u64, ratio: u64, bits: u32) -> u64 {
    match ratio {
        0 => tsc,
        ratio => {
            let whole = (u128::from(tsc) << bits) / u128::from(ratio);
            u64::try_from(whole).unwrap_or(u64::MAX)
        }
    }
}

/// What KVM last wrote into a vCPU's kvmclock page. `struct pvclock_vcpu_time_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PvClock {
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
}

impl PvClock {
    fn of(arch: &Object<'_>) -> Result<Option<PvClock>, GuestError> {
        let enabled = u_or_0(arch, "time")? & 1 != 0;
        if !enabled || !arch.has("hv_clock") {
            return Ok(None);
        }
        let page = arch.get("hv_clock")?;
        let clock = PvClock {
            tsc_timestamp: page.u("tsc_timestamp")?,
            system_time: page.u("system_time")?,
            mul: narrow(&page, "tsc_to_system_mul")?,
            shift: i8::try_from(page.i("tsc_shift")?).unwrap_or_default(),
        };
        Ok((clock.mul != 0).then_some(clock))
    }

    /// The time that the guest computes from it. Nanoseconds.
    fn at(self, tsc: u64) -> u64 {
        let passed = tsc.saturating_sub(self.tsc_timestamp);
        let distance = u32::from(self.shift.unsigned_abs()).min(63);
        let shifted = if self.shift < 0 {
            u128::from(passed >> distance)
        } else {
            u128::from(passed) << distance
        };
        let ns = shifted.saturating_mul(u128::from(self.mul)) >> 32;
        self.system_time
            .saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// The parts of `struct timekeeper` that kvmclock counts from.
struct Timekeeper {
    clock_is_tsc: bool,
    cycle_last: u64,
    /// CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW at the last tick. Nanoseconds.
    mono_ns: u64,
    raw_ns: u64,
    offs_boot: i64,
}

impl Timekeeper {
    fn of(kernel: &Kernel) -> Result<Timekeeper, GuestError> {
        let tk = crate::task::timekeeper(kernel)?;
        let base_ns = |path: &str| -> Result<u64, GuestError> {
            let base = tk.get(path)?;
            let shift: u32 = narrow(&base, "shift")?;
            let part = base.u("xtime_nsec")? >> shift.min(63);
            Ok(base.u("base")?.wrapping_add(part))
        };
        let name = tk.follow("tkr_mono.clock")?.get("name")?.string()?;
        Ok(Timekeeper {
            clock_is_tsc: name.starts_with("tsc"),
            cycle_last: tk.u("tkr_mono.cycle_last")?,
            mono_ns: base_ns("tkr_mono")?,
            raw_ns: base_ns("tkr_raw")?,
            offs_boot: or(&tk, "offs_boot", 0, |o, p| Ok(o.i(p)?))?,
        })
    }

    fn tsc_at_tick(&self) -> u64 {
        if self.clock_is_tsc {
            self.cycle_last
        } else {
            0
        }
    }

    /// CLOCK_MONOTONIC_RAW and the time in suspend: `get_kvmclock_base_ns`. Nanoseconds.
    fn raw_boot_ns(&self, crash: &CrashClock) -> u64 {
        let by_clock = u64::try_from(crash.monotonic_ns)
            .unwrap_or_default()
            .saturating_sub(self.mono_ns);
        let by_tsc = if self.clock_is_tsc {
            crash.tsc_to_ns(crash.host_tsc.saturating_sub(self.cycle_last))
        } else {
            0
        };
        self.raw_ns
            .wrapping_add(by_clock.max(by_tsc))
            .wrapping_add_signed(self.offs_boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_and_back() {
        const ONE: u64 = 1 << 32;
        assert_eq!(scale(123_456_789, ONE, 32), 123_456_789);
        assert_eq!(scale(1000, ONE + ONE / 2, 32), 1500);
        assert_eq!(scale(7, 0, 32), 7);
        assert_eq!(unscale(1500, ONE + ONE / 2, 32), 1000);
        // 200 days at 3 GHz, and no overflow on the way.
        let long = 3_000_000_000 * 86_400 * 200;
        assert_eq!(unscale(scale(long, 2 * ONE, 32), 2 * ONE, 32), long);
    }

    /// By the formula of Documentation/virt/kvm/x86/msr.rst: a TSC of 2.0 GHz is a multiplier of
    /// one half, shift 0.
    #[test]
    fn the_guests_clock() {
        let page = PvClock {
            tsc_timestamp: 1_000_000,
            system_time: 5_000,
            mul: 1 << 31,
            shift: 0,
        };
        assert_eq!(page.at(1_002_000), 6_000);
        assert_eq!(page.at(900_000), 5_000, "never before it was written");
        // 500 MHz: two nanoseconds a cycle, one of the two by the shift.
        let slow = PvClock {
            mul: u32::MAX,
            shift: 1,
            ..page
        };
        assert_eq!(slow.at(1_001_000), 6_999);
        let fast = PvClock { shift: -1, ..page };
        assert_eq!(fast.at(1_004_000), 6_000);
    }
}
