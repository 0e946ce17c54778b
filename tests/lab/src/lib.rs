//! The lab: makes real dumps of real crashes, reboots into a fresh host, and
//! judges what came back.
//!
//! ```text
//!  Debian's packages ─▶ debian ─▶ images ─┐
//!  guest-images/ ─────▶ programs ─────────┤
//!                                         ▼
//!  scenario ─────────▶ crash ◀─────── machine (QEMU, TCG + SVM)
//!                        │ CachedDump     ▲ agent, qmp
//!                        ▼                │
//!                      reboot ────────────┘
//!                        │ Aftermath: outputs and disks
//!                        ▼
//!                      judge ─▶ Verdict
//! ```
//!
//! The host is a Linux under QEMU's TCG, which emulates AMD's SVM: its
//! `kvm_amd`, its QEMUs, its panic and its kdump are Debian's own. Nothing
//! needs root, `/dev/kvm` or the network (once the packages are there).
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//! use vmrestore_lab::{Lab, Luggage, Scenario};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::prepare()?;
//! let scenario = Scenario::named("main").unwrap();
//! let dump = lab.dump(&scenario)?;
//! let mut host = lab.reboot(&dump, &Luggage::vmrestore(Path::new("target/release/vmrestore")))?;
//! host.run("vmrestore guests /dump/hostdump", Duration::from_secs(120))?.success("restore")?;
//! host.follow_all()?;
//! host.wait_new_lines("g1", 20, Duration::from_secs(120))?;
//! let aftermath = host.finish()?;
//! assert!(aftermath.verdict("g1", 20).is_good());
//! # Ok(())
//! # }
//! ```

pub mod agent;
pub mod campaign;
pub mod clean;
pub mod cpio;
pub mod crash;
pub mod debian;
pub mod demo;
pub mod downtime;
pub mod drgn;
pub mod flavours;
pub mod grow;
pub mod guest;
pub mod images;
pub mod installed;
pub mod judge;
pub mod keeper;
pub mod machine;
pub mod measure;
pub mod neighbour;
pub mod network_card;
pub mod phase;
pub mod programs;
pub mod qmp;
pub mod reboot;
pub mod recode;
pub mod scenario;
pub mod states;
pub mod suite;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use agent::Output;
pub use crash::CachedDump;
pub use judge::Verdict;
pub use machine::{Hardware, Machine};
pub use reboot::{Aftermath, Luggage, Rebooted};
pub use scenario::{MAIN_DUMP, Scenario};

/// The lab with its host images ready.
pub struct Lab {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// The host's images.
    pub images: images::Images,
}

impl Lab {
    /// `$VMRESTORE_LAB_DIR`, else `target/lab` of this project.
    #[must_use]
    pub fn directory() -> PathBuf {
        std::env::var_os("VMRESTORE_LAB_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab"),
            PathBuf::from,
        )
    }

    /// Builds programs and images that are not there yet. The first time, gets
    /// what this machine lacks from Debian's packages.
    pub fn prepare() -> Result<Self> {
        Self::with(debian::Debian::new, &[])
    }

    /// The same with Debian's kernel for any machine as the host's.
    pub fn prepare_generic() -> Result<Self> {
        Self::with(debian::Debian::generic, &[])
    }

    /// The same with the kernel of a newer Debian as the host's and its guests'.
    pub fn prepare_newer() -> Result<Self> {
        Self::with(debian::Debian::newer, &[])
    }

    /// A host of Debian 12 that boots Debian 13's kernel, and has guests of before.
    pub fn prepare_updated() -> Result<Self> {
        Self::with(debian::Debian::updated, &[])
    }

    /// The same with a root on which these packages of Debian's are installed.
    pub fn prepare_with_installed(packages: &[&str]) -> Result<Self> {
        Self::with(debian::Debian::new, packages)
    }

    fn with(debian: impl FnOnce(&Path) -> debian::Debian, installed: &[&str]) -> Result<Self> {
        let dir = Self::directory();
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let dir = dir.canonicalize()?;
        let programs = programs::Programs::build(&dir)?;
        let installed = match installed {
            [] => None,
            packages => Some(installed::Installed::get(&dir, packages)?),
        };
        let images = images::Images::build(&dir, &debian(&dir), &programs, installed.as_ref())?;
        Ok(Self { dir, images })
    }

    /// The scenario's dump, from the cache or made now.
    pub fn dump(&self, scenario: &Scenario) -> Result<CachedDump> {
        crash::dump(&self.dir, &self.images, scenario)
    }

    /// A crash for one use, its files in `dir`, with more than the scenario says.
    pub fn crash_once(
        &self,
        scenario: &Scenario,
        dir: &Path,
        extra: crash::Extra<'_>,
    ) -> Result<()> {
        crash::once(dir, &self.images, scenario, extra).map(drop)
    }

    /// A crash for one test: a dump that is in no cache, in the directory of a run.
    pub fn crash(&self, scenario: Scenario, extra: crash::Extra<'_>) -> Result<CachedDump> {
        let dir = self.new_run();
        let (to_crash, to_dump) = crash::once(&dir, &self.images, &scenario, extra)?;
        let record = crash::Record {
            scenario,
            images: self.images.key.clone(),
            seconds_to_crash: to_crash.as_secs_f64(),
            seconds_to_dump: to_dump.as_secs_f64(),
            lost_attempts: Vec::new(),
        };
        // So that it can be found again by its directory.
        std::fs::write(
            dir.join("record.json"),
            serde_json::to_string_pretty(&record)?,
        )?;
        Ok(CachedDump { dir, record })
    }

    /// Builds `tests/programs/NAME.c` without shared libraries, for a host to
    /// run: a file of this process's own, which is the caller's to remove.
    pub fn test_program(&self, name: &str) -> Result<PathBuf> {
        programs::build_static(name, &self.dir)
    }

    /// The shared libraries that a program of this machine needs, as luggage
    /// for an environment that lacks them: (`lib/NAME`, file).
    pub fn libraries(&self, program: &Path) -> Result<Vec<(String, PathBuf)>> {
        let libraries = debian::Debian::new(&self.dir).libraries(program)?;
        let named = libraries.into_iter().filter_map(|(_, file)| {
            let name = file.file_name()?.to_string_lossy().into_owned();
            // The environment's own dynamic linker fits its own C library, which
            // is the same where both come from Debian 12.
            (!name.starts_with("ld-linux")).then(|| (format!("lib/{name}"), file))
        });
        Ok(named.collect())
    }

    /// Debian 12's makedumpfile, which the capture kernel uses, to be given
    /// arguments here.
    pub fn old_makedumpfile(&self) -> Result<std::process::Command> {
        debian::Debian::new(&self.dir).command("/usr/bin/makedumpfile")
    }

    /// Debian 13's makedumpfile, which knows zstd.
    pub fn new_makedumpfile(&self) -> Result<std::process::Command> {
        Ok(suite::Foreign::makedumpfile(&self.dir)?.command())
    }

    /// A Python that has drgn.
    pub fn python_with_drgn(&self) -> Result<PathBuf> {
        drgn::python(&self.dir)
    }

    /// The lab as it was for this dump: nothing is built, the images are those
    /// of the host that died.
    pub fn of(dump: &CachedDump) -> Result<Self> {
        let dir = Self::directory().canonicalize()?;
        let images = images::Images::at(&dir, &dump.record.images);
        anyhow::ensure!(
            images.root.exists(),
            "{}: the host's images are gone; make the dump again",
            images.root.display()
        );
        Ok(Self { dir, images })
    }

    /// A fresh boot of the host that died, with its data disk and its dump.
    pub fn reboot(&self, dump: &CachedDump, luggage: &Luggage) -> Result<Rebooted> {
        self.reboot_in(dump, luggage, &self.new_run())
    }

    /// The scenario's host after its crash, in its capture kernel.
    pub fn in_capture_kernel(
        &self,
        scenario: &Scenario,
        extra: crash::Extra<'_>,
        dir: &Path,
    ) -> Result<Rebooted> {
        reboot::capture(&self.images, scenario, extra, dir)
    }

    /// A directory for the files of one more run.
    #[must_use]
    pub fn new_run(&self) -> PathBuf {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.dir
            .join("runs")
            .join(format!("{}-{number}", std::process::id()))
    }

    /// A host with the scenario's guests running, that nobody crashes.
    pub fn live(&self, scenario: &Scenario, luggage: &Luggage, dir: &Path) -> Result<Rebooted> {
        reboot::live(&self.images, scenario, luggage, dir)
    }

    /// As [`Lab::reboot`], with the run's files in `dir`.
    pub fn reboot_in(&self, dump: &CachedDump, luggage: &Luggage, dir: &Path) -> Result<Rebooted> {
        // The images that died, not those of today's sources.
        let images = images::Images::at(&self.dir, &dump.record.images);
        Self::boot(&images, dump, luggage, dir)
    }

    /// The same with this lab's kernel and programs, whatever those were that died.
    pub fn reboot_updated(&self, dump: &CachedDump, luggage: &Luggage) -> Result<Rebooted> {
        Self::boot(&self.images, dump, luggage, &self.new_run())
    }

    fn boot(
        images: &images::Images,
        dump: &CachedDump,
        luggage: &Luggage,
        dir: &Path,
    ) -> Result<Rebooted> {
        let hardware = Hardware {
            cpus: dump.record.scenario.reboot_cpus,
            ..dump.record.scenario.hardware.clone()
        };
        reboot::reboot(images, dump, luggage, &hardware, dir)
    }

    /// A dump by the name of its directory or the beginning of it, the newest
    /// first; or a path to its directory.
    pub fn find_dump(dir: &Path, key: &str) -> Result<CachedDump> {
        if Path::new(key).join("record.json").exists() {
            return CachedDump::open(Path::new(key));
        }
        let found = cached_dumps(dir)
            .into_iter()
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(key))
            })
            .with_context(|| format!("no dump {key:?} in {}/dumps", dir.display()))?;
        CachedDump::open(&found)
    }
}

/// Directories of all finished dumps, the newest first.
#[must_use]
pub fn cached_dumps(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("dumps")).into_iter().flatten();
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let record = std::fs::metadata(entry.path().join("record.json")).ok()?;
            Some((record.modified().ok()?, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}
