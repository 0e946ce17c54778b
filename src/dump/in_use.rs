//! Page frames that are no longer as the crash left them: a guest that was resumed in place runs in
//! them. Nothing reads them any more.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// Ranges of page frames, in order and without overlap.
#[derive(Debug, Default)]
pub(super) struct InUse {
    /// There are some: else nobody pays for asking.
    any: AtomicBool,
    ranges: RwLock<Vec<Range<u64>>>,
}

impl InUse {
    /// Adds ranges of page frames, in any order.
    pub fn add(&self, frames: impl IntoIterator<Item = Range<u64>>) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.extend(frames.into_iter().filter(|range| !range.is_empty()));
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, last| {
            let joined = next.start <= last.end;
            if joined {
                last.end = last.end.max(next.end);
            }
            joined
        });
        self.any.store(!ranges.is_empty(), Ordering::Release);
    }

    /// The first of these page frames that is in use.
    pub fn first_of(&self, frames: Range<u64>) -> Option<u64> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let next = ranges.partition_point(|range| range.end <= frames.start);
        let range = ranges.get(next)?;
        (range.start < frames.end).then(|| range.start.max(frames.start))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_are_found() {
        let in_use = InUse::default();
        assert_eq!(in_use.first_of(0..u64::MAX), None);
        in_use.add([512..1024, 5..6, 6..8, 700..1100]);
        in_use.add([0..1, 3..3]);
        assert_eq!(in_use.count(), 1 + 3 + 588);
        for (asked, found) in [
            (0..1, Some(0)),
            (1..5, None),
            (1..6, Some(5)),
            (7..512, Some(7)),
            (8..512, None),
            (8..513, Some(512)),
            (1099..2000, Some(1099)),
            (1100..u64::MAX, None),
        ] {
            assert_eq!(in_use.first_of(asked.clone()), found, "{asked:?}");
        }
    }
}
