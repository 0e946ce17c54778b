//! Looks into the dead host's memory through mappings of `/proc/vmcore`: to read from that file, the
//! kernel maps and unmaps each page of it by itself.

use crate::sys::window;
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// Bytes of a window. Its page tables take 1/512 of that.
const WINDOW: u64 = 1 << 20;
/// Windows at once.
const MOST: usize = 256;
/// Where less is read, a window is opened at this look at the same place only.
const WORTH: u8 = 3;
/// Bytes for which a window is worth being opened at once.
const LARGE: usize = 32 << 10;
/// Places whose looks are counted.
const MOST_COUNTED: usize = 1 << 16;

/// Windows of one file.
#[derive(Debug, Default)]
pub(super) struct Windows {
    /// It cannot be mapped.
    shut: AtomicBool,
    open: RwLock<HashMap<u64, Arc<MmapRegion>>>,
    looks: RwLock<HashMap<u64, u8>>,
}

impl Windows {
    /// Fills `buf` from `offset` on, all within `len` bytes of the file; false: the file is to be
    /// read.
    pub fn read(&self, file: &File, len: u64, mut offset: u64, mut buf: &mut [u8]) -> bool {
        if self.shut.load(Ordering::Relaxed) {
            return false;
        }
        let wanted = buf.len();
        while !buf.is_empty() {
            let number = offset / WINDOW;
            let inside = offset % WINDOW;
            let n = (WINDOW - inside).min(buf.len() as u64);
            let Some(window) = self.window(file, len, number, wanted) else {
                return false;
            };
            let (head, rest) = buf.split_at_mut(n as usize);
            if window
                .as_volatile_slice()
                .read_slice(head, inside as usize)
                .is_err()
            {
                return false;
            }
            offset += n;
            buf = rest;
        }
        true
    }

    fn window(&self, file: &File, len: u64, number: u64, wanted: usize) -> Option<Arc<MmapRegion>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = open.get(&number) {
            return Some(Arc::clone(window));
        }
        drop(open);
        if wanted < LARGE && self.look(number) < WORTH {
            return None;
        }
        let begin = number.checked_mul(WINDOW)?;
        let size = len.checked_sub(begin)?.min(WINDOW);
        match window::open(file, begin, size) {
            Ok(window) => {
                let window = Arc::new(window);
                let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
                if open.len() >= MOST {
                    open.clear();
                }
                open.insert(number, Arc::clone(&window));
                Some(window)
            }
            Err(error) => {
                tracing::debug!("the dump cannot be mapped, and is read: {error}");
                self.shut.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Counts one more look at a place.
    fn look(&self, number: u64) -> u8 {
        let mut looks = self.looks.write().unwrap_or_else(PoisonError::into_inner);
        if looks.len() >= MOST_COUNTED {
            looks.clear();
        }
        let count = looks.entry(number).or_default();
        *count = count.saturating_add(1);
        *count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn windows_show_what_the_file_has() {
        let path = std::env::temp_dir().join(format!("vmrestore-windows-{}", std::process::id()));
        let len = 2 * WINDOW + 8192;
        let bytes: Vec<u8> = (0..len).map(|at| (at / 4096 + at % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("writes");
        let file = File::open(&path).expect("opens");
        let windows = Windows::default();
        let mut through = 0;
        for (offset, n) in [
            (0, 3 * LARGE),
            (WINDOW - 10, 20),
            (WINDOW - 10, LARGE),
            (WINDOW - 10, 20),
            (len - 7, 7),
            (len - 7, 7),
            (len - 7, 7),
            (100, WINDOW as usize),
        ] {
            let mut seen = vec![0; n];
            if windows.read(&file, len, offset, &mut seen) {
                through += 1;
            } else {
                file.read_exact_at(&mut seen, offset).expect("reads");
            }
            assert_eq!(seen, bytes[offset as usize..][..n], "{n} at {offset}");
        }
        assert_eq!(through, 5);
        std::fs::remove_file(&path).expect("removes");
    }
}
