//! A page of memory that vmrestore, the pager and the guardian share: how far it is.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vm_memory::{MmapRegion, VolatileMemory};

/// Bytes of the page.
const SIZE: usize = 4096;

/// Where the message begins: its length, then its text. Bytes.
const MESSAGE: usize = 2048;

/// How far the pager is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is on its way.
    Starting,
    /// It answers faults.
    Serving,
    /// All memory is there: nothing depends on it any more.
    Resident,
    /// All that it served has ended.
    Ended,
    /// A page could not be delivered; the message says which.
    Failed,
    /// The restore was given up: what it served never runs.
    GivenUp,
}

const STATES: [State; 6] = [
    State::Starting,
    State::Serving,
    State::Resident,
    State::Ended,
    State::Failed,
    State::GivenUp,
];

/// One number of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    State,
    /// The processes run: from now on memory streams in.
    Go,
    /// Pages delivered, of all.
    Done,
    Total,
    /// Faults answered, and of them those for pages of zeros.
    Faults,
    Zeros,
    /// PID of the guardian.
    Guardian,
    /// What all faults together have taken. Nanoseconds.
    Waited,
}

/// Where the histogram of fault times begins (words), and in how many classes: four to each power of two.
const HISTOGRAM: usize = 16;
const CLASSES: usize = 128;

/// The page.
pub struct Status(MmapRegion);

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Status({:?})", self.state())
    }
}

impl Status {
    /// A new page, shared with all children to come.
    ///
    /// # Errors
    /// mmap refused.
    pub fn new() -> io::Result<Self> {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        MmapRegion::build(None, SIZE, prot, flags)
            .map(Self)
            .map_err(io::Error::other)
    }

    fn with<T: Default>(&self, word: usize, act: impl Fn(&AtomicU64) -> T) -> T {
        let slice = self.0.as_volatile_slice();
        slice
            .get_atomic_ref::<AtomicU64>(word * 8)
            .map_or_else(|_| T::default(), act)
    }

    /// Reads a number.
    pub fn get(&self, count: Count) -> u64 {
        self.with(count as usize, |word| word.load(Ordering::Acquire))
    }

    /// Sets a number.
    pub fn set(&self, count: Count, value: u64) {
        self.with(count as usize, |word| word.store(value, Ordering::Release));
    }

    /// Adds to a number.
    pub fn add(&self, count: Count, value: u64) {
        self.with(count as usize, |word| {
            word.fetch_add(value, Ordering::AcqRel)
        });
    }

    /// How far the pager is.
    pub fn state(&self) -> State {
        let at = usize::try_from(self.get(Count::State)).unwrap_or(0);
        STATES.get(at).copied().unwrap_or(State::Starting)
    }

    /// Says how far it is.
    pub fn set_state(&self, state: State) {
        self.set(Count::State, state as u64);
    }

    /// A fault was answered after this time.
    pub fn answered(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.add(Count::Faults, 1);
        self.add(Count::Waited, nanoseconds);
        self.with(HISTOGRAM + class(nanoseconds), |word| {
            word.fetch_add(1, Ordering::Relaxed)
        });
    }

    /// The time within which this part of all faults (0.99) was answered.
    pub fn quantile(&self, part: f64) -> Duration {
        let counts: Vec<u64> = (0..CLASSES)
            .map(|n| self.with(HISTOGRAM + n, |word| word.load(Ordering::Relaxed)))
            .collect();
        let all: u64 = counts.iter().sum();
        let mut seen = 0;
        for (n, count) in counts.iter().enumerate() {
            seen += count;
            if all > 0 && seen as f64 >= all as f64 * part {
                return Duration::from_nanos(upper(n));
            }
        }
        Duration::ZERO
    }

    /// Leaves words for whoever reads on.
    pub fn say(&self, text: &str) {
        let slice = self.0.as_volatile_slice();
        let bytes = text.as_bytes();
        let bytes = bytes.get(..SIZE - MESSAGE - 8).unwrap_or(bytes);
        if let Ok(place) = slice.get_slice(MESSAGE + 8, bytes.len()) {
            place.copy_from(bytes);
            self.with(MESSAGE / 8, |word| {
                word.store(bytes.len() as u64, Ordering::Release);
            });
        }
    }

    /// The words that were left, if any.
    pub fn message(&self) -> String {
        let len = self.with(MESSAGE / 8, |word| word.load(Ordering::Acquire));
        let len = usize::try_from(len).unwrap_or(0).min(SIZE - MESSAGE - 8);
        let mut bytes = vec![0u8; len];
        if let Ok(place) = self.0.as_volatile_slice().get_slice(MESSAGE + 8, len) {
            place.copy_to(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Four classes to each power of two.
fn class(value: u64) -> usize {
    let value = value.max(4);
    let power = value.ilog2() as usize;
    let quarter = (value >> (power - 2)) as usize & 3;
    (4 * (power - 2) + quarter).min(CLASSES - 1)
}

/// The highest value of a class.
fn upper(class: usize) -> u64 {
    let (power, quarter) = (class / 4 + 2, class as u64 % 4);
    ((4 + quarter + 1) << (power - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_falls_into_them() {
        for value in [0, 4, 5, 7, 8, 9, 1000, 123_456, 99_999_999] {
            let class = class(value);
            assert!(value <= upper(class), "{value}");
            assert!(class == 0 || value > upper(class - 1), "{value}");
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        let status = Status::new().expect("a page");
        assert_eq!(status.message(), "");
        status.say("page 0x1000 is damaged");
        assert_eq!(status.message(), "page 0x1000 is damaged");
        assert_eq!(status.state(), State::Starting);
        status.set_state(State::Failed);
        assert_eq!(status.state(), State::Failed);
        for n in 1..=100 {
            status.answered(Duration::from_micros(n));
        }
        let p99 = status.quantile(0.99);
        assert!((99_000..130_000).contains(&p99.as_nanos()), "{p99:?}");
    }
}
