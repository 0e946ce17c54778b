//! The host after its death: a fresh boot of the same root with the data disk
//! as the crash left it, the dump, and the programs to try on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent::Output;
use crate::crash::{self, CachedDump};
use crate::images::{Images, make_ext4, read_ext4};
use crate::judge::{self, Verdict};
use crate::machine::{Disk, Hardware, Machine};
use crate::scenario::Scenario;

/// What is taken along into the rebooted host.
#[derive(Clone, Debug, Default)]
pub struct Luggage {
    /// Programs and files for `/tools`, which is first on the PATH: (name, file).
    pub tools: Vec<(String, PathBuf)>,
    /// Files for `/dump`: (name, file). Without any: all of the dump's files.
    pub dumps: Vec<(String, PathBuf)>,
}

impl Luggage {
    /// The vmrestore binary and nothing else.
    #[must_use]
    pub fn vmrestore(binary: &Path) -> Self {
        Self {
            tools: vec![("vmrestore".into(), binary.to_owned())],
            dumps: vec![],
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
    copy_sparse(&dump.data_disk(), &data)?;
    let mut dumps = luggage.dumps.clone();
    if dumps.is_empty() {
        for file in &dump.record.scenario.dumps {
            dumps.push((file.name.clone(), dump.file(&file.name)));
        }
    }
    let disks = [
        ("data", data, false),
        ("dump", pack(dir, "dump", &dumps, 512)?, false),
        ("tools", pack(dir, "tools", &luggage.tools, 8)?, true),
    ]
    .map(|(serial, image, throw_away)| Disk {
        serial,
        image,
        throw_away,
    });
    let machine = Machine::start(images, hardware, &disks, dir)?;
    machine
        .agent
        .wait_up(Duration::from_secs(180))
        .with_context(|| format!("the host's console ends:\n{}", machine.console_end()))?;
    let scenario = dump.record.scenario.clone();
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
        serial,
        image,
        throw_away,
    });
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

    fn before(&self, name: &str) -> &[u8] {
        self.before.get(name).map_or(&[], Vec::as_slice)
    }

    /// Runs a shell command in the host.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.machine.agent.run(command, limit)
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
    /// from outside, when the host died.
    pub fn wait_new_lines(&self, name: &str, count: usize, limit: Duration) -> Result<()> {
        let before = self.before(name);
        let lines = before.iter().filter(|byte| **byte == b'\n').count();
        self.machine.agent.wait_lines(name, lines + count, limit)
    }

    /// Sends QMP commands to the guest's own VMM.
    pub fn qmp(&mut self, guest: &str, commands: &[&str]) -> Result<Output> {
        let commands: Vec<String> = commands.iter().map(|c| format!("'{c}'")).collect();
        self.run(
            &format!("qmp /run/{guest}.qmp {}", commands.join(" ")),
            Duration::from_secs(60),
        )
    }

    /// Turns the host off and reads its data disk.
    pub fn finish(mut self) -> Result<Aftermath> {
        self.machine.agent.power_off()?;
        self.machine.wait_off(Duration::from_secs(120))?;
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
        let disk = self.file(&format!("{name}.disk"));
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
