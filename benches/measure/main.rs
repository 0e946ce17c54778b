//! What the reader does with one real dump: `scripts/bench` runs it, with the peers beside it.
//!
//! `… read DUMP PAGES ROUNDS` reads the pages that the file PAGES names, again and again, and prints
//! lines of name, value and unit: the medians of the rounds. In each round everything is done once,
//! so that what else the machine does falls on all alike.
//!
//! `… fill ELF_DUMP NEW` writes a dump with text in place of free pages, and prints which: the
//! file PAGES.

#[allow(dead_code)]
#[path = "../../src/dump/codec/mod.rs"]
mod codec;
mod fill;
mod pages_mix;
mod stored;

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vmrestore::dump::{Dump, PhysicalMemory};

const PAGE: usize = 4096;
/// Pages read in one call: 16 MiB.
const CALL: usize = 4096;
/// Random reads in a round.
const READS: usize = 20_000;

fn main() -> Result<()> {
    // cargo adds --bench.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["read", path, pages, rounds] => {
            let pfns = read_list(&std::fs::read_to_string(pages)?)?;
            measure(Path::new(path), &pfns, rounds.parse()?)
        }
        ["fill", from, to] => {
            print!("{}", fill::fill(from.as_ref(), to.as_ref())?);
            Ok(())
        }
        _ => {
            println!("usage: measure read DUMP PAGES ROUNDS | fill ELF_DUMP NEW");
            Ok(())
        }
    }
}

/// Page frames, from lines of a first one and how many.
fn read_list(text: &str) -> Result<Vec<u64>> {
    let mut pfns = Vec::new();
    for line in text.lines() {
        let (first, count) = line.split_once(' ').context("two numbers")?;
        let first: u64 = first.parse()?;
        pfns.extend(first..first + count.parse::<u64>()?);
    }
    Ok(pfns)
}

fn measure(path: &Path, pfns: &[u64], rounds: usize) -> Result<()> {
    let dump = Dump::open(path)?;
    let pages = pfns.len() as u64;
    let mut scattered = pfns.to_vec();
    shuffle(&mut scattered);
    let mut buffer = vec![0u8; CALL * PAGE];
    let read_all = |pfns: &[u64], buffer: &mut [u8]| -> Result<()> {
        for call in pfns.chunks(CALL) {
            let failed = dump.read_pages(call, &mut buffer[..call.len() * PAGE]);
            ensure!(failed.is_empty(), "{:?}", failed[0]);
        }
        Ok(())
    };
    // The system's page cache is warm, and the buffers are touched.
    read_all(pfns, &mut buffer)?;

    let bytes = pages as f64 * PAGE as f64;
    let stored = stored::Stored::read(path, pfns)?;
    let mut results: Vec<(&str, &str, Vec<f64>)> = Vec::new();
    for _ in 0..rounds {
        let mut add = |name, unit, value| match results.iter_mut().find(|(n, ..)| *n == name) {
            Some((.., values)) => values.push(value),
            None => results.push((name, unit, vec![value])),
        };
        let rate = |seconds: f64| bytes / seconds / 1e9;
        match &stored {
            Some(stored) => add("codec-alone", "GB/s", rate(stored.decode_all()?)),
            None => add("pread", "GB/s", rate(plain_reads(path, pages)?)),
        }
        let seconds = time(|| read_all(pfns, &mut buffer))?;
        add("bulk", "GB/s", rate(seconds));
        let seconds = time(|| read_all(&scattered, &mut buffer))?;
        add("bulk-scattered", "GB/s", rate(seconds));

        // 32 MiB are cached, so a random page of a larger range is mostly cold, and of 8 MiB hot.
        let cold = Dump::open(path)?;
        let hot: Vec<u64> = scattered.iter().copied().take(2048).collect();
        for (size, names) in [
            (
                PAGE,
                ["4k-cold-p50", "4k-cold-p99", "4k-hot-p50", "4k-hot-p99"],
            ),
            (
                8,
                ["8b-cold-p50", "8b-cold-p99", "8b-hot-p50", "8b-hot-p99"],
            ),
        ] {
            let (p50, p99) = latencies(&cold, &scattered[scattered.len() / 2..], size)?;
            add(names[0], "ns", p50);
            add(names[1], "ns", p99);
            latencies(&cold, &hot, size)?;
            let (p50, p99) = latencies(&cold, &hot, size)?;
            add(names[2], "ns", p50);
            add(names[3], "ns", p99);
        }
    }
    for (name, unit, mut values) in results {
        values.sort_by(f64::total_cmp);
        println!("{name} {:.3} {unit}", values[values.len() / 2]);
    }
    Ok(())
}

fn time(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// As many bytes as the pages have, in preads of 1 MiB, on one core.
fn plain_reads(path: &Path, pages: u64) -> Result<f64> {
    let file = File::open(path)?;
    let mut buffer = vec![1u8; 1 << 20];
    let wanted = pages * PAGE as u64;
    // From the end of the file, where the largest segment stands.
    let start = file
        .metadata()?
        .len()
        .checked_sub(wanted)
        .context("a file too short")?;
    time(|| {
        for at in (start..start + wanted).step_by(buffer.len()) {
            let len = buffer.len().min((start + wanted - at) as usize);
            file.read_exact_at(&mut buffer[..len], at)?;
        }
        black_box(&buffer);
        Ok(())
    })
}

/// Nanoseconds of a read of `size` bytes at one of `pfns`: the median and the 99th of 100.
fn latencies(dump: &Dump, pfns: &[u64], size: usize) -> Result<(f64, f64)> {
    let mut buffer = vec![0u8; size];
    let mut times = Vec::with_capacity(READS);
    for i in 0..READS {
        let addr = pfns[i % pfns.len()] * PAGE as u64 + (i * 8 % (PAGE - size + 8)) as u64;
        let start = Instant::now();
        dump.read_physical(addr, &mut buffer)?;
        times.push(start.elapsed().as_nanos() as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[READS / 2], times[READS * 99 / 100]))
}

fn shuffle(pfns: &mut [u64]) {
    let mut state = 88_172_645_463_325_252u64;
    for i in (1..pfns.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pfns.swap(i, (state % (i as u64 + 1)) as usize);
    }
}
