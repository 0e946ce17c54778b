//! What time it was when the host died.
//!
//! A timekeeper says the time at its last update and how many counts of which
//! counter make a nanosecond; it does not say what the counter stood at when
//! the kernel died. The kernel's last words do: a panic prints, and each line
//! of the log bears `local_clock()`, which on a machine with a stable TSC is
//! the TSC through `cyc2ns`. Backwards through `cyc2ns` and forwards through
//! the timekeeper it gives every clock at that line, some milliseconds before
//! the very end. The keeper, where it was loaded, read the clocks themselves.

use super::TaskError;
use crate::dataset::{Fidelity, Host};
use crate::kernel::{Kernel, KernelError, Object};

/// How many of the log's last records are looked at for the newest time.
const LAST_RECORDS: usize = 32;
/// Longest time that a timekeeper may have gone without an update. Seconds.
const MAX_IDLE_S: i64 = 24 * 3600;

/// The clocks at the crash. Nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Clocks {
    pub realtime: i64,
    pub monotonic: i64,
    pub boottime: i64,
    pub tai: i64,
    /// Host TSC; 0 when unknown.
    pub tsc: u64,
    /// kHz; 0 when unknown.
    pub tsc_khz: u64,
    /// How the instant was found.
    pub how: String,
    /// The clocks were read as the CPUs were stopped.
    pub exact: bool,
}

impl Clocks {
    /// The clock with this CLOCK_* number.
    pub fn now(&self, clock: i64) -> i64 {
        match clock {
            // CLOCK_REALTIME, _COARSE, _ALARM
            0 | 5 | 8 => self.realtime,
            // CLOCK_BOOTTIME, _ALARM
            7 | 9 => self.boottime,
            // CLOCK_TAI
            11 => self.tai,
            _ => self.monotonic,
        }
    }

    /// What the report says of the clocks.
    pub fn fidelity(&self) -> Fidelity {
        const WHAT: &str = "clocks at the crash";
        if self.exact {
            Fidelity::exact("host", WHAT, self.how.clone())
        } else {
            Fidelity::reconstructed("host", WHAT, self.how.clone())
        }
    }
}

/// The dead host: release, name, and its clocks at the crash.
///
/// # Errors
/// When the timekeeper cannot be read.
pub fn host(kernel: &Kernel) -> Result<Host, TaskError> {
    let clocks = read(kernel).map_err(|source| TaskError::Kernel {
        what: "timekeeper",
        source,
    })?;
    let names = kernel.names().unwrap_or_default();
    Ok(Host {
        release: kernel.release().to_owned(),
        version: names.version,
        hostname: names.nodename,
        realtime_ns: clocks.realtime,
        monotonic_ns: clocks.monotonic,
        boottime_ns: clocks.boottime,
        tsc_khz: clocks.tsc_khz,
        tsc: clocks.tsc,
    })
}

/// Reads the clocks.
pub(super) fn read(kernel: &Kernel) -> Result<Clocks, KernelError> {
    let keeper = timekeeper(kernel)?;
    let mono = keeper.get("tkr_mono")?;
    let cycle_last = mono.u("cycle_last")?;
    let mult = mono.u("mult")?;
    let shift = mono.u("shift")?.min(63);
    let fraction = mono.u("xtime_nsec")?;
    let base = mono.i("base")?;
    let at = |cycles: u64| -> i64 {
        let ns = (u128::from(cycles) * u128::from(mult) + u128::from(fraction)) >> shift;
        base.saturating_add(i64::try_from(ns).unwrap_or(i64::MAX))
    };
    let last_update = at(0);
    let source = mono
        .follow("clock")
        .and_then(|c| kernel.read_cstr(c.ptr("name")?, 32))
        .unwrap_or_else(|_| "unknown".into());

    let log = last_log_time(kernel);
    let tsc_at_log = log.as_ref().ok().and_then(|ns| tsc_at(kernel, *ns).ok());
    let believable = |t: &i64| *t >= last_update && *t - last_update < MAX_IDLE_S * 1_000_000_000;

    // 0: what the keeper read.
    let kept = kernel.kept_time();
    let by_keeper = kept
        .and_then(|(tsc, ns)| match source.as_str() {
            "tsc" => tsc.checked_sub(cycle_last).map(at),
            _ => i64::try_from(ns).ok(),
        })
        .filter(believable);
    // 1: the last line of the log, as a TSC, through the timekeeper.
    let by_tsc = tsc_at_log
        .filter(|_| source == "tsc")
        .and_then(|tsc| tsc.checked_sub(cycle_last))
        .map(at)
        .filter(believable);
    // 2: the last line of the log, as local_clock(), which began in step with
    // CLOCK_MONOTONIC (kernel/sched/clock.c, __gtod_offset) and drifts by NTP's
    // corrections since.
    let by_log = log.as_ref().ok().and_then(|ns| {
        let offset = variable(kernel, "__gtod_offset").unwrap_or(0);
        let t = i64::try_from(*ns).ok()?.checked_sub(offset.cast_signed())?;
        Some(t).filter(believable)
    });
    let (monotonic, how) = match (by_keeper, by_tsc, by_log) {
        (Some(t), _, _) => (
            t,
            "the keeper read them when the last CPU was stopped".to_owned(),
        ),
        (_, Some(t), _) => (
            t,
            "as of the kernel's last log line, through the TSC and the timekeeper; the crash came within milliseconds of it".to_owned(),
        ),
        (_, _, Some(t)) => (
            t,
            format!("as of the kernel's last log line, by its own clock (clock source {source})"),
        ),
        (None, None, None) => (
            last_update,
            "as of the timekeeper's last update; the crash came at most a few ticks later, on an idle host up to seconds".to_owned(),
        ),
    };
    let tsc = match (by_tsc, by_log) {
        _ if by_keeper.is_some() => kept.map_or(0, |(tsc, _)| tsc),
        (None, None) if source == "tsc" => cycle_last,
        (None, None) => {
            let offset = variable(kernel, "__gtod_offset").unwrap_or(0);
            let clock = monotonic.saturating_add(offset.cast_signed()).max(0);
            tsc_at(kernel, clock.unsigned_abs()).unwrap_or(0)
        }
        _ => tsc_at_log.unwrap_or(0),
    };
    Ok(Clocks {
        realtime: monotonic.saturating_add(keeper.i("offs_real")?),
        monotonic,
        boottime: monotonic.saturating_add(keeper.i("offs_boot")?),
        tai: monotonic.saturating_add(keeper.i("offs_tai")?),
        tsc,
        tsc_khz: kernel
            .symbol("tsc_khz")
            .and_then(|a| kernel.read_u32(a))
            .map(u64::from)
            .unwrap_or(0),
        how,
        exact: by_keeper.is_some(),
    })
}

/// The core timekeeper.
pub(crate) fn timekeeper(kernel: &Kernel) -> Result<Object<'_>, KernelError> {
    // An array of timekeepers, whose element 0 is the core one, since auxiliary
    // clocks came (in v6.17).
    let core = kernel
        .symbol("timekeeper_data")
        .or_else(|_| kernel.symbol("tk_core"))?;
    if kernel.has_type("tk_data") {
        // Named, with a shadow beside it, since v6.13.
        return kernel.object("tk_data", core)?.get("timekeeper");
    }
    // struct { seqcount_raw_spinlock_t seq; struct timekeeper timekeeper; },
    // which has no name in BTF.
    let seq = kernel.size_of("seqcount_raw_spinlock_t").unwrap_or(4);
    kernel.object("timekeeper", core.wrapping_add(seq.next_multiple_of(8)))
}

/// A `u64` variable of the kernel.
fn variable(kernel: &Kernel, name: &str) -> Result<u64, KernelError> {
    kernel.read_u64(kernel.symbol(name)?)
}

/// `local_clock()` of the newest record in the log. Nanoseconds.
fn last_log_time(kernel: &Kernel) -> Result<u64, KernelError> {
    let records = kernel.log(LAST_RECORDS)?;
    Ok(records.iter().map(|r| r.time_ns).max().unwrap_or(0))
}

/// The TSC when `local_clock()` stood at `ns`. arch/x86/kernel/tsc.c,
/// kernel/sched/clock.c.
fn tsc_at(kernel: &Kernel, ns: u64) -> Result<u64, KernelError> {
    let data = kernel
        .object("cyc2ns", kernel.per_cpu(kernel.symbol("cyc2ns")?, 0)?)?
        .get("data[0]")?;
    let (mul, shift) = (data.u("cyc2ns_mul")?, data.u("cyc2ns_shift")?);
    let damaged = |detail: String| KernelError::Damaged {
        what: "cyc2ns",
        addr: data.addr(),
        detail,
    };
    if mul == 0 || shift > 63 {
        return Err(damaged(format!("multiplier {mul}, shift {shift}")));
    }
    let offset = variable(kernel, "__sched_clock_offset").unwrap_or(0);
    let scaled = i128::from(ns)
        - i128::from(offset.cast_signed())
        - i128::from(data.u("cyc2ns_offset")?.cast_signed());
    u64::try_from((scaled << shift) / i128::from(mul))
        .map_err(|_| damaged(format!("{ns} ns is no TSC value")))
}
