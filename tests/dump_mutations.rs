//! Damaged dumps, by the ten thousand: reading them must end, in an error or in memory, without a
//! panic, soon, and without more memory than the reader's stated bounds.

mod synth;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use synth::{Kdump, Machine, Noise, PAGE, TempFile, flatten};
use vmrestore::dump::{Dump, PageState, PhysicalMemory};

/// For each base file; `VMRESTORE_MUTATIONS` in the environment asks for more.
const CASES: u32 = 10_000;
const SLOWEST: Duration = Duration::from_secs(5);

/// Does with a dump what vmrestore does; results do not matter.
fn use_dump(dump: &Dump, noise: &mut Noise) {
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
    for note in dump.cpu_notes() {
        assert!(note.prstatus.is_some() || note.qemu.is_some());
    }
    assert_eq!(dump.identity().as_str().len(), 32);
}

/// Changes the file, and says what to put back.
fn damage(file: &File, original: &[u8], noise: &mut Noise) -> Vec<(usize, usize)> {
    let mut changed = Vec::new();
    if noise.below(8) == 0 {
        file.set_len(noise.below(original.len() as u64 + 1))
            .unwrap();
    }
    for _ in 0..=noise.below(3) {
        // Headers are small and matter most.
        let at = match noise.below(4) {
            0 => noise.below(original.len() as u64),
            1 => noise.below(600.min(original.len() as u64)),
            2 => 4096 + noise.below(200),
            _ => noise.below(20_000.min(original.len() as u64)),
        } as usize;
        let bytes = match noise.below(5) {
            0 => vec![1 << noise.below(8)],
            1 => vec![0xff; 1 + noise.below(16) as usize],
            2 => vec![0; 1 + noise.below(32) as usize],
            3 => (1u64 << noise.below(64)).to_le_bytes().to_vec(),
            _ => noise.next().to_le_bytes()[..1 + noise.below(8) as usize].to_vec(),
        };
        if at + bytes.len() <= original.len() {
            file.write_all_at(&bytes, at as u64).unwrap();
            changed.push((at, bytes.len()));
        }
    }
    changed
}

fn mutate(name: &str, original: &[u8], seed: u64) {
    let temp = TempFile::new(original);
    let file = OpenOptions::new().write(true).open(temp.path()).unwrap();
    let cases = match std::env::var("VMRESTORE_MUTATIONS") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => CASES,
    };
    let mut opened = 0;
    for case in 0..cases {
        let mut noise = Noise(seed << 32 | u64::from(case));
        let changed = damage(&file, original, &mut noise);
        let start = Instant::now();
        let result = std::panic::catch_unwind(|| {
            if let Ok(dump) = Dump::open(temp.path()) {
                use_dump(&dump, &mut Noise(u64::from(case)));
                return true;
            }
            false
        });
        let took = start.elapsed();
        assert!(took < SLOWEST, "{name}, seed {seed}, case {case}: {took:?}");
        match result {
            Ok(usable) => opened += u32::from(usable),
            Err(_) => panic!("{name}, seed {seed}, case {case}: panicked"),
        }
        if file.metadata().unwrap().len() == original.len() as u64 {
            for (at, len) in changed {
                file.write_all_at(&original[at..at + len], at as u64)
                    .unwrap();
            }
        } else {
            file.set_len(original.len() as u64).unwrap();
            file.write_all_at(original, 0).unwrap();
        }
    }
    // Both sides of the reader are reached.
    assert!(
        opened > cases / 20 && opened < cases,
        "{name}: {opened} of {cases} opened"
    );
    let peak = peak_kib();
    assert!(peak < 600 << 10, "{name}: {peak} KiB");
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn base() -> (Machine, Noise) {
    let mut noise = Noise(77);
    let mut machine = Machine::random(&mut noise, 64);
    machine.qemu = true;
    (machine, noise)
}

#[test]
fn elf() {
    mutate("ELF", &base().0.elf(), 1);
}

#[test]
fn kdump_zlib() {
    let (machine, mut noise) = base();
    mutate(
        "kdump zlib",
        &machine.kdump(Kdump::default(), &mut noise),
        2,
    );
}

#[test]
fn kdump_mixed_of_an_old_version() {
    let (machine, mut noise) = base();
    let options = Kdump {
        version: 4,
        store: synth::store_mixed,
        ..Kdump::default()
    };
    mutate("kdump mixed", &machine.kdump(options, &mut noise), 3);
}

#[test]
fn flattened_elf() {
    mutate("flattened ELF", &flatten(&base().0.elf(), 3000, true), 4);
}

#[test]
fn flattened_kdump() {
    let (machine, mut noise) = base();
    let options = Kdump {
        status: 2,
        store: synth::store_lzo,
        ..Kdump::default()
    };
    mutate(
        "flattened kdump",
        &flatten(&machine.kdump(options, &mut noise), 4096, true),
        5,
    );
}
