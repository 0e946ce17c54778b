//! Where the time goes: with `-v` each step of a command says how long it took.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// When the command began, and its last step.
static CLOCK: Mutex<Option<(Instant, Instant)>> = Mutex::new(None);

/// The command begins. Without it nothing is said.
pub fn begin() {
    let now = Instant::now();
    *CLOCK.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, now));
}

/// A step has been done.
pub fn done(step: &str) {
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((begin, last)) = clock.as_mut() else {
        return;
    };
    let now = Instant::now();
    tracing::info!(
        "{:9.1} ms, after {:8.1} ms: {step}",
        now.duration_since(*begin).as_secs_f64() * 1e3,
        now.duration_since(*last).as_secs_f64() * 1e3,
    );
    *last = now;
}
