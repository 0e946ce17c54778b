//! Do the guest's clocks ever run backwards, on any CPU or from one to the next?
//!
//! A thread on each CPU reads all clocks under one lock, which puts the
//! readings of all CPUs in one order: a clock that shows less than another CPU
//! read before it went back.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Readings of one CPU in a row.
const BURST: usize = 16;
/// Between two bursts of one CPU.
const REST: Duration = Duration::from_millis(500);

/// The clocks, by the names under which they are reported.
const NAMES: [&str; 4] = ["mono", "real", "boot", "tsc"];

/// What the threads share.
#[derive(Default)]
struct Latest {
    /// CPU that read last, and what it read.
    seen: Option<(usize, [u64; 4])>,
    /// The largest step back of each clock, and from which CPU to which.
    back: [Option<(u64, usize, usize)>; 4],
}

/// The threads' findings.
#[derive(Default)]
pub struct Clocks {
    latest: Mutex<Latest>,
    /// Readings, by CPU.
    readings: Vec<AtomicU64>,
}

impl Clocks {
    /// Starts a thread on each of `cpus` CPUs; `bind` binds the calling thread.
    pub fn watch(cpus: usize, bind: fn(usize)) -> Arc<Self> {
        let clocks = Arc::new(Self {
            readings: (0..cpus).map(|_| AtomicU64::new(0)).collect(),
            ..Self::default()
        });
        for cpu in 0..cpus {
            let clocks = Arc::clone(&clocks);
            std::thread::spawn(move || {
                bind(cpu);
                loop {
                    for _ in 0..BURST {
                        clocks.read(cpu);
                    }
                    std::thread::sleep(REST);
                }
            });
        }
        clocks
    }

    fn read(&self, cpu: usize) {
        if let Ok(mut latest) = self.latest.lock() {
            latest.note(cpu, now());
        }
        if let Some(count) = self.readings.get(cpu) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Latest {
    fn note(&mut self, cpu: usize, now: [u64; 4]) {
        if let Some((from, seen)) = self.seen {
            for ((back, now), seen) in self.back.iter_mut().zip(now).zip(seen) {
                let step = seen.saturating_sub(now);
                if step > back.map_or(0, |(step, ..)| step) {
                    *back = Some((step, from, cpu));
                }
            }
        }
        self.seen = Some((cpu, now));
    }
}

/// `ok:N`, N being the fewest readings of any CPU; or for each clock that went
/// back `name-STEP@FROM>TO`, with commas between: nanoseconds or cycles, CPUs.
impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let back = self.latest.lock().map(|l| l.back).unwrap_or_default();
        let mut comma = "";
        for (name, back) in NAMES.iter().zip(back) {
            if let Some((step, from, to)) = back {
                write!(f, "{comma}{name}-{step}@{from}>{to}")?;
                comma = ",";
            }
        }
        if comma.is_empty() {
            let counts = self.readings.iter().map(|n| n.load(Ordering::Relaxed));
            write!(f, "ok:{}", counts.min().unwrap_or_default())?;
        }
        Ok(())
    }
}

/// All clocks at once. Nanoseconds; cycles.
fn now() -> [u64; 4] {
    let [mono, real, boot] = [
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME,
    ]
    .map(nanoseconds);
    // SAFETY: LFENCE and RDTSC are part of every x86-64 CPU. The fence keeps
    // the CPU from reading its counter before it holds the lock.
    let tsc = unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    };
    [mono, real, boot, tsc]
}

/// A clock's time. Nanoseconds.
#[must_use]
pub fn nanoseconds(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid timespec to fill.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_from_cpu_to_cpu_is_said() {
        let clocks = Clocks {
            readings: vec![AtomicU64::new(7), AtomicU64::new(5)],
            ..Clocks::default()
        };
        let note = |cpu, now| clocks.latest.lock().expect("lock").note(cpu, now);
        note(0, [100, 1000, 10, 5]);
        note(1, [100, 1001, 11, 6]);
        assert_eq!(clocks.to_string(), "ok:5");
        note(0, [98, 1002, 12, 7]);
        note(1, [99, 1003, 13, 3]);
        note(0, [98, 1004, 14, 8]);
        assert_eq!(clocks.to_string(), "mono-2@1>0,tsc-4@0>1");
    }
}
