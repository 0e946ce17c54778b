//! How long it takes until a process with much memory runs again, and how it fares until all of its
//! memory is there: `cargo bench --bench lazy`, as root. Sizes in MiB may be named.
//!
//! The memory comes from a file of noise in the page cache, as from an ELF dump. What is before the
//! memory, the reading of the dead kernel, `vmrestore -v` tells.
#![allow(missing_docs)]

#[path = "../../tests/common/live.rs"]
mod live;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vmrestore::dataset::{PageContent, PageRun, PageSource, PageSourceError};
use vmrestore::restore::{Arrival, Memory, Options, prepare};
use vmrestore::sys::{ptrace, task_control};

const PAGE: u64 = 4096;
const REGION: u64 = 0x2000_0000_0000;
/// Bytes of noise, over and over.
const NOISE: u64 = 512 << 20;
/// Pages of the region are stored from here on.
const STORED: u64 = 1 << 50;

/// Pages of the region from a file, others as the program had them.
struct Source {
    memory: live::Memory,
    noise: File,
}

impl PageSource for Source {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        let PageContent::Stored(at @ STORED..) = run.content else {
            return self.memory.read_pages(run, first, count, out);
        };
        let mut at = at - STORED + first * PAGE;
        let mut out = out;
        while !out.is_empty() {
            let from = at % NOISE;
            let len = usize::try_from(NOISE - from).unwrap_or(0).min(out.len());
            let (now, rest) = out.split_at_mut(len);
            self.noise
                .read_exact_at(now, from)
                .map_err(|e| PageSourceError {
                    at: run.start + first * PAGE,
                    content: run.content,
                    why: format!("{e} ({count} pages)"),
                })?;
            at += len as u64;
            out = rest;
        }
        Ok(())
    }
}

/// The program, and its table.
struct Program {
    table: File,
    child: Child,
}

impl Program {
    fn start(dir: &Path) -> Self {
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/lazy/program.c");
        let program = dir.join("program");
        let built = Command::new("cc")
            .args(["-O2", "-o"])
            .args([&program, &source])
            .status();
        assert!(built.expect("a C compiler").success());
        let path = dir.join("table");
        fs::write(&path, vec![0; 4096]).expect("a table");
        let table = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .expect("the table");
        table
            .write_all_at(&(16u64 << 8).to_ne_bytes(), 511 * 8)
            .expect("writes");
        let child = Command::new(&program)
            .arg(&path)
            .spawn()
            .expect("the program");
        Self { table, child }
    }

    fn word(&self, n: u64) -> u64 {
        let mut bytes = [0; 8];
        self.table
            .read_exact_at(&mut bytes, n * 8)
            .expect("the table");
        u64::from_ne_bytes(bytes)
    }
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    u64::try_from(since.as_nanos()).expect("a time")
}

fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .expect("a line");
    let kib: u64 = line
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    kib << 10
}

fn one(dir: &Path, mib: u64, how: Memory) {
    let mut program = Program::start(dir);
    std::thread::sleep(Duration::from_millis(300));
    let pid = program.child.id() as i32;
    let mut taken = live::take(pid, Vec::new());
    program.child.kill().expect("kill");
    while !matches!(ptrace::wait(pid), Ok(ptrace::Stop::Gone(_)) | Err(_)) {}
    let _ = program.child.wait();
    let pages = (mib << 20) / PAGE;
    for vma in &mut taken.dataset.processes[0].mm.vmas {
        if vma.start == REGION {
            vma.end = REGION + (mib << 20);
            vma.pages = vec![PageRun {
                start: REGION,
                count: pages,
                content: PageContent::Stored(STORED),
            }];
        }
    }
    program
        .table
        .write_all_at(&pages.to_ne_bytes(), 511 * 8)
        .expect("writes");
    for word in 1..80 {
        program
            .table
            .write_all_at(&[0; 8], word * 8)
            .expect("writes");
    }
    // The table has been written to since it was looked at.
    for inode in taken
        .dataset
        .inodes
        .iter_mut()
        .filter(|i| i.path.ends_with("/table"))
    {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(&inode.path).expect("the table");
        inode.mtime_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    }
    let source = Source {
        memory: taken.memory,
        noise: File::open(dir.join("noise")).expect("noise"),
    };
    std::thread::sleep(Duration::from_millis(400));
    let options = Options {
        memory: how,
        ..Options::default()
    };
    let begin = now();
    let prepared = prepare(&taken.dataset, &source, &options).expect("prepared");
    let (restored, pager) = prepared
        .resume_at_once(|| Ok::<(), vmrestore::restore::RestoreError>(()))
        .expect("resumed");
    let give_up = Instant::now();
    while program.word(1) == 0 {
        assert!(
            give_up.elapsed() < Duration::from_secs(60),
            "it does not run"
        );
        std::thread::sleep(Duration::from_micros(100));
    }
    let first = program.word(1).saturating_sub(begin);
    let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    match pager {
        None => println!("| {mib} | eager | {:.1} | | | | | |", ms(first)),
        Some(pager) => {
            let arrival = pager.wait(|figures| figures.time < Duration::from_secs(300));
            assert_eq!(arrival, Arrival::Resident);
            let figures = pager.figures();
            let seconds = figures.time.as_secs_f64();
            println!(
                "| {mib} | lazy | {:.1} | {:.2} | {:.2} | {} | {:.0} | {:.1} |",
                ms(first),
                seconds,
                (mib as f64 / 1024.0) / seconds,
                figures.faults,
                figures.faults as f64 / seconds,
                figures.p99.as_secs_f64() * 1e6,
            );
        }
    }
    let _ = task_control::kill(restored[0].pid, libc::SIGKILL);
    // Its memory takes a moment to be given back.
    std::thread::sleep(Duration::from_millis(500 + mib / 4));
}

fn main() {
    let named: Vec<u64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let sizes = if named.is_empty() {
        vec![256, 2048, 8192]
    } else {
        named
    };
    let dir = std::env::temp_dir().join(format!("vmrestore-bench-lazy-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory");
    let noise = File::create(dir.join("noise")).expect("noise");
    let mut state = 1u64;
    let mut bytes = vec![0u8; 1 << 20];
    for at in 0..NOISE >> 20 {
        for word in bytes.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes());
        }
        noise.write_all_at(&bytes, at << 20).expect("writes");
    }
    println!(
        "| MiB | memory | until it runs, ms | until all is there, s | GiB/s | faults | faults/s | p99, us |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for mib in sizes {
        if available() < (mib << 20) + (3 << 30) {
            println!(
                "| {mib} | left out: this machine has not got so much memory free | | | | | | |"
            );
            continue;
        }
        for how in [Memory::Lazy, Memory::Lazy, Memory::Lazy, Memory::Eager] {
            one(&dir, mib, how);
        }
    }
    let _ = fs::remove_dir_all(&dir);
}
