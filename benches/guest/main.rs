//! How long a guest is away: dumps of hosts that crashed, with guests of 256 MiB to 8 GiB, and the guest's
//! first instruction on this machine's KVM; beside QEMU's own restore of as much memory.
//!
//!     cargo bench --bench guest -- --make DIR
//!     cargo bench --bench guest -- --table DIR [ROUNDS]
//!
//! As root; `scripts/bench-restore` does both. The first needs the lab and 20 minutes, once.
#![allow(missing_docs)]

mod dumps;
mod one_core;
mod qemu;
mod restored;

use anyhow::{Context, Result, ensure};
use dumps::HOSTS;
use restored::Restored;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of the bench's VMMs.
pub struct Guest {
    pub pid: i32,
    pub mib: u64,
    pub huge: bool,
    /// Bytes of a page's text that come over and over.
    pub period: u32,
}

impl Guest {
    fn pages(&self) -> &'static str {
        if self.huge { "huge" } else { "small" }
    }
}

fn main() -> Result<()> {
    // `cargo bench` adds a word of its own.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| w != "--bench")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (dir, rounds, tables): (_, _, fn(&Bench) -> Result<()>) = match words.as_slice() {
        ["--make", dir] => return dumps::make(Path::new(dir)),
        ["--table", dir] => (dir, 5, Bench::all),
        ["--table", dir, rounds] => (dir, rounds.parse()?, Bench::all),
        ["--eager", dir] => (dir, 5, Bench::eager),
        ["--phases", dir] => (dir, 1, Bench::phases),
        _ => {
            println!("guest: run scripts/bench-restore (as root)");
            return Ok(());
        }
    };
    let work = std::env::temp_dir().join(format!("vmrestore-bench-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    dumps::build_vmm()?;
    let bench = Bench {
        dir: PathBuf::from(dir),
        holder: vmrestore_lab::Lab::prepare()?.test_program("holder")?,
        work,
        rounds,
    };
    let done = tables(&bench);
    fs::remove_dir_all(&bench.work)?;
    done
}

struct Bench {
    /// The dumps.
    dir: PathBuf,
    holder: PathBuf,
    work: PathBuf,
    rounds: usize,
}

/// A guest in a dump.
struct Case {
    host: &'static str,
    dump: &'static str,
    guest: &'static Guest,
}

impl Case {
    fn new(host: &'static str, dump: &'static str, pid: i32) -> Result<Self> {
        let host = HOSTS.iter().find(|h| h.name == host).context("no host")?;
        let guest = host.guests.iter().find(|guest| guest.pid == pid);
        Ok(Self {
            host: host.name,
            dump,
            guest: guest.context("no guest")?,
        })
    }

    fn name(&self) -> String {
        let Guest { mib, .. } = self.guest;
        format!("{mib} MiB, {} pages, {}", self.guest.pages(), self.dump)
    }
}

impl Bench {
    fn file(&self, case: &Case) -> PathBuf {
        self.dir.join(case.host).join(case.dump)
    }

    fn restore(&self, case: &Case, memory: &str) -> Result<Restored> {
        if memory == "eager" {
            restored::warm(&self.holder, case.guest.mib)?;
        }
        restored::restore(&self.file(case), case.guest, memory, &self.work)
            .with_context(|| case.name())
    }

    fn all(&self) -> Result<()> {
        machine()?;
        self.first_instruction()?;
        self.eager()
    }

    /// The cases of the first table, whose dumps are there.
    fn cases(&self) -> Result<Vec<Case>> {
        let cases = [
            ("two", "lzo", 32001),
            ("two", "lzo", 32002),
            ("eight", "lzo", 32003),
            ("two", "elf", 32001),
            ("two", "elf", 32002),
            ("small-pages", "lzo", 32004),
            ("small-pages", "lzo", 32005),
        ];
        let mut there = Vec::new();
        for (host, dump, pid) in cases {
            let case = Case::new(host, dump, pid)?;
            match self.file(&case).exists() {
                true => there.push(case),
                false => eprintln!("{}: no such dump", self.file(&case).display()),
            }
        }
        Ok(there)
    }

    fn first_instruction(&self) -> Result<()> {
        let cases = self.cases()?;
        let mut runs: Vec<Vec<Restored>> = cases.iter().map(|_| Vec::new()).collect();
        for round in 0..=self.rounds {
            for (case, runs) in cases.iter().zip(&mut runs) {
                let run = self.restore(case, "lazy")?;
                // The first has read the dump from the disk.
                if round > 0 {
                    runs.push(run);
                }
            }
        }
        println!(
            "Lazily, from the command's start to the guest's first instruction, and what came then:\n"
        );
        println!(
            "| guest, dump | first instruction, ms | least to most | all is there, s | faults | faults/s | \
             p99, us | guest's touches/s | p99, us | longest, ms |\n|---|---|---|---|---|---|---|---|---|---|"
        );
        for (case, runs) in cases.iter().zip(&runs) {
            let of = |f: &dyn Fn(&Restored) -> f64| median(runs.iter().map(f));
            let number = |name: &'static str| {
                move |run: &Restored| run.memory[name].as_f64().unwrap_or_default()
            };
            let least = runs.iter().map(|r| r.first).fold(f64::MAX, f64::min);
            let most = runs.iter().map(|r| r.first).fold(0.0, f64::max);
            let seconds = of(&number("milliseconds")) / 1e3;
            println!(
                "| {} | {:.0} | {least:.0} to {most:.0} | {seconds:.2} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} |",
                case.name(),
                of(&|run| run.first),
                of(&number("faults")),
                of(&number("faults")) / seconds,
                of(&number("p99_us")),
                of(&|run| run.touches),
                of(&|run| run.p99_us as f64),
                of(&|run| run.longest_ms),
            );
        }
        println!();
        Ok(())
    }

    /// All memory first, beside QEMU.
    fn eager(&self) -> Result<()> {
        let elf = Case::new("two", "elf", 32002)?;
        let lzo = Case::new("two", "lzo", 32002)?;
        let ram = self.work.join("ram");
        let frames = one_core::frames(&self.file(&elf), elf.guest, &ram)?;
        let saved = qemu::Saved::new(&self.work, &ram, elf.guest.mib)?;
        let mut runs = [const { Vec::new() }; 2];
        let (mut mapped, mut drgn) = (Vec::new(), Vec::new());
        for round in 0..=self.rounds {
            let ours = [self.restore(&elf, "eager")?, self.restore(&lzo, "eager")?];
            restored::warm(&self.holder, elf.guest.mib)?;
            let theirs = saved.load()?;
            let one = one_core::by_drgn(&self.file(&lzo), &frames)?;
            if round > 0 {
                mapped.push(theirs);
                drgn.push(one);
                for (runs, run) in runs.iter_mut().zip(ours) {
                    runs.push(run);
                }
            }
        }
        let [elf, lzo] = &runs;
        let (mapped, drgn) = (median(mapped), median(drgn));
        let first = |runs: &[Restored]| median(runs.iter().map(|run| run.first));
        println!("A guest of 2 GiB, all of its memory first:\n");
        println!("| | ms | beside it | guest's touches/s | p99, us |\n|---|---|---|---|---|");
        let row = |name: &str, runs: &[Restored]| {
            let touches = median(runs.iter().map(|run| run.touches));
            let p99 = median(runs.iter().map(|run| run.p99_us as f64));
            let first = first(runs);
            println!(
                "| vmrestore, {name}, to the first instruction | {first:.0} | | {touches:.0} | {p99:.0} |"
            );
        };
        row("ELF dump", elf);
        println!(
            "| QEMU 10, mapped-ram with multifd, until it is loaded | {mapped:.0} | {:.1} times | | |",
            mapped / first(elf)
        );
        row("lzo dump", lzo);
        println!(
            "| drgn reads that memory from the lzo dump, on one core | {drgn:.0} | {:.1} times | | |\n",
            drgn / first(lzo)
        );
        Ok(())
    }

    /// Where the time goes: one trace of each case.
    fn phases(&self) -> Result<()> {
        for case in self.cases()? {
            self.restore(&case, "lazy")?;
            let state = self.work.join("traced");
            let _ = fs::remove_dir_all(&state);
            let mut command = restored::command(&self.file(&case), case.guest, "lazy", &state);
            let output = command.arg("-v").output()?;
            println!(
                "{}:\n{}",
                case.name(),
                String::from_utf8_lossy(&output.stderr)
            );
            let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            let pid = json["results"][0]["new_pid"].as_i64().context("no PID")?;
            vmrestore::sys::task_control::kill(i32::try_from(pid)?, libc::SIGKILL)?;
        }
        Ok(())
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn machine() -> Result<()> {
    let cpus = std::thread::available_parallelism()?;
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let model = text.lines().find_map(|l| l.strip_prefix("model name\t: "));
    let release = Command::new("uname").arg("-r").output()?;
    ensure!(release.status.success(), "uname");
    let load = fs::read_to_string("/proc/loadavg")?;
    println!(
        "{cpus} CPUs of {}, Linux {}; load {} when it began.\n",
        model.unwrap_or("?"),
        String::from_utf8_lossy(&release.stdout).trim(),
        load.split(' ').next().unwrap_or_default()
    );
    Ok(())
}
