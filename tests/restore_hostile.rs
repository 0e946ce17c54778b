//! Datasets that were changed at random, as a directory of `extract` may be that
//! somebody damaged with its checksums: whatever it says, a restore of it ends
//! with an error or goes through, and does not panic. And directories whose
//! files were cut, swapped or changed: refused by the name of the file.
//!
//! Needs root and a C compiler, as tests/restore_live.rs.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Living, root_or_say_so};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use vmrestore::dataset::Dataset;
use vmrestore::extract::directory;
use vmrestore::restore::{Options, prepare};

/// How long datasets are changed and tried.
const LONG_ENOUGH: Duration = Duration::from_secs(20);
/// A restore that takes as long hangs.
const HANGS: Duration = Duration::from_secs(60);

struct Noise(u64);

impl Noise {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// The values in a document, in order: how many, or the one that is wanted.
fn nth<'v>(value: &'v mut Value, wanted: &mut usize) -> Option<&'v mut Value> {
    if *wanted == 0 {
        return Some(value);
    }
    *wanted -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, wanted)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, wanted)),
        _ => None,
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// Makes something else of a value, of its kind mostly.
fn spoil(value: &mut Value, noise: &mut Noise) {
    const NUMBERS: [i64; 9] = [0, 1, -1, 2, 4095, 4096, 1 << 31, 1 << 46, i64::MAX];
    const TEXTS: [&str; 9] = [
        "",
        "/",
        "/nonexistent/x",
        "../..",
        "a\0b",
        "0x0",
        "0x1000",
        "0x7ffffffff000",
        "0xffffffffffffffff",
    ];
    match value {
        Value::Number(_) => *value = NUMBERS[noise.below(NUMBERS.len())].into(),
        Value::String(_) => *value = TEXTS[noise.below(TEXTS.len())].into(),
        Value::Bool(flag) => *flag = !*flag,
        Value::Array(items) if !items.is_empty() => {
            let at = noise.below(items.len());
            match noise.below(3) {
                0 => drop(items.remove(at)),
                1 => items.truncate(at),
                _ => items.push(items[at].clone()),
            }
        }
        _ => *value = Value::Null,
    }
}

#[test]
fn whatever_a_dataset_says_nothing_panics() {
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("hostile", "living");
    let mut taken = living.take();
    living.kill();
    taken.dataset.crash_id = "hostile".into();
    let good = serde_json::to_value(&taken.dataset).expect("a document");
    let all = count(&good);
    let begin = Instant::now();
    let mut noise = Noise(0x5eed);
    let mut outcomes = BTreeMap::<&str, u32>::new();
    while begin.elapsed() < LONG_ENOUGH {
        let mut document = good.clone();
        let mut said = Vec::new();
        for _ in 0..=noise.below(3) {
            let mut wanted = noise.below(all);
            said.push(wanted);
            if let Some(value) = nth(&mut document, &mut wanted) {
                spoil(value, &mut noise);
            }
        }
        let Ok(dataset) = serde_json::from_value::<Dataset>(document) else {
            *outcomes.entry("no dataset").or_default() += 1;
            continue;
        };
        let options = Options {
            dry_run: true,
            ..Options::default()
        };
        let one = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            prepare(&dataset, &taken.memory, &options).and_then(|p| p.resume())
        }));
        assert!(one.elapsed() < HANGS, "values {said:?}: it hung");
        let outcome = match result {
            Ok(Ok(_)) => "goes through",
            Ok(Err(_)) => "an error",
            Err(_) => panic!("values {said:?} of {all}: it panicked"),
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
    println!("{outcomes:?}");
    assert!(
        outcomes.get("an error").is_some_and(|n| *n > 3),
        "{outcomes:?}"
    );
    assert!(
        outcomes.get("goes through").is_some_and(|n| *n > 3),
        "{outcomes:?}"
    );
}

fn restore(command: &str, dir: &Path, state: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmrestore"))
        .arg(command)
        .arg(dir)
        .arg("--dry-run")
        .arg("--state-dir")
        .arg(state)
        .output()
        .expect("it starts")
}

#[test]
fn a_damaged_directory_is_refused_by_name() {
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("damaged", "living");
    let mut taken = living.take();
    let pid = living.pid();
    living.kill();
    taken.dataset.crash_id = "damaged".into();
    let work = living.dir.join("work");
    let (dir, state) = (
        work.join("out").join(format!("pid-{pid}")),
        work.join("state"),
    );
    directory::write(&taken.dataset, &taken.memory, &dir).expect("written");
    let good = restore("restore", &dir, &state);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    // As a dump would be named: the directory, or the one above.
    for (command, path) in [("process", dir.as_path()), ("process", &work.join("out"))] {
        let output = restore(command, path, &state);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    let none = restore("guests", &dir, &state);
    assert_eq!(none.status.code(), Some(4), "{none:?}");

    let bytes = |name: &str| fs::read(dir.join(name)).expect("a file of it");
    let [index, memory, sums] = ["dataset.json", "memory.img", "memory.sum"].map(bytes);
    let changed = |of: &[u8], at: usize| {
        let mut bytes = of.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    // The first page behind the header that is no hole.
    let page = memory[4096..].iter().position(|b| *b != 0).expect("pages") + 4096;
    // The PID's last digit: its first might become a zero, which is no JSON.
    let digit = {
        let number = index
            .windows(6)
            .position(|w| w == b"\"pid\":")
            .expect("a PID")
            + 6;
        let digits = index[number..].iter().take_while(|b| b.is_ascii_digit());
        number + digits.count() - 1
    };
    let cases: [(&str, Vec<u8>, &str); 9] = [
        (
            "dataset.json",
            changed(&index, digit),
            "dataset.json is damaged",
        ),
        (
            "dataset.json",
            index[..index.len() / 2].to_vec(),
            "dataset.json is not a dataset",
        ),
        (
            "dataset.json",
            b"{}".to_vec(),
            "dataset.json is not a dataset",
        ),
        (
            "dataset.json",
            b"{\"schema_version\": 99}".to_vec(),
            "schema version 99",
        ),
        (
            "memory.img",
            changed(&memory, page),
            "is not what was written",
        ),
        (
            "memory.img",
            changed(&memory, 3),
            "not those of a memory file",
        ),
        (
            "memory.img",
            memory[..memory.len() - 1].to_vec(),
            "memory.img is damaged: it was cut short",
        ),
        (
            "memory.sum",
            sums[..sums.len() - 4].to_vec(),
            "memory.sum is damaged: it was cut short",
        ),
        ("memory.sum", changed(&sums, 0), "not those of checksums"),
    ];
    for (name, damaged, words) in cases {
        let path = dir.join(name);
        let whole = fs::read(&path).expect("the file");
        fs::write(&path, damaged).expect("written");
        // A page is found damaged when it is read, which a dry run does not do.
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
        command
            .arg("restore")
            .arg(&dir)
            .arg("--state-dir")
            .arg(&state);
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        println!("{name}: {:?} {said}", output.status.code());
        assert!(said.contains(words), "{name}: it does not say {words:?}");
        assert!(
            matches!(output.status.code(), Some(1 | 3 | 5)),
            "{name}: {output:?}"
        );
        assert!(said.contains("hint: "), "{name}: no hint");
        fs::write(&path, whole).expect("written");
    }
    for name in ["memory.img", "memory.sum"] {
        fs::rename(dir.join(name), dir.join("away")).expect("renamed");
        let output = restore("restore", &dir, &state);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains(name) && said.contains("cannot open"),
            "{said}"
        );
        fs::rename(dir.join("away"), dir.join(name)).expect("renamed");
    }
    assert_eq!(restore("restore", &dir, &state).status.code(), Some(0));
    let _ = fs::remove_dir_all(&living.dir);
}
