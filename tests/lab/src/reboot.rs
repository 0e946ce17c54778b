//! The host after its death: a fresh boot of the same root with the data disk
//! as the crash left it, the dump, and the programs to try on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::agent::Output;
use crate::crash::{self, CachedDump};
use crate::guest::Guest;
use crate::images::{Images, make_ext4, read_ext4};
use crate::judge::{self, Verdict};
use crate::machine::{Disk, Hardware, Machine};
use crate::phase::Phase;
use crate::scenario::Scenario;

/// What the host and the threads of its VMMs are doing, and where their vCPUs are.
const LOOK_AROUND: &str = "\
    uptime; cat /proc/interrupts; cat /proc/meminfo | head -n 5; ls -l /data; \
    for p in $(pidof qemu-system-x86_64 vmrestore); do for t in /proc/$p/task/*; do \
        echo \"$t $(cat $t/comm) $(cut -d' ' -f3,14,15 $t/stat) $(cat $t/wchan)\"; \
        cat $t/syscall $t/stack; done; done; \
    for q in /run/*.qmp; do \
        timeout 5 qmp $q '{\"execute\":\"query-status\"}' \
            '{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"info registers -a\"}}' \
            '{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"info lapic\"}}' \
            '{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"info pic\"}}' \
            '{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"info irq\"}}'; \
    done; dmesg | tail -n 30";

/// What is taken along into the rebooted host.
#[derive(Clone, Debug, Default)]
pub struct Luggage {
    /// Programs and files for `/tools`, which is first on the PATH: (name, file).
    pub tools: Vec<(String, PathBuf)>,
    /// Files for `/dump`: (name, file). Without any: all of the dump's files.
    pub dumps: Vec<(String, PathBuf)>,
    /// One more boot: `/data`, `/dump` and the swap disk are as this run left them, which
    /// [`Rebooted::shut_down`] ended.
    pub after: Option<PathBuf>,
}

impl Luggage {
    /// The vmrestore binary and nothing else.
    #[must_use]
    pub fn vmrestore(binary: &Path) -> Self {
        Self {
            tools: vec![("vmrestore".into(), binary.to_owned())],
            dumps: vec![],
            after: None,
        }
    }
}

/// A host that is up again.
pub struct Rebooted {
    /// Its machine.
    pub machine: Machine,
    scenario: Scenario,
    before: Before,
    dir: PathBuf,
    /// When the machine was started, the last time.
    pub started: Instant,
    /// In the capture kernel: when the host died, and how long it took until this was up.
    pub died: Option<(Instant, Duration)>,
}

/// What guests and program had printed when the host died, by name.
type Before = BTreeMap<String, Vec<u8>>;

/// What the data disk held after the host went down in order.
pub struct Aftermath {
    files: BTreeMap<String, Vec<u8>>,
    scenario: Scenario,
    before: Before,
}

/// Boots the host again. `dir` takes the run's files and is emptied first.
pub fn reboot(
    images: &Images,
    dump: &CachedDump,
    luggage: &Luggage,
    hardware: &Hardware,
    dir: &Path,
) -> Result<Rebooted> {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir)?;
    let data = dir.join("data.img");
    match &luggage.after {
        Some(run) => copy_sparse(&run.join("data.img"), &data)?,
        None => copy_sparse(&dump.data_disk(), &data)?,
    }
    let mut dumps = luggage.dumps.clone();
    if dumps.is_empty() {
        for file in &dump.record.scenario.dumps {
            dumps.push((file.name.clone(), dump.file(&file.name)));
        }
        let registers = dump.file(crash::REGISTERS);
        if registers.exists() {
            dumps.push((crash::REGISTERS.to_owned(), registers));
        }
    }
    let dump_disk = match &luggage.after {
        Some(run) => {
            let image = dir.join("dump.img");
            copy_sparse(&run.join("dump.img"), &image)?;
            image
        }
        None => pack(dir, "dump", &dumps, 512)?,
    };
    let disks = [
        ("data", data, false),
        ("dump", dump_disk, false),
        ("tools", pack(dir, "tools", &luggage.tools, 8)?, true),
    ]
    .map(|(serial, image, throw_away)| Disk {
        serial: serial.into(),
        slot: None,
        image,
        throw_away,
    });
    let mut disks = Vec::from(disks);
    for (number, guest) in dump.record.scenario.guests.iter().enumerate() {
        if let Some(name) = guest.host_disk() {
            let image = dir.join(&name);
            copy_sparse(&dump.file(&name), &image)?;
            disks.push(Disk {
                serial: guest.name.clone(),
                slot: Some(crash::HOST_DISK_SLOT + number),
                image,
                throw_away: false,
            });
        }
    }
    if dump.record.scenario.swap_mib > 0 {
        let image = dir.join(crash::SWAP_DISK);
        let before = luggage.after.as_ref().unwrap_or(&dump.dir);
        copy_sparse(&before.join(crash::SWAP_DISK), &image)?;
        disks.push(crash::swap_disk(image));
    }
    let started = Instant::now();
    let mut machine = Machine::start(images, hardware, &disks, dir)?;
    machine
        .agent
        .wait_up(Duration::from_secs(180))
        .with_context(|| format!("the host's console ends:\n{}", machine.console_end()))?;
    let scenario = dump.record.scenario.clone();
    crash::set_up_host(&mut machine.agent, &scenario)?;
    let before = scenario
        .output_names()
        .into_iter()
        .map(|name| (name.clone(), dump.before(&name)))
        .collect();
    Ok(Rebooted {
        machine,
        scenario,
        before,
        dir: dir.to_owned(),
        started,
        died: None,
    })
}

/// A fresh host with the scenario's guests running, that nobody crashes. What
/// has been seen of them by now counts as "before".
pub fn live(
    images: &Images,
    scenario: &Scenario,
    luggage: &Luggage,
    dir: &Path,
) -> Result<Rebooted> {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir)?;
    let data = dir.join("data.img");
    make_ext4(&data, None, crash::DATA_DISK_MIB)?;
    let disks = [
        ("data", data, false),
        ("dump", pack(dir, "dump", &luggage.dumps, 1024)?, false),
        ("tools", pack(dir, "tools", &luggage.tools, 8)?, true),
    ]
    .map(|(serial, image, throw_away)| Disk {
        serial: serial.into(),
        slot: None,
        image,
        throw_away,
    });
    let started = Instant::now();
    let mut machine = Machine::start(images, &scenario.hardware, &disks, dir)?;
    crash::start_all(&mut machine, scenario)
        .with_context(|| format!("the host's console ends:\n{}", machine.console_end()))?;
    let before = scenario
        .output_names()
        .into_iter()
        .map(|name| (name.clone(), machine.agent.tail(&name)))
        .collect();
    Ok(Rebooted {
        machine,
        scenario: scenario.clone(),
        before,
        dir: dir.to_owned(),
        started,
        died: None,
    })
}

/// A host that has died, in its capture kernel, which brought the same root up: see
/// [`Scenario::capture_host`].
pub fn capture(
    images: &Images,
    scenario: &Scenario,
    extra: crash::Extra<'_>,
    dir: &Path,
) -> Result<Rebooted> {
    let captured = crash::into_capture_kernel(dir, images, scenario, extra)?;
    Ok(Rebooted {
        machine: captured.machine,
        scenario: scenario.clone(),
        before: captured.before,
        dir: dir.to_owned(),
        started: captured.died,
        died: Some((captured.died, captured.up)),
    })
}

/// An ext4 image of these files, with `spare` MiB to write.
pub(crate) fn pack(
    dir: &Path,
    name: &str,
    files: &[(String, PathBuf)],
    spare: u64,
) -> Result<PathBuf> {
    let stage = dir.join(format!("{name}.stage"));
    std::fs::create_dir_all(&stage)?;
    let mut bytes = 0;
    for (name, file) in files {
        let to = stage.join(name);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // A link where the filesystem allows it: dumps are large.
        if std::fs::hard_link(file, &to).is_err() {
            std::fs::copy(file, &to).with_context(|| file.display().to_string())?;
        }
        bytes += std::fs::metadata(&to)?.len();
    }
    let image = dir.join(format!("{name}.img"));
    make_ext4(&image, Some(&stage), (bytes >> 20) * 21 / 20 + 16 + spare)?;
    std::fs::remove_dir_all(&stage)?;
    Ok(image)
}

fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    crate::debian::run(
        std::process::Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .arg(from)
            .arg(to),
    )
    .map(drop)
}

impl Rebooted {
    /// Names of the guests, and `process`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.scenario.output_names()
    }

    /// What `name` had printed when the host died, as seen from outside.
    #[must_use]
    pub fn before(&self, name: &str) -> &[u8] {
        self.before.get(name).map_or(&[], Vec::as_slice)
    }

    /// Runs a shell command in the host.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        let ran = self.machine.agent.run(command, limit);
        ran.map_err(|error| self.machine.explain(error))
    }

    /// Streams the outputs of all guests and of the program from now on.
    pub fn follow_all(&mut self) -> Result<()> {
        for name in self.scenario.output_names() {
            let path = Scenario::output_path(&name);
            self.machine.agent.follow(&name, &path)?;
        }
        Ok(())
    }

    /// Waits until `name` has printed `count` lines more than it had, as seen
    /// from outside, when the host died. Where they do not come, the error says what the host and
    /// its VMMs are doing.
    pub fn wait_new_lines(&mut self, name: &str, count: usize, limit: Duration) -> Result<()> {
        let before = self.before(name);
        let lines = before.iter().filter(|byte| **byte == b'\n').count();
        let waited = self.machine.agent.wait_lines(name, lines + count, limit);
        waited.map_err(|error| {
            let (has, silent) = (
                self.machine.agent.tail(name).len(),
                self.machine.agent.silent_for(name),
            );
            let looked = self.run(LOOK_AROUND, Duration::from_secs(120));
            let seen = looked.map_or_else(|error| format!("{error:#}"), |output| output.stdout);
            error.context(format!(
                "{name}: {has} bytes, silent for {silent:?}; the host:\n{seen}"
            ))
        })
    }

    /// From the host's death to the first byte that `name` has printed since, in the capture
    /// kernel. The outputs must have been followed.
    #[must_use]
    pub fn silence(&self, name: &str) -> Option<Duration> {
        let (died, _) = self.died?;
        Some(self.first_new(name)?.saturating_duration_since(died))
    }

    /// When the first byte came that `name` has printed since the host died. The outputs must have
    /// been followed.
    #[must_use]
    pub fn first_new(&self, name: &str) -> Option<Instant> {
        let before = self.before(name).len();
        self.machine.agent.when_longer(name, before)
    }

    /// Sends QMP commands to the guest's own VMM.
    pub fn qmp(&mut self, guest: &str, commands: &[&str]) -> Result<Output> {
        let commands: Vec<String> = commands.iter().map(|c| format!("'{c}'")).collect();
        self.run(
            &format!("qmp /run/{guest}.qmp {}", commands.join(" ")),
            Duration::from_secs(60),
        )
    }

    /// Where a guest's disk is no file of blocks on the data disk, all VMMs are
    /// ended and it is made one.
    fn collect(&mut self) -> Result<()> {
        let guests = self.scenario.guests.iter();
        let steps: Vec<String> = guests.filter_map(Guest::collection).collect();
        if steps.is_empty() {
            return Ok(());
        }
        let end = "for i in $(seq 100); do \
                       p=$(ps | grep '[q]emu-system' | awk '{print $1}'); \
                       [ -z \"$p\" ] && exit 0; kill $p; sleep 0.3; done; exit 1";
        self.run(end, Duration::from_secs(90))?
            .success("end VMMs")?;
        for step in steps {
            self.run(&step, Duration::from_secs(90))?.success(&step)?;
        }
        Ok(())
    }

    /// Turns the host off; its disks stay in the directory that is returned,
    /// for [`Luggage::after`].
    pub fn shut_down(mut self) -> Result<PathBuf> {
        self.machine.agent.power_off()?;
        self.machine.wait_off(Duration::from_secs(120))?;
        Ok(self.dir)
    }

    /// Turns the host off and reads its data disk.
    pub fn finish(mut self) -> Result<Aftermath> {
        self.collect()?;
        self.machine.agent.power_off()?;
        self.ended(Duration::from_secs(120))
    }

    /// Waits until the host has turned itself off, or has reset itself, and reads its data disk.
    pub fn ended(mut self, limit: Duration) -> Result<Aftermath> {
        self.machine.wait_off(limit)?;
        let mut wanted: Vec<(String, String)> = Vec::new();
        for name in self.scenario.output_names() {
            let path = Scenario::output_path(&name);
            wanted.push((name, path));
        }
        for guest in &self.scenario.guests {
            for kind in ["disk", "log"] {
                let name = format!("{}.{kind}", guest.name);
                let path = format!("/data/{name}");
                wanted.push((name, path));
            }
        }
        for file in ["items.log", "counter.map", "err"] {
            wanted.push((file.into(), format!("/data/process/{file}")));
        }
        let after = self.dir.join("after");
        std::fs::create_dir_all(&after)?;
        let paths: Vec<(String, PathBuf)> = wanted
            .iter()
            .map(|(name, path)| {
                let inside = path.strip_prefix("/data").unwrap_or(path);
                (inside.to_owned(), after.join(name))
            })
            .collect();
        read_ext4(&self.dir.join("data.img"), &paths)?;
        let mut files = BTreeMap::new();
        for (name, _) in &wanted {
            if let Ok(bytes) = std::fs::read(after.join(name)) {
                files.insert(name.clone(), bytes);
            }
        }
        Ok(Aftermath {
            files,
            scenario: self.scenario,
            before: self.before,
        })
    }
}

impl Aftermath {
    fn before(&self, name: &str) -> &[u8] {
        self.before.get(name).map_or(&[], Vec::as_slice)
    }

    /// A file of the data disk: an output by its name, `NAME.disk`,
    /// `items.log`, `counter.map`; empty if it was not there.
    #[must_use]
    pub fn file(&self, name: &str) -> &[u8] {
        self.files.get(name).map_or(&[], Vec::as_slice)
    }

    /// What a guest, which had moved to another host, left there goes on from here: its output
    /// after this one's, and its disk in place of this one's.
    pub fn goes_on(&mut self, name: &str, there: &Self) {
        let output = self.files.entry(name.to_owned()).or_default();
        output.extend_from_slice(there.file(name));
        let disk = format!("{name}.disk");
        if let Some(bytes) = there.files.get(&disk) {
            self.files.insert(disk, bytes.clone());
        }
    }

    /// The judge's word on one guest or on `process`: all it ever printed,
    /// against what was seen before the crash; at least `new_lines` lines must
    /// have come since.
    #[must_use]
    pub fn verdict(&self, name: &str, new_lines: usize) -> Verdict {
        let before = self.before(name);
        let after = self.file(name);
        if name == "process" {
            return judge::process(
                before,
                after,
                self.file("items.log"),
                self.file("counter.map"),
                new_lines,
            );
        }
        let resets = |g: &Guest| g.name == name && g.phase == Phase::Resetting;
        if self.scenario.guests.iter().any(resets) {
            return judge::reset_guest(before, after, new_lines);
        }
        let raw = |g: &Guest| g.name == name && g.is_disk_judged();
        let disk = match self.scenario.guests.iter().any(raw) {
            true => self.file(&format!("{name}.disk")),
            false => &[],
        };
        judge::guest(before, after, (!disk.is_empty()).then_some(disk), new_lines)
    }

    /// All verdicts: (name, verdict).
    #[must_use]
    pub fn verdicts(&self, new_lines: usize) -> Vec<(String, Verdict)> {
        self.scenario
            .output_names()
            .into_iter()
            .map(|name| {
                let verdict = self.verdict(&name, new_lines);
                (name, verdict)
            })
            .collect()
    }
}
