//! `--clock catch-up`: the time that the host was down passes for guests too.
//!
//! All clocks move on together, so that they agree with one another: kvmclock
//! and every vCPU's TSC, by as much as CLOCK_REALTIME has moved since the crash
//! when they are set; the monotonic clocks of the VMM, in its time namespace.
//! Timers that were due in the meantime are due at once.

use super::args::ClockPolicy;
use super::exit::{Exit, Failure};
use crate::dataset::{Dataset, Fidelity};
use std::time::{SystemTime, UNIX_EPOCH};

/// Prepares a dataset for the policy.
///
/// # Errors
/// This host's clock is behind the crash: time cannot have passed.
pub fn apply(dataset: &mut Dataset, policy: ClockPolicy) -> Result<(), Failure> {
    if policy == ClockPolicy::StandStill {
        return Ok(());
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|now| i64::try_from(now.as_nanos()).ok())
        .unwrap_or_default();
    let host = &mut dataset.host;
    let down = now.saturating_sub(host.realtime_ns);
    if host.realtime_ns <= 0 || down < 0 {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "the clocks cannot catch up: it was {} ns since 1970 at the crash, and is {now} \
                 by this host's clock",
                host.realtime_ns
            ),
            "set this host's clock, or leave out --clock catch-up",
        ));
    }
    host.monotonic_ns = host.monotonic_ns.saturating_add(down);
    host.boottime_ns = host.boottime_ns.saturating_add(down);
    for vm in &mut dataset.vms {
        vm.clock.realtime_ns = Some(host.realtime_ns);
    }
    dataset.fidelity.push(Fidelity::reconstructed(
        "host",
        "clocks",
        format!(
            "they have caught up with the {:.1} s since the crash: every monotonic clock jumps \
             forward",
            down as f64 / 1e9
        ),
    ));
    Ok(())
}
