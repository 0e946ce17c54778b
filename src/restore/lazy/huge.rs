//! Memory that has arrived in ordinary pages is joined into transparent huge ones again, where it was
//! or would have been in such: a guest translates its addresses with fewer steps then.
//!
//! The kernel would do it by and by, by 16 MiB in 10 seconds. It is a matter of speed alone.

use super::board::PAGE;
use super::choice::{self, HUGE};
use crate::dataset::Vma;
use crate::restore::vma_flags::bit;
use crate::sys::{child, userfaultfd};
use std::os::fd::AsFd;

/// Nobody waits for it.
const NICE: i32 = 10;

/// Pages of a huge one that must have content: what is nearly empty would only take up memory.
const MOST: u64 = 256;

/// The ranges of a VMA to be joined, each a whole number of huge pages.
pub fn ranges(vma: &Vma) -> Vec<(u64, u64)> {
    let always = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
        .is_ok_and(|text| text.contains("[always]"));
    let wanted = vma.flags & bit::HUGEPAGE != 0 || always;
    if !wanted || vma.flags & bit::NOHUGEPAGE != 0 || vma.huge_page != 0 {
        return Vec::new();
    }
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let (mut place, mut count) = (0, 0);
    let mut settle = |place: u64, count: u64| {
        let end = place + HUGE;
        if count >= MOST && place >= vma.start && end <= vma.end {
            match ranges.last_mut() {
                Some((_, last)) if *last == place => *last = end,
                _ => ranges.push((place, end)),
            }
        }
    };
    for run in vma.pages.iter().filter(|run| choice::arrives(run)) {
        let end = run.start.saturating_add(run.count.saturating_mul(PAGE));
        let mut at = run.start;
        while at < end {
            let here = at / HUGE * HUGE;
            if here != place {
                settle(place, count);
                (place, count) = (here, 0);
            }
            let next = (here + HUGE).min(end);
            count += (next - at) / PAGE;
            at = next;
        }
    }
    settle(place, count);
    ranges
}

/// Joins them, one huge page at a time.
pub fn join(ranges: &[(i32, u64, u64)]) {
    if ranges.is_empty() {
        return;
    }
    // The dump is let go of: nothing of it is read any more.
    child::close_all();
    child::be_nice(NICE);
    for (pid, start, end) in ranges {
        let Ok(process) = child::pidfd(*pid) else {
            continue;
        };
        for at in (*start..*end).step_by(HUGE as usize) {
            match userfaultfd::collapse(process.as_fd(), at, HUGE) {
                // Before Linux 6.1; or it has ended.
                Err(e)
                    if matches!(
                        e.raw_os_error(),
                        Some(libc::ENOSYS | libc::ESRCH | libc::EPERM)
                    ) =>
                {
                    return;
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{MappingKind, PageContent, PageRun};

    #[test]
    fn only_what_is_full_is_joined() {
        let run = |start, count| PageRun {
            start,
            count,
            content: PageContent::Frame(1),
        };
        let vma = Vma {
            start: 0x20_1000,
            end: 0x100_0000,
            flags: bit::HUGEPAGE,
            kind: MappingKind::Anonymous {
                name: None,
                stack: false,
                heap: false,
            },
            // The first lies across the VMA's begin; two are full, one is half empty, one more full.
            pages: vec![
                run(0x20_1000, 511),
                run(0x40_0000, 1024),
                run(0x80_0000, 255),
                run(0xa0_0000, 300),
            ],
            huge_page: 0,
        };
        assert_eq!(
            ranges(&vma),
            [(0x40_0000, 0x80_0000), (0xa0_0000, 0xc0_0000)]
        );
    }
}
