//! A set of page frames, such as those that are corrupt: mostly empty, and never large.

use std::collections::BTreeMap;

/// Page frames in a block: 16 MiB of memory, in 512 bytes.
const BLOCK: u64 = 4096;
/// Most blocks: 32 MiB, for frames in 1 TiB of memory. A dump that is damaged in more places than
/// that is not worth a list of them.
const MAX_BLOCKS: usize = 1 << 16;

/// A set of page frames. Takes 512 bytes for each 16 MiB of memory that has one, 32 MiB at most.
#[derive(Clone, Debug, Default)]
pub struct FrameSet {
    blocks: BTreeMap<u64, Box<[u64; 64]>>,
    /// Some did not fit.
    overflowed: bool,
}

impl FrameSet {
    /// Adds a page frame.
    pub fn insert(&mut self, pfn: u64) {
        let block = pfn / BLOCK;
        if self.blocks.len() >= MAX_BLOCKS && !self.blocks.contains_key(&block) {
            self.overflowed = true;
            return;
        }
        let bits = self
            .blocks
            .entry(block)
            .or_insert_with(|| Box::new([0; 64]));
        let within = pfn % BLOCK;
        bits[(within / 64) as usize] |= 1 << (within % 64);
    }

    /// Whether it has this page frame.
    #[must_use]
    pub fn contains(&self, pfn: u64) -> bool {
        self.blocks.get(&(pfn / BLOCK)).is_some_and(|bits| {
            let within = pfn % BLOCK;
            bits[(within / 64) as usize] >> (within % 64) & 1 != 0
        })
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether some did not fit: what it does not have may be one of them.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in_and_no_more_than_its_bound() {
        let mut set = FrameSet::default();
        assert!(set.is_empty());
        for pfn in [0, 63, 64, 4095, 4096, u64::MAX] {
            set.insert(pfn);
        }
        for pfn in [0, 63, 64, 4095, 4096, u64::MAX] {
            assert!(set.contains(pfn), "{pfn}");
        }
        for pfn in [1, 65, 4094, 4097, 8192, u64::MAX - 1] {
            assert!(!set.contains(pfn), "{pfn}");
        }
        for block in 0..70_000u64 {
            set.insert(block * BLOCK + 7);
        }
        assert!(set.overflowed());
        assert!(set.blocks.len() <= MAX_BLOCKS);
        assert!(set.contains(7) && !set.contains(69_999 * BLOCK + 7));
    }
}
