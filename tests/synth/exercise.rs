//! Does with a dump what vmrestore does, and asserts what must hold of any dump, however damaged.

use std::ops::ControlFlow;

use super::{Noise, PAGE};
use vmrestore::dump::{Dump, PageState, PhysicalMemory};

pub fn exercise(dump: &Dump, noise: &mut Noise) {
    let counts = dump.page_counts();
    let total = counts.present + counts.filtered + counts.not_ram + counts.truncated;
    assert_eq!(
        total,
        dump.max_pfn(),
        "the counts do not add up: {counts:?}"
    );
    let pfns: Vec<u64> = (0..24)
        .map(|_| match noise.below(4) {
            0 => noise.below(dump.max_pfn().max(1)),
            1 => noise.next(),
            _ => noise.below(64),
        })
        .collect();
    let mut out = vec![0; pfns.len() * PAGE];
    let failures = dump.read_pages(&pfns, &mut out);
    for (i, &pfn) in pfns.iter().enumerate() {
        let bulk = failures.iter().all(|failure| failure.index != i);
        let mut page = [0; PAGE];
        let single = pfn
            .checked_mul(4096)
            .map(|addr| dump.read_physical(addr, &mut page).is_ok());
        // One page is read alike by both ways.
        assert_eq!(
            Some(bulk),
            single.or(Some(false)),
            "page frame {pfn:#x}: {failures:?}"
        );
        if bulk {
            assert_eq!(dump.page_state(pfn), PageState::Present);
            assert!(page == out[i * PAGE..][..PAGE]);
        }
        let mut small = [0; 16];
        let _ = dump.read_physical(
            pfn.wrapping_mul(4096).wrapping_add(noise.below(4096)),
            &mut small,
        );
    }
    // Threads cost more than these few pages.
    if noise.below(8) == 0 && counts.present < 1 << 12 {
        let scan = dump.scan(|_| ControlFlow::Continue(())).unwrap();
        let states = scan.states;
        let read = states.present + states.corrupt + states.truncated;
        assert_eq!(
            read + states.filtered + states.not_ram,
            dump.max_pfn(),
            "{states:?} where {counts:?}"
        );
        assert_eq!(scan.corrupt.is_empty(), states.corrupt == 0);
    }
    for note in dump.cpu_notes() {
        assert!(note.prstatus.is_some() || note.qemu.is_some());
    }
    assert_eq!(dump.identity().as_str().len(), 32);
}
