//! Split dumps: parts in any order are one dump, and what is missing or foreign is named.

mod synth;

use std::path::PathBuf;

use synth::{Kdump, Machine, Noise, PAGE, Slot, TempFile, flatten, store_mixed};
use vmrestore::dump::{Dump, Missing, OpenError, Opening, PageState, PhysicalMemory, ReadError};

const FRAMES: usize = 700;

/// The parts of a machine's dump, cut at these page frames.
fn parts(machine: &Machine, cuts: &[usize], version: i32, noise: &mut Noise) -> Vec<Vec<u8>> {
    let ends = cuts.iter().copied().chain([machine.slots.len()]);
    let mut first = 0;
    ends.map(|end| {
        let options = Kdump {
            part: Some((first, end)),
            version,
            store: store_mixed,
            ..Kdump::default()
        };
        first = end;
        machine.kdump(options, noise)
    })
    .collect()
}

fn files(parts: &[Vec<u8>]) -> (Vec<TempFile>, Vec<PathBuf>) {
    let files: Vec<TempFile> = parts.iter().map(|bytes| TempFile::new(bytes)).collect();
    let paths = files.iter().map(|file| file.path().to_owned()).collect();
    (files, paths)
}

/// Page for page; `given` says whether a page frame's part was given.
fn check(dump: &Dump, machine: &Machine, given: impl Fn(usize) -> bool) {
    assert_eq!(dump.max_pfn(), machine.slots.len() as u64);
    let pfns: Vec<u64> = (0..dump.max_pfn()).collect();
    let mut bulk = vec![0; machine.slots.len() * PAGE];
    let failures = dump.read_pages(&pfns, &mut bulk);
    for (pfn, slot) in machine.slots.iter().enumerate() {
        let mut page = [7; PAGE];
        let read = dump.read_physical((pfn * PAGE) as u64, &mut page);
        let expected = match slot {
            Slot::Data(data) if given(pfn) => {
                read.unwrap();
                assert_eq!(page, **data, "page frame {pfn}");
                assert_eq!(bulk[pfn * PAGE..][..PAGE], **data, "page frame {pfn}");
                assert!(failures.iter().all(|failure| failure.index != pfn));
                PageState::Present
            }
            slot => {
                let why = match slot {
                    Slot::Data(_) => Missing::Truncated,
                    Slot::Filtered => Missing::Filtered,
                    Slot::NotRam => Missing::NotRam,
                };
                assert_eq!(read.unwrap_err().missing(), Some(why), "page frame {pfn}");
                let failed = failures.iter().find(|failure| failure.index == pfn);
                let error = &failed.unwrap().error;
                assert!(matches!(error, ReadError::Missing { .. }), "{error}");
                PageState::Missing(why)
            }
        };
        assert_eq!(dump.page_state(pfn as u64), expected, "page frame {pfn}");
    }
    let given_pages = machine.slots.iter().enumerate();
    let given_pages =
        given_pages.filter(|(pfn, slot)| matches!(slot, Slot::Data(_)) && given(*pfn));
    let present = given_pages.count() as u64;
    let counts = dump.page_counts();
    let (all, filtered, not_ram) = machine.counts();
    assert_eq!(counts.present, present);
    assert_eq!(counts.truncated, all - present);
    assert_eq!((counts.filtered, counts.not_ram), (filtered, not_ram));
}

#[test]
fn parts_in_any_order_are_one_dump() {
    let mut noise = Noise(11);
    for round in 0..24 {
        let machine = Machine::random(&mut noise, FRAMES);
        // Two to four parts; the last may be empty, as makedumpfile leaves it.
        let mut cuts: Vec<usize> = (0..1 + round % 3)
            .map(|_| noise.below(FRAMES as u64 + 1) as usize)
            .collect();
        cuts.sort_unstable();
        let version = 2 + round % 5;
        let mut parts = parts(&machine, &cuts, version, &mut noise);
        if round % 2 == 0 {
            parts.reverse();
        }
        if round % 4 == 1 {
            parts[0] = flatten(&parts[0], 5000, true);
        }
        let (_files, paths) = files(&parts);
        let dump = Dump::open_parts(&paths).unwrap();
        assert_eq!(dump.incomplete(), None);
        assert!(dump.format().to_string().contains("parts"));
        check(&dump, &machine, |_| true);
        if version >= 3 {
            assert_eq!(dump.vmcoreinfo(), machine.vmcoreinfo.as_deref());
        }
        assert_eq!(dump.cpu_notes().len(), if version >= 4 { 3 } else { 0 });
    }
}

#[test]
fn a_split_dump_has_the_name_of_the_whole_one() {
    let mut noise = Noise(3);
    let machine = Machine::random(&mut noise, FRAMES);
    let (_files, paths) = files(&parts(&machine, &[100, 400], 6, &mut noise));
    let whole = TempFile::new(&machine.kdump(Kdump::default(), &mut noise));
    let whole = Dump::open(whole.path()).unwrap();
    let split = Dump::open_parts(&paths).unwrap();
    assert_eq!(split.identity(), whole.identity());
    assert_eq!(split.dump_level(), whole.dump_level());
}

#[test]
fn a_missing_part_is_named_and_its_pages_are_truncated() {
    let mut noise = Noise(5);
    let machine = Machine::random(&mut noise, FRAMES);
    let (_files, paths) = files(&parts(&machine, &[0xc8, 0x190], 6, &mut noise));
    let name = |n: usize| paths[n].display().to_string();

    let dump = Dump::open_parts(&[paths[2].clone(), paths[0].clone()]).unwrap();
    let why = dump.incomplete().unwrap();
    let place = format!("0xc8 to 0x190, between {} and {}", name(0), name(2));
    assert!(why.contains(&place), "{why}");
    check(&dump, &machine, |pfn| !(0xc8..0x190).contains(&pfn));

    let dump = Dump::open_parts(&paths[1..]).unwrap();
    let why = dump.incomplete().unwrap();
    assert!(
        why.contains(&format!("0x0 to 0xc8, before {}", name(1))),
        "{why}"
    );
    check(&dump, &machine, |pfn| pfn >= 0xc8);

    let dump = Dump::open_parts(&paths[..2]).unwrap();
    let why = dump.incomplete().unwrap();
    assert!(
        why.contains(&format!("0x190 to 0x2bc, after {}", name(1))),
        "{why}"
    );
    check(&dump, &machine, |pfn| pfn < 0x190);
}

#[test]
fn one_part_alone_is_told_so() {
    let mut noise = Noise(6);
    let machine = Machine::random(&mut noise, FRAMES);
    let (_files, paths) = files(&parts(&machine, &[0xc8, FRAMES], 6, &mut noise));
    match Dump::open(&paths[1]).unwrap_err() {
        OpenError::OnePart {
            path,
            pfns,
            max_pfn,
        } => {
            assert_eq!(
                (path, pfns, max_pfn),
                (paths[1].clone(), 0xc8..0x2bc, 0x2bc)
            );
        }
        other => panic!("{other}"),
    }
    let error = Dump::open(&paths[0]).unwrap_err();
    assert!(
        error.to_string().contains("0x0 to 0xc8 of 0x2bc"),
        "{error}"
    );
    assert!(error.hint().contains("--part"), "{}", error.hint());
    // An empty part too; with all the others it is no harm.
    assert!(matches!(
        Dump::open(&paths[2]),
        Err(OpenError::OnePart { .. })
    ));

    // makedumpfile without --splitblock-size: everything in the first part.
    let (_files, paths) = files(&parts(&machine, &[FRAMES], 6, &mut noise));
    check(&Dump::open(&paths[0]).unwrap(), &machine, |_| true);
}

#[test]
fn parts_that_do_not_belong_together_are_refused_by_name() {
    let mut noise = Noise(7);
    let machine = Machine::random(&mut noise, FRAMES);
    let mut other_crash = machine.clone();
    other_crash.vmcoreinfo = Some("OSRELEASE=6.1.0\nCRASHTIME=1\n".into());
    let mut other_pages = machine.clone();
    other_pages.slots[300] = match other_pages.slots[300] {
        Slot::Data(_) => Slot::Filtered,
        _ => Slot::Data(noise.page()),
    };
    let mut smaller = Machine::random(&mut noise, 650);
    smaller.vmcoreinfo = machine.vmcoreinfo.clone();
    let elf = machine.elf();
    let whole = machine.kdump(Kdump::default(), &mut noise);
    let level = machine.kdump(
        Kdump {
            part: Some((400, FRAMES)),
            level: 1,
            ..Kdump::default()
        },
        &mut noise,
    );
    let mine = parts(&machine, &[400], 6, &mut noise);
    let overlapping = parts(&machine, &[399], 6, &mut noise).swap_remove(1);
    let of = |machine: &Machine, noise: &mut Noise| parts(machine, &[400], 6, noise).swap_remove(1);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (mine[0].clone(), "is the same part as"),
        (overlapping, "some of which are in"),
        (of(&other_crash, &mut noise), "another crash"),
        (of(&other_pages, &mut noise), "its bitmap differs"),
        (of(&smaller, &mut noise), "the size of memory"),
        (level, "the dump level differs"),
        (whole, "is a whole dump"),
        (elf, "is an ELF file"),
    ];
    for (bytes, words) in cases {
        let (_files, paths) = files(&[mine[0].clone(), bytes]);
        let error = Dump::open_parts(&paths).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, OpenError::WrongPart { .. }), "{message}");
        assert!(message.contains(words), "{message}: {words}");
        assert!(message.contains(paths[1].to_str().unwrap()), "{message}");
        assert!(!message.contains("{}"), "{message}");
    }
    // What is wrong with one part alone is said of that part.
    let (_files, paths) = files(&[mine[0].clone(), mine[1][..5000].to_vec()]);
    let error = Dump::open_parts(&paths).unwrap_err();
    match &error {
        OpenError::Damaged { path, offset, .. } => {
            assert_eq!(path, &paths[1]);
            assert!(*offset < 5000 + 4096, "{error}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_directory_stands_for_the_dump_in_it() {
    let mut noise = Noise(8);
    let machine = Machine::random(&mut noise, FRAMES);
    let directory = std::env::temp_dir().join(format!("vmrestore-split-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).unwrap();
    let remove = |name: &str| std::fs::remove_file(directory.join(name)).unwrap();

    write("dmesg.txt", b"panic\n");
    let error = Opening::of(&directory).open().unwrap_err();
    assert!(error.to_string().contains("no file in it"), "{error}");

    let split = parts(&machine, &[100, 500], 6, &mut noise);
    for (n, bytes) in split.iter().enumerate() {
        write(&format!("vmcore.{n}"), &flatten(bytes, 4096, true));
    }
    check(&Dump::open(&directory).unwrap(), &machine, |_| true);
    // One part lost for ever: the directory says that these are all that there are.
    remove("vmcore.0");
    remove("vmcore.2");
    let dump = Dump::open(&directory).unwrap();
    assert!(dump.incomplete().unwrap().contains("0x0 to 0x64"));
    check(&dump, &machine, |pfn| (100..500).contains(&pfn));

    write("whole", &machine.elf());
    let error = Dump::open(&directory).unwrap_err();
    assert!(error.to_string().contains("vmcore.1, whole"), "{error}");
    remove("vmcore.1");
    check(&Dump::open(&directory).unwrap(), &machine, |_| true);
    std::fs::remove_dir_all(&directory).unwrap();
}
