//! Damaged dumps, by the hundred thousand: reading each must end, in an error or in memory, without
//! a panic, without a hang, without a look beyond the end of the file, and without more memory than
//! stated here.
//!
//! A case that fails names itself: `VMRESTORE_MUTATION='kdump 6 zlib:4711'` runs it alone.
//! `VMRESTORE_MUTATIONS` asks for more than the ordinary number.

#![allow(missing_docs)]

#[path = "../bounds/mod.rs"]
mod bounds;
mod damage;
mod fields;
#[path = "../synth/mod.rs"]
mod synth;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fields::Field;
use synth::exercise::exercise;
use synth::{Kdump, Machine, Noise, PAGE, Slot, TempFile, flatten, flatten_without_padding};
use vmrestore::dump::{Dump, OpenError};

const CASES: usize = 200_000;
/// The largest single allocation, for a file of at most 100 KiB; what is alive at once may be this
/// for each thread.
const LARGEST: usize = 1 << 20;
const PEAK_EACH: usize = 8 << 20;
/// Of one case, which takes a millisecond: longer is a hang.
const HANG: Duration = Duration::from_secs(60);

/// A sound file, and where its fields are.
struct Base {
    name: String,
    bytes: Vec<u8>,
    fields: Vec<Field>,
    /// Another part of the same split dump, which stays sound.
    rest: Option<PathBuf>,
}

impl Base {
    /// Opens the damaged file, with the other part of its dump.
    fn open(&self, path: &Path) -> Result<Dump, OpenError> {
        match &self.rest {
            None => Dump::open(path),
            Some(rest) => Dump::open_parts(&[path.to_owned(), rest.clone()]),
        }
    }
}

/// A machine of few pages that compress well, so that files are small and headers a good part.
fn machine(noise: &mut Noise) -> Machine {
    let mut machine = Machine::random(noise, 24);
    let mut data = 0;
    for slot in &mut machine.slots {
        if let Slot::Data(page) = slot {
            data += 1;
            if data % 4 != 0 {
                page[64..].fill(data as u8);
            }
        }
    }
    machine.qemu = true;
    machine
}

type Store = fn(&[u8; PAGE], &mut Noise) -> (Vec<u8>, u32);

/// Sound parts, in files that go with this.
#[derive(Default)]
struct Parts(Vec<TempFile>);

impl Parts {
    fn file(&mut self, bytes: &[u8]) -> PathBuf {
        self.0.push(TempFile::new(bytes));
        self.0[self.0.len() - 1].path().to_owned()
    }
}

fn bases(parts: &mut Parts) -> Vec<Base> {
    let mut noise = Noise(77);
    let machine = machine(&mut noise);
    let mut bases = Vec::new();
    let mut add = |name: String, bytes: Vec<u8>, rest: Option<PathBuf>| {
        assert!(bytes.len() < 100 << 10, "{name} has {} bytes", bytes.len());
        let fields = fields::fields(&bytes);
        assert!(fields.len() > 20, "{name}: {} fields", fields.len());
        bases.push(Base {
            name,
            bytes,
            fields,
            rest,
        });
    };
    let elf = machine.elf();
    add("flattened ELF".into(), flatten(&elf, 3000, true), None);
    add("ELF".into(), elf, None);
    let stores: [(&str, Store); 6] = [
        ("raw", synth::store_raw),
        ("zlib", synth::store_zlib),
        ("lzo", synth::store_lzo),
        ("snappy", synth::store_snappy),
        ("zstd", synth::store_zstd),
        ("mixed", synth::store_mixed),
    ];
    for version in 1..=6 {
        for (codec, store) in stores {
            let options = Kdump {
                version,
                store,
                ..Kdump::default()
            };
            let kdump = machine.kdump(options, &mut noise);
            if codec == "mixed" {
                let flat = flatten(&kdump, 4096, true);
                add(format!("flattened kdump {version}"), flat, None);
                let flat = flatten_without_padding(&kdump, machine.slots.len());
                add(format!("unpadded flattened kdump {version}"), flat, None);
            }
            add(format!("kdump {version} {codec}"), kdump, None);
        }
    }
    // Split dumps came with version 2.
    for version in 2..=6 {
        let mut part = |from, to| {
            let options = Kdump {
                version,
                part: Some((from, to)),
                store: synth::store_mixed,
                ..Kdump::default()
            };
            machine.kdump(options, &mut noise)
        };
        let (first, second) = (part(0, 11), part(11, machine.slots.len()));
        let rest = parts.file(&second);
        add(
            format!("part 1, flattened, {version}"),
            flatten(&first, 4096, true),
            Some(rest),
        );
        let rest = parts.file(&first);
        add(format!("part 2, {version}"), second, Some(rest));
    }
    bases
}

/// A file in memory, to be written over and over.
fn memory_file() -> File {
    // SAFETY: the name is a C string; the descriptor that comes back is nobody else's.
    unsafe {
        let fd = libc::memfd_create(c"dump".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "no memory file");
        File::from_raw_fd(fd)
    }
}

/// What a worker is at, for the watchdog.
struct At {
    base: usize,
    case: usize,
    since: Instant,
}

struct Run {
    bases: Vec<Base>,
    /// Cases of each base.
    each: usize,
    next: AtomicUsize,
    opened: Vec<AtomicUsize>,
    failed: Mutex<Vec<String>>,
    at: Mutex<Vec<Option<At>>>,
}

impl Run {
    fn work(&self, worker: usize) {
        let file = memory_file();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        loop {
            let number = self.next.fetch_add(1, Relaxed);
            let (base, case) = (number % self.bases.len(), number / self.bases.len());
            if case >= self.each || self.failed.lock().unwrap().len() > 8 {
                self.at.lock().unwrap()[worker] = None;
                return;
            }
            self.at.lock().unwrap()[worker] = Some(At {
                base,
                case,
                since: Instant::now(),
            });
            self.one(base, case, &file, &path);
        }
    }

    fn one(&self, base: usize, case: usize, file: &File, path: &Path) {
        let sound = &self.bases[base];
        let name = &sound.name;
        let mut noise = Noise((base as u64) << 40 | case as u64);
        let damaged = damage::damage(&sound.bytes, &sound.fields, case, &mut noise);
        file.set_len(0).unwrap();
        file.write_all_at(&damaged, 0).unwrap();
        let outcome = std::panic::catch_unwind(|| match sound.open(path) {
            Ok(dump) => {
                exercise(&dump, &mut Noise(case as u64));
                true
            }
            Err(error) => {
                assert!(!error.to_string().is_empty() && !error.hint().is_empty());
                false
            }
        });
        match outcome {
            Ok(opened) => {
                self.opened[base].fetch_add(usize::from(opened), Relaxed);
            }
            Err(_) => self.fail(format!("'{name}:{case}' panicked")),
        }
        let outside = bounds::file::outside();
        if !outside.is_empty() {
            self.fail(format!("'{name}:{case}' or its neighbour: {outside:?}"));
        }
    }

    fn fail(&self, what: String) {
        self.failed.lock().unwrap().push(what);
    }

    /// Aborts when a case does not end: a thread cannot be stopped.
    fn watch(&self) {
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let at = self.at.lock().unwrap();
            if at.iter().all(Option::is_none) {
                return;
            }
            for at in at.iter().flatten() {
                if at.since.elapsed() > HANG {
                    eprintln!("'{}:{}' does not end", self.bases[at.base].name, at.case);
                    std::process::abort();
                }
            }
        }
    }
}

#[test]
fn mutated_dumps_end_in_an_answer_or_an_error() {
    let mut parts = Parts::default();
    let bases = bases(&mut parts);
    let mut start = 0;
    let total = std::env::var("VMRESTORE_MUTATIONS").map_or(CASES, |n| n.parse().unwrap());
    let mut each = total.div_ceil(bases.len());
    let single = std::env::var("VMRESTORE_MUTATION").ok();
    if let Some((name, case)) = single.as_deref().and_then(|s| s.rsplit_once(':')) {
        // Its place is in its seed, so the others stay.
        let place = bases
            .iter()
            .position(|base| base.name == name)
            .expect("a base");
        start = case.parse::<usize>().unwrap() * bases.len() + place;
        each = start / bases.len() + 1;
    }
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    let count = bases.len();
    let run = Run {
        opened: bases.iter().map(|_| AtomicUsize::new(0)).collect(),
        bases,
        each,
        next: AtomicUsize::new(start),
        failed: Mutex::default(),
        at: Mutex::new(
            (0..workers)
                .map(|_| {
                    Some(At {
                        base: 0,
                        case: 0,
                        since: Instant::now(),
                    })
                })
                .collect(),
        ),
    };
    let watched = bounds::memory::watch();
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let run = &run;
            scope.spawn(move || run.work(worker));
        }
        run.watch();
    });
    let failed = run.failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
    if single.is_some() {
        return;
    }
    let done = each * count;
    assert!(done >= total, "{done} of {total}");
    let taken = watched.taken();
    println!("{done} dumps: {taken:?}, {} reads", bounds::file::reads());
    assert!(
        taken.largest <= LARGEST && taken.peak <= PEAK_EACH * workers,
        "{taken:?}"
    );
    assert!(bounds::file::reads() > done as u64, "reads were not seen");
    // Both sides of the reader are reached, for each base.
    for (base, opened) in run.bases.iter().zip(&run.opened) {
        let opened = opened.load(Relaxed);
        println!("{}: {opened} of {each} opened", base.name);
        assert!(
            opened > each / 20 && opened < each,
            "{}: {opened} of {each} opened",
            base.name
        );
    }
}

#[test]
fn every_truncation_ends_in_an_answer_or_an_error() {
    let file = memory_file();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mut parts = Parts::default();
    for base in bases(&mut parts) {
        let len = base.bytes.len();
        // Each byte of the first headers, around each field, and each 61st elsewhere.
        let mut cuts: Vec<usize> = (0..700).chain((0..len).step_by(61)).collect();
        for field in &base.fields {
            cuts.extend([
                field.at.saturating_sub(1),
                field.at,
                field.at + 1,
                field.at + field.width,
            ]);
        }
        cuts.retain(|&cut| cut < len);
        cuts.sort_unstable();
        cuts.dedup();
        file.set_len(0).unwrap();
        file.write_all_at(&base.bytes, 0).unwrap();
        // From the longest on, the file need not be written again.
        for &cut in cuts.iter().rev() {
            file.set_len(cut as u64).unwrap();
            if let Ok(dump) = base.open(&path) {
                exercise(&dump, &mut Noise(cut as u64));
            }
            let outside = bounds::file::outside();
            assert!(outside.is_empty(), "{} at {cut}: {outside:?}", base.name);
        }
    }
}
