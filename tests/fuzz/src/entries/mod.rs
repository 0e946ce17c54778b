//! One entry for each parser: bytes go in, and whatever they are, it comes back without a panic.
//!
//! Shared by the fuzzers and by the test that replays what they found.

#![allow(dead_code)]

#[path = "../../../tiny_kernel/mod.rs"]
pub mod tiny_kernel;

mod ask;
mod btf;
mod kallsyms;

/// A parser and how to feed it.
pub struct Entry {
    /// Name of the fuzz target and of its directory of cases.
    pub name: &'static str,
    /// Feeds it an input.
    pub run: fn(&[u8]),
    /// Sound inputs, by name, to begin with.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// Bytes that it may take at once for nothing, and for each byte of input.
    memory: (usize, usize),
}

impl Entry {
    /// The largest single allocation allowed for an input of `len` bytes; all together may take
    /// twice that.
    pub fn bound(&self, len: usize) -> usize {
        self.memory.0 + self.memory.1 * len
    }
}

/// All of them.
pub const ENTRIES: &[Entry] = &[BTF, KALLSYMS];

/// vmlinux's BTF, or a module's.
pub const BTF: Entry = Entry {
    name: "btf",
    run: btf::run,
    seeds: btf::seeds,
    memory: (8 << 20, 16),
};

/// A VMCOREINFO note and a kernel image with kallsyms in it.
pub const KALLSYMS: Entry = Entry {
    name: "kallsyms",
    run: kallsyms::run,
    seeds: kallsyms::seeds,
    // The image of an old kernel, which is searched, or the names of two million symbols.
    memory: (136 << 20, 16),
};
