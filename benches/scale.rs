//! How time and memory grow with a dump: the same real dump with more and more memory above it,
//! from its own 1 GiB to 4 TiB. `scripts/scale` runs it and prints the table of
//! docs/scale.md; it needs the lab.
//!
//! Each figure is of a process of its own (this program again, or vmrestore), the median of
//! [`RUNS`], files in the page cache.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vmrestore::dump::{Dump, PAGE_SIZE, PageState, PhysicalMemory};
use vmrestore_lab::{Lab, Scenario, grow, measure};

const RUNS: usize = 3;
/// GiB of address space.
const SIZES: [u64; 5] = [1, 64, 256, 1024, 4096];
/// Pages that a kdump-compressed dump gets for each GiB of address space: 16 Mi in a TiB.
const PAGES_PER_GIB: u64 = 16 << 10;
/// No more are read one and all: 80 GiB.
const MOST_READ: u64 = 20 << 20;
/// Random reads.
const READS: usize = 20_000;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["open", file] => Dump::open(Path::new(file)).map(drop)?,
        ["random", file] => random(&Dump::open(Path::new(file))?)?,
        ["all", file] => {
            let dump = Dump::open(Path::new(file))?;
            let scan = dump.scan(|_| ControlFlow::Continue(()));
            assert!(scan.is_some_and(|scan| scan.corrupt.is_empty()));
        }
        ["--table", ..] => return table(),
        _ => println!("scale: run scripts/scale (minutes; needs the lab)"),
    }
    Ok(())
}

/// Reads 8 bytes of one present page after the other, anywhere. Prints nanoseconds for each.
fn random(dump: &Dump) -> Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pfns = Vec::with_capacity(READS);
    while pfns.len() < READS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let pfn = state % dump.max_pfn();
        // Most of a large dump's address space is not there.
        if dump.page_state(pfn) == PageState::Present {
            pfns.push(pfn);
        }
    }
    let started = Instant::now();
    for pfn in &pfns {
        let mut word = [0; 8];
        dump.read_physical(pfn * PAGE_SIZE, &mut word)?;
    }
    println!(
        "{}",
        started.elapsed().as_nanos() / pfns.len().max(1) as u128
    );
    Ok(())
}

fn table() -> Result<()> {
    let lab = Lab::prepare()?;
    let cached = lab.dump(&Scenario::named("formats").context("formats")?)?;
    let work = lab.new_run().with_extension("scale");
    std::fs::create_dir_all(&work)?;
    let whole = cached.file(vmrestore_lab::scenario::WHOLE_DUMP);
    let zstd = work.join("zstd");
    let mut makedumpfile = lab.new_makedumpfile()?;
    makedumpfile.args(["--message-level", "0", "-z", "-d", "17"]);
    makedumpfile.arg(&whole).arg(&zstd);
    if !makedumpfile.status()?.success() {
        bail!("{makedumpfile:?}");
    }
    println!(
        "| dump | address space | pages there | file | open | list | 8-byte read | all pages |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let file = work.join("grown");
    for gib in SIZES {
        let pages = gib * PAGES_PER_GIB;
        for format in ["zlib", "zstd", "zstd, flattened", "ELF, few", "ELF, many"] {
            let bytes = gib << 30;
            match format {
                "zlib" => grow::kdump(&cached.path(), &file, bytes, pages)?,
                "zstd" => grow::kdump(&zstd, &file, bytes, pages)?,
                "zstd, flattened" => {
                    let straight = work.join("straight");
                    grow::kdump(&zstd, &straight, bytes, pages)?;
                    grow::flattened(&straight, &file)?;
                    std::fs::remove_file(&straight)?;
                    0
                }
                "ELF, few" => grow::elf(&whole, &file, bytes, 1)?,
                // Every other 2 MiB: as many segments as there can be.
                _ => grow::elf(&whole, &file, bytes, 1 << 20)?,
            };
            row(format, gib, &file)?;
            std::fs::remove_file(&file)?;
        }
    }
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn row(format: &str, gib: u64, file: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let present = Dump::open(file)?.page_counts().present;
    let on_disk = std::fs::metadata(file)?.blocks() * 512;
    let vmrestore = Path::new(env!("CARGO_BIN_EXE_vmrestore"));
    let myself = std::env::current_exe()?;
    let list = median(vmrestore, &["list", "--json"], file)?;
    let open = median(&myself, &["open"], file)?;
    let random = median(&myself, &["random"], file)?;
    let said = Command::new(&myself).arg("random").arg(file).output()?;
    let nanoseconds: f64 = String::from_utf8_lossy(&said.stdout).trim().parse()?;
    let all = if present <= MOST_READ {
        let all = median(&myself, &["all"], file)?;
        let speed = (present * PAGE_SIZE) as f64 / all.time.as_secs_f64() / 1e9;
        format!("{speed:.1} GB/s, {} MiB", all.peak_kib >> 10)
    } else {
        "-".to_owned()
    };
    println!(
        "| {format} | {} | {:.2} Mi | {} MB | {} | {} | {:.1} µs, {} MiB | {all} |",
        match gib {
            0..1024 => format!("{gib} GiB"),
            _ => format!("{} TiB", gib / 1024),
        },
        present as f64 / f64::from(1 << 20),
        on_disk / 1_000_000,
        both(open),
        both(list),
        nanoseconds / 1e3,
        random.peak_kib >> 10,
    );
    Ok(())
}

fn both(usage: measure::Usage) -> String {
    let millis = usage.time.as_secs_f64() * 1e3;
    format!("{millis:.0} ms, {} MiB", usage.peak_kib >> 10)
}

/// Median time, largest memory.
fn median(program: &Path, words: &[&str], file: &Path) -> Result<measure::Usage> {
    let started = Instant::now();
    let mut usages = Vec::new();
    while usages.len() < RUNS {
        usages.push(measure::run(
            Command::new(PathBuf::from(program)).args(words).arg(file),
        )?);
        // A long run says enough by itself.
        if started.elapsed() > Duration::from_secs(10) {
            break;
        }
    }
    usages.sort_unstable_by_key(|usage| usage.time);
    Ok(measure::Usage {
        time: usages[usages.len() / 2].time,
        peak_kib: usages.iter().map(|u| u.peak_kib).max().unwrap_or(0),
    })
}
