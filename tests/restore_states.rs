//! The suite of small programs that hold one kind of state each
//! (tests/programs/states), taken from this living machine and restored here:
//! quick, and proof of the restorer alone. What a dead kernel's memory says of
//! them is the business of lab_states.
//!
//! Needs root and a C compiler. `VMRESTORE_STATES=call_,memfd` takes only the
//! programs whose names begin so.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, root_or_say_so};
use std::fs::{self, File};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vmrestore::dataset::{SysvKind, SysvObject};
use vmrestore::restore::{Options, prepare};
use vmrestore_lab::states::{self, Expect, Program};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a program's next word.
fn word(out: &Path, lines: usize) -> String {
    let begin = Instant::now();
    loop {
        let said = fs::read_to_string(out).unwrap_or_default();
        if let Some(line) = said.lines().nth(lines) {
            return line.to_owned();
        }
        if begin.elapsed() > PATIENCE {
            return format!("nothing behind {said:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What became of it: `None`: it is as its source says.
fn try_one(program: &Program, dir: &Path) -> Option<String> {
    let built = states::build_one(&program.name, &dir.join("bin")).expect("built");
    let own = dir.join(&program.name);
    fs::create_dir_all(&own).expect("a directory");
    let out = dir.join(format!("{}.out", program.name));
    let child = Command::new(&built)
        .arg(&out)
        .current_dir(&own)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program");
    let mut living = Living { dir: own, child };
    let first = word(&out, 0);
    if !first.starts_with("READY") {
        return (!first.starts_with("ABSENT")).then_some(first);
    }
    let mut taken = living.take();
    if program.name.starts_with("tcp_") {
        live::tcp::take_all(&mut taken.dataset);
    }
    living.kill();
    // What somebody uses is in the way; what a killed restore has left is not.
    let in_use = |object: &&SysvObject| {
        let removed = matches!(object.kind, SysvKind::Segment { removed: true, .. });
        !removed && !object.unused
    };
    if taken.dataset.sysv.iter().any(|object| in_use(&object)) {
        let refused = prepare(&taken.dataset, &taken.memory, &Options::default());
        if !refused.is_err_and(|error| error.to_string().contains("in use on this host")) {
            return Some("made again beside its own System V objects".into());
        }
    }
    live::sysv::leave_remains(&taken.dataset.sysv);
    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .and_then(vmrestore::restore::Prepared::resume);
    let restored = match (restored, &program.expect) {
        (Ok(restored), _) => restored,
        (Err(error), Expect::Refused(words)) if error.to_string().contains(words) => return None,
        (Err(error), _) => return Some(error.to_string()),
    };
    let _killed = Killed(restored[0].pid);
    let mut file = File::options().append(true).open(&out).expect("its file");
    file.write_all(b"GO\n").expect("written");
    let last = word(&out, 2);
    (last != "PASS").then_some(last)
}

#[test]
fn every_kind_of_state_comes_back() {
    if !root_or_say_so() {
        return;
    }
    let dir: PathBuf =
        std::env::temp_dir().join(format!("vmrestore-states-{}", std::process::id()));
    let chosen = std::env::var("VMRESTORE_STATES").unwrap_or_default();
    let mut bad = Vec::new();
    for program in states::all().expect("the programs") {
        if !chosen
            .split(',')
            .any(|start| program.name.starts_with(start))
        {
            continue;
        }
        if let Some(why) = &program.not_live {
            println!("{:28} not taken here: {why}", program.name);
            continue;
        }
        // A panic in it is of this program alone.
        let result = catch_unwind(AssertUnwindSafe(|| try_one(&program, &dir)));
        let wrong = result.unwrap_or_else(|_| Some("it cannot be taken".into()));
        println!("{:28} {}", program.name, wrong.as_deref().unwrap_or("good"));
        bad.extend(wrong.map(|wrong| format!("{}: {wrong}", program.name)));
    }
    let _ = fs::remove_dir_all(&dir);
    assert!(bad.is_empty(), "{} are bad:\n{}", bad.len(), bad.join("\n"));
}

/// The table that people read has a row for each of them.
#[test]
fn every_program_is_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/processes.md");
    let text = fs::read_to_string(&path).expect("docs/processes.md");
    let missing: Vec<String> = states::all()
        .expect("the programs")
        .into_iter()
        .map(|program| program.name)
        .filter(|name| !text.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "no row for {}", missing.join(" "));
}
