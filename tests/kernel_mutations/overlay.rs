//! A dump's memory with a few words changed, which also says which words are read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use vmrestore::dump::{Dump, PageFailure, PageState, PhysicalMemory, ReadError};

/// A word that is read.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// Physical address, a multiple of 8.
    pub at: u64,
    pub value: u64,
    /// It was read on its own or with a few others: a field, not a part of a page or a string.
    field: bool,
}

pub struct Overlay {
    dump: Arc<Dump>,
    patches: RwLock<Vec<(u64, u64)>>,
    recorded: Mutex<Option<HashMap<u64, Word>>>,
}

/// A field three times of four, and else anything.
pub fn pick(words: &[Word], dice: u64) -> &Word {
    let any = |n: u64| &words[(n % words.len() as u64) as usize];
    if dice.is_multiple_of(4) {
        return any(dice >> 8);
    }
    (0..64)
        .map(|i| any((dice >> 8).wrapping_add(i * 0x9e37_79b9)))
        .find(|word| word.field)
        .unwrap_or(any(dice >> 8))
}

impl Overlay {
    pub fn new(dump: Arc<Dump>) -> Overlay {
        Overlay {
            dump,
            patches: RwLock::default(),
            recorded: Mutex::default(),
        }
    }

    /// Puts these words, by address, in place of what is there; the others as they were.
    pub fn patch(&self, patches: &[(u64, u64)]) {
        patches.clone_into(&mut self.patches.write().unwrap());
    }

    pub fn record(&self) {
        *self.recorded.lock().unwrap() = Some(HashMap::new());
    }

    /// The words read since [`record`](Self::record), by address.
    pub fn recorded(&self) -> Vec<Word> {
        let words = self.recorded.lock().unwrap().take().unwrap_or_default();
        let mut words: Vec<Word> = words.into_values().collect();
        words.sort_by_key(|word| word.at);
        words
    }

    fn note(&self, addr: u64, len: usize) {
        let mut recorded = self.recorded.lock().unwrap();
        let Some(words) = &mut *recorded else { return };
        let first = addr & !7;
        // Of pages and tables, here and there a word.
        let step = if len > 1 << 16 { 4096 } else { 8 };
        for at in (first..addr.saturating_add(len as u64)).step_by(step) {
            let field = len <= 16;
            if let Some(word) = words.get_mut(&at) {
                word.field |= field;
                continue;
            }
            let mut raw = [0; 8];
            if self.dump.read_physical(at, &mut raw).is_ok() {
                let value = u64::from_le_bytes(raw);
                words.insert(at, Word { at, value, field });
            }
        }
    }
}

impl PhysicalMemory for Overlay {
    fn read_physical(&self, addr: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.dump.read_physical(addr, buf)?;
        self.note(addr, buf.len());
        for &(at, value) in &*self.patches.read().unwrap() {
            for (place, byte) in (at..).zip(value.to_le_bytes()) {
                let here = place
                    .checked_sub(addr)
                    .and_then(|n| usize::try_from(n).ok());
                if let Some(target) = here.and_then(|n| buf.get_mut(n)) {
                    *target = byte;
                }
            }
        }
        Ok(())
    }

    fn page_state(&self, pfn: u64) -> PageState {
        self.dump.page_state(pfn)
    }

    fn max_pfn(&self) -> u64 {
        self.dump.max_pfn()
    }

    fn read_pages(&self, pfns: &[u64], out: &mut [u8]) -> Vec<PageFailure> {
        self.dump.read_pages(pfns, out)
    }
}
