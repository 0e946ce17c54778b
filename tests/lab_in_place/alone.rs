//! One guest: its memory is its own from then on, whoever asks for it.

use super::{IN_PLACE, MINUTE, capture_with, judged_good, nonce, running};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::ops::Range;
use vmrestore_lab::crash::Extra;
use vmrestore_lab::{Lab, Rebooted};

const PAGE: u64 = 4096;

/// Refused with that exit code, a reason and a hint.
fn refused(host: &mut Rebooted, command: &str, code: i32, reason: &str) -> Result<()> {
    let output = host.run(command, 3 * MINUTE)?;
    let said = format!("{}\n{}", output.stdout, output.stderr);
    ensure!(
        output.code == code,
        "{command}: exit code {}\n{said}",
        output.code
    );
    for word in [reason, "hint: "] {
        ensure!(said.contains(word), "{command}: no {word:?} in\n{said}");
    }
    Ok(())
}

/// How often what only the guest knows is in the core of it; which is removed, if it was made.
fn words_in_core(host: &mut Rebooted) -> Result<u64> {
    let nonce = nonce(host, "g1")?;
    let count = format!(
        "[ ! -e /dump/core ] && echo 0 && exit 0; finds /dump/core nonce={nonce}; rm /dump/core"
    );
    let counted = host.run(&count, 3 * MINUTE)?;
    let counted = counted.success(&count)?.stdout;
    Ok(counted.trim().parse()?)
}

/// By what the kernel and the journal say themselves: what the guest has is not the kernel's to give,
/// the VMM has it mapped, and no other process has.
fn is_nobody_elses(host: &mut Rebooted) -> Result<()> {
    let claim = "cat /var/lib/vmrestore/*/in-place-4711.json";
    let claim = host.run(claim, MINUTE)?.success(claim)?.stdout;
    let claim: Value = serde_json::from_str(&claim)?;
    let frames: Vec<Range<u64>> = claim["frames"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|run| Some((run[0].as_u64()?, run[1].as_u64()?)))
        .map(|(first, count)| first..first + count)
        .collect();
    let pages: u64 = frames.iter().map(|run| run.end - run.start).sum();
    ensure!(pages > (64 << 20) / PAGE, "{pages} pages: {claim}");

    let hex = |text: &str| u64::from_str_radix(text, 16);
    let iomem = host
        .run("cat /proc/iomem", MINUTE)?
        .success("iomem")?
        .stdout;
    let mut own = 0;
    for line in iomem.lines() {
        let (range, name) = line.trim().split_once(" : ").context("iomem")?;
        let (first, last) = range.split_once('-').context("iomem")?;
        let (first, last) = (hex(first)? / PAGE, hex(last)? / PAGE);
        own += u64::from(name == "System RAM");
        let taken = frames
            .iter()
            .find(|run| run.start <= last && first < run.end);
        ensure!(taken.is_none(), "{taken:?} is {line}");
    }
    ensure!(own > 0, "{iomem}");

    let maps = "grep -l ' /dev/mem$' /proc/[0-9]*/maps; grep -h ' /dev/mem$' /proc/[0-9]*/maps";
    let maps = host.run(maps, MINUTE)?.success(maps)?.stdout;
    let (files, lines): (Vec<&str>, Vec<&str>) = maps.lines().partition(|l| l.starts_with('/'));
    ensure!(files == ["/proc/4711/maps"], "{files:?}");
    let mut mapped = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').context("maps")?;
        let first = hex(words[2])? / PAGE;
        mapped.push(first..first + (hex(end)? - hex(start)?) / PAGE);
    }
    mapped.sort_by_key(|run| run.start);
    let joined = |runs: &[Range<u64>]| {
        let mut joined: Vec<Range<u64>> = Vec::new();
        for run in runs {
            match joined.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => joined.push(run.clone()),
            }
        }
        joined
    };
    ensure!(
        joined(&mapped) == joined(&frames),
        "{mapped:?} are not {frames:?}"
    );
    println!(
        "{pages} pages in {} runs are the guest's alone",
        frames.len()
    );
    Ok(())
}

/// The kernel gives away all the memory that it has: none of it is the guest's, which goes on.
fn fill_memory(host: &mut Rebooted) -> Result<()> {
    let fill = "mkdir -p /run/fill && mount -t tmpfs -o size=95% t /run/fill && \
                free=$(awk '/MemAvailable/ { print int($2 / 1024) - 24 }' /proc/meminfo); \
                dd if=/dev/urandom of=/run/fill/f bs=1M count=$free 2>&1; \
                grep MemFree /proc/meminfo; umount /run/fill";
    let filled = host.run(fill, 3 * MINUTE)?.success(fill)?;
    println!("{}", filled.stdout.trim());
    Ok(())
}

#[test]
#[ignore = "needs the lab: scripts/test"]
fn a_guest_goes_on_in_the_capture_kernel_and_nobody_touches_its_memory_again() -> Result<()> {
    let lab = Lab::prepare()?;
    let finds = lab.test_program("finds")?;
    let extra = Extra {
        tools: vec![("finds".into(), finds.clone())],
        ..Extra::default()
    };
    let mut host = capture_with(&lab, "in-place", extra)?;
    std::fs::remove_file(finds)?;
    host.follow_all()?;

    // Nothing is left of a dry run: were a frame claimed or written, what comes next would fail.
    let dry = host.run(&format!("{IN_PLACE} --dry-run"), 5 * MINUTE)?;
    ensure!(matches!(dry.code, 0 | 8), "{}\n{}", dry.stdout, dry.stderr);
    // The proof of the proof: before it runs, its own words are in a core.
    let core = "vmrestore extract --core /proc/vmcore g1 -o /dump/core";
    host.run(core, 5 * MINUTE)?.success(core)?;
    let found = words_in_core(&mut host)?;
    ensure!(found > 0, "the guest's own words are not in its core");
    running(host.run(IN_PLACE, 5 * MINUTE)?)?;
    host.wait_new_lines("g1", 1, 3 * MINUTE)?;

    // Its memory is its own now, whatever is said to whom, and also where no journal tells.
    is_nobody_elses(&mut host)?;
    for again in [
        "vmrestore guests /proc/vmcore --in-place",
        "vmrestore guests /proc/vmcore --in-place --force",
        "vmrestore guests /proc/vmcore --force",
        "vmrestore guests /proc/vmcore --in-place --force --state-dir /run/other",
    ] {
        refused(&mut host, again, 5, "was resumed in place")?;
    }
    let copied = "VMRESTORE_STATE_DIR=/run/other vmrestore guests /proc/vmcore --force";
    refused(&mut host, copied, 5, "are not in the dump (out of reach)")?;
    let list = host
        .run("vmrestore --json list /proc/vmcore", 3 * MINUTE)?
        .success("list")?;
    let list: Value = serde_json::from_str(&list.stdout)?;
    ensure!(list["guests"][0]["state"] == "partial", "{list:#}");
    let extract = host.run("vmrestore extract /proc/vmcore g1 -o /data/out", 3 * MINUTE)?;
    ensure!(
        extract.stderr.contains("are left out"),
        "{}\n{}",
        extract.stdout,
        extract.stderr
    );
    // Nothing of what it has in its memory now is read: its own words are not in a core.
    let core = "vmrestore extract --core /proc/vmcore g1 -o /dump/core";
    let core = host.run(core, 3 * MINUTE)?;
    println!("{}{}", core.stdout, core.stderr);
    let found = words_in_core(&mut host)?;
    ensure!(
        found == 0,
        "{found} of its words are in a core that was made while it ran"
    );
    fill_memory(&mut host)?;

    // A dump for the kernel's developers, without the guest's pages and so without its name, while it runs.
    let save = "makedumpfile -l -d 31 /proc/vmcore /dump/kernel.dump";
    host.run(save, 5 * MINUTE)?.success(save)?;
    let list = "vmrestore list /dump/kernel.dump";
    let listed = host.run(list, 3 * MINUTE)?.success(list)?;
    ensure!(listed.stdout.contains("qemu-system"), "{}", listed.stdout);
    let file = "vmrestore guests /dump/kernel.dump --in-place";
    refused(&mut host, file, 5, "is a copy of the dead host's memory")?;
    judged_good(host)
}
