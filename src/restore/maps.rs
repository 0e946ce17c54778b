//! What is mapped in a live process, and what may be found there.

use super::RestoreError;
use super::error::Context;
use super::inject::CODE;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// First address that user mode cannot have, with four levels of page tables.
pub const TASK_SIZE: u64 = (1 << 47) - 4096;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub executable: bool,
    /// `[vdso]` and the like, or a path.
    pub name: String,
}

/// The mappings of a live process.
///
/// # Errors
/// It is gone.
pub fn mappings(pid: i32) -> Result<Vec<Mapping>, RestoreError> {
    let path = format!("/proc/{pid}/maps");
    let text = std::fs::read_to_string(&path).during(0, || path.clone())?;
    Ok(parse_maps(&text))
}

/// The lines of `/proc/PID/maps`.
pub fn parse_maps(text: &str) -> Vec<Mapping> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let executable = words.next()?.contains('x');
            Some(Mapping {
                start: u64::from_str_radix(start, 16).ok()?,
                end: u64::from_str_radix(end, 16).ok()?,
                executable,
                name: words.nth(3).unwrap_or_default().to_string(),
            })
        })
        .collect()
}

/// The first address at or above `lowest` with `len` free bytes.
pub fn free_gap(taken: impl Iterator<Item = (u64, u64)>, lowest: u64, len: u64) -> Option<u64> {
    let mut taken: Vec<(u64, u64)> = taken.collect();
    taken.sort_unstable();
    let mut free = lowest;
    for (start, end) in taken {
        if start >= free && start - free >= len {
            break;
        }
        free = free.max(end);
    }
    (free <= TASK_SIZE.saturating_sub(len)).then_some(free)
}

/// Address of a `syscall` instruction (or any such pair of bytes) there.
pub fn find_syscall(memory: &File, start: u64, end: u64) -> Option<u64> {
    const WINDOW: usize = 64 << 10;
    let [first, second, _] = CODE;
    let mut window = vec![0u8; WINDOW];
    let mut at = start;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(WINDOW).min(WINDOW);
        let part = window.get_mut(..len)?;
        memory.read_exact_at(part, at).ok()?;
        if let Some(found) = part.windows(2).position(|w| w == [first, second]) {
            return Some(at + found as u64);
        }
        at += len as u64;
    }
    None
}
