//! Structures of a dead kernel: the input is 16 KiB of its memory, at [`ask::PLACE`].

use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::tiny_kernel::{DIRECT, Memory, TinyKernel, words};
use super::{ask::PLACE, kernel_memory, kernel_note};
use vmrestore::dump::{PageState, PhysicalMemory, ReadError};
use vmrestore::kernel::{AddressSpace, Kernel, Object, containers};

const MOST: usize = 16 << 10;

/// The tiny kernel's memory with the input over it.
struct Arena {
    memory: Arc<Memory>,
    input: Mutex<Vec<u8>>,
}

impl PhysicalMemory for Arena {
    fn read_physical(&self, addr: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.memory.read_physical(addr, buf)?;
        let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, byte) in (addr..).zip(buf) {
            let over = at
                .checked_sub(PLACE - DIRECT)
                .and_then(|at| input.get(at as usize));
            *byte = over.copied().unwrap_or(*byte);
        }
        Ok(())
    }

    fn page_state(&self, pfn: u64) -> PageState {
        self.memory.page_state(pfn)
    }

    fn max_pfn(&self) -> u64 {
        self.memory.max_pfn()
    }
}

static WORLD: LazyLock<(Kernel, Arc<Arena>)> = LazyLock::new(|| {
    let arena = Arc::new(Arena {
        memory: kernel_memory(),
        input: Mutex::default(),
    });
    let kernel = Kernel::open(arena.clone(), &kernel_note()).expect("a sound kernel");
    (kernel, arena)
});

/// The kernel, with the input in its memory.
fn world(input: &[u8]) -> &'static Kernel {
    let (kernel, arena) = &*WORLD;
    let mut held = arena.input.lock().unwrap_or_else(PoisonError::into_inner);
    held.clear();
    held.extend_from_slice(&input[..input.len().min(MOST)]);
    kernel
}

/// The first page is the top table.
pub fn run_page_tables(input: &[u8]) {
    let kernel = world(input);
    let Ok(space) = AddressSpace::new(kernel, PLACE) else {
        return;
    };
    let mut end = 0;
    let mut pages = 0_u64;
    let _ = space.walk(0, u64::MAX, |mapping| {
        assert!(mapping.va >= end, "{mapping:x?} begins before {end:#x}");
        end = mapping.va + mapping.len;
        pages += 1;
        ControlFlow::Continue(())
    });
    assert!(pages < 512 * 5200, "{pages} entries of a few tables");
    for va in [0, 0x1000, 0x7fff_ffff_f000, u64::MAX, end.wrapping_sub(1)] {
        let _ = space.translate(va);
        let _ = space.read(va, &mut [0; 5000]);
        let _ = space.walk(
            va,
            va.wrapping_add(0x40_0000),
            |_| ControlFlow::Continue(()),
        );
    }
}

/// Heads of each container stand in the first 256 bytes.
pub fn run_containers(input: &[u8]) {
    let kernel = world(input);
    let at = |ty: &str, offset: u64| kernel.object(ty, PLACE + offset).expect("a type");
    let ends = |found: Result<Vec<Object<'_>>, vmrestore::kernel::KernelError>| match found {
        Ok(found) => assert!(found.len() <= MOST / 8 + 1, "{} entries", found.len()),
        Err(error) => assert!(!error.to_string().is_empty()),
    };
    ends(containers::list(&at("list_head", 0), "item", "list"));
    ends(containers::hlist(&at("hlist_head", 16), "item", "hash"));
    ends(containers::hlist_nulls(
        &at("hlist_nulls_head", 32),
        "item",
        "hash",
    ));
    ends(containers::rbtree(&at("rb_root", 48), "item", "rb.node"));
    ends(containers::rbtree(
        &at("rb_root_cached", 64),
        "item",
        "rb.node",
    ));
    let _ = containers::xarray(&at("xarray", 80));
    let _ = containers::idr(&at("idr", 96));
    let _ = containers::maple_tree(&at("maple_tree", 128));
}

/// A piece of memory, as written by `fill`.
fn piece(fill: impl FnOnce(&mut TinyKernel)) -> Vec<u8> {
    let mut tiny = TinyKernel::new(false);
    fill(&mut tiny);
    let start = (PLACE - DIRECT) as usize;
    tiny.memory.bytes[start..start + MOST].to_vec()
}

pub fn page_table_seeds() -> Vec<(String, Vec<u8>)> {
    let top = PLACE - DIRECT;
    let table = |n: u64| top + n * 4096 + 0x67;
    let tables = piece(|tiny| {
        tiny.put(top, &words(&[table(1), 0, 0x8000_0000_0000_0000]));
        tiny.put(top + 0x1000, &words(&[table(2), 0x4000_00e7]));
        tiny.put(top + 0x2000, &words(&[table(3), 0x20_00e7, 0x1f_f1e6]));
        tiny.put(
            top + 0x3000,
            &words(&[0x21_0067, 0, 0x21_1025, !0x3000 & 0x1f_fff0]),
        );
    });
    vec![("tables".into(), tables)]
}

pub fn container_seeds() -> Vec<(String, Vec<u8>)> {
    let item = |n: u64| PLACE + 0x400 + n * 72;
    let all = piece(|tiny| {
        let poke = |tiny: &mut TinyKernel, at: u64, value: u64| tiny.poke(PLACE + at, value);
        // A list and a tree of two items, an xarray of two nodes, a maple tree of two.
        poke(tiny, 8, item(0) + 8);
        tiny.poke(item(0) + 16, item(1) + 8);
        tiny.poke(item(1) + 16, PLACE);
        poke(tiny, 24, item(2) + 24);
        tiny.poke(item(2) + 32, item(3) + 24);
        poke(tiny, 32, item(4) + 24);
        tiny.poke(item(4) + 32, 1);
        poke(tiny, 48, item(0) + 40);
        poke(tiny, 72, item(0) + 40);
        tiny.poke(item(0) + 40, item(1) + 40);
        tiny.poke(item(1) + 56, item(0) + 40);
        let nodes = PLACE + 0x1000;
        poke(tiny, 80, nodes | 2);
        poke(tiny, 104, nodes | 2);
        tiny.poke(nodes + 8, nodes + 0x400 + 2);
        tiny.poke(nodes + 520, 6 << 8);
        tiny.poke(nodes + 0x400 + 16, 0xbeef_0000);
        tiny.poke(nodes + 0x400 + 512, nodes);
        tiny.poke(nodes + 0x400 + 520, 1);
        let maple = PLACE + 0x2000;
        poke(tiny, 136, maple | 6);
        tiny.put(
            maple - DIRECT,
            &words(&[PLACE | 1, u64::MAX, 0, 0, (maple + 256) | 5 << 3 | 4]),
        );
        tiny.put(
            maple + 256 - DIRECT,
            &words(&[maple, 0xaa00, 0, 0, 0, 0xfff, u64::MAX]),
        );
    });
    vec![("all".into(), all)]
}
