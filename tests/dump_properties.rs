//! Whatever the machine and however its dump is written, what is read is what was there: random
//! page sets and states, every format, version and codec, blocks and segments of any size, whole or
//! in parts.

#![allow(missing_docs)]

mod synth;

use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use synth::{Kdump, Machine, Noise, PAGE, Segment, Slot, TempFile, flatten};
use vmrestore::dump::{Dump, Missing, PageState, PhysicalMemory};

/// How the machine's dump is written.
#[derive(Clone, Debug)]
enum Written {
    /// Segments are cut at these places, and written in an order that the seed says.
    Elf { cuts: Vec<Index>, order: u64 },
    Kdump {
        version: i32,
        codec: usize,
        /// Page frames where a split dump's parts end; whole if there are none.
        parts: Vec<Index>,
    },
}

#[derive(Clone, Debug)]
struct Case {
    /// Runs of page frames: what they are, and how many.
    runs: Vec<(u8, usize)>,
    seed: u64,
    written: Written,
    /// Flattened in blocks of this size, in disorder or not.
    flat: Option<(usize, bool)>,
    /// Reads: where, and how many bytes.
    reads: Vec<(Index, usize)>,
    /// Page frames read in bulk.
    bulk: Vec<Index>,
}

fn written() -> impl Strategy<Value = Written> {
    prop_oneof![
        (vec(any::<Index>(), 0..6), any::<u64>())
            .prop_map(|(cuts, order)| Written::Elf { cuts, order }),
        (1..=6i32, 0..6usize, vec(any::<Index>(), 0..4)).prop_map(|(version, codec, parts)| {
            Written::Kdump {
                version,
                codec,
                // Split dumps came with version 2.
                parts: if version < 2 { Vec::new() } else { parts },
            }
        }),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let block = prop_oneof![1..200usize, 3000..5000usize, Just(65536)];
    (
        vec((0..5u8, 1..24usize), 1..12),
        any::<u64>(),
        written(),
        proptest::option::of((block, any::<bool>())),
        vec((any::<Index>(), 0..3 * PAGE), 1..40),
        vec(any::<Index>(), 1..600),
    )
        .prop_map(|(runs, seed, written, flat, reads, bulk)| Case {
            runs,
            seed,
            written,
            flat,
            reads,
            bulk,
        })
}

fn machine(case: &Case, noise: &mut Noise) -> Machine {
    let mut slots = Vec::new();
    for &(kind, len) in &case.runs {
        for _ in 0..len {
            slots.push(match kind {
                0 => Slot::Filtered,
                1 => Slot::NotRam,
                2 => Slot::Data(Box::new([0; PAGE])),
                _ => Slot::Data(noise.page()),
            });
        }
    }
    // Memory ends with memory, so that all formats end alike.
    slots.push(Slot::Data(noise.page()));
    Machine {
        slots,
        vmcoreinfo: Some("OSRELEASE=6.1.0\nPAGESIZE=4096\n".into()),
        cpus: Vec::new(),
        qemu: false,
    }
}

/// Cuts the segments that hold these places in two, at any byte, and puts all in another order.
fn rearrange(segments: &mut Vec<Segment>, cuts: &[Index], order: u64) {
    for cut in cuts {
        let place = cut.index(segments.len());
        let segment = &mut segments[place];
        let at = cut.index(segment.data.len() + 1);
        if at == 0 || at == segment.data.len() {
            continue;
        }
        let rest = Segment {
            addr: segment.addr + at as u64,
            memory: segment.memory - at as u64,
            data: segment.data.split_off(at),
        };
        segment.memory = at as u64;
        segments.push(rest);
    }
    let mut noise = Noise(order);
    for i in (1..segments.len()).rev() {
        segments.swap(i, noise.below(i as u64 + 1) as usize);
    }
}

fn files(case: &Case, machine: &Machine, noise: &mut Noise) -> Vec<Vec<u8>> {
    let files = match &case.written {
        Written::Elf { cuts, order } => {
            vec![machine.elf_with(|segments| rearrange(segments, cuts, *order))]
        }
        Written::Kdump {
            version,
            codec,
            parts,
        } => {
            let store = [
                synth::store_raw,
                synth::store_zlib,
                synth::store_lzo,
                synth::store_snappy,
                synth::store_zstd,
                synth::store_mixed,
            ][*codec];
            let frames = machine.slots.len();
            let mut ends: Vec<usize> = parts.iter().map(|end| end.index(frames)).collect();
            ends.push(frames);
            ends.sort_unstable();
            let mut from = 0;
            let mut kdump = |part| {
                let options = Kdump {
                    version: *version,
                    store,
                    part,
                    ..Kdump::default()
                };
                machine.kdump(options, noise)
            };
            if parts.is_empty() {
                vec![kdump(None)]
            } else {
                ends.iter()
                    .map(|&end| {
                        let part = (from, end);
                        from = end;
                        kdump(Some(part))
                    })
                    .collect()
            }
        }
    };
    match case.flat {
        None => files,
        // Tiny blocks make long files.
        Some((block, shuffle)) => files
            .iter()
            .map(|file| flatten(file, block.max(file.len() / 20_000), shuffle))
            .collect(),
    }
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let mut noise = Noise(case.seed);
    let machine = machine(case, &mut noise);
    let files: Vec<TempFile> = files(case, &machine, &mut noise)
        .iter()
        .map(|bytes| TempFile::new(bytes))
        .collect();
    let paths: Vec<PathBuf> = files.iter().map(|file| file.path().to_owned()).collect();
    let dump = match &paths[..] {
        [one] => Dump::open(one),
        parts => Dump::open_parts(parts),
    };
    let dump = dump.map_err(|e| TestCaseError::fail(format!("{e}: {}", e.hint())))?;

    let frames = machine.slots.len();
    prop_assert_eq!(dump.max_pfn(), frames as u64);
    prop_assert_eq!(dump.incomplete(), None);
    let expected = |pfn: usize| match machine.slots.get(pfn) {
        Some(Slot::Data(_)) => PageState::Present,
        Some(Slot::Filtered) => PageState::Missing(Missing::Filtered),
        Some(Slot::NotRam) | None => PageState::Missing(Missing::NotRam),
    };
    for pfn in 0..frames + 3 {
        prop_assert_eq!(
            dump.page_state(pfn as u64),
            expected(pfn),
            "page frame {}",
            pfn
        );
    }
    for pfn in 0..frames + 3 {
        for most in [1, 5, 1 << 20] {
            let (state, count) = dump.page_states(pfn as u64, most);
            prop_assert!((1..=most).contains(&count), "{} of {}", count, most);
            for same in pfn..pfn + count as usize {
                prop_assert_eq!(state, expected(same), "page frame {}", same);
            }
        }
    }
    let counts = dump.page_counts();
    let (present, filtered, not_ram) = machine.counts();
    prop_assert_eq!(
        (
            counts.present,
            counts.filtered,
            counts.not_ram,
            counts.truncated
        ),
        (present, filtered, not_ram, 0)
    );

    // All of memory; what is not there is not looked at.
    let mut flat = vec![0; (frames + 4) * PAGE];
    for (slot, page) in machine.slots.iter().zip(flat.chunks_exact_mut(PAGE)) {
        if let Slot::Data(data) = slot {
            page.copy_from_slice(&data[..]);
        }
    }
    for (at, len) in &case.reads {
        let at = at.index(frames * PAGE);
        let missing = (at / PAGE..(at + len).div_ceil(PAGE))
            .find(|&pfn| *len > 0 && expected(pfn) != PageState::Present);
        let mut buf = vec![0x5a; *len];
        match (dump.read_physical(at as u64, &mut buf), missing) {
            (Ok(()), None) => prop_assert!(buf == flat[at..at + len], "{} bytes at {:#x}", len, at),
            (Err(error), Some(pfn)) => {
                let PageState::Missing(why) = expected(pfn) else {
                    unreachable!()
                };
                prop_assert_eq!(error.missing(), Some(why), "{}", error);
            }
            (read, missing) => {
                prop_assert!(
                    false,
                    "{} bytes at {:#x}: {:?}, {:?}",
                    len,
                    at,
                    read,
                    missing
                );
            }
        }
    }
    let pfns: Vec<u64> = case
        .bulk
        .iter()
        .map(|i| i.index(frames + 4) as u64)
        .collect();
    let mut out = vec![0x5a; pfns.len() * PAGE];
    let failures = dump.read_pages(&pfns, &mut out);
    for (index, (&pfn, page)) in pfns.iter().zip(out.chunks_exact(PAGE)).enumerate() {
        let failure = failures.iter().find(|failure| failure.index == index);
        let why = failure.and_then(|failure| failure.error.missing());
        match expected(pfn as usize) {
            PageState::Present => prop_assert!(failure.is_none(), "page frame {}", pfn),
            PageState::Missing(missing) => prop_assert_eq!(why, Some(missing)),
        }
        prop_assert!(
            page == &flat[pfn as usize * PAGE..][..PAGE],
            "page frame {}",
            pfn
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        // A failure prints its smallest case; nothing is written beside the sources.
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_read_is_what_was_written(case in case()) {
        check(&case)?;
    }
}
