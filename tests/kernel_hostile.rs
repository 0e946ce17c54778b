//! Whatever is in the memory of a dead kernel, reading it ends with an answer or an error.

#![allow(missing_docs)]

mod tiny_kernel;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tiny_kernel::btf::Types;
use tiny_kernel::{DIRECT, Dice, Encoding, MEMORY, TinyKernel, VMALLOC, words, world};
use vmrestore::kernel::{AddressSpace, Kernel, containers};

const ARENA: u64 = DIRECT + 0x30_0000;

/// A kernel with one of everything, its note, and the physical address of a process's page tables.
fn one_of_everything() -> (TinyKernel, String, u64) {
    let mut tiny = TinyKernel::new(false);
    let (mut types, numbers) = world::types();
    types.forward("gadget");
    let mut own = Types::split(&types);
    own.structure("gadget", 16, &[("links", numbers.list_head, 0, 0)]);
    let blob = own.blob();

    let strings = tiny.object(b"\0gadget_list\0", 8);
    let table = words(&[0, 0, 0, 1 | 1 << 32 | 3 << 48, VMALLOC + 0x100, 8]);
    let table = tiny.object(&table, 8);
    let symbols = tiny.object(&words(&[2, strings, table]), 8);
    let (module, entry) = (ARENA, ARENA + 0x100);
    let modules = tiny.variable("modules", &words(&[module + 48, module + 48]));
    tiny.put(
        module - DIRECT,
        &words(&[
            symbols,
            0x1000,
            VMALLOC,
            0x7465_6764_6167,
            0,
            0,
            modules,
            modules,
        ]),
    );
    let data = tiny.object(&blob, 8);
    let btf = tiny.object(&words(&[blob.len() as u64, data]), 8);
    let head = tiny.variable("btf_modules", &words(&[entry + 8, entry + 8]));
    tiny.put(entry - DIRECT, &words(&[btf, head, head, module]));
    tiny.variable("__cpu_possible_mask", &words(&[3, 0]));
    tiny.variable("__cpu_present_mask", &words(&[3, 0]));
    tiny.variable("__per_cpu_offset", &words(&[0x1000, 0x2000]));

    // A list and a tree of two items, an xarray of two nodes, a maple tree of two.
    let item = |n: u64| ARENA + 0x400 + n * 72;
    tiny.poke(ARENA + 0x208, item(0) + 8);
    tiny.poke(item(0) + 16, item(1) + 8);
    tiny.poke(item(1) + 16, ARENA + 0x200);
    tiny.poke(ARENA + 0x210, item(0) + 40);
    tiny.poke(item(0) + 40, item(1) + 40);
    tiny.poke(item(1) + 56, item(0) + 40);
    let nodes = ARENA + 0x1000;
    tiny.poke(ARENA + 0x220, nodes | 2);
    tiny.poke(nodes + 8, nodes + 0x400 + 2);
    tiny.poke(nodes + 520, 6 << 8);
    tiny.poke(nodes + 0x400 + 16, 0xbeef_0000);
    tiny.poke(nodes + 0x400 + 512, nodes);
    tiny.poke(nodes + 0x400 + 520, 1);
    let maple = ARENA + 0x2000;
    tiny.poke(ARENA + 0x248, maple | 6);
    tiny.put(
        maple - DIRECT,
        &words(&[ARENA | 1, u64::MAX, 0, 0, (maple + 256) | 5 << 3 | 4]),
    );
    tiny.put(
        maple + 256 - DIRECT,
        &words(&[maple, 0xaa00, 0, 0, 0, 0xfff, u64::MAX]),
    );

    let top = tiny.heap(&[0; 4096], 4096);
    for page in 0..4u64 {
        tiny.map(top, 0x1000 + page * 0x20_1000, 12, 0x21_0000 | 0x67);
    }
    tiny.map_kernel(VMALLOC, 12, 0x21_0000 | 0x63);
    let info = tiny.finish(&types, Encoding::AbsolutePercpu);
    (tiny, info, top)
}

/// Asks everything there is to ask, and counts the answers.
fn ask(kernel: &Kernel, pgd: u64) -> usize {
    let mut answers = 0;
    let mut count = |ok: bool| answers += usize::from(ok);
    for name in ["_stext", "gadget_list", "vmemmap_base", "none"] {
        count(kernel.symbol(name).is_ok());
    }
    for addr in [VMALLOC + 0x104, DIRECT, 0, u64::MAX] {
        let _ = kernel.symbol_at(addr);
        let _ = kernel.page_to_pfn(addr);
        let _ = kernel.read_cstr(addr, 100);
    }
    count(kernel.modules().is_ok_and(|modules| modules.len() == 1));
    for cpu in kernel.cpus().unwrap_or_default() {
        count(kernel.per_cpu(0x100, cpu).is_ok());
    }
    for ty in ["item", "gadget", "maple_node", "xa_node", "page", "module"] {
        count(kernel.size_of(ty).is_ok());
        if let Ok(object) = kernel.object(ty, ARENA) {
            let _ = (object.type_name(), object.bytes().map(|bytes| bytes.len()));
            for path in [
                "list.next",
                "slot[3]",
                "rb.node.rb_left",
                "name",
                "mr64.pivot[2]",
            ] {
                if let Ok(member) = object.get(path) {
                    let _ = (member.unsigned(), member.signed(), member.string());
                    let _ = member
                        .deref()
                        .and_then(|pointee| pointee.container_of("item", "rb"));
                }
            }
        }
    }
    let _ = kernel.enum_value("", "maple_dense");
    let at = |ty, addr| kernel.object(ty, addr);
    count(
        at("list_head", ARENA + 0x200)
            .is_ok_and(|o| containers::list(&o, "item", "list").is_ok_and(|l| l.len() == 2)),
    );
    count(
        at("rb_root", ARENA + 0x210)
            .is_ok_and(|o| containers::rbtree(&o, "item", "rb.node").is_ok_and(|l| l.len() == 2)),
    );
    count(
        at("xarray", ARENA + 0x220)
            .is_ok_and(|o| containers::xarray(&o).is_ok_and(|l| l == [(66, 0xbeef_0000)])),
    );
    count(
        at("maple_tree", ARENA + 0x240)
            .is_ok_and(|o| containers::maple_tree(&o).is_ok_and(|l| l == [(0, 0xfff, 0xaa00)])),
    );
    if let Ok(space) = AddressSpace::new(kernel, pgd) {
        let mut pages = 0;
        let walked = space.walk(0, u64::MAX, |_| {
            pages += 1;
            ControlFlow::Continue(())
        });
        count(walked.is_ok() && pages == 4);
        count(space.read(0x1000, &mut [0; 64]).is_ok());
    }
    answers
}

#[test]
fn what_is_whole_answers_everything() {
    let (tiny, info, top) = one_of_everything();
    let kernel = tiny.open(&info).expect("opens");
    // 3 symbols, 1 module, 2 CPUs, 6 types, 4 containers, 2 of the page tables.
    assert_eq!(ask(&kernel, DIRECT + top), 18);
}

#[test]
fn damage_never_panics_and_never_takes_long() {
    let (tiny, info, top) = one_of_everything();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let (mut opened, mut whole, mut slowest) = (0, 0, Duration::ZERO);
    const ROUNDS: u32 = 600;
    for round in 0..ROUNDS {
        let mut hurt = TinyKernel::new(false);
        hurt.memory = tiny.memory.clone();
        for _ in 0..1 + dice.roll(24) {
            // The image, the heap with its tables, or the arena.
            let (start, len) = [
                (0x10_0000, 0x8000),
                (0x20_0000, 0x8000),
                (0x30_0000, 0x2800),
            ][dice.roll(3) as usize];
            let at = start + dice.roll(len) as usize;
            match dice.roll(3) {
                0 => hurt.memory.bytes[at] ^= 1 << dice.roll(8),
                1 => hurt.memory.bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.roll(5) as usize],
                _ => {
                    // A word of one place stands in another.
                    let from = start + dice.roll(len / 8) as usize * 8;
                    hurt.memory.bytes.copy_within(from..from + 8, at & !7);
                }
            }
        }
        let start = Instant::now();
        if let Ok(kernel) = hurt.open(&info) {
            opened += 1;
            whole += u32::from(ask(&kernel, DIRECT + top) == 18);
        }
        slowest = slowest.max(start.elapsed());
        assert!(
            slowest < Duration::from_secs(10),
            "round {round} took {slowest:?}"
        );
    }
    // Else the damage misses what is read, or kills it at the first look.
    assert!(opened > ROUNDS / 10, "only {opened} opened");
    assert!(whole < ROUNDS * 9 / 10, "{whole} were not hurt");
}

#[test]
fn pages_that_are_not_in_the_dump_are_errors() {
    let (tiny, info, top) = one_of_everything();
    for pfn in 0..MEMORY as u64 / 4096 {
        let mut hurt = TinyKernel::new(false);
        hurt.memory = tiny.memory.clone();
        hurt.memory.missing.push(pfn);
        if let Ok(kernel) = hurt.open(&info) {
            ask(&kernel, DIRECT + top);
        }
    }
}

#[test]
fn a_note_with_any_line_lost_or_changed_is_told() {
    let (tiny, info, top) = one_of_everything();
    let lines: Vec<&str> = info.lines().collect();
    for lost in 0..lines.len() {
        for change in ["", "=", "=zz", "=-1", "=ffffffffffffffff", "=8"] {
            let mut text = String::new();
            for (i, line) in lines.iter().enumerate() {
                let key = line.split('=').next().unwrap_or_default();
                match (i == lost, change) {
                    (false, _) => text.push_str(line),
                    (true, "") => continue,
                    (true, change) => text.push_str(&format!("{key}{change}")),
                }
                text.push('\n');
            }
            if let Ok(kernel) = tiny.open(&text) {
                ask(&kernel, DIRECT + top);
            }
        }
    }
    let error = tiny.open("").unwrap_err().to_string();
    assert!(error.contains("VMCOREINFO"), "{error}");
}
