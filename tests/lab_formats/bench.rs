//! One crash, and dumps made of it for a moment.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmrestore::dataset::{PageContent, PageSource};
use vmrestore::dump::Dump;
use vmrestore::extract::DeadHost;
use vmrestore_lab::recode::{Codec, recode};
use vmrestore_lab::{CachedDump, Lab, Scenario};

use crate::truth::{PAGE, Truth};

/// Who makes a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Debian 12's makedumpfile, 1.7.2.
    Old,
    /// Debian 13's, 1.7.6, which knows zstd.
    New,
    /// Debian 12's; the lab replaces zlib by snappy.
    OldThenSnappy,
    /// Debian 12's; the lab stores the pages in four ways by turns.
    OldThenMixed,
}

/// One crash, and all that its dumps are compared with.
pub struct Bench {
    lab: Lab,
    cached: CachedDump,
    base: PathBuf,
    work: PathBuf,
    list: Value,
    /// All of the dead machine's memory.
    pub truth: Truth,
    /// A Python that has drgn.
    pub python: PathBuf,
}

/// A dump that goes with this value, if it was made for the moment.
pub struct Made {
    /// Its file, or its parts in some order.
    pub files: Vec<PathBuf>,
    /// makedumpfile's `-d`.
    level: u32,
    /// An ELF file, or made of one: where it leaves zeros out it does not say that they are zeros.
    elf: bool,
    throw_away: bool,
}

impl Made {
    pub fn open(&self) -> Result<Dump> {
        Ok(Dump::open_parts(&self.files)?)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in self.files.iter().filter(|_| self.throw_away) {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Bench {
    /// The crash of the scenario `formats`; `name` is the caller's own.
    pub fn open(name: &str) -> Result<Bench> {
        Bench::of_scenario("formats", vmrestore_lab::scenario::WHOLE_DUMP, name)
    }

    /// `whole`: which of its dumps holds all memory, in ELF.
    pub fn of_scenario(scenario: &str, whole: &str, name: &str) -> Result<Bench> {
        let lab = Lab::prepare()?;
        let cached = lab.dump(&Scenario::named(scenario).context("no such scenario")?)?;
        let base = cached.file(whole);
        let work = lab.new_run().with_extension(name);
        std::fs::create_dir_all(&work)?;
        Ok(Bench {
            truth: Truth::open(&base)?,
            list: list(std::slice::from_ref(&base))?,
            python: lab.python_with_drgn()?,
            lab,
            cached,
            base,
            work,
        })
    }

    /// One that was made where the host died.
    pub fn saved(&self, name: &str) -> Made {
        Made {
            files: vec![self.cached.file(name)],
            level: if name == "d31" { 31 } else { 17 },
            elf: name.contains("elf"),
            throw_away: false,
        }
    }

    /// Makes a dump of all memory, by makedumpfile's options. `--split=N` makes N parts, given in
    /// another order than theirs.
    pub fn make(&self, by: By, options: &str) -> Result<Made> {
        let made = self.makedumpfile(by, options, &self.base)?;
        let codec = match by {
            By::Old | By::New => return Ok(made),
            By::OldThenSnappy => Codec::Snappy,
            By::OldThenMixed => Codec::Mixed,
        };
        let recoded = Made {
            files: vec![self.work.join("recoded")],
            level: made.level,
            elf: made.elf,
            throw_away: true,
        };
        recode(&made.files[0], &recoded.files[0], codec)?;
        Ok(recoded)
    }

    /// `cat DUMP | vmrestore list -` says of it what it says of the whole memory.
    pub fn lists_the_same_through_a_pipe(&self, made: &Made) -> Result<()> {
        let found = list_piped(&made.files[0], &self.work)?;
        ensure!(
            self.is_same(&found, made),
            "lists {found:#}\nand not {:#}",
            self.list
        );
        Ok(())
    }

    /// A dump of a dump.
    pub fn refiltered(&self, first: &str, second: &str) -> Result<Made> {
        let mut first = self.makedumpfile(By::New, first, &self.base)?;
        // The second takes its name.
        first.throw_away = false;
        let renamed = Made {
            files: vec![self.work.join("first")],
            level: first.level,
            elf: first.elf,
            throw_away: true,
        };
        std::fs::rename(&first.files[0], &renamed.files[0])?;
        let mut made = self.makedumpfile(By::New, second, &renamed.files[0])?;
        made.elf |= renamed.elf;
        Ok(made)
    }

    fn makedumpfile(&self, by: By, options: &str, from: &Path) -> Result<Made> {
        let mut command = match by {
            By::New => self.lab.new_makedumpfile()?,
            _ => self.lab.old_makedumpfile()?,
        };
        let mut parts = None;
        for option in options.split_whitespace() {
            match option.strip_prefix("--split=") {
                Some(count) => {
                    parts = Some(count.parse::<usize>()?);
                    command.arg("--split");
                }
                None => drop(command.arg(option)),
            }
        }
        let files: Vec<PathBuf> = match parts {
            None => vec![self.work.join("dump")],
            Some(count) => (0..count)
                .map(|i| self.work.join(format!("part{i}")))
                .collect(),
        };
        let level = options.split("-d ").nth(1).context("no level")?;
        let mut made = Made {
            files,
            level: level.parse()?,
            elf: options.contains("-E"),
            throw_away: true,
        };
        command.args(["--message-level", "4", "-f"]).arg(from);
        if options.contains("-F") {
            command.stdout(std::fs::File::create(&made.files[0])?);
        } else {
            command.args(&made.files).stdout(Stdio::null());
        }
        let output = command.stderr(Stdio::piped()).output()?;
        ensure!(
            output.status.success(),
            "makedumpfile {options}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        made.files.reverse();
        let middle = made.files.len() / 2;
        made.files.rotate_left(middle);
        Ok(made)
    }

    /// A page of zeros that is a file's comes from that file where the dump does not have it.
    fn is_same(&self, found: &Value, made: &Made) -> bool {
        match made.elf && made.level & 1 == 1 {
            true => with_files(found.clone()) == with_files(self.list.clone()),
            false => *found == self.list,
        }
    }

    /// `vmrestore list --json` says of it what it says of the whole memory; where the level leaves
    /// memory of processes out, but for their states and what is in that memory (a guest's name).
    pub fn lists_the_same(&self, made: &Made) -> Result<()> {
        let found = list(&made.files)?;
        if !self.is_same(&found, made) {
            let (found, wanted) = (without_memory(found), without_memory(self.list.clone()));
            ensure!(
                made.level & !17 != 0,
                "-d {} leaves nothing out of processes: {found:#}",
                made.level
            );
            ensure!(found == wanted, "lists {found:#}\nand not {wanted:#}");
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.work);
    }
}

/// `vmrestore list --json`.
pub fn list(files: &[PathBuf]) -> Result<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
    command.args(["list", "--json"]).arg(&files[0]);
    for part in &files[1..] {
        command.arg("--part").arg(part);
    }
    answer(&mut command)
}

/// `cat FILE | vmrestore list --json -`; what comes through is kept for a moment in `directory`.
fn list_piped(file: &Path, directory: &Path) -> Result<Value> {
    let mut cat = Command::new("cat")
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmrestore"));
    command.args(["list", "--json", "-", "--spool-dir"]);
    command.arg(directory);
    command.stdin(cat.stdout.take().context("a pipe")?);
    let list = answer(&mut command);
    cat.wait()?;
    list
}

fn answer(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let mut list: Value = serde_json::from_slice(&output.stdout)?;
    for guest in list["guests"].as_array_mut().into_iter().flatten() {
        // Present pages that need no reading: how many can be told depends on the format.
        if let Some(memory) = guest["memory_in_dump"].as_object_mut() {
            memory.remove("zero");
        }
    }
    Ok(list)
}

/// The list without the difference between pages in the dump and pages to be read from their file.
fn with_files(mut list: Value) -> Value {
    for guest in list["guests"].as_array_mut().into_iter().flatten() {
        if let Some(memory) = guest["memory_in_dump"].as_object_mut() {
            let pages = |key| memory.get(key).and_then(Value::as_u64).unwrap_or(0);
            let both = pages("present") + pages("on_file");
            memory.remove("on_file");
            memory.insert("present".into(), both.into());
        }
    }
    list
}

/// The list without what is, or depends on, processes' memory.
fn without_memory(mut list: Value) -> Value {
    for kind in ["guests", "processes"] {
        for entry in list[kind].as_array_mut().into_iter().flatten() {
            if let Some(entry) = entry.as_object_mut() {
                for key in ["state", "memory_in_dump", "name", "uuid"] {
                    entry.remove(key);
                }
            }
        }
    }
    list
}

/// All that a process has in memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Memory {
    /// Pages that are not zeros.
    pub pages: u64,
    /// Over their addresses and contents.
    pub hash: u64,
}

/// The memory of the guest (its VMM's memory has it) and of the ordinary program, by PID.
pub fn memory_of(dump: Dump) -> Result<BTreeMap<i32, Memory>> {
    const PROCESSES: [i32; 2] = [4711, 4911];
    let host = DeadHost::of(Arc::new(dump))?;
    let pages = host.pages();
    let mut all = BTreeMap::new();
    for process in &host.dataset(&PROCESSES)?.processes {
        let mut hash = DefaultHasher::new();
        let mut count = 0;
        let runs = process.mm.vmas.iter().flat_map(|vma| &vma.pages);
        for run in runs.filter(|run| run.content != PageContent::Zero) {
            let mut bytes = vec![0; usize::try_from(run.count)? * PAGE];
            pages.read_pages(run, 0, run.count, &mut bytes)?;
            for (address, page) in (run.start..).step_by(PAGE).zip(bytes.chunks_exact(PAGE)) {
                // An ELF file at an odd level does not have them.
                if page.iter().any(|byte| *byte != 0) {
                    hash.write_u64(address);
                    hash.write(page);
                    count += 1;
                }
            }
        }
        let memory = Memory {
            pages: count,
            hash: hash.finish(),
        };
        all.insert(process.pid, memory);
    }
    ensure!(all.len() == PROCESSES.len(), "{:?}", all.keys());
    Ok(all)
}
