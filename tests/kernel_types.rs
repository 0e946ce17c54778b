//! Symbols, types, objects and modules of a kernel written by hand.

#![allow(missing_docs)]

mod tiny_kernel;

use std::sync::Arc;

use tiny_kernel::btf::Types;
use tiny_kernel::world::{self, Numbers};
use tiny_kernel::{DIRECT, Encoding, IMAGE, TinyKernel, VMALLOC, VMEMMAP, words};
use vmrestore::kernel::{Kernel, KernelError};

fn open(build: impl FnOnce(&mut TinyKernel, &mut Types, &Numbers)) -> Kernel {
    let mut tiny = TinyKernel::new(false);
    let (mut types, numbers) = world::types();
    build(&mut tiny, &mut types, &numbers);
    let info = tiny.finish(&types, Encoding::AbsolutePercpu);
    tiny.open(&info).expect("opens")
}

#[test]
fn each_encoding_of_kallsyms_is_told_by_stext() {
    for encoding in [
        Encoding::AbsolutePercpu,
        Encoding::Relative,
        Encoding::OwnPlace,
    ] {
        let mut tiny = TinyKernel::new(false);
        let (types, _) = world::types();
        let long = "a".repeat(300);
        let here = tiny.variable("some_page_base", &[7; 8]);
        tiny.symbol(b't', &long, here + 3);
        if encoding == Encoding::AbsolutePercpu {
            tiny.symbol(b'A', "runqueues", 0x31980);
        }
        let info = tiny.finish(&types, encoding);
        let kernel = tiny.open(&info).expect("opens");
        assert_eq!(kernel.release(), "0.0.1-tiny");
        assert_eq!(kernel.symbol("_stext").unwrap(), IMAGE);
        assert_eq!(kernel.symbol("some_page_base").unwrap(), here);
        assert_eq!(kernel.symbol(&long).unwrap(), here + 3);
        assert_eq!(
            kernel.symbol_at(here + 2),
            Some(("some_page_base".into(), 2))
        );
        assert_eq!(kernel.symbol_at(here + 3), Some((long, 0)));
        assert_eq!(kernel.symbol_size("some_page_base").unwrap(), 3);
        assert_eq!(kernel.symbol_at(0x1000), None);
        assert_eq!(kernel.symbol_at(IMAGE - 1), None);
        if encoding == Encoding::AbsolutePercpu {
            assert_eq!(kernel.symbol("runqueues").unwrap(), 0x31980);
        }
        let missing = kernel.symbol("some_page").unwrap_err();
        assert!(matches!(missing, KernelError::NoSymbol { ref name, .. } if name == "some_page"));
    }
}

#[test]
fn kallsyms_is_found_where_the_note_does_not_say() {
    let mut tiny = TinyKernel::new(false);
    let (types, _) = world::types();
    // More than two markers' worth of symbols, with what looks like a relative base before them.
    let here = tiny.variable("lure", &words(&[IMAGE, 1000, IMAGE - 0x1000, 40]));
    for n in 0..700 {
        tiny.symbol(b't', &format!("function_{n}"), IMAGE + n);
    }
    tiny.symbol(b'A', "runqueues", 0x31980);
    let info = tiny.finish(&types, Encoding::Unannounced);
    assert!(!info.contains("kallsyms"));
    let kernel = tiny.open(&info).expect("opens");
    assert_eq!(kernel.symbol("function_699").unwrap(), IMAGE + 699);
    assert_eq!(kernel.symbol("lure").unwrap(), here);
    assert_eq!(kernel.symbol("runqueues").unwrap(), 0x31980);

    let pfn = (here - IMAGE + 0x10_0000) >> 12;
    tiny.memory.missing.extend(pfn..pfn + 2);
    let error = tiny.open(&info).unwrap_err().to_string();
    assert!(error.contains("kallsyms"), "{error}");
}

#[test]
fn without_a_note_the_kernels_own_copy_is_found_and_not_a_guests() {
    let mut tiny = TinyKernel::new(false);
    let (types, _) = world::types();
    let info = tiny.finish(&types, Encoding::AbsolutePercpu);
    let page = |text: &str| {
        let mut page = text.as_bytes().to_vec();
        page.resize(4096, 0);
        page
    };
    assert!(Kernel::discover(Arc::new(tiny.memory.clone())).is_err());
    // A guest's comes first: the same words, of another place.
    tiny.put(
        0x8000,
        &page(
            &info
                .replace("0.0.1-tiny", "guest")
                .replace("phys_base)=-", "phys_base)="),
        ),
    );
    tiny.put(0x30_0000, &page(&info));
    let kernel = Kernel::discover(Arc::new(tiny.memory.clone())).unwrap();
    assert_eq!(kernel.release(), "0.0.1-tiny");
}

#[test]
fn a_guests_note_that_leads_to_the_host_is_not_taken_for_the_hosts() {
    let mut tiny = TinyKernel::new(false);
    let (types, _) = world::types();
    // The kernel says where its note is: in the direct map, at this place.
    let own = 0x30_0000u64;
    tiny.variable("vmcoreinfo_data", &words(&[DIRECT + own]));
    let info = tiny.finish(&types, Encoding::AbsolutePercpu);
    let page = |text: &str| {
        let mut page = text.as_bytes().to_vec();
        page.resize(4096, 0);
        page
    };
    // A guest of the same build without address randomisation: every word fits the host, but what it
    // says of paging and of its name.
    let guests = info.replace("0.0.1-tiny", "0.0.1-same");
    assert_ne!(guests, info);
    tiny.put(0x8000, &page(&guests));
    let alone = Kernel::discover(Arc::new(tiny.memory.clone())).unwrap_err();
    assert!(alone.to_string().contains("a guest's?"), "{alone}");
    tiny.put(own, &page(&info));
    let kernel = Kernel::discover(Arc::new(tiny.memory.clone())).unwrap();
    assert_eq!(kernel.release(), "0.0.1-tiny");
}

#[test]
fn kallsyms_that_disagrees_with_the_note_is_refused() {
    let mut tiny = TinyKernel::new(false);
    let (types, _) = world::types();
    let info = tiny.finish(&types, Encoding::Relative);
    let other = info.replace(
        &format!("SYMBOL(_stext)={IMAGE:x}"),
        &format!("SYMBOL(_stext)={:x}", IMAGE + 0x20_0000),
    );
    let error = tiny.open(&other).unwrap_err().to_string();
    assert!(error.contains("_stext"), "{error}");
}

#[test]
fn members_are_found_by_name_through_anonymous_records() {
    let mut at = 0;
    let kernel = open(|tiny, t, n| {
        let three = t.array(n.u32, 3);
        let grid = t.array(three, 2);
        let flexible = t.array(n.u8, 0);
        let inner = t.structure("", 8, &[("low", n.u32, 0, 0), ("high", n.i32, 32, 0)]);
        let either = t.union("", 8, &[("whole", n.u64, 0, 0), ("", inner, 0, 0)]);
        let constant = t.qualified(10, n.u64);
        let tagged = t.qualified(18, constant);
        let alias = t.typedef("ticks_t", tagged);
        t.structure(
            "probe",
            56,
            &[
                ("", either, 0, 0),
                ("grid", grid, 64, 0),
                ("three_bits", n.u32, 8 * 32 + 5, 3),
                ("wide_bits", n.i32, 8 * 32 + 8, 20),
                ("ticks", alias, 8 * 40, 0),
                ("tail", flexible, 8 * 48, 0),
            ],
        );
        let mut bytes = words(&[
            0xffff_fffe_0000_0009,
            0x2_0000_0001,
            0x4_0000_0003,
            0x6_0000_0005,
        ]);
        // three_bits = 0b101 at bit 5; wide_bits = -2 in 20 bits at bit 8.
        bytes.extend(words(&[0x00ff_fffe << 8 & 0x0fff_ff00 | 0b1011_1111, 77]));
        bytes.extend(b"tail of it\0");
        at = tiny.object(&bytes, 8);
    });
    let probe = kernel.object("probe", at).unwrap();
    assert_eq!(probe.size(), 56);
    assert_eq!(probe.type_name(), "struct probe");
    assert_eq!(probe.u("low").unwrap(), 9);
    assert_eq!(probe.i("high").unwrap(), -2);
    assert_eq!(probe.u("high").unwrap(), 0xffff_fffe);
    assert_eq!(probe.u("whole").unwrap(), 0xffff_fffe_0000_0009);
    assert_eq!(probe.u("grid[1][2]").unwrap(), 6);
    assert_eq!(
        probe
            .get("grid")
            .unwrap()
            .element(1)
            .unwrap()
            .u("[0]")
            .unwrap(),
        4
    );
    assert_eq!(probe.u("three_bits").unwrap(), 0b101);
    assert_eq!(probe.i("wide_bits").unwrap(), -2);
    assert_eq!(probe.u("ticks").unwrap(), 77);
    assert_eq!(probe.get("tail").unwrap().string().unwrap(), "tail of it");
    assert_eq!(probe.u("tail[5]").unwrap(), u64::from(b'o'));
    assert_eq!(kernel.offset_of("probe", "grid[1]").unwrap(), 20);
    assert_eq!(kernel.size_of("ticks_t").unwrap(), 8);
    assert_eq!(kernel.size_of("unsigned long").unwrap(), 8);
    assert_eq!(kernel.size_of("struct probe *").unwrap(), 8);
    assert!(kernel.has_type("struct probe") && !kernel.has_type("union probe"));

    let outside = probe.get("grid[1][3]").unwrap_err();
    assert!(matches!(
        outside,
        KernelError::OutOfBounds {
            index: 3,
            len: 3,
            ..
        }
    ));
    for path in [
        "none", "grid.x", "grid[", "grid[x]", "grid[-1]", ".low", "low.", "low[0]", "a b",
    ] {
        let error = probe.get(path).unwrap_err();
        assert!(
            matches!(error, KernelError::NoMember { .. }),
            "{path}: {error}"
        );
        assert!(!probe.has(path));
    }
    assert!(matches!(
        probe.unsigned(),
        Err(KernelError::WrongKind { .. })
    ));
}

#[test]
fn bitfields_in_the_old_style_and_both_widths_of_enumerations() {
    let mut at = 0;
    let kernel = open(|tiny, t, n| {
        let narrow = t.old_bitfield(4, 6);
        let small = t.enumeration("mood", true, &[("BAD", -1), ("GOOD", 7)]);
        let large = t.enumeration64("flags", &[("FAR", 1 << 40)]);
        t.structure(
            "old",
            24,
            &[
                ("before", n.u8, 0, 0),
                ("six", narrow, 12, 0),
                ("mood", small, 64, 0),
                ("flags", large, 128, 0),
            ],
        );
        at = tiny.object(&words(&[0b10_1101 << 12, 0xffff_ffff, 1 << 40]), 8);
    });
    let old = kernel.object("old", at).unwrap();
    assert_eq!(old.u("six").unwrap(), 0b10_1101);
    assert_eq!(old.i("mood").unwrap(), -1);
    assert_eq!(old.u("flags").unwrap(), 1 << 40);
    assert_eq!(kernel.enum_value("mood", "BAD"), Some(-1));
    assert_eq!(kernel.enum_value("", "FAR"), Some(1 << 40));
    assert_eq!(kernel.enum_value("mood", "FAR"), None);
}

#[test]
fn pointers_are_followed_only_when_asked() {
    let (mut at, mut target) = (0, 0);
    let kernel = open(|tiny, t, n| {
        let pointer = t.pointer(n.u32);
        let later = t.forward("only_declared");
        let later = t.pointer(later);
        t.structure(
            "holder",
            32,
            &[
                ("some", pointer, 0, 0),
                ("none", pointer, 64, 0),
                ("any", n.void_pointer, 128, 0),
                ("later", later, 192, 0),
            ],
        );
        target = tiny.object(&words(&[0x5_0000_0004]), 8);
        at = tiny.object(&words(&[target, 0, target, target]), 8);
    });
    let holder = kernel.object("holder", at).unwrap();
    assert_eq!(holder.ptr("some").unwrap(), target);
    let some = holder.follow("some").unwrap();
    assert_eq!((some.addr(), some.unsigned().unwrap()), (target, 4));
    assert_eq!(
        holder
            .get("some")
            .unwrap()
            .element(1)
            .unwrap()
            .unsigned()
            .unwrap(),
        5
    );
    assert_eq!(holder.follow_opt("none").unwrap(), None);
    assert!(matches!(
        holder.follow("none"),
        Err(KernelError::Null { .. })
    ));
    let any = holder.follow("any").unwrap();
    assert_eq!(
        (any.size(), any.cast("u64").unwrap().unsigned().unwrap()),
        (0, 0x5_0000_0004)
    );
    assert_eq!(
        any.container_of("holder", "none").unwrap().addr(),
        target - 8
    );
    assert!(matches!(
        holder.follow("later").unwrap().get("x"),
        Err(KernelError::NoMember { .. })
    ));
}

#[test]
fn addresses_lead_by_image_direct_map_and_page_tables() {
    let mut phys = 0;
    let kernel = open(|tiny, _, _| {
        phys = tiny.heap(&[0xab; 4096], 4096);
        let next = tiny.heap(&[0xcd; 4096], 4096);
        // Backwards, so that only page tables can tell.
        tiny.map_kernel(VMALLOC, 12, next | 0x63);
        tiny.map_kernel(VMALLOC + 4096, 12, phys | 0x63);
        tiny.map_kernel(
            VMALLOC & !0x3fff_ffff | 0x20_0000 << 5,
            21,
            0x20_0000 | 0xe3,
        );
    });
    assert_eq!(kernel.virt_to_phys(DIRECT + 0x1234).unwrap(), 0x1234);
    assert_eq!(kernel.phys_to_virt(0x1234), DIRECT + 0x1234);
    assert_eq!(kernel.virt_to_phys(IMAGE + 0x10).unwrap(), 0x10_0010);
    assert_eq!(kernel.virt_to_phys(VMALLOC + 0x1008).unwrap(), phys + 8);
    let mut across = [0; 4];
    kernel.read(VMALLOC + 4094, &mut across).unwrap();
    assert_eq!(across, [0xcd, 0xcd, 0xab, 0xab]);
    let large = VMALLOC & !0x3fff_ffff | 0x20_0000 << 5;
    assert_eq!(kernel.virt_to_phys(large + 0x12345).unwrap(), 0x21_2345);
    for hole in [0, 0x1000, VMALLOC - 1, VMALLOC + 0x2000, u64::MAX - 2] {
        assert!(kernel.read_u64(hole).is_err(), "{hole:#x}");
    }
    assert_eq!(kernel.page_to_pfn(VMEMMAP + 80 * 5).unwrap(), 5);
    assert_eq!(kernel.pfn_to_page(5), VMEMMAP + 400);
    assert!(kernel.page_to_pfn(VMEMMAP + 81).is_err());
    assert!(kernel.page_to_pfn(DIRECT).is_err());
}

#[test]
fn modules_bring_symbols_and_types_of_their_own() {
    let kernel = open(|tiny, t, n| {
        // vmlinux knows of `struct gadget` only that there is one.
        let gadget = t.forward("gadget");
        let gadget = t.pointer(gadget);
        t.structure("owner", 8, &[("gadget", gadget, 0, 0)]);
        let mut own = Types::split(t);
        own.structure("gadget", 16, &[("links", n.list_head, 0, 0)]);
        own.structure("widget", 4, &[("size", n.u32, 0, 0)]);

        let strings = b"\0needed_elsewhere\0gadget_list\0__mark\0gadget_fops\0";
        let strings = tiny.object(strings, 8);
        let symbol =
            |name: u64, section: u64, value: u64| [name | 1 << 32 | section << 48, value, 8];
        let table: Vec<u64> = [
            [0, 0, 0],
            symbol(1, 0, 0),
            symbol(30, 3, VMALLOC + 0x100),
            symbol(18, 4, VMALLOC + 0x800),
            symbol(37, 3, VMALLOC + 0x100),
        ]
        .concat();
        let table = tiny.object(&words(&table), 8);
        let symbols = tiny.object(&words(&[5, strings, table]), 8);
        let module = DIRECT + 0x30_0000;
        let modules = tiny.variable("modules", &words(&[module + 48, module + 48]));
        let mut name = *b"gadget_driver\0\0\0\0\0\0\0\0\0\0\0";
        name[23] = 0;
        tiny.put(0x30_0000, &words(&[symbols, 0x1000, VMALLOC]));
        tiny.put(0x30_0018, &name);
        tiny.put(0x30_0030, &words(&[modules, modules]));

        let blob = own.blob();
        let data = tiny.object(&blob, 8);
        let btf = tiny.object(&words(&[blob.len() as u64, data]), 8);
        let entry = DIRECT + 0x31_0000;
        let head = tiny.variable("btf_modules", &words(&[entry + 8, entry + 8]));
        tiny.put(0x31_0000, &words(&[btf, head, head, module]));
    });
    let modules = kernel.modules().unwrap();
    assert_eq!(modules.len(), 1);
    assert_eq!(
        (modules[0].name.as_str(), modules[0].base, modules[0].size),
        ("gadget_driver", VMALLOC, 0x1000)
    );
    assert_eq!(kernel.symbol("gadget_list").unwrap(), VMALLOC + 0x800);
    assert_eq!(
        kernel
            .module_symbol("gadget_driver", "gadget_fops")
            .unwrap(),
        VMALLOC + 0x100
    );
    assert!(
        kernel
            .module_symbol("gadget_driver", "needed_elsewhere")
            .is_err()
    );
    assert!(matches!(
        kernel.module_symbol("other", "x"),
        Err(KernelError::NoModule { .. })
    ));
    assert_eq!(
        kernel.symbol_at(VMALLOC + 0x104),
        Some(("gadget_fops".into(), 4))
    );
    assert_eq!(kernel.symbol_at(VMALLOC + 0x1000), None);

    assert_eq!(kernel.size_of("widget").unwrap(), 4);
    assert_eq!(
        kernel
            .object_in("gadget_driver", "gadget", DIRECT)
            .unwrap()
            .size(),
        16
    );
    assert_eq!(
        kernel
            .object_in("gadget_driver", "page", DIRECT)
            .unwrap()
            .size(),
        80
    );
    assert!(kernel.object_in("other", "gadget", DIRECT).is_err());
    // Through vmlinux's forward declaration to the module's definition.
    let owner = kernel
        .object("owner", kernel.symbol("vmemmap_base").unwrap())
        .unwrap();
    let links = owner.follow("gadget").unwrap().get("links.next").unwrap();
    assert_eq!(links.addr(), VMEMMAP + 8);
}

#[test]
fn each_cpu_has_its_own_copy() {
    let kernel = open(|tiny, _, _| {
        tiny.variable("__cpu_possible_mask", &words(&[0b1011, 1]));
        tiny.variable("__cpu_present_mask", &words(&[0b0011, 1]));
        tiny.variable("__cpu_online_mask", &words(&[0b0001, 1]));
        let mut offsets = vec![0u64; 128];
        offsets[1] = 0x7000;
        offsets[64] = 0x9000;
        tiny.variable("__per_cpu_offset", &words(&offsets));
    });
    assert_eq!(kernel.cpus().unwrap(), [0, 1, 64]);
    assert_eq!(kernel.online_cpus().unwrap(), [0, 64]);
    assert_eq!(kernel.per_cpu(0x31980, 1).unwrap(), 0x31980 + 0x7000);
    assert_eq!(kernel.per_cpu(0x31980, 64).unwrap(), 0x31980 + 0x9000);
    assert!(kernel.per_cpu(0x31980, 2).is_err());
    assert!(kernel.per_cpu(0x31980, u32::MAX).is_err());
}
