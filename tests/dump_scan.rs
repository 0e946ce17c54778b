//! Every page read: what is present, zero, left out, no memory, cut off or corrupt is counted right,
//! whatever the format and whatever the order of the data.

mod synth;

use std::ops::ControlFlow;

use synth::{Kdump, Machine, Noise, PAGE, Slot, TempFile, flatten};
use vmrestore::dump::{Dump, PageStates, Scan};

/// The first byte of pages that [`store_broken`] stores so that they cannot be decoded.
const BROKEN: u8 = 0xb7;
/// And of those to whose descriptors no codec belongs.
const UNKNOWN: u8 = 0xc9;

fn store_broken(page: &[u8; PAGE], noise: &mut Noise) -> (Vec<u8>, u32) {
    match page[0] {
        BROKEN => (vec![0x5a; 100], 1),
        UNKNOWN => (page.to_vec(), 0x40),
        _ => synth::store_mixed(page, noise),
    }
}

/// A machine whose first page is zeros, as the writers' shared page of zeros comes first.
fn machine(noise: &mut Noise, frames: usize) -> Machine {
    let mut machine = Machine::random(noise, frames);
    machine.slots[0] = Slot::Data(Box::new([0; PAGE]));
    for slot in machine.slots.iter_mut().skip(1) {
        if let Slot::Data(page) = slot {
            // Neither of the two marks, unless a test puts it there; but zeros stay zeros.
            if page[0] == BROKEN || page[0] == UNKNOWN {
                page[0] = 1;
            }
        }
    }
    machine
}

fn expected(machine: &Machine) -> PageStates {
    let (present, filtered, not_ram) = machine.counts();
    PageStates {
        present,
        filtered,
        not_ram,
        ..PageStates::default()
    }
}

fn zeros(machine: &Machine) -> u64 {
    let zero = |slot: &&Slot| matches!(slot, Slot::Data(page) if page.iter().all(|b| *b == 0));
    machine.slots.iter().filter(zero).count() as u64
}

fn scan(bytes: &[u8]) -> Scan {
    let file = TempFile::new(bytes);
    let dump = Dump::open(file.path()).unwrap();
    let mut last = 0;
    let scan = dump.scan(|progress| {
        assert!(progress.done >= last && progress.done <= progress.total);
        last = progress.done;
        ControlFlow::Continue(())
    });
    scan.expect("nobody broke it off")
}

#[test]
fn whole_dumps_have_no_corrupt_page_in_any_format() {
    for seed in 1..20 {
        let mut noise = Noise(seed);
        let frames = 300 + noise.below(9000) as usize;
        let machine = machine(&mut noise, frames);
        let elf = machine.elf();
        let kdump = machine.kdump(Kdump::default(), &mut noise);
        for (bytes, zero) in [
            (elf.clone(), 0),
            (flatten(&elf, 1000, false), 0),
            (kdump.clone(), zeros(&machine)),
            (flatten(&kdump, 777, false), zeros(&machine)),
        ] {
            let scan = scan(&bytes);
            let wanted = PageStates {
                zero,
                ..expected(&machine)
            };
            assert_eq!(scan.states, wanted, "seed {seed}");
            assert!(scan.corrupt.is_empty() && scan.examples.is_empty());
        }
    }
}

#[test]
fn corrupt_pages_are_those_that_were_damaged() {
    for seed in 1..20 {
        let mut noise = Noise(seed);
        let mut machine = machine(&mut noise, 5000);
        let mut damaged = Vec::new();
        for (pfn, slot) in machine.slots.iter_mut().enumerate().skip(1) {
            if let Slot::Data(page) = slot
                && noise.below(50) == 0
            {
                page[0] = if noise.below(3) == 0 { UNKNOWN } else { BROKEN };
                damaged.push(pfn as u64);
            }
        }
        let store = store_broken;
        let bytes = machine.kdump(
            Kdump {
                store,
                ..Kdump::default()
            },
            &mut noise,
        );
        let scan = scan(&bytes);
        let corrupt = damaged.len() as u64;
        let whole = expected(&machine);
        let wanted = PageStates {
            present: whole.present - corrupt,
            zero: zeros(&machine),
            corrupt,
            ..whole
        };
        assert_eq!(scan.states, wanted, "seed {seed}");
        for pfn in 0..machine.slots.len() as u64 {
            assert_eq!(scan.corrupt.contains(pfn), damaged.contains(&pfn), "{pfn}");
        }
        assert!(!scan.examples.is_empty() && !scan.corrupt.overflowed());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Where the descriptors of a dump that the synthetic writer made stand: behind header, sub-header
/// and bitmaps.
fn descriptors(bytes: &[u8]) -> usize {
    PAGE * (1 + u32_at(bytes, 432) as usize + u32_at(bytes, 436) as usize)
}

#[test]
fn a_cut_is_counted_right_though_the_data_stand_in_any_order() {
    for seed in 1..20 {
        let mut noise = Noise(seed);
        let machine = machine(&mut noise, 3000);
        let (pages, ..) = machine.counts();
        let mut bytes = machine.kdump(
            Kdump {
                store: synth::store_raw,
                ..Kdump::default()
            },
            &mut noise,
        );
        // Swaps pages' data about, the one of zeros excepted. All have 4096 bytes.
        let table = descriptors(&bytes);
        let data = table + pages as usize * 24;
        let places = (bytes.len() - data) / PAGE;
        let mut order: Vec<usize> = (0..places).collect();
        for i in (2..places).rev() {
            order.swap(i, 1 + noise.below(i as u64) as usize);
        }
        let old = bytes[data..].to_vec();
        for (from, to) in order.iter().enumerate() {
            bytes[data + to * PAGE..][..PAGE].copy_from_slice(&old[from * PAGE..][..PAGE]);
        }
        let mut kept = Vec::new();
        let cut = places * 2 / 3;
        for desc in bytes[table..data].chunks_mut(24) {
            let offset = u64::from_le_bytes(desc[..8].try_into().unwrap()) as usize;
            let place = order[(offset - data) / PAGE];
            desc[..8].copy_from_slice(&((data + place * PAGE) as u64).to_le_bytes());
            kept.push(place < cut);
        }
        assert_eq!(scan(&bytes).states.present, pages, "seed {seed}: not cut");
        bytes.truncate(data + cut * PAGE + 17);
        let states = scan(&bytes).states;
        let present = kept.iter().filter(|k| **k).count() as u64;
        assert_eq!(states.present, present, "seed {seed}");
        assert_eq!(states.truncated, pages - present, "seed {seed}");
        assert_eq!(states.corrupt, 0, "seed {seed}");
    }
}

#[test]
fn a_cut_elf_dump_is_counted_by_its_segments() {
    let mut noise = Noise(5);
    let machine = machine(&mut noise, 3000);
    let mut bytes = machine.elf();
    bytes.truncate(bytes.len() / 2);
    let states = scan(&bytes).states;
    let whole = expected(&machine);
    assert!(states.truncated > 0);
    assert_eq!(states.present + states.truncated, whole.present);
    assert_eq!(
        (states.filtered, states.not_ram),
        (whole.filtered, whole.not_ram)
    );
}

#[test]
fn a_segment_of_absurd_length_does_not_take_long() {
    let mut noise = Noise(5);
    let mut bytes = machine(&mut noise, 300).elf();
    let headers = u64::from_le_bytes(bytes[32..40].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    let last = headers + (count - 1) * 56;
    for field in [32, 40] {
        bytes[last + field..last + field + 8].copy_from_slice(&(1u64 << 50).to_le_bytes());
    }
    assert!(scan(&bytes).states.truncated > 1 << 37);
}

#[test]
fn who_is_asked_for_patience_may_break_it_off() {
    let mut noise = Noise(8);
    let file = TempFile::new(&machine(&mut noise, 3000).kdump(Kdump::default(), &mut noise));
    let dump = Dump::open(file.path()).unwrap();
    let mut asked = 0;
    let scan = dump.scan(|_| {
        asked += 1;
        if asked < 3 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    assert!(scan.is_none());
}
