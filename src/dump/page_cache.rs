//! A bounded cache of 4 KiB pages, made for millions of small reads from many threads.
//!
//! Set-associative, as in a CPU: a page can be in one set alone, a set has eight ways and its own
//! lock, and a hit copies the bytes asked for under that lock. So a hit costs an uncontended lock
//! and eight compares, and there is no list or map to keep in order. Memory is taken as it is filled.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PAGE_SIZE;

const WAYS: usize = 8;
const PAGE: usize = PAGE_SIZE as usize;
/// No page has this number.
const EMPTY: u64 = u64::MAX;

pub(super) struct PageCache {
    sets: Box<[Mutex<Set>]>,
    /// How far to shift a 64-bit hash to the right for the set's index.
    shift: u32,
}

struct Set {
    keys: [u64; WAYS],
    /// When each way was last used, by the set's own clock.
    used: [u64; WAYS],
    clock: u64,
    /// The pages of the ways that have been filled, which is in their order.
    pages: Vec<u8>,
}

impl PageCache {
    /// A cache of at most `1 << sets_log2` × 32 KiB.
    pub fn new(sets_log2: u32) -> PageCache {
        let empty = || {
            Mutex::new(Set {
                keys: [EMPTY; WAYS],
                used: [0; WAYS],
                clock: 0,
                pages: Vec::new(),
            })
        };
        PageCache {
            sets: (0..1usize << sets_log2).map(|_| empty()).collect(),
            shift: 64 - sets_log2,
        }
    }

    fn set(&self, key: u64) -> MutexGuard<'_, Set> {
        // Fibonacci hashing: neighbours go to different sets.
        let index = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift;
        self.sets[index as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies `out.len()` bytes from `offset` in page `key`, if it is here.
    pub fn get(&self, key: u64, offset: usize, out: &mut [u8]) -> bool {
        let mut set = self.set(key);
        let Some(way) = set.keys.iter().position(|&k| k == key) else {
            return false;
        };
        out.copy_from_slice(&set.pages[way * PAGE + offset..][..out.len()]);
        set.touch(way);
        true
    }

    /// Takes a page in, in place of the least recently used of its set.
    pub fn put(&self, key: u64, page: &[u8; PAGE]) {
        let mut set = self.set(key);
        let set = &mut *set;
        let filled = set.pages.len() / PAGE;
        let way = match set.keys.iter().position(|&k| k == key) {
            Some(way) => way,
            None if filled < WAYS => filled,
            None => (0..WAYS).min_by_key(|&way| set.used[way]).unwrap_or(0),
        };
        if way == filled {
            set.pages.reserve_exact(WAYS * PAGE - filled * PAGE);
            set.pages.extend_from_slice(page);
        } else {
            set.pages[way * PAGE..][..PAGE].copy_from_slice(page);
        }
        set.keys[way] = key;
        set.touch(way);
    }
}

impl Set {
    /// Makes `way` the most recently used.
    fn touch(&mut self, way: usize) {
        self.clock += 1;
        self.used[way] = self.clock;
    }
}

impl std::fmt::Debug for PageCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageCache")
            .field("sets", &self.sets.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_used_last_and_never_mixes_pages() {
        let cache = PageCache::new(1);
        let page = |key: u64| [key as u8; PAGE];
        for key in 0..200 {
            cache.put(key, &page(key));
            // Page 0 is used all the time and so must survive.
            let mut byte = [9];
            assert!(cache.get(0, 17, &mut byte), "page 0 lost at {key}");
            assert_eq!(byte, [0]);
        }
        let mut kept = 0;
        for key in 0..200u64 {
            let mut bytes = [0; 8];
            if cache.get(key, PAGE - 8, &mut bytes) {
                assert_eq!(bytes, [key as u8; 8]);
                kept += 1;
            }
        }
        assert_eq!(kept, 2 * WAYS, "both sets full, nothing more");
    }
}
