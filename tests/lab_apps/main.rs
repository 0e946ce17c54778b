//! Real applications through a real crash: each from Debian's packages with its default settings,
//! under load when the host dies, restored after the reboot by a command of its own, and judged by
//! a client: nothing missing, nothing twice, and a computation's result is that of one that nobody
//! disturbed. What each is, how it is started and judged, is in tests/programs/apps; docs/processes.md
//! has a row for each.
//!
//! Needs the lab (docs/lab.md): `scripts/test --all` runs it with `--include-ignored`.
//! `VMRESTORE_APPS=redis,python` takes only the applications whose names begin so;
//! `VMRESTORE_APPS_CRASH=DIR` keeps the crash there, or takes the one that is. The host has one CPU;
//! `VMRESTORE_APPS_CPUS=2` gives it two, and the keeper, which saves what the registers of the CPU hold
//! that did not make the crash.

mod application;
mod report;

use anyhow::{Context, Result, ensure};
use application::{Application, PROCESSES, step, step_after};
use report::{Row, restore};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmrestore_lab::crash::{Extra, Record};
use vmrestore_lab::{CachedDump, Lab, Luggage, Machine, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
/// Until all applications of a host are in the middle of their work: it is emulated.
const START: Duration = Duration::from_secs(900);

/// What the applications and their clients are made of.
const PACKAGES: [&str; 26] = [
    "bash",
    "coreutils",
    "curl",
    "dash",
    "diffutils",
    "findutils",
    "gawk",
    "gcc",
    "grep",
    "iproute2",
    "libc6-dev",
    "nginx-light",
    "nodejs",
    "openjdk-17-jdk-headless",
    "postgresql-15",
    "procps",
    "python3",
    "python3-numpy",
    "python3-psycopg2",
    "redis-server",
    "redis-tools",
    "sed",
    "sqlite3",
    "tmux",
    "util-linux",
    "bsdutils",
];

/// Which die together. Those that take longest to start come first.
const HOSTS: [&[&str]; 4] = [
    &["postgres", "redis", "nginx"],
    &["jvm", "node", "tmux"],
    &[
        "python-numpy",
        "python-pool",
        "python-asyncio",
        "python-threads",
    ],
    &["gcc", "sqlite", "bash-pipeline"],
];

fn vmrestore() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vmrestore"))
}

/// Files of the suite, for the directory `apps` of a disk.
fn programs() -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(application::sources())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.push((format!("apps/{name}"), entry.path()));
    }
    Ok(files)
}

/// Starts them all and waits until each is in the middle of its work.
fn start(machine: &mut Machine, applications: &[Application]) -> Result<()> {
    let agent = &mut machine.agent;
    let unpack = "mkdir -p /data/apps/programs && cp /dump/apps/* /data/apps/programs/ && sync; \
                  echo 20000 > /proc/sys/kernel/ns_last_pid";
    agent.run(unpack, MINUTE)?.success("unpack")?;
    for application in applications {
        let begin = Instant::now();
        for name in ["boot", "prepare", "start"] {
            let said = agent.run(&step(&application.name, name), START)?;
            said.success(&format!("{} {name}", application.name))?;
        }
        println!(
            "{}: started after {} s",
            application.name,
            begin.elapsed().as_secs()
        );
    }
    let begin = Instant::now();
    for application in applications {
        let name = &application.name;
        let under_way = step(name, "under_way");
        while agent.run(&under_way, MINUTE)?.code != 0 {
            if begin.elapsed() > START {
                let look = format!("tail -n 20 /data/apps/{name}/*; {PROCESSES}");
                let seen = agent.run(&look, MINUTE)?.stdout;
                anyhow::bail!("{name} is not under way:\n{seen}");
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        println!("{name}: under way after {} s", begin.elapsed().as_secs());
    }
    // Files that are new are on the disk; what is written from now on is not. Clean pages of
    // programs would only make the dump larger.
    agent
        .run("sync; echo 1 > /proc/sys/vm/drop_caches", MINUTE)?
        .success("sync")?;
    std::thread::sleep(Duration::from_secs(2));
    for application in applications {
        let still = agent.run(&step(&application.name, "under_way"), MINUTE)?;
        ensure!(still.code == 0, "{} has ended too early", application.name);
    }
    Ok(())
}

/// A host in which all of them are under way when it dies.
fn crash(lab: &Lab, dir: &Path, applications: &[Application]) -> Result<CachedDump> {
    let mut scenario = Scenario::named("process").context("no such scenario")?;
    scenario.name = "apps".into();
    scenario.process = None;
    scenario.hardware.memory_mib = 3072;
    // With one CPU who crashes the host has it: nobody else loses registers.
    scenario.hardware.cpus = match std::env::var("VMRESTORE_APPS_CPUS") {
        Ok(number) => number.parse().context("VMRESTORE_APPS_CPUS")?,
        Err(_) => 1,
    };
    scenario.keeper = scenario.hardware.cpus > 1;
    let mut extra = Extra::of(&lab.dir, &scenario)?;
    extra.luggage.extend(programs()?);
    extra.alive = Some(Box::new(|machine| start(machine, applications)));
    lab.crash_once(&scenario, dir, extra)?;
    let record = Record {
        scenario,
        images: lab.images.key.clone(),
        seconds_to_crash: 0.0,
        seconds_to_dump: 0.0,
        lost_attempts: vec![],
    };
    std::fs::write(dir.join("record.json"), serde_json::to_vec(&record)?)?;
    CachedDump::open(dir)
}

/// One crash and one reboot; a row for each application.
fn one_host(lab: &Lab, dir: &Path, applications: Vec<Application>) -> Result<Vec<Row>> {
    let dump = match dir.join("record.json").exists() {
        true => CachedDump::open(dir)?,
        false => crash(lab, dir, &applications)?,
    };
    println!(
        "the dump has {} MiB",
        std::fs::metadata(dump.path())?.len() >> 20
    );
    let mut luggage = Luggage::vmrestore(vmrestore());
    luggage.tools.extend(programs()?);
    let mut host = lab.reboot(&dump, &luggage)?;
    for application in &applications {
        host.run(&step_after(&application.name, "boot"), MINUTE)?
            .success("boot")?;
    }
    let mut rows = Vec::new();
    for application in applications {
        let row = restore(&mut host, application)?;
        println!("{row}");
        rows.push(row);
    }
    // All of them run by now.
    for row in &mut rows {
        row.judge(&mut host)?;
        println!("{}: {}", row.application.name, row.judgment);
    }
    drop(host);
    Ok(rows)
}

#[test]
#[ignore = "needs the lab: scripts/test --all"]
fn applications_come_back_from_a_crash() -> Result<()> {
    let wanted = std::env::var("VMRESTORE_APPS").unwrap_or_default();
    let is_wanted =
        |name: &str| wanted.is_empty() || wanted.split(',').any(|prefix| name.starts_with(prefix));
    let hosts: Vec<Vec<&str>> = HOSTS
        .iter()
        .map(|names| names.iter().copied().filter(|n| is_wanted(n)).collect())
        .filter(|names: &Vec<&str>| !names.is_empty())
        .collect();
    ensure!(!hosts.is_empty(), "no application is named {wanted:?}");
    let lab = Lab::prepare_with_installed(&PACKAGES)?;
    let kept = std::env::var_os("VMRESTORE_APPS_CRASH").map(PathBuf::from);
    let mut rows = Vec::new();
    for names in &hosts {
        let applications = names
            .iter()
            .map(|name| Application::read(name))
            .collect::<Result<Vec<_>>>()?;
        let dir = match &kept {
            Some(kept) => kept.join(names.join("-")),
            None => lab.new_run(),
        };
        let found = one_host(&lab, &dir, applications)?;
        let bad = found.iter().any(|row| row.fault().is_some());
        if bad || kept.is_some() {
            println!("the crash is kept in {}", dir.display());
        } else {
            std::fs::remove_dir_all(&dir)?;
        }
        rows.extend(found);
    }
    let mut bad = Vec::new();
    println!("\n| application | processes | restored | report | judged |\n|---|---|---|---|---|");
    for row in &rows {
        println!("{}", row.table_line());
        if let Some(fault) = row.fault() {
            bad.push(format!("{}: {fault}", row.application.name));
        }
    }
    ensure!(bad.is_empty(), "not as they should be:\n{}", bad.join("\n"));
    Ok(())
}
