//! One crash in every format, level and split that makedumpfile can write: the same memory comes
//! out of each, byte for byte, the same list, and what drgn reads.
//!
//! Needs the lab (docs/lab.md): `scripts/test` sets it up and runs these with `--include-ignored`.
//! The truth is `/proc/vmcore` itself, saved in the capture kernel and read here without vmrestore.
//! Of it the two makedumpfiles of Debian 12 and 13 make the dumps. Snappy, which neither of them
//! knows, and files with several codecs are written by the lab out of makedumpfile's zlib ones.

mod bench;
mod compare;
mod drgn;
mod truth;

use anyhow::{Context, Result, ensure};
use bench::{Bench, By};
use compare::{Held, LeftOut};

/// How drgn takes part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drgn {
    /// It reads the same, and fails where nothing is.
    Agrees,
    /// It reads the same; what is not there it takes for zeros.
    TakesAbsentForZeros,
    /// It is not asked (again).
    NotAsked,
}

struct Case {
    name: &'static str,
    by: By,
    options: &'static str,
    left_out: LeftOut,
    drgn: Drgn,
}

const fn case(by: By, options: &'static str, left_out: LeftOut, drgn: Drgn) -> Case {
    Case {
        name: options,
        by,
        options,
        left_out,
        drgn,
    }
}

/// Makes, compares and removes; the frames that each holds.
fn compare_all(bench: &Bench, cases: &[Case]) -> Result<Vec<Held>> {
    let mut all = Vec::new();
    for case in cases {
        let started = std::time::Instant::now();
        let held = compare_one(bench, case)
            .with_context(|| format!("{:?} makedumpfile {}", case.by, case.name))?;
        println!(
            "{:?} makedumpfile {}: {} pages, as they were ({:.1} s)",
            case.by,
            case.name,
            held.count(),
            started.elapsed().as_secs_f64()
        );
        all.push(held);
    }
    Ok(all)
}

fn compare_one(bench: &Bench, case: &Case) -> Result<Held> {
    let made = bench.make(case.by, case.options)?;
    let dump = made.open()?;
    ensure!(dump.incomplete().is_none(), "{:?}", dump.incomplete());
    let held = compare::with_truth(&dump, &bench.truth, case.left_out)?;
    bench.lists_the_same(&made)?;
    if case.drgn != NotAsked {
        let excluded_fails = case.drgn == Agrees;
        compare::with_drgn(&bench.python, &made.files[0], &dump, &held, excluded_fails)?;
    }
    Ok(held)
}

/// All hold the same pages.
fn all_the_same(cases: &[Case], held: &[Held]) -> Result<()> {
    for (case, other) in cases.iter().zip(held) {
        ensure!(
            *other == held[0],
            "{} holds other pages than {}: {:x?} missing, {:x?} more",
            case.name,
            cases[0].name,
            other.lacks(&held[0]).take(8).collect::<Vec<_>>(),
            held[0].lacks(other).take(8).collect::<Vec<_>>()
        );
    }
    Ok(())
}

use By::{New, Old, OldThenMixed, OldThenSnappy};
use Drgn::{Agrees, NotAsked, TakesAbsentForZeros};
use LeftOut::{Anything, Nothing, Zeros};

#[test]
#[ignore = "needs the lab: scripts/test"]
fn every_codec_holds_the_same_memory_as_drgn_reads_it() -> Result<()> {
    let bench = Bench::open("codecs")?;
    let cases = [
        case(Old, "-c -d 17", Anything, Agrees),
        case(Old, "-l -d 17", Anything, Agrees),
        case(Old, "-d 17", Anything, Agrees),
        case(New, "-z -d 17", Anything, Agrees),
        case(New, "-l -d 17", Anything, NotAsked),
        case(OldThenSnappy, "-c -d 17", Anything, Agrees),
        case(OldThenMixed, "-c -d 17", Anything, Agrees),
        // Its 1.7.2 takes these two and writes uncompressed pages.
        case(Old, "-p -d 17", Anything, NotAsked),
        case(Old, "-z -d 17", Anything, NotAsked),
    ];
    let held = compare_all(&bench, &cases)?;
    all_the_same(&cases, &held)
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn every_level_leaves_out_what_it_says_and_nothing_else() -> Result<()> {
    let bench = Bench::open("levels")?;
    let cases = [
        case(New, "-z -d 0", Nothing, Agrees),
        case(Old, "-l -d 1", Nothing, NotAsked),
        case(New, "-z -d 2", Anything, NotAsked),
        case(Old, "-l -d 8", Anything, NotAsked),
        case(New, "-z -d 16", Anything, NotAsked),
        case(Old, "-l -d 17", Anything, NotAsked),
        case(New, "-z -d 23", Anything, NotAsked),
        case(Old, "-l -d 31", Anything, Agrees),
        case(New, "-z -d 31", Anything, NotAsked),
    ];
    let held = compare_all(&bench, &cases)?;
    ensure!(held[8] == held[7], "-d 31 of both makedumpfiles");
    // A higher level leaves out more.
    for (more, less) in [(0, 1), (1, 2), (1, 3), (1, 4), (5, 6), (6, 7), (3, 7)] {
        let stray = held[more].lacks(&held[less]).count();
        ensure!(stray == 0, "{}: {stray} pages more", cases[less].name);
        ensure!(held[more].count() >= held[less].count());
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn elf_files_hold_the_same_memory_at_every_level() -> Result<()> {
    let bench = Bench::open("elf")?;
    let cases = [
        case(Old, "-E -d 0", Nothing, TakesAbsentForZeros),
        case(Old, "-E -d 1", Zeros, NotAsked),
        case(New, "-E -d 17", Anything, TakesAbsentForZeros),
        case(Old, "-E -d 31", Anything, NotAsked),
        case(Old, "-F -E -d 17", Anything, NotAsked),
        case(New, "-F -E -d 31", Anything, NotAsked),
    ];
    let held = compare_all(&bench, &cases)?;
    ensure!(held[4] == held[2], "flattened and not at -d 17");
    ensure!(held[5] == held[3], "flattened and not at -d 31");
    let kdump = case(New, "-z -d 17", Anything, NotAsked);
    let kdump = compare_one(&bench, &kdump)?;
    for pfn in held[2].lacks(&kdump) {
        let mut page = [1; truth::PAGE];
        bench.truth.read(pfn, &mut page)?;
        ensure!(page == [0; truth::PAGE], "{pfn:#x} is not in the ELF file");
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn flattened_split_cyclic_and_refiltered_dumps_hold_the_same_memory() -> Result<()> {
    let bench = Bench::open("split")?;
    let cases = [
        case(Old, "-l -d 17", Anything, NotAsked),
        case(Old, "-F -c -d 17", Anything, Agrees),
        case(New, "-F -z -d 17", Anything, NotAsked),
        case(Old, "--split=2 -c -d 17", Anything, NotAsked),
        case(
            New,
            "--split=3 --splitblock-size 16 -z -d 17",
            Anything,
            NotAsked,
        ),
        case(
            Old,
            "--split=4 --splitblock-size 16 -l -d 17",
            Anything,
            NotAsked,
        ),
        case(New, "--split=4 -d 17", Anything, NotAsked),
        case(Old, "--cyclic-buffer 1 -l -d 17", Anything, NotAsked),
        case(New, "--non-mmap -z -d 17", Anything, NotAsked),
    ];
    let held = compare_all(&bench, &cases)?;
    all_the_same(&cases, &held)?;
    // The capture kernel's own, and a dump made of a dump.
    for (made, wanted) in [
        (bench.saved("hostdump"), &held[0]),
        (bench.saved("lzo"), &held[0]),
        (bench.refiltered("-z -d 0", "-l -d 17")?, &held[0]),
    ] {
        let found = compare::with_truth(&made.open()?, &bench.truth, Anything)?;
        ensure!(found == *wanted, "{:?} holds other pages", made.files);
        bench.lists_the_same(&made)?;
    }
    for name in ["elf", "flat-elf", "d31", "vmcore"] {
        let made = bench.saved(name);
        compare::with_truth(&made.open()?, &bench.truth, Anything).context(name)?;
        bench.lists_the_same(&made)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn dumps_are_listed_through_a_pipe() -> Result<()> {
    let bench = Bench::open("pipe")?;
    for (by, options) in [
        (Old, "-F -l -d 17"),
        (New, "-F -z -d 17"),
        (Old, "-F -E -d 17"),
    ] {
        bench
            .lists_the_same_through_a_pipe(&bench.make(by, options)?)
            .with_context(|| format!("{by:?} makedumpfile {options}"))?;
    }
    bench.lists_the_same_through_a_pipe(&bench.saved("hostdump"))
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_and_a_process_have_the_same_memory_in_every_format() -> Result<()> {
    let bench = Bench::open("guest")?;
    let wanted = bench::memory_of(bench.saved("vmcore").open()?)?;
    for (pid, memory) in &wanted {
        ensure!(memory.pages > 500, "process {pid} has {memory:?}");
        println!("process {pid}: {} pages of content", memory.pages);
    }
    for (by, options) in [
        (New, "-z -d 1"),
        (Old, "-c -d 17"),
        (Old, "-l -d 17"),
        (OldThenSnappy, "-c -d 17"),
        (OldThenMixed, "-c -d 17"),
        (New, "--split=3 --splitblock-size 16 -z -d 17"),
        (New, "-F -z -d 17"),
        (Old, "-F -E -d 17"),
        (Old, "-E -d 16"),
    ] {
        let found = bench::memory_of(bench.make(by, options)?.open()?)?;
        ensure!(
            found == wanted,
            "{by:?} {options}: {found:?} and not {wanted:?}"
        );
    }
    Ok(())
}

/// A paused host, dumped from outside by QEMU: in ELF and kdump-zlib, with VMCOREINFO.
#[test]
#[ignore = "needs the lab: scripts/test"]
fn both_dumps_of_qemu_hold_the_same_memory() -> Result<()> {
    let bench = Bench::of_scenario("paused", "hostdump", "qemu")?;
    let elf = bench.saved("hostdump");
    let kdump = bench.saved("flat");
    let held = compare::with_truth(&elf.open()?, &bench.truth, Nothing)?;
    compare::with_drgn(&bench.python, &elf.files[0], &elf.open()?, &held, false)?;
    let flat = kdump.open()?;
    let in_kdump = compare::with_truth(&flat, &bench.truth, Nothing)?;
    let lost = in_kdump.lacks(&held).count();
    ensure!(lost == 0, "kdump-zlib lacks {lost} pages");
    bench.lists_the_same(&kdump)?;
    ensure!(bench::memory_of(flat)? == bench::memory_of(elf.open()?)?);
    Ok(())
}
