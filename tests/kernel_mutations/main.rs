//! A real host's structures, damaged where they are read: listing it and reading each of its
//! processes and guests must end in an answer or an error, without a panic, without a hang and
//! within a stated memory.
//!
//! First a walk over the sound dump records which bytes it reads; then, thousands of times, some of
//! these are changed, the way damage and malice change them, and the walk is made again.
//!
//! Needs a dump of a host with guests: `VMRESTORE_TEST_DUMP=vmcore cargo test --test
//! kernel_mutations -- --ignored`. `VMRESTORE_KERNEL_MUTATIONS` asks for another number of runs,
//! `VMRESTORE_KERNEL_MUTATION` for one alone, by its number.

#![allow(missing_docs)]

#[path = "../bounds/mod.rs"]
mod bounds;
mod overlay;
mod targeted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use overlay::{Overlay, Word};
use vmrestore::dump::Dump;
use vmrestore::extract::{Crash, DeadHost};
use vmrestore::kernel::Kernel;
use vmrestore::task;

const RUNS: u64 = 2000;
/// What one walk may take at once, and its largest single allocation. A sound one takes far less
/// (it is printed); kallsyms and BTF are not read again.
const PEAK: usize = 256 << 20;
const LARGEST: usize = 64 << 20;
/// A walk takes less than a second, in a debug build too: longer is a hang.
const HANG: Duration = Duration::from_secs(120);

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// What a walk looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The list of processes and guests, and how much of each is there.
    List,
    /// One process as a whole, with the guests in it.
    Process(i32),
    /// Finding the kernel.
    Open,
}

/// Answers and errors.
#[derive(Default, Debug)]
struct Outcome {
    answers: usize,
    errors: usize,
}

impl Outcome {
    fn count<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(answer) => {
                self.answers += 1;
                Some(answer)
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                self.errors += 1;
                None
            }
        }
    }
}

fn walk(dead: &DeadHost, memory: &Arc<Overlay>, info: &str, part: Part) -> Outcome {
    let mut outcome = Outcome::default();
    match part {
        Part::Open => {
            let kernel = outcome.count(Kernel::open(memory.clone(), info));
            if let Some(kernel) = kernel {
                outcome.count(kernel.modules());
                outcome.count(kernel.cpus());
                outcome.count(kernel.symbol("kvm_vm_fops"));
            }
        }
        Part::List => {
            let processes = outcome.count(dead.processes()).unwrap_or_default();
            for process in processes.iter().filter(|p| !p.kernel_thread).take(200) {
                let _ = dead.coverage(process.task);
                let _ = task::command_line(dead.kernel(), process.task);
            }
            for guest in outcome.count(dead.guests()).unwrap_or_default() {
                let task = processes.iter().find(|p| p.pid == guest.pid);
                let _ = dead.guest_coverage(guest.vm, task.map_or(0, |t| t.task));
            }
            outcome.count(dead.together());
            let _ = Crash::of_kernel(dead.kernel());
        }
        Part::Process(pid) => {
            if let Some(dataset) = outcome.count(dead.dataset(&[pid])) {
                assert!(serde_json::to_vec(&dataset).is_ok());
            }
        }
    }
    outcome
}

/// Aborts, with the run's number, when a run does not end.
struct Watchdog {
    run: Mutex<Option<(u64, Instant)>>,
}

impl Watchdog {
    fn watch(&self, done: &std::sync::atomic::AtomicBool) {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(200));
            let run = *self.run.lock().unwrap();
            if let Some((run, since)) = run
                && since.elapsed() > HANG
            {
                eprintln!("run {run} does not end");
                std::process::abort();
            }
        }
    }
}

/// Values that a careless reader stumbles over, in place of `word`.
fn damage(word: &Word, all: &[Word], sound: &DeadHost, dice: &mut Dice) -> u64 {
    let virt = sound.kernel().phys_to_virt(word.at);
    let other = &all[dice.below(all.len() as u64) as usize];
    match dice.below(18) {
        // Pointers: to itself, to its own object, to other places, to nowhere.
        0 => virt,
        1 => virt & !0xff,
        2 => virt & !0xfff,
        3 => 0,
        4 => sound.kernel().phys_to_virt(other.at),
        5 | 6 => other.value,
        7 => 0x4141_4141_4141_4141,
        8 => word.value.wrapping_add(8 * (1 + dice.below(64))),
        9 => word.value ^ 1 << 63,
        // Page-table entries: this very table, and anything.
        10 => (word.at & !0xfff) | 0x67,
        11 => (dice.below(1 << 18) << 12) | 0x67 | dice.below(2) << 7,
        // Counts.
        12 => u64::MAX,
        13 => word.value | 0xffff_ffff,
        14 => word.value & !0xffff_ffff | 0x7fff_ffff,
        15 => 1 << dice.below(64),
        16 => word.value ^ 1 << dice.below(64),
        _ => dice.next(),
    }
}

#[test]
#[ignore = "needs a dump: set VMRESTORE_TEST_DUMP"]
fn damaged_structures_end_in_an_answer_or_an_error() {
    let path = std::env::var_os("VMRESTORE_TEST_DUMP").expect("VMRESTORE_TEST_DUMP names a dump");
    let dump = Arc::new(Dump::open(path.as_ref()).unwrap());
    let info = dump.vmcoreinfo().expect("a VMCOREINFO note").to_owned();
    let memory = Arc::new(Overlay::new(dump.clone()));
    let kernel = Kernel::open(memory.clone(), &info).unwrap();
    let dead = DeadHost::with_kernel(dump, kernel);
    let mut parts = vec![Part::List, Part::Open];
    let processes = dead.processes().unwrap();
    let user = processes.iter().filter(|p| !p.kernel_thread);
    parts.extend(user.map(|p| Part::Process(p.pid)));
    assert!(!dead.guests().unwrap().is_empty(), "the dump has no guest");

    // What each part reads of the sound dump, and that it can be read.
    let mut read: BTreeMap<Part, Vec<Word>> = BTreeMap::new();
    let watch = bounds::memory::watch();
    for &part in &parts {
        memory.record();
        let outcome = walk(&dead, &memory, &info, part);
        let words = memory.recorded();
        println!("{part:?}: {outcome:?}, {} words", words.len());
        assert!(outcome.answers > 0, "{part:?}: {outcome:?}");
        read.insert(part, words);
    }
    println!("sound: {:?}", watch.taken());
    parts.retain(|part| read[part].len() > 100);

    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let runs = match number("VMRESTORE_KERNEL_MUTATION") {
        Some(run) => run..run + 1,
        None => 0..number("VMRESTORE_KERNEL_MUTATIONS").unwrap_or(RUNS),
    };
    let dog = Watchdog {
        run: Mutex::default(),
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut failed = Vec::new();
    let (mut all, mut most) = (Outcome::default(), (0, 0));
    let mut slowest = (Duration::ZERO, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| dog.watch(&done));
        for run in runs.clone() {
            let mut dice = Dice(run);
            // Finding the kernel takes longest.
            let part = match dice.below(40) {
                0 => Part::Open,
                1..=8 => Part::List,
                _ => parts[dice.below(parts.len() as u64) as usize],
            };
            let words = &read[&part];
            let patches: Vec<(u64, u64)> = (0..1 + dice.below(4))
                .map(|_| {
                    let word = overlay::pick(words, dice.next());
                    (word.at, damage(word, words, &dead, &mut dice))
                })
                .collect();
            *dog.run.lock().unwrap() = Some((run, Instant::now()));
            memory.patch(&patches);
            let (watch, start) = (bounds::memory::watch(), Instant::now());
            let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                walk(&dead, &memory, &info, part)
            }));
            let taken = watch.taken();
            memory.patch(&[]);
            slowest = slowest.max((start.elapsed(), run));
            most = (taken.largest.max(most.0), taken.peak.max(most.1));
            let what = format!("run {run}, {part:?}, {patches:x?}");
            match walked {
                Ok(outcome) => {
                    all.answers += outcome.answers;
                    all.errors += outcome.errors;
                }
                Err(_) => failed.push(format!("{what}: panicked")),
            }
            if taken.largest > LARGEST || taken.peak > PEAK {
                failed.push(format!("{what}: {taken:?}"));
            }
        }
        *dog.run.lock().unwrap() = None;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("{all:?}; largest allocation and peak {most:?}; slowest {slowest:?}");
    assert!(failed.is_empty(), "{failed:#?}");
    // Both ways out were taken.
    if runs.end - runs.start > 1000 {
        assert!(all.answers > 100 && all.errors > 100, "{all:?}");
    }
}
