//! What the fuzzers found (docs/hostile-input.md), again in every test run: each file of
//! tests/fuzz/cases/TARGET goes into the same entry, under the same bounds.

#![allow(missing_docs)]

mod bounds;
#[path = "fuzz/src/entries/mod.rs"]
mod entries;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A debug build, on a busy machine, of what takes a fuzzer a second at most.
const SLOWEST: Duration = Duration::from_secs(60);

/// One test, as the memory of the whole process is watched.
#[test]
fn every_case_ends_within_its_bounds() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/cases");
    let mut cases = 0;
    for entry in entries::ENTRIES {
        let mut inputs = (entry.seeds)();
        assert!(!inputs.is_empty(), "{}: no seeds", entry.name);
        let found = std::fs::read_dir(root.join(entry.name))
            .into_iter()
            .flatten();
        for file in found {
            let path = file.unwrap().path();
            inputs.push((path.display().to_string(), std::fs::read(path).unwrap()));
            cases += 1;
        }
        for (name, input) in inputs {
            println!("{} {name}", entry.name);
            let (watch, start) = (bounds::memory::watch(), Instant::now());
            (entry.run)(&input);
            let (taken, bound) = (watch.taken(), entry.bound(input.len()));
            assert!(
                taken.largest <= bound && taken.peak <= 2 * bound,
                "{} {name}: {taken:?}",
                entry.name
            );
            assert!(start.elapsed() < SLOWEST, "{} {name}", entry.name);
            let outside = bounds::file::outside();
            assert!(outside.is_empty(), "{} {name}: {outside:?}", entry.name);
        }
    }
    assert!(cases > 0, "no cases in {}", root.display());
    assert!(bounds::file::reads() > 100, "nothing was watched");
}
