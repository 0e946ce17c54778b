//! Memory that stands in a file just as it is, read straight to where it belongs by the process in the
//! making itself.
//!
//! Needs root (ptrace) and a C compiler, as tests/restore_live.rs.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, assert_unbroken, root_or_say_so};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vmrestore::dataset::{PageContent, PageRun, PageSource, PageSourceError, PlainPages};
use vmrestore::restore::{Memory, Options, prepare};

const PAGE: u64 = 4096;

/// What is stored, in a file; one that may have been cut since.
struct InFile {
    file: File,
    /// Pages that were read by way of the restorer.
    read: AtomicU64,
}

impl InFile {
    /// All that the runs of a dataset refer to, where they say that it is.
    fn of(taken: &live::Taken, path: &std::path::Path) -> Self {
        let mut file = File::create_new(path).expect("a file");
        let mut page = vec![0; PAGE as usize];
        let process = &taken.dataset.processes[0];
        let private = process.mm.vmas.iter().flat_map(|vma| &vma.pages);
        let shared = taken.dataset.shared_memory.iter().flat_map(|m| &m.pages);
        for run in private.chain(shared) {
            let PageContent::Stored(at) = run.content else {
                continue;
            };
            for number in 0..run.count {
                let read = taken.memory.read_pages(run, number, 1, &mut page);
                read.expect("it was taken");
                let to = at + number * PAGE;
                file.write_all_at(&page, to).expect("writes");
            }
        }
        file.flush().expect("writes");
        Self {
            file: File::open(path).expect("opens"),
            read: AtomicU64::new(0),
        }
    }
}

impl PageSource for InFile {
    fn plain(&self, run: &PageRun, first: u64) -> Option<PlainPages<'_>> {
        let PageContent::Stored(at) = run.content else {
            return None;
        };
        Some(PlainPages {
            file: &self.file,
            offset: at + first * PAGE,
            count: run.count - first,
        })
    }

    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        self.read.fetch_add(count, Ordering::Relaxed);
        let PageContent::Stored(at) = run.content else {
            out.fill(0);
            return Ok(());
        };
        let read = self.file.read_exact_at(out, at + first * PAGE);
        read.map_err(|e| PageSourceError {
            at: run.start + first * PAGE,
            content: run.content,
            why: format!("the file: {e}"),
        })
    }
}

/// The program, stopped, looked at and killed, and the file.
fn taken(name: &str) -> (Living, live::Taken, InFile, usize) {
    let mut living = Living::launch(name, "lazy");
    let before = living.await_ticks(15).len();
    let taken = living.take();
    living.kill();
    let memory = InFile::of(&taken, &living.dir.join("memory"));
    (living, taken, memory, before)
}

fn eager() -> Options {
    Options {
        memory: Memory::Eager,
        ..Options::default()
    }
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[test]
fn memory_comes_straight_from_the_file() {
    if !root_or_say_so() {
        return;
    }
    let (living, taken, memory, before) = taken("direct");
    let process = &taken.dataset.processes[0];
    let (pid, had) = (process.pid, process.threads.len());
    let descriptors = process.fds.len();
    let prepared = prepare(&taken.dataset, &memory, &eager()).expect("prepared");
    let restored = prepared.resume().expect("resumed");
    let killed = Killed(restored[0].pid);
    let all: u64 = {
        let runs = process.mm.vmas.iter().flat_map(|vma| &vma.pages);
        runs.map(|run| run.count).sum()
    };
    let read = memory.read.load(Ordering::Relaxed);
    eprintln!("{read} of {all} pages went by way of the restorer");
    assert!(all > 20_000 && read < all / 4, "{read} of {all}");
    // Whoever helped is gone, and so is its descriptor of the file.
    assert_eq!(threads(killed.0), had);
    let open = fs::read_dir(format!("/proc/{}/fd", killed.0)).expect("lives");
    assert_eq!(open.count(), descriptors);

    fs::write(living.dir.join("go"), "").expect("go");
    let begin = Instant::now();
    while !living.log().contains("all read") {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{}",
            living.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!living.log().contains("BAD"), "{}", living.log());
    assert_unbroken(&living.await_ticks(before + 20), pid);
}

#[test]
fn a_file_that_was_cut_is_said_so_and_nothing_is_left() {
    if !root_or_say_so() {
        return;
    }
    let (living, taken, memory, _) = taken("direct-cut");
    let path = living.dir.join("memory");
    let length = fs::metadata(&path).expect("stats").len();
    let file = File::options().write(true).open(&path).expect("opens");
    file.set_len(length / 2).expect("cuts");
    let pid = taken.dataset.processes[0].pid;
    let error = prepare(&taken.dataset, &memory, &eager()).expect_err("half of it");
    let mut said = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        said += &format!("{error}; ");
        cause = error.source();
    }
    assert!(said.contains("the file:"), "{said}");
    assert_eq!(threads(pid), 0, "something is left");
}
