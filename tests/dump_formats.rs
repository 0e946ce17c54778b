//! What is read from a dump equals what was written to it, in every format and page state.

mod synth;

use synth::{
    Cpu, Kdump, Machine, Noise, PAGE, Slot, TempFile, flatten, flatten_without_padding, put,
};
use vmrestore::dump::{Dump, Missing, PageCounts, PageState, PhysicalMemory, ReadError};

fn open(bytes: &[u8]) -> Dump {
    let file = TempFile::new(bytes);
    Dump::open(file.path()).unwrap_or_else(|e| panic!("{e}: {}", e.hint()))
}

/// Everything that the dump says of its memory against the machine that was written.
fn assert_same_memory(dump: &Dump, machine: &Machine, noise: &mut Noise, what: &str) {
    let frames = machine.slots.len() as u64;
    assert_eq!(dump.max_pfn(), frames, "{what}");
    let (present, filtered, not_ram) = machine.counts();
    assert_eq!(
        dump.page_counts(),
        PageCounts {
            present,
            filtered,
            not_ram,
            truncated: 0
        },
        "{what}"
    );
    assert_eq!(dump.incomplete(), None, "{what}");

    let state = |pfn: u64| match machine.slots.get(pfn as usize) {
        Some(Slot::Data(_)) => PageState::Present,
        Some(Slot::Filtered) => PageState::Missing(Missing::Filtered),
        Some(Slot::NotRam) | None => PageState::Missing(Missing::NotRam),
    };
    for pfn in 0..frames + 20 {
        assert_eq!(dump.page_state(pfn), state(pfn), "{what}: page frame {pfn}");
    }
    assert_eq!(
        dump.page_state(u64::MAX),
        PageState::Missing(Missing::NotRam)
    );

    // Ranges anywhere, across pages: right to the byte, or the first missing page is named.
    for _ in 0..600 {
        let addr = noise.below(frames * PAGE as u64);
        let len = match noise.below(3) {
            0 => 8,
            1 => noise.below(600) as usize,
            _ => noise.below(3 * PAGE as u64) as usize,
        };
        let mut buf = vec![0x5a; len];
        let first_missing =
            (addr..addr + len as u64).find(|byte| state(byte / PAGE as u64) != PageState::Present);
        match (dump.read_physical(addr, &mut buf), first_missing) {
            (Ok(()), None) => {
                for (i, byte) in buf.iter().enumerate() {
                    let at = addr as usize + i;
                    let Slot::Data(page) = &machine.slots[at / PAGE] else {
                        unreachable!()
                    };
                    assert_eq!(*byte, page[at % PAGE], "{what}: address {at:#x}");
                }
            }
            (Err(ReadError::Missing { addr: named, why }), Some(byte)) => {
                assert_eq!(named, byte, "{what}: read of {len} at {addr:#x}");
                assert_eq!(PageState::Missing(why), state(byte / PAGE as u64), "{what}");
            }
            (got, expected) => {
                panic!("{what}: {len} bytes at {addr:#x}: {got:?}, missing: {expected:?}")
            }
        }
    }

    // In bulk: all pages in order, then a shuffled list with repetitions.
    let all: Vec<u64> = (0..frames + 3).collect();
    let some: Vec<u64> = (0..700).map(|_| noise.below(frames)).collect();
    for pfns in [all, some] {
        let mut out = vec![0x5a; pfns.len() * PAGE];
        let failures = dump.read_pages(&pfns, &mut out);
        let mut failed = failures.iter().peekable();
        for (i, &pfn) in pfns.iter().enumerate() {
            let page = &out[i * PAGE..][..PAGE];
            match state(pfn) {
                PageState::Present => {
                    let Slot::Data(expected) = &machine.slots[pfn as usize] else {
                        unreachable!()
                    };
                    assert!(page == &expected[..], "{what}: bulk page frame {pfn}");
                }
                PageState::Missing(why) => {
                    let failure = failed.next().expect("a failure for each missing page");
                    assert_eq!(
                        (failure.index, failure.error.missing()),
                        (i, Some(why)),
                        "{what}"
                    );
                    assert!(page.iter().all(|&b| b == 0));
                }
            }
        }
        assert!(failed.next().is_none(), "{what}: a failure without a cause");
    }
}

fn assert_same_notes(dump: &Dump, machine: &Machine, what: &str) {
    assert_eq!(dump.vmcoreinfo(), machine.vmcoreinfo.as_deref(), "{what}");
    assert_eq!(dump.cpu_notes().len(), machine.cpus.len(), "{what}");
    for (note, Cpu { pid, regs }) in dump.cpu_notes().iter().zip(&machine.cpus) {
        let prstatus = note.prstatus.unwrap();
        assert_eq!(prstatus.pid, *pid);
        let r = prstatus.regs;
        // The order of gdb's and the kernel's user_regs_struct.
        let read = [
            r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx,
            r.rdx, r.rsi, r.rdi, r.orig_rax, r.rip, r.cs, r.rflags, r.rsp, r.ss, r.fs_base,
            r.gs_base, r.ds, r.es, r.fs, r.gs,
        ];
        assert_eq!(read, *regs, "{what}");
    }
}

#[test]
fn every_format_gives_back_what_was_written() {
    let mut noise = Noise(1);
    let stores = [
        (
            "uncompressed",
            0,
            synth::store_raw as fn(&[u8; PAGE], &mut Noise) -> (Vec<u8>, u32),
        ),
        ("zlib", 1, synth::store_zlib),
        ("lzo", 2, synth::store_lzo),
        ("snappy", 4, synth::store_snappy),
        ("zstd", 0x20, synth::store_zstd),
        ("zlib", 1, synth::store_mixed),
    ];
    for round in 0..6 {
        let frames = [1, 40, 300, 700, 1000, 65][round];
        let machine = Machine::random(&mut noise, frames);
        let elf = machine.elf();
        let mut identities = Vec::new();
        let mut check = |bytes: &[u8], name: String, noise: &mut Noise| {
            let dump = open(bytes);
            assert_eq!(dump.filters_zero_pages(), name.starts_with("ELF"));
            let what = format!("round {round}, {name}");
            assert_eq!(dump.format().to_string(), name, "{what}");
            assert_same_notes(&dump, &machine, &what);
            assert_same_memory(&dump, &machine, noise, &what);
            identities.push(dump.identity().clone());
        };
        check(&elf, "ELF".into(), &mut noise);
        check(
            &flatten(&elf, 1000, true),
            "ELF, flattened".into(),
            &mut noise,
        );
        for (name, status, store) in stores {
            let kdump = machine.kdump(
                Kdump {
                    status,
                    store,
                    ..Kdump::default()
                },
                &mut noise,
            );
            check(&kdump, format!("kdump-compressed ({name})"), &mut noise);
            for (block, shuffle) in [(65536, false), (4096, true), (777, true)] {
                let name = format!("kdump-compressed ({name}), flattened");
                check(&flatten(&kdump, block, shuffle), name, &mut noise);
            }
            let name = format!("kdump-compressed ({name}), flattened");
            check(&flatten_without_padding(&kdump, frames), name, &mut noise);
        }
        // The same crash, whatever the format.
        assert!(
            identities.windows(2).all(|pair| pair[0] == pair[1]),
            "{identities:?}"
        );
        assert_eq!(identities[0].as_str().len(), 32);
    }
}

#[test]
fn every_header_version_of_kdump_is_read() {
    let mut noise = Noise(2);
    let machine = Machine::random(&mut noise, 200);
    for version in 1..=6 {
        let dump = open(&machine.kdump(
            Kdump {
                version,
                ..Kdump::default()
            },
            &mut noise,
        ));
        assert_same_memory(&dump, &machine, &mut noise, &format!("version {version}"));
        assert_eq!(dump.dump_level(), Some(17));
        // VMCOREINFO came with version 3, notes with version 4.
        assert_eq!(
            dump.vmcoreinfo().is_some(),
            version >= 3,
            "version {version}"
        );
        assert_eq!(
            dump.cpu_notes().len(),
            if version >= 4 { 3 } else { 0 },
            "version {version}"
        );
        assert_eq!(dump.identity().as_str().len(), 32);
    }
}

#[test]
fn qemu_notes_are_read_and_vmcoreinfo_may_be_absent() {
    let mut noise = Noise(3);
    let mut machine = Machine::random(&mut noise, 50);
    machine.qemu = true;
    machine.vmcoreinfo = None;
    for (bytes, name) in [
        (machine.elf(), "ELF, by QEMU"),
        (
            flatten(&machine.kdump(Kdump::default(), &mut noise), 16384, false),
            "kdump-compressed (zlib), flattened, by QEMU",
        ),
    ] {
        let dump = open(&bytes);
        assert_eq!(dump.format().to_string(), name);
        assert_same_notes(&dump, &machine, name);
        assert_same_memory(&dump, &machine, &mut noise, name);
        for (i, (note, cpu)) in dump.cpu_notes().iter().zip(&machine.cpus).enumerate() {
            let qemu = note.qemu.unwrap();
            assert_eq!(
                (qemu.version, qemu.rax, qemu.rip),
                (1, cpu.regs[10], cpu.regs[16])
            );
            assert_eq!((qemu.gs.base, qemu.idt.selector), (0x1111, 0x77));
            assert_eq!(
                (qemu.cr[3], qemu.kernel_gs_base),
                (0xc3_0000 + i as u64, Some(0x2222))
            );
        }
    }
}

#[test]
fn two_crashes_have_two_identities() {
    let mut noise = Noise(4);
    let one = Machine::random(&mut noise, 30);
    let mut other = one.clone();
    other.vmcoreinfo = Some(one.vmcoreinfo.clone().unwrap() + "KERNELOFFSET=1\n");
    let mut live = one.clone();
    live.vmcoreinfo = Some("OSRELEASE=6.1.0\n".into()); // no CRASHTIME: registers count
    let mut later = live.clone();
    later.cpus[1].regs[16] += 4;
    let mut filtered = one.clone();
    filtered.slots[29] = Slot::Data(noise.page());
    let [one, other, live, later, filtered] =
        [one, other, live, later, filtered].map(|machine| open(&machine.elf()).identity().clone());
    assert!(one != other && live != later && one != live);
    assert_eq!(
        one, filtered,
        "the identity does not depend on which pages are there"
    );
}

#[test]
fn more_segments_than_e_phnum_can_count() {
    let mut noise = Noise(5);
    let count = 70_000u64;
    let mut machine = Machine {
        slots: Vec::new(),
        vmcoreinfo: None,
        cpus: Vec::new(),
        qemu: false,
    };
    machine.slots.push(Slot::NotRam);
    let contents: Vec<Vec<u8>> = (0..count).map(|i| i.to_le_bytes().to_vec()).collect();
    let bytes = machine.elf_with(|segments| {
        for (i, data) in contents.iter().enumerate() {
            // Eight bytes in every other page.
            segments.push(synth::Segment {
                addr: i as u64 * 8192 + 16,
                memory: 8,
                data: data.clone(),
            });
        }
    });
    let dump = open(&bytes);
    for _ in 0..5000 {
        let i = noise.below(count);
        let mut word = [0; 8];
        dump.read_physical(i * 8192 + 16, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), i);
        assert!(dump.read_physical(i * 8192 + 24, &mut word).is_err());
    }
    // Pages that are not all there count as no memory.
    assert_eq!(dump.page_counts().present, 0);
    assert_eq!(dump.page_counts().not_ram, dump.max_pfn());
}

#[test]
fn overlapping_and_unaligned_segments() {
    // As /proc/vmcore lists the kernel's text twice, and ends low memory at 0x9fc00. In the first
    // listing of page 3 it was left out, in the second it is there.
    let data = |byte: u8, len: usize| vec![byte; len];
    let bytes = synth::elf_file(
        &[],
        &[
            synth::Segment {
                addr: 0x2000,
                memory: 0x3000,
                data: data(2, 0x1000),
            },
            synth::Segment {
                addr: 0x3000,
                memory: 0x1000,
                data: data(3, 0x1000),
            },
            synth::Segment {
                addr: 0x8000,
                memory: 0x1c00,
                data: data(8, 0x1c00),
            },
            synth::Segment {
                addr: 0xb800,
                memory: 0x800,
                data: data(0xb, 0x800),
            },
            synth::Segment {
                addr: 0xc000,
                memory: 0x1000,
                data: data(0xc, 0x1000),
            },
        ],
    );
    let dump = open(&bytes);
    let states: Vec<PageState> = (0..14).map(|pfn| dump.page_state(pfn)).collect();
    let (p, n, f) = (
        PageState::Present,
        PageState::Missing(Missing::NotRam),
        PageState::Missing(Missing::Filtered),
    );
    assert_eq!(states, [n, n, p, p, f, n, n, n, p, n, n, n, p, n]);
    assert_eq!(
        dump.page_counts(),
        PageCounts {
            present: 4,
            filtered: 1,
            not_ram: 8,
            truncated: 0
        }
    );
    let read = |addr, len| {
        let mut buf = vec![0; len];
        dump.read_physical(addr, &mut buf).map(|()| buf)
    };
    assert_eq!(read(0x2ffe, 4).unwrap(), [2, 2, 3, 3]);
    assert_eq!(
        read(0x9bfc, 4).unwrap(),
        [8; 4],
        "the part of a page that is there"
    );
    assert!(matches!(
        read(0x9bfc, 5),
        Err(ReadError::Missing {
            addr: 0x9c00,
            why: Missing::NotRam
        })
    ));
    assert_eq!(read(0xbffe, 4).unwrap(), [0xb, 0xb, 0xc, 0xc]);
    assert!(matches!(
        read(u64::MAX - 3, 8),
        Err(ReadError::Missing {
            why: Missing::NotRam,
            ..
        })
    ));
}

/// Memory of `machine` that a cut of its dump still has is right; the rest is truncated.
fn assert_truncated(bytes: &[u8], machine: &Machine, what: &str) -> u64 {
    let dump = open(bytes);
    assert!(dump.incomplete().is_some(), "{what} is not seen to be cut");
    let mut lost = 0;
    for (pfn, slot) in machine.slots.iter().enumerate() {
        let mut page = [0x5a; PAGE];
        let read = dump.read_physical((pfn * PAGE) as u64, &mut page);
        match (slot, dump.page_state(pfn as u64)) {
            (Slot::Data(expected), PageState::Present) => {
                read.unwrap();
                assert!(page == **expected, "{what}: page frame {pfn}");
            }
            (Slot::Data(_), PageState::Missing(Missing::Truncated)) => {
                assert_eq!(
                    read.unwrap_err().missing(),
                    Some(Missing::Truncated),
                    "{what}"
                );
                lost += 1;
            }
            (Slot::Filtered, PageState::Missing(Missing::Filtered)) => assert!(read.is_err()),
            (Slot::NotRam, PageState::Missing(Missing::NotRam)) => assert!(read.is_err()),
            (_, state) => panic!("{what}: page frame {pfn} is {state:?}"),
        }
    }
    assert_eq!(dump.page_counts().truncated, lost, "{what}");
    lost
}

#[test]
fn a_cut_dump_still_gives_what_it_has() {
    let mut noise = Noise(6);
    let machine = Machine::random(&mut noise, 400);
    let (present, ..) = machine.counts();
    let elf = machine.elf();
    let kdump = machine.kdump(Kdump::default(), &mut noise);
    let bases = [
        (elf.clone(), "ELF"),
        (kdump.clone(), "kdump"),
        (flatten(&elf, 5000, false), "flattened ELF"),
        (flatten(&kdump, 5000, false), "flattened kdump"),
    ];
    for (bytes, name) in &bases {
        let mut before = 0;
        for percent in [99, 90, 60, 30] {
            let cut = &bytes[..bytes.len() * percent / 100];
            let lost = assert_truncated(cut, &machine, &format!("{name} cut to {percent} %"));
            assert!(
                lost >= before && lost < present,
                "{name} at {percent} %: {lost}"
            );
            before = lost;
        }
        assert!(before > present / 3);
    }
    // The file's size is right, and its end was never written (makedumpfile out of space, or the
    // capture kernel died before its data reached the disk).
    let mut hollow = kdump.clone();
    let descriptors = 4096 * 2 + 2 * 4096;
    for index in present - 50..present {
        let at = descriptors + index as usize * 24;
        hollow[at..at + 24].fill(0);
    }
    put(&mut hollow, 424, &(1u32 | 8).to_le_bytes());
    assert_eq!(assert_truncated(&hollow, &machine, "hollow"), 50);
}

#[test]
fn a_damaged_page_is_an_error_and_costs_no_other() {
    let mut noise = Noise(7);
    let mut slots: Vec<Slot> = Vec::new();
    for _ in 0..40 {
        let mut page = Box::new([7u8; PAGE]);
        for _ in 0..100 {
            page[noise.below(4096) as usize] = noise.next() as u8;
        }
        slots.push(Slot::Data(page));
    }
    let machine = Machine {
        slots,
        vmcoreinfo: None,
        cpus: Vec::new(),
        qemu: false,
    };
    let descriptors = 4096 * 4;
    let cases: [(&str, &[u8], usize); 5] = [
        ("two codecs at once", &3u32.to_le_bytes(), 12),
        ("a size of 0", &0u32.to_le_bytes(), 8),
        ("a size of 5000", &5000u32.to_le_bytes(), 8),
        ("an offset into the headers", &100u64.to_le_bytes(), 0),
        ("raw, but not 4096 bytes", &0u32.to_le_bytes(), 12),
    ];
    for (what, value, at) in cases {
        let mut bytes = machine.kdump(Kdump::default(), &mut noise);
        put(&mut bytes, descriptors + 13 * 24 + at, value);
        let dump = open(&bytes);
        let mut buf = [0; 8];
        let error = dump.read_physical(13 * 4096 + 8, &mut buf).unwrap_err();
        assert!(
            matches!(error, ReadError::Corrupt { addr, .. } if addr == 13 * 4096 + 8),
            "{what}: {error}"
        );
        let pfns: Vec<u64> = (0..40).collect();
        let failures = dump.read_pages(&pfns, &mut vec![0; 40 * PAGE]);
        assert_eq!(
            failures.iter().map(|f| f.index).collect::<Vec<_>>(),
            [13],
            "{what}"
        );
    }
}

/// Streams that are sound and hold a byte too few or too many: not a page.
#[test]
fn a_stored_page_must_hold_exactly_one_page() {
    type Encode = fn(&[u8]) -> Vec<u8>;
    let zlib: Encode = |data| {
        let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut out, data).unwrap();
        out.finish().unwrap()
    };
    let snappy: Encode = |data| snap::raw::Encoder::new().compress_vec(data).unwrap();
    let noise = &mut Noise(8);
    let codecs = [
        ("zlib", 1u32, zlib),
        ("lzo", 2, synth::lzo_literal_runs),
        ("snappy", 4, snappy),
        ("zstd", 0x20, synth::zstd),
    ];
    for (name, flags, encode) in codecs {
        for (len, right) in [
            (PAGE, true),
            (PAGE - 1, false),
            (PAGE + 1, false),
            (2 * PAGE, false),
            (0, false),
        ] {
            let stored = encode(&vec![0x61; len]);
            let page = || Slot::Data(Box::new([0x61; PAGE]));
            let machine = Machine {
                slots: vec![page(), page()],
                vmcoreinfo: None,
                cpus: Vec::new(),
                qemu: false,
            };
            let mut bytes = machine.kdump(Kdump::default(), noise);
            // Headers, two bitmaps, two descriptors; the second page's data go to the end.
            let descriptor = 4 * PAGE + 24;
            let at = bytes.len() as u64;
            put(&mut bytes, descriptor, &at.to_le_bytes());
            put(
                &mut bytes,
                descriptor + 8,
                &(stored.len() as u32).to_le_bytes(),
            );
            put(&mut bytes, descriptor + 12, &flags.to_le_bytes());
            bytes.extend_from_slice(&stored);
            let dump = open(&bytes);
            let mut page = [0; PAGE];
            let read = dump.read_physical(PAGE as u64, &mut page);
            if right {
                read.unwrap();
                assert_eq!(page, [0x61; PAGE]);
            } else {
                let error = read.unwrap_err();
                assert!(
                    matches!(error, ReadError::Corrupt { addr: 4096, .. }),
                    "{name} of {len} bytes: {error}"
                );
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }
}

#[test]
fn many_threads_read_the_same_dump() {
    let mut noise = Noise(9);
    let machine = Machine::random(&mut noise, 600);
    let dump = open(&machine.kdump(
        Kdump {
            store: synth::store_mixed,
            ..Kdump::default()
        },
        &mut noise,
    ));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (dump, machine) = (&dump, &machine);
            scope.spawn(move || {
                let mut noise = Noise(thread);
                for _ in 0..4000 {
                    let pfn = noise.below(600) as usize;
                    let at = noise.below(4089) as usize;
                    let mut word = [0; 8];
                    let read = dump.read_physical((pfn * PAGE + at) as u64, &mut word);
                    match &machine.slots[pfn] {
                        Slot::Data(page) => assert_eq!(word, page[at..at + 8], "{read:?}"),
                        _ => assert!(read.is_err()),
                    }
                }
            });
        }
    });
}
