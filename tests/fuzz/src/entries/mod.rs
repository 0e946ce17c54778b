//! One entry for each parser: bytes go in, and whatever they are, it comes back without a panic.
//!
//! Shared by the fuzzers and by the test that replays what they found.

#![allow(dead_code)]

#[path = "../../../tiny_kernel/mod.rs"]
pub mod tiny_kernel;

#[path = "../../../synth/mod.rs"]
pub mod synth;

mod ask;
mod btf;
mod dump;
mod kallsyms;
mod structures;

use std::sync::{Arc, LazyLock};

use tiny_kernel::{Encoding, Memory, TinyKernel, world};

/// A sound tiny kernel: its memory and its note.
static KERNEL: LazyLock<(Arc<Memory>, String)> = LazyLock::new(|| {
    let mut tiny = TinyKernel::new(false);
    let info = tiny.finish(&world::types().0, Encoding::AbsolutePercpu);
    (Arc::new(tiny.memory), info)
});

fn kernel_memory() -> Arc<Memory> {
    Arc::clone(&KERNEL.0)
}

fn kernel_note() -> String {
    KERNEL.1.clone()
}

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
pub const ENTRIES: &[Entry] = &[
    BTF,
    KALLSYMS,
    NOTES,
    ELF,
    KDUMP,
    FLATTENED,
    PAGE,
    PAGE_TABLES,
    CONTAINERS,
];

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

/// An ELF dump's notes, VMCOREINFO among them.
pub const NOTES: Entry = Entry {
    name: "notes",
    run: dump::run_notes,
    seeds: dump::notes_seeds,
    // A note may lead to any kallsyms.
    memory: KALLSYMS.memory,
};

/// An ELF dump.
pub const ELF: Entry = Entry {
    name: "elf",
    run: dump::run,
    seeds: dump::elf_seeds,
    memory: (8 << 20, 16),
};

/// A kdump-compressed dump.
pub const KDUMP: Entry = Entry {
    name: "kdump",
    run: dump::run,
    seeds: dump::kdump_seeds,
    memory: (8 << 20, 16),
};

/// A flattened dump of either.
pub const FLATTENED: Entry = Entry {
    name: "flattened",
    run: dump::run,
    seeds: dump::flattened_seeds,
    memory: (8 << 20, 16),
};

/// One stored page, by any codec.
pub const PAGE: Entry = Entry {
    name: "page",
    run: dump::run_page,
    seeds: dump::page_seeds,
    memory: (8 << 20, 16),
};

/// A process's page tables.
pub const PAGE_TABLES: Entry = Entry {
    name: "page_tables",
    run: structures::run_page_tables,
    seeds: structures::page_table_seeds,
    memory: (8 << 20, 16),
};

/// Lists and trees.
pub const CONTAINERS: Entry = Entry {
    name: "containers",
    run: structures::run_containers,
    seeds: structures::container_seeds,
    memory: (8 << 20, 16),
};
