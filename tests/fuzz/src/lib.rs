//! What the fuzzers share: the entries to the parsers, and the bounds that each run must keep.

#[path = "../../bounds/mod.rs"]
pub mod bounds;
pub mod entries;

/// Runs an entry on an input, and panics if it took more than the entry's bounds.
pub fn run(entry: &entries::Entry, input: &[u8]) {
    let watch = bounds::memory::watch();
    (entry.run)(input);
    let taken = watch.taken();
    let bound = entry.bound(input.len());
    assert!(
        taken.largest <= bound && taken.peak <= 2 * bound,
        "{} bytes of input took {taken:?}, of {bound} allowed",
        input.len()
    );
    let outside = bounds::file::outside();
    assert!(outside.is_empty(), "read outside the file: {outside:?}");
}
