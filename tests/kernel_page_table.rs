//! A process's page tables in a kernel written by hand.

#![allow(missing_docs)]

mod tiny_kernel;

use std::ops::ControlFlow;

use tiny_kernel::{DIRECT, Encoding, TinyKernel, world};
use vmrestore::kernel::{AddressSpace, Entry, Kernel, Mapping, SwapEntry};

const PRESENT: u64 = 0x67;

fn open(five: bool, build: impl FnOnce(&mut TinyKernel, u64)) -> (Kernel, u64) {
    let mut tiny = TinyKernel::new(five);
    let (types, _) = world::types();
    let top = tiny.heap(&[0; 4096], 4096);
    build(&mut tiny, top);
    let info = tiny.finish(&types, Encoding::Relative);
    (tiny.open(&info).expect("opens"), DIRECT + top)
}

fn mappings(space: &AddressSpace<'_>, start: u64, end: u64) -> Vec<Mapping> {
    let mut found = Vec::new();
    space
        .walk(start, end, |mapping| {
            found.push(mapping);
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

/// Start, length and page frame of each page.
fn frames(space: &AddressSpace<'_>, start: u64, end: u64) -> Vec<(u64, u64, u64)> {
    mappings(space, start, end)
        .iter()
        .map(|mapping| match mapping.entry {
            Entry::Present(present) => (mapping.va, mapping.len, present.pfn),
            ref other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn pages_of_three_sizes_at_both_depths() {
    for five in [false, true] {
        let high = if five {
            0x00ab_cdef_0000_0000
        } else {
            0x0000_7bcd_c000_0000
        };
        let (kernel, pgd) = open(five, |tiny, top| {
            tiny.map(top, 0x1000, 12, 0x21_0000 | PRESENT);
            tiny.map(top, 0x20_0000, 12, 0x21_1000 | PRESENT | 1 << 63);
            tiny.map(top, 0x40_0000, 21, 0x20_0000 | PRESENT | 0x80);
            tiny.map(top, high & !0x3fff_ffff, 30, 0x4000_0000 | PRESENT | 0x80);
            tiny.map(top, (high & !0x3fff_ffff) + 0x4000_0000, 12, 0x21_2000 | 5);
        });
        let space = AddressSpace::new(&kernel, pgd).unwrap();
        let giant = high & !0x3fff_ffff;
        let all = [
            (0x1000, 0x1000, 0x210),
            (0x20_0000, 0x1000, 0x211),
            (0x40_0000, 0x20_0000, 0x200),
            (giant, 0x4000_0000, 0x4_0000),
            (giant + 0x4000_0000, 0x1000, 0x212),
        ];
        assert_eq!(frames(&space, 0, u64::MAX), all);
        assert_eq!(frames(&space, 0x1fff, 0x2000), all[..1]);
        assert_eq!(frames(&space, 0x2000, 0x20_0000), []);
        assert_eq!(frames(&space, 0x20_0fff, 0x40_0001), all[1..3]);
        assert_eq!(frames(&space, 0x5f_f000, 0x60_0000), all[2..3]);
        assert_eq!(
            frames(&space, giant + 0x123_4567, giant + 0x4000_0001),
            all[3..]
        );
        assert_eq!(frames(&space, 5, 5), []);

        let one = |va| match space.translate(va).unwrap().unwrap().entry {
            Entry::Present(present) => present,
            other => panic!("{other:?}"),
        };
        assert!(one(0x1fff).writable && one(0x1000).dirty && one(0x1000).user);
        assert!(one(0x20_0000).no_execute && !one(0x1000).no_execute);
        let read_only = one(giant + 0x4000_0000);
        assert!(!read_only.writable && !read_only.dirty && !read_only.accessed);
        assert!(space.translate(0x2000).unwrap().is_none());
    }
}

#[test]
fn swapped_and_forbidden_pages() {
    // Written as the kernel's comment draws them: the type in the highest 5 bits, below it the
    // offset inverted, bits 8 to 0 flags of which 8 and 0 are clear.
    let swap = |kind: u64, offset: u64| kind << 59 | (!offset & ((1 << 50) - 1)) << 9;
    // PROT_NONE: bit 8 for bit 0, and the frame number inverted.
    let forbidden = |phys: u64| (!phys & 0x000f_ffff_ffff_f000) | 0x166;
    let (kernel, pgd) = open(true, |tiny, top| {
        tiny.map(top, 0x1000, 12, swap(3, 0x1234_5678_9abc));
        tiny.map(top, 0x2000, 12, swap(0, 0));
        tiny.map(top, 0x3000, 12, forbidden(0x21_0000));
        // Empty but for the accessed and dirty bits that an erratum leaves.
        tiny.map(top, 0x4000, 12, 0x60);
        tiny.map(top, 0x20_0000, 21, swap(30, 7));
        // PROT_NONE of a large page, and one that is being split: LARGE alone.
        tiny.map(top, 0x40_0000, 21, forbidden(0x40_0000) | 0x80);
        tiny.map(
            top,
            0x60_0000,
            21,
            (!0x60_0000u64 & 0x000f_ffff_ffff_f000) | 0xe6,
        );
        tiny.put(0x21_0000, b"forbidden");
    });
    let space = AddressSpace::new(&kernel, pgd).unwrap();
    let found = mappings(&space, 0, 1 << 30);
    let swapped = |mapping: &Mapping| match mapping.entry {
        Entry::NonPresent { raw } => SwapEntry::decode(raw),
        ref other => panic!("{other:?}"),
    };
    let expected = SwapEntry {
        kind: 3,
        offset: 0x1234_5678_9abc,
    };
    assert_eq!(swapped(&found[0]), expected);
    assert_eq!(swapped(&found[1]), SwapEntry { kind: 0, offset: 0 });
    assert_eq!(
        swapped(&found[3]),
        SwapEntry {
            kind: 30,
            offset: 7
        }
    );
    assert_eq!((found[3].va, found[3].len), (0x20_0000, 0x20_0000));
    let frame = |mapping: &Mapping| match mapping.entry {
        Entry::Present(present) => (mapping.va, present.pfn, present.protnone),
        ref other => panic!("{other:?}"),
    };
    assert_eq!(frame(&found[2]), (0x3000, 0x210, true));
    assert_eq!(frame(&found[4]), (0x40_0000, 0x400, true));
    assert_eq!(frame(&found[5]), (0x60_0000, 0x600, false));
    assert_eq!(found.len(), 6);

    let mut text = [0; 9];
    space.read(0x3000, &mut text).unwrap();
    assert_eq!(&text, b"forbidden");
    assert!(space.read(0x2ffc, &mut text).is_err(), "begins in swap");
    assert!(space.read(0x3ffc, &mut text).is_err(), "ends in nothing");
}

#[test]
fn what_a_missing_table_covers_is_unknown_and_not_empty() {
    let mut lost = 0;
    let (kernel, pgd) = open(false, |tiny, top| {
        tiny.map(top, 0x1f_f000, 12, 0x21_0000 | PRESENT);
        tiny.map(top, 0x20_0000, 12, 0x21_1000 | PRESENT);
        tiny.map(top, 0x40_0000, 12, 0x21_2000 | PRESENT);
        // The last table of all that were made is that of 4 MiB.
        lost = (tiny.heap(&[], 4096) >> 12) - 1;
        tiny.memory.missing.push(lost);
        // Garbage high up is no swap entry of half a terabyte.
        tiny.map(top, 0x80_0000_0000, 39, 0xffff_0000);
    });
    let space = AddressSpace::new(&kernel, pgd).unwrap();
    let found = mappings(&space, 0x1f_f000, u64::MAX);
    assert_eq!(found.len(), 4);
    assert!(matches!(found[1].entry, Entry::Present(_)));
    assert_eq!((found[2].va, found[2].len), (0x40_0000, 0x20_0000));
    let Entry::Unreadable(error) = &found[2].entry else {
        panic!("{:?}", found[2]);
    };
    assert!(
        error.to_string().contains(&format!("{:#x}", lost << 12)),
        "{error}"
    );
    assert!(matches!(found[3].entry, Entry::Unreadable(_)));
    let part = mappings(&space, 0x40_3000, 0x40_5000);
    assert_eq!((part[0].va, part[0].len), (0x40_3000, 0x2000));
}

#[test]
fn tables_that_lead_back_to_themselves_are_told() {
    let (kernel, pgd) = open(false, |tiny, top| {
        let all: Vec<u64> = vec![top | PRESENT; 512];
        tiny.put(top, &tiny_kernel::words(&all));
    });
    let space = AddressSpace::new(&kernel, pgd).unwrap();
    let found = mappings(&space, 0, u64::MAX);
    // The lower half of the top table.
    assert_eq!(found.len(), 256);
    for mapping in found {
        let Entry::Unreadable(error) = mapping.entry else {
            panic!("{mapping:?}");
        };
        let error = error.to_string();
        assert!(
            error.contains("page table") && error.contains("leads back"),
            "{error}"
        );
    }
}

#[test]
fn tables_that_all_lead_to_the_same_ones_end() {
    let (kernel, pgd) = open(false, |tiny, top| {
        let mut table = top;
        for _ in 0..3 {
            let next = tiny.heap(&[0; 4096], 4096);
            tiny.put(table, &tiny_kernel::words(&[next | PRESENT; 512]));
            table = next;
        }
        tiny.put(table, &tiny_kernel::words(&[0x21_0000 | PRESENT; 512]));
    });
    let space = AddressSpace::new(&kernel, pgd).unwrap();
    let mut pages = 0u64;
    let error = space
        .walk(0, u64::MAX, |_| {
            pages += 1;
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(error.to_string().contains("in circles"), "{error}");
    assert!(pages <= 512 * 5000, "{pages}");
}

#[test]
fn large_pages_of_more_memory_than_there_is_end() {
    let (kernel, pgd) = open(false, |tiny, top| {
        for n in 0..200u64 {
            tiny.map(top, n << 30, 30, 1 << 30 | PRESENT | 1 << 7);
        }
    });
    let space = AddressSpace::new(&kernel, pgd).unwrap();
    let error = space
        .walk(0, u64::MAX, |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(error.to_string().contains("large pages map"), "{error}");
}

/// Many tables side by side are read at once; one that is missing takes none of the others along.
#[test]
fn many_tables_side_by_side() {
    for missing in [None, Some(17)] {
        let (kernel, pgd) = open(false, |tiny, top| {
            for n in 0..40u64 {
                // The first has no page of the range that is asked for, the last two.
                let page = if n == 0 { 0x1000 } else { 0x1f_f000 };
                tiny.map(top, (n << 21) + page, 12, (0x21_0000 + (n << 12)) | PRESENT);
                if Some(n) == missing {
                    let lost = (tiny.heap(&[], 4096) >> 12) - 1;
                    tiny.memory.missing.push(lost);
                }
            }
            tiny.map(top, (39 << 21) + 0x2000, 12, 0x30_0000 | PRESENT);
            // In between: nothing, a large page.
            tiny.map(top, 60 << 21, 21, 0x20_0000 | PRESENT | 0x80);
            tiny.map(top, 61 << 21, 12, 0x31_0000 | PRESENT);
        });
        let space = AddressSpace::new(&kernel, pgd).unwrap();
        let found = mappings(&space, 0x3000, 1 << 30);
        let mut expected: Vec<(u64, u64, Option<u64>)> = (1..39u64)
            .map(|n| match Some(n) == missing {
                true => (n << 21, 1 << 21, None),
                false => ((n << 21) + 0x1f_f000, 0x1000, Some(0x210 + n)),
            })
            .collect();
        expected.extend([
            ((39 << 21) + 0x2000, 0x1000, Some(0x300)),
            ((39 << 21) + 0x1f_f000, 0x1000, Some(0x237)),
            (60 << 21, 1 << 21, Some(0x200)),
            (61 << 21, 0x1000, Some(0x310)),
        ]);
        let found: Vec<_> = found
            .iter()
            .map(|mapping| match &mapping.entry {
                Entry::Present(present) => (mapping.va, mapping.len, Some(present.pfn)),
                _ => (mapping.va, mapping.len, None),
            })
            .collect();
        assert_eq!(found, expected);
    }
}
