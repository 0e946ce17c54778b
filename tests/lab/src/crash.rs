//! From a scenario to a dump: boot the host, start its guests, let it die,
//! let the capture kernel dump it. Kept under a key of everything that went
//! in.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::agent::Agent;
use crate::debian::run;
use crate::guest::Guest;
use crate::images::{Images, make_ext4, read_ext4};
use crate::judge;
use crate::keeper;
use crate::machine::{Disk, Machine};
use crate::phase::{self, Phase};
use crate::reboot::pack;
use crate::scenario::{Death, MAIN_DUMP, Scenario};
use crate::states;

/// Attempts to get a host as far as its crash. With more than one emulated CPU
/// and many guests QEMU's TCG sometimes resets or hangs the host by itself;
/// what fails *before* the crash says nothing about vmrestore.
const ATTEMPTS: u32 = 3;
/// A guest that has not printed for so long hangs, or has reset itself, however
/// slow it is.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// Lines by which a guest's pace is told.
const PACE: usize = 12;
/// Size of the host's data disk, MiB.
pub const DATA_DISK_MIB: u64 = 256;
const DUMP_DISK_MIB: u64 = 4096;
/// Where on the PCI bus the guests' own disks of the host begin.
pub(crate) const HOST_DISK_SLOT: usize = 0x10;
/// The host's own swap disk, and where it is.
pub(crate) const SWAP_DISK: &str = "swap.img";
pub(crate) const SWAP_DISK_SLOT: usize = 0x1e;

/// What QEMU says of a paused host's CPUs, beside its dump.
pub const REGISTERS: &str = "registers.txt";

/// What is known of a dump, beside the dump.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What ran, and how it died.
    pub scenario: Scenario,
    /// Key of the host's images: the reboot takes the same.
    pub images: String,
    /// Seconds from the start to the crash.
    pub seconds_to_crash: f64,
    /// Seconds from the crash to the dumps on disk and the host off.
    pub seconds_to_dump: f64,
    /// Attempts that the lab itself lost before the crash, and why.
    pub lost_attempts: Vec<String>,
}

/// A dump of a host, with the host's data disk as the crash left it.
#[derive(Clone, Debug)]
pub struct CachedDump {
    /// Its directory.
    pub dir: PathBuf,
    /// What is known of it.
    pub record: Record,
}

impl CachedDump {
    /// Reads what an earlier run has kept.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("record.json");
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(Self {
            dir: dir.to_owned(),
            record: serde_json::from_slice(&text).with_context(|| path.display().to_string())?,
        })
    }

    /// The main dump.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file(MAIN_DUMP)
    }

    /// One of the scenario's dump files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The data disk as the crash left it. Copy it before use.
    #[must_use]
    pub fn data_disk(&self) -> PathBuf {
        self.dir.join("data.img")
    }

    /// What `name` (a guest, or `process`) had printed when the host died, as
    /// seen from outside: the last line or two may be missing.
    #[must_use]
    pub fn before(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.join("live").join(name)).unwrap_or_default()
    }

    /// The names that printed something: the guests', and `process`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.record.scenario.output_names()
    }
}

impl Scenario {
    /// The guests' names, and `process` where the program runs.
    #[must_use]
    pub fn output_names(&self) -> Vec<String> {
        let guests = self.guests.iter().map(|guest| guest.name.clone());
        guests
            .chain(self.process.map(|_| "process".to_owned()))
            .collect()
    }

    /// Where the output of `name` is in the host.
    #[must_use]
    pub fn output_path(name: &str) -> String {
        if name == "process" {
            "/data/process/out".into()
        } else {
            format!("/data/{name}.serial")
        }
    }
}

/// Why there is no dump.
#[derive(Debug)]
pub enum Failure {
    /// The lab did not get as far as the crash.
    BeforeCrash(anyhow::Error),
    /// The host died, and then something went wrong: never retried.
    AfterCrash(anyhow::Error),
}

/// The directory of the scenario's dump on these images.
#[must_use]
pub fn dump_dir(lab: &Path, images: &Images, scenario: &Scenario) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    images.key.hash(&mut hasher);
    scenario.hardware.kernel_options().hash(&mut hasher);
    serde_json::to_string(scenario)
        .unwrap_or_default()
        .hash(&mut hasher);
    if scenario.keeper {
        // Sources that cannot be read fail when the module is built.
        keeper::key().unwrap_or_default().hash(&mut hasher);
    }
    if states::runs_in(scenario) {
        states::key().unwrap_or_default().hash(&mut hasher);
    }
    if scenario.death == Death::Paused {
        REGISTERS.hash(&mut hasher);
    }
    lab.join("dumps")
        .join(format!("{}-{:016x}", scenario.name, hasher.finish()))
}

/// The scenario's dump, from the cache or made now.
pub fn dump(lab: &Path, images: &Images, scenario: &Scenario) -> Result<CachedDump> {
    let home = dump_dir(lab, images, scenario);
    if home.join("record.json").exists() {
        return CachedDump::open(&home);
    }
    let work = home.with_extension(format!("work{}", std::process::id()));
    let mut lost_attempts = Vec::new();
    loop {
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir_all(&work)?;
        let mut extra = Extra::of(lab, scenario)?;
        match attempt(&work, images, scenario, &mut extra) {
            Ok(times) => {
                let record = Record {
                    scenario: scenario.clone(),
                    images: images.key.clone(),
                    seconds_to_crash: times.0.as_secs_f64(),
                    seconds_to_dump: times.1.as_secs_f64(),
                    lost_attempts,
                };
                std::fs::write(
                    work.join("record.json"),
                    serde_json::to_string_pretty(&record)?,
                )?;
                match std::fs::rename(&work, &home) {
                    Ok(()) => {}
                    // Another run of the lab was faster.
                    Err(_) if home.join("record.json").exists() => {
                        std::fs::remove_dir_all(&work)?;
                    }
                    Err(error) => {
                        return Err(error).with_context(|| home.display().to_string());
                    }
                }
                return CachedDump::open(&home);
            }
            Err(Failure::AfterCrash(error)) => {
                return Err(error.context(format!(
                    "scenario {}: failed after the crash (kept in {})",
                    scenario.name,
                    work.display()
                )));
            }
            Err(Failure::BeforeCrash(error)) => {
                let count = lost_attempts.len() + 1;
                eprintln!("lab: lost before the crash ({count} of {ATTEMPTS}): {error:#}");
                lost_attempts.push(format!("{error:#}"));
                if count as u32 >= ATTEMPTS {
                    return Err(error.context(format!(
                        "scenario {}: the lab lost {count} attempts before the crash (the last \
                         is kept in {})",
                        scenario.name,
                        work.display()
                    )));
                }
            }
        }
    }
}

/// What happens in one crash beside what its scenario says.
#[derive(Default)]
pub struct Extra<'a> {
    /// Files for the dump disk, which is `/dump` in the host and in the capture
    /// kernel: (name, file). The latter runs `capture.sh` if it is among them,
    /// with the libraries in `lib/`.
    pub luggage: Vec<(String, PathBuf)>,
    /// Programs for `/tools` in the host, which is first on the PATH: (name, file).
    pub tools: Vec<(String, PathBuf)>,
    /// Files that are on the dump disk in the end, beside the dumps.
    pub keep: Vec<String>,
    /// What is done in the host right before it dies.
    pub alive: Option<Alive<'a>>,
}

impl Extra<'_> {
    /// What the scenario itself asks for.
    pub fn of(lab: &Path, scenario: &Scenario) -> Result<Self> {
        let mut extra = Self::default();
        if scenario.keeper {
            let name = keeper::IN_HOST.trim_start_matches("/dump/").to_owned();
            extra.luggage.push((name, keeper::module(lab)?));
        }
        if states::runs_in(scenario) {
            extra.luggage.extend(states::build(lab)?);
        }
        Ok(extra)
    }
}

/// See [`Extra::alive`].
pub type Alive<'a> = Box<dyn FnMut(&mut Machine) -> Result<()> + 'a>;

/// A crash for one use, in `dir`, which is emptied first: not from the cache,
/// and not kept in it. How long it took to the crash, and to the host's end.
pub fn once(
    dir: &Path,
    images: &Images,
    scenario: &Scenario,
    mut extra: Extra,
) -> Result<(Duration, Duration)> {
    let mut lost = 0;
    loop {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir)?;
        match attempt(dir, images, scenario, &mut extra) {
            Ok(times) => return Ok(times),
            Err(Failure::BeforeCrash(error)) if lost + 1 < ATTEMPTS => {
                lost += 1;
                eprintln!("lab: lost before the crash ({lost} of {ATTEMPTS}): {error:#}");
            }
            Err(Failure::BeforeCrash(error) | Failure::AfterCrash(error)) => {
                return Err(error.context(format!("kept in {}", dir.display())));
            }
        }
    }
}

/// One host, from its start to its end.
fn attempt(
    work: &Path,
    images: &Images,
    scenario: &Scenario,
    extra: &mut Extra,
) -> Result<(Duration, Duration), Failure> {
    let started = Instant::now();
    let mut machine =
        bring_to_crash(work, images, scenario, extra).map_err(Failure::BeforeCrash)?;
    let to_crash = started.elapsed();
    let died = Instant::now();
    let off = die(&mut machine, work, scenario, &extra.keep).map_err(Failure::AfterCrash)?;
    drop(machine);
    Ok((to_crash, off.saturating_duration_since(died)))
}

/// Boots the host and starts all; returns at the moment of the crash.
fn bring_to_crash(
    work: &Path,
    images: &Images,
    scenario: &Scenario,
    extra: &mut Extra,
) -> Result<Machine> {
    let data = work.join("data.img");
    make_ext4(&data, None, DATA_DISK_MIB)?;
    let dump = pack(work, "dump", &extra.luggage, DUMP_DISK_MIB)?;
    let mut disks: Vec<Disk> = [("data", data), ("dump", dump)]
        .map(|(serial, image)| Disk {
            serial: serial.into(),
            slot: None,
            image,
            throw_away: false,
        })
        .into();
    for (number, guest) in scenario.guests.iter().enumerate() {
        if let Some(name) = guest.host_disk() {
            let image = work.join(name);
            std::fs::File::create(&image)?.set_len(u64::from(guest.host_disk_mib) << 20)?;
            disks.push(Disk {
                serial: guest.name.clone(),
                slot: Some(HOST_DISK_SLOT + number),
                image,
                throw_away: false,
            });
        }
    }
    if scenario.swap_mib > 0 {
        let image = work.join(SWAP_DISK);
        std::fs::File::create(&image)?.set_len(scenario.swap_mib << 20)?;
        disks.push(swap_disk(image));
    }
    if !extra.tools.is_empty() {
        disks.push(Disk {
            serial: "tools".into(),
            slot: None,
            image: pack(work, "tools", &extra.tools, 8)?,
            throw_away: true,
        });
    }
    let mut machine = Machine::start(images, &scenario.hardware, &disks, work)?;
    start_all(&mut machine, scenario)
        .map_err(|error| machine.explain(error))
        .with_context(|| format!("the host's console ends:\n{}", machine.console_end()))?;
    for guest in scenario.guests.iter().filter(|g| g.phase.starts_late()) {
        start_guest(&mut machine.agent, guest)?;
        phase::wait_for_vm(&mut machine.agent, guest)?;
        let path = Scenario::output_path(&guest.name);
        machine.agent.follow(&guest.name, &path)?;
    }
    phase::enter(&mut machine.agent, scenario)?;
    std::thread::sleep(Duration::from_millis(scenario.delay_ms()));
    ensure!(
        machine.is_running(),
        "the host has ended by itself; its console ends:\n{}",
        machine.console_end()
    );
    if let Some(alive) = &mut extra.alive {
        alive(&mut machine)?;
    }
    still_whole(&machine, scenario)?;
    phase::last_moment(&mut machine.agent, scenario)?;
    Ok(machine)
}

/// The host's swap disk.
pub(crate) fn swap_disk(image: PathBuf) -> Disk {
    Disk {
        serial: "swap".into(),
        slot: Some(SWAP_DISK_SLOT),
        image,
        throw_away: false,
    }
}

/// Emulated SVM is not without faults: a guest that has reset itself, or has
/// gone silent, before the crash is the lab's loss, and says nothing about what
/// comes after.
fn still_whole(machine: &Machine, scenario: &Scenario) -> Result<()> {
    let settled = |guest: &&Guest| matches!(guest.phase, Phase::Running | Phase::Paused);
    for guest in scenario.guests.iter().filter(settled) {
        let seen = machine.agent.tail(&guest.name);
        let verdict = judge::guest(&seen, &seen, None, 0);
        ensure!(
            verdict.is_good(),
            "{} was not whole before the crash: {verdict}",
            guest.name
        );
        let name = &guest.name;
        let silent = machine.agent.silent_for(name);
        ensure!(
            silent < longest_silence(&seen),
            "{name} had been silent for {} ms before the crash",
            silent.as_millis()
        );
    }
    Ok(())
}

/// How long a guest that is well may be silent, by the times in its last lines.
/// One that prints ten lines a second and stops for two has reset itself.
fn longest_silence(seen: &[u8]) -> Duration {
    let text = String::from_utf8_lossy(seen);
    let times: Vec<u64> = text
        .lines()
        .rev()
        .take(PACE)
        .filter_map(|line| line.split_once(" t=")?.1.split(' ').next()?.parse().ok())
        .collect();
    let steps = times.windows(2).map(|pair| pair[0].saturating_sub(pair[1]));
    let step = Duration::from_millis(steps.max().unwrap_or(u64::MAX));
    (Duration::from_secs(1) + step.saturating_mul(3)).min(LONGEST_SILENCE)
}

/// Loads the capture kernel, starts guests and the program, waits for their
/// lines.
pub fn start_all(machine: &mut Machine, scenario: &Scenario) -> Result<()> {
    let agent = &mut machine.agent;
    agent.wait_up(Duration::from_secs(120))?;
    if scenario.death != Death::Paused {
        let dumps: Vec<String> = scenario
            .dumps
            .iter()
            .map(|dump| format!("{}:{}", dump.name, dump.options.replace(' ', ",")))
            .collect();
        let (initrd, append) = match &scenario.capture_host {
            Some(words) => (
                "/dump/host.initrd",
                format!("loglevel=4 panic=1 tsc=reliable {words}"),
            ),
            None => (
                "/boot/capture.initrd",
                format!(
                    "quiet nr_cpus=1 irqpoll reset_devices labdump={}",
                    dumps.join(";")
                ),
            ),
        };
        let load = format!(
            "kexec -p /boot/vmlinuz --initrd={initrd} --append='console=ttyS0 {append}' && \
             cat /sys/kernel/kexec_crash_loaded && sysctl -w kernel.unknown_nmi_panic=1"
        );
        agent
            .run(&load, Duration::from_secs(60))?
            .success("kexec -p")?;
    }
    if scenario.keeper {
        let load = format!("insmod {}", keeper::IN_HOST);
        agent.run(&load, Duration::from_secs(60))?.success(&load)?;
    }
    set_up_host(agent, scenario)?;
    for guest in &scenario.guests {
        if !guest.phase.starts_late() {
            start_guest(agent, guest)?;
        }
    }
    if let Some(pid) = scenario.process {
        agent
            .run("mkdir -p /data/process", Duration::from_secs(20))?
            .success("mkdir")?;
        let line = "lab-process /data/process";
        start(agent, "process", pid, line, "/data/process/out")?;
    }
    if states::runs_in(scenario) {
        states::start(agent)?;
    }
    // Nothing of the preparation is unwritten: what the crash finds dirty is
    // what guests and program have written since.
    agent
        .run("sync", Duration::from_secs(30))?
        .success("sync")?;
    let late = |name: &String| {
        let mut late = scenario.guests.iter().filter(|g| g.phase.starts_late());
        late.any(|guest| guest.name == *name)
    };
    for name in scenario.output_names().iter().filter(|name| !late(name)) {
        let path = Scenario::output_path(name);
        agent.follow(name, &path)?;
        agent.wait_lines(name, scenario.warm_up, Duration::from_secs(240))?;
    }
    Ok(())
}

/// Makes a guest's disk and all it needs, and starts its VMM.
fn start_guest(agent: &mut Agent, guest: &Guest) -> Result<()> {
    if guest.has_raw_disk() {
        let make = format!("truncate -s {}M /data/{}.disk", guest.disk_mib, guest.name);
        agent.run(&make, Duration::from_secs(20))?.success(&make)?;
    }
    if let Some(prepare) = guest.preparation() {
        agent
            .run(&prepare, Duration::from_secs(60))?
            .success(&prepare)?;
    }
    start(
        agent,
        &guest.name,
        guest.pid,
        &guest.command_line(),
        &log_of(guest),
    )
}

/// What the guests' administrators have the host do at each boot.
pub fn set_up_host(agent: &mut Agent, scenario: &Scenario) -> Result<()> {
    if states::runs_in(scenario) {
        agent
            .run(states::SET_UP, Duration::from_secs(60))?
            .success("set up")?;
    }
    for setup in scenario.guests.iter().filter_map(Guest::setup_at_boot) {
        agent
            .run(&setup, Duration::from_secs(60))?
            .success(&setup)?;
    }
    Ok(())
}

fn log_of(guest: &Guest) -> String {
    format!("/data/{}.log", guest.name)
}

/// Starts a program in a session of its own under the PID that the scenario
/// says: PIDs as high as on a host that has been up for a while, so that they
/// are free after the reboot.
fn start(agent: &mut Agent, name: &str, pid: u32, line: &str, out: &str) -> Result<()> {
    let log = if name == "process" {
        "/data/process/err".to_owned()
    } else {
        out.to_owned()
    };
    let command = format!(
        "echo {} > /proc/sys/kernel/ns_last_pid; \
         setsid {line} </dev/null >{out} 2>>{log} & echo $!",
        pid - 1
    );
    let got = agent
        .run(&command, Duration::from_secs(20))?
        .success(name)?;
    ensure!(
        got.stdout.trim() == pid.to_string(),
        "{name}: PID {} instead of {pid}",
        got.stdout.trim()
    );
    Ok(())
}

/// A host whose capture kernel is a host: boots it, starts all, lets it die, and waits until the
/// capture kernel has the same root up. What happens there is up to the caller; the memory of the
/// dead kernel is in `/proc/vmcore`.
pub(crate) fn into_capture_kernel(
    dir: &Path,
    images: &Images,
    scenario: &Scenario,
    mut extra: Extra,
) -> Result<Captured> {
    let initrd = ("host.initrd".to_owned(), images.initrd.clone());
    extra.luggage.push(initrd);
    let mut lost = 0;
    let mut machine = loop {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir)?;
        match bring_to_crash(dir, images, scenario, &mut extra) {
            Ok(machine) => break machine,
            Err(error) if lost + 1 < ATTEMPTS => {
                lost += 1;
                eprintln!("lab: lost before the crash ({lost} of {ATTEMPTS}): {error:#}");
            }
            Err(error) => return Err(error.context(format!("kept in {}", dir.display()))),
        }
    };
    let died = Instant::now();
    match scenario.death {
        Death::Nmi => {
            machine.qmp.command("inject-nmi", json!({}))?;
        }
        Death::Sysrq | Death::Paused => {
            let crash = "echo c > /proc/sysrq-trigger";
            machine.agent.send_run(crash, Duration::from_secs(600))?;
        }
    }
    let before = machine
        .agent
        .wait_up_again(Duration::from_secs(180))
        .map_err(|error| machine.explain(error))
        .with_context(|| format!("the console ends:\n{}", machine.console_end()))?;
    let up = died.elapsed();
    set_up_host(&mut machine.agent, scenario)?;
    Ok(Captured {
        machine,
        before,
        died,
        up,
    })
}

/// See [`into_capture_kernel`].
pub(crate) struct Captured {
    pub machine: Machine,
    /// What had been seen of each followed file when the host died.
    pub before: BTreeMap<String, Vec<u8>>,
    pub died: Instant,
    /// From then to the agent's first word in the capture kernel.
    pub up: Duration,
}

/// The host's last moments, and its dumps out to `work`. When it was off.
fn die(
    machine: &mut Machine,
    work: &Path,
    scenario: &Scenario,
    keep: &[String],
) -> Result<Instant> {
    match scenario.death {
        Death::Sysrq => {
            machine
                .agent
                .send_run("echo c > /proc/sysrq-trigger", Duration::from_secs(600))?;
        }
        Death::Nmi => {
            machine.qmp.command("inject-nmi", json!({}))?;
        }
        Death::Paused => {
            machine.qmp.command("stop", json!({}))?;
            let asked = json!({ "command-line": "info registers -a" });
            let said = machine.qmp.command("human-monitor-command", asked)?;
            let text = said
                .as_str()
                .context("human-monitor-command says no text")?;
            std::fs::write(work.join(REGISTERS), text)?;
            for dump in &scenario.dumps {
                let to = std::path::absolute(work.join(&dump.name))?;
                let mut arguments = json!({
                    "paging": false,
                    "protocol": format!("file:{}", to.display()),
                });
                if dump.options != "elf" {
                    arguments["format"] = json!(dump.options);
                }
                machine.qmp.command("dump-guest-memory", arguments)?;
            }
            machine.qmp.command("quit", json!({}))?;
            machine.wait_off(Duration::from_secs(60))?;
            for dump in &scenario.dumps {
                dig_holes(&work.join(&dump.name))?;
            }
            let off = Instant::now();
            std::fs::remove_file(work.join("dump.img"))?;
            return Ok(off);
        }
    }
    machine.wait_off(Duration::from_secs(600))?;
    let off = Instant::now();
    let console = std::fs::read(&machine.console)?;
    let console = String::from_utf8_lossy(&console);
    ensure!(
        console.contains("LAB CAPTURE DONE"),
        "the capture kernel has not finished; the console ends:\n{}",
        machine.console_end()
    );
    let mut files = Vec::new();
    for dump in &scenario.dumps {
        ensure!(
            console.contains(&format!("LAB DUMP {} 0", dump.name)),
            "makedumpfile {} failed; the console ends:\n{}",
            dump.options,
            machine.console_end()
        );
        files.push((format!("/{}", dump.name), work.join(&dump.name)));
    }
    let image = work.join("dump.img");
    read_ext4(&image, &files)?;
    for (name, file) in &files {
        let length = std::fs::metadata(file).map_or(0, |meta| meta.len());
        ensure!(length > 1 << 20, "dump {name} has only {length} bytes");
        dig_holes(file)?;
    }
    let keep = keep
        .iter()
        .map(|name| (format!("/{name}"), work.join(name)));
    read_ext4(&image, &keep.collect::<Vec<_>>())?;
    std::fs::remove_file(image)?;
    Ok(off)
}

/// Most of a machine's memory is zeros, which need no room on the disk.
fn dig_holes(file: &Path) -> Result<()> {
    run(Command::new("fallocate").arg("--dig-holes").arg(file)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_measured_by_a_guests_own_pace() {
        let lines = |step: u64| -> Vec<u8> {
            let line = |n: u64| format!("L n={n} wall=7 t={} crc=1\n", n * step);
            (0..20).map(line).collect::<String>().into_bytes()
        };
        assert_eq!(longest_silence(&lines(100)), Duration::from_millis(1300));
        assert_eq!(longest_silence(&lines(1500)), Duration::from_millis(5500));
        assert_eq!(longest_silence(&lines(9000)), LONGEST_SILENCE);
        assert_eq!(longest_silence(b""), LONGEST_SILENCE);
    }
}
