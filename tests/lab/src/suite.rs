//! Packages of another suite of Debian than this machine's, by a package index
//! of its own below the lab's directory: nothing of the machine's changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::{image_of, run, unpack_modules};

/// Debian 13: the first suite whose makedumpfile knows zstd.
const NEWER: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A program of another suite with its libraries and its dynamic linker,
/// unpacked and never installed.
#[derive(Clone, Debug)]
pub struct Foreign {
    root: PathBuf,
    program: PathBuf,
}

impl Foreign {
    /// makedumpfile of the suite `$VMRESTORE_LAB_SUITE`, or of Debian 13, which
    /// knows zlib, lzo and zstd. (No suite of Debian builds it with snappy.)
    pub fn makedumpfile(lab: &Path) -> Result<Self> {
        Self::of_package(lab, "makedumpfile", "usr/bin/makedumpfile")
    }

    /// QEMU of Debian 13 (10.0), or of `$VMRESTORE_LAB_SUITE`.
    pub fn qemu(lab: &Path) -> Result<Self> {
        Self::of_package(lab, "qemu-system-x86", "usr/bin/qemu-system-x86_64")
    }

    /// The kernel that the metapackage `meta` leads to in Debian 13 (6.12), or in
    /// `$VMRESTORE_LAB_SUITE`: where its package is unpacked, its modules too.
    pub fn kernel(lab: &Path, meta: &str) -> Result<PathBuf> {
        let suite = suite();
        let home = lab.join("packages").join(format!("{suite}-{meta}"));
        if !home.exists() {
            let choose = |apt: &Apt| {
                let depends = run(apt.command("apt-cache").args(["depends", meta]))?;
                Ok(vec![image_of(meta, &depends)?])
            };
            get(&suite, &home, choose, unpack_modules)
                .with_context(|| format!("{meta} of Debian's suite {suite} cannot be had"))?;
        }
        Ok(home)
    }

    /// The program, its dynamic linker and the libraries that it needs, for
    /// another place.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let listed = run(Command::new(self.linker())
            .args(["--library-path", &self.library_path(), "--list"])
            .arg(&self.program))?;
        let mut files = vec![self.program.clone(), self.linker()];
        for line in listed.lines().filter(|line| !line.contains("linux-vdso")) {
            let library = line.split_whitespace().find(|word| word.starts_with('/'));
            let library = library.with_context(|| {
                format!(
                    "{}: {} is in no package",
                    self.program.display(),
                    line.trim()
                )
            })?;
            let library = PathBuf::from(library);
            if !files.contains(&library) && !library.ends_with("ld-linux-x86-64.so.2") {
                files.push(library);
            }
        }
        Ok(files)
    }

    /// `program` of `package`, from the cache or got now.
    fn of_package(lab: &Path, package: &str, program: &str) -> Result<Self> {
        let suite = suite();
        let home = lab.join("packages").join(format!("{suite}-{package}"));
        if !home.exists() {
            get(&suite, &home, |apt| apt.libraries_of(package), |_| Ok(()))
                .with_context(|| format!("{package} of Debian's suite {suite} cannot be had"))?;
        }
        let found = Self {
            program: home.join(program),
            root: home,
        };
        ensure!(
            found.program.exists(),
            "{}: not in package {package} of {suite}",
            found.program.display()
        );
        Ok(found)
    }

    /// The program, to be given arguments: run by its own dynamic linker with
    /// its own libraries.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.linker());
        command
            .arg("--library-path")
            .arg(self.library_path())
            .arg(&self.program);
        command
    }

    fn library_path(&self) -> String {
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|dir| self.root.join(dir).display().to_string())
            .join(":")
    }

    fn linker(&self) -> PathBuf {
        // Debian 13 has it below /usr, 12 had it beside.
        ["usr/lib64", "lib64", "lib/x86_64-linux-gnu"]
            .map(|dir| self.root.join(dir).join("ld-linux-x86-64.so.2"))
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_else(|| "/lib64/ld-linux-x86-64.so.2".into())
    }
}

fn suite() -> String {
    std::env::var("VMRESTORE_LAB_SUITE").unwrap_or_else(|_| NEWER.to_owned())
}

/// Unpacks the packages of `suite` that `choose` names into `home`, which
/// appears only when all is there and `arrange` has done its part.
fn get(
    suite: &str,
    home: &Path,
    choose: impl FnOnce(&Apt) -> Result<Vec<String>>,
    arrange: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let work = home.with_extension(format!("work{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&work);
    let root = work.join("root");
    std::fs::create_dir_all(&root)?;
    let apt = Apt::of_suite(suite, &work.join("apt"))?;
    let packages = choose(&apt)?;
    eprintln!("lab: getting packages of {suite}: {}", packages.join(" "));
    let debs = work.join("debs");
    std::fs::create_dir_all(&debs)?;
    run(apt
        .command("apt-get")
        .args(["-q", "download"])
        .args(&packages)
        .current_dir(&debs))?;
    for entry in std::fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb")
            .arg("-x")
            .arg(entry?.path())
            .arg(&root))?;
    }
    arrange(&root)?;
    match std::fs::rename(&root, home) {
        Ok(()) => {}
        // Another run of the lab was faster.
        Err(_) if home.exists() => {}
        Err(error) => return Err(error).with_context(|| home.display().to_string()),
    }
    Ok(std::fs::remove_dir_all(&work)?)
}

/// apt with a package index of its own.
pub(crate) struct Apt {
    config: PathBuf,
    dir: PathBuf,
}

impl Apt {
    /// Gets the index of `suite`, from where this machine gets its packages.
    pub(crate) fn of_suite(suite: &str, dir: &Path) -> Result<Self> {
        let format = "$(ORIGIN) $(COMPONENT) $(REPO_URI)";
        let targets = run(Command::new("apt-get").args([
            "indextargets",
            "--format",
            format,
            "Created-By: Packages",
        ]))?;
        let mirror = targets
            .lines()
            .filter_map(|line| line.strip_prefix("Debian main "))
            .find(|uri| !uri.contains("security"))
            .context("this machine has no package source of Debian's (run scripts/setup?)")?;
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(dir.join(sub))?;
        }
        // Nothing is installed there, and nothing of the machine's applies.
        std::fs::write(dir.join("status"), "")?;
        let signed = if Path::new(KEYRING).exists() {
            format!(" signed-by={KEYRING}")
        } else {
            String::new()
        };
        std::fs::write(
            dir.join("sources.list"),
            format!("deb [arch=amd64{signed}] {mirror} {suite} main\n"),
        )?;
        let config = dir.join("apt.conf");
        let at = dir.display();
        std::fs::write(
            &config,
            format!(
                "Dir::State \"{at}/state\";\n\
                 Dir::State::status \"{at}/status\";\n\
                 Dir::Cache \"{at}/cache\";\n\
                 Dir::Etc::sourcelist \"{at}/sources.list\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferencesparts \"/dev/null\";\n\
                 APT::Sandbox::User \"\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n"
            ),
        )?;
        let apt = Self {
            config,
            dir: dir.to_owned(),
        };
        // An index that could not be got is but a warning without this.
        run(apt
            .command("apt-get")
            .args(["-q", "update", "--error-on=any"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }

    /// The packages of an empty system on which `packages` were installed, as files.
    pub(crate) fn download_with_all_needed(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        run(self
            .command("apt-get")
            .args(["-q", "-y", "--download-only", "--no-install-recommends"])
            .arg("install")
            .args(packages))?;
        let mut debs = Vec::new();
        for entry in std::fs::read_dir(self.dir.join("cache/archives"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == "deb") {
                debs.push(path);
            }
        }
        debs.sort();
        Ok(debs)
    }

    /// `package`, the libraries that it needs, and theirs. Their names differ
    /// from suite to suite; what is no library (perl, for a script) is not
    /// needed to run a program.
    fn libraries_of(&self, package: &str) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        let mut wanted = vec![package.to_owned()];
        while let Some(package) = wanted.pop() {
            if !found.insert(package.clone()) {
                continue;
            }
            let text = run(self
                .command("apt-cache")
                .args(["depends", "--important", &package]))?;
            let libraries = text
                .lines()
                .filter_map(|line| {
                    line.trim_start_matches([' ', '|'])
                        .strip_prefix("Depends: ")
                })
                .filter(|name| name.starts_with("lib") || name.starts_with("zlib"));
            wanted.extend(libraries.map(str::to_owned));
        }
        Ok(found.into_iter().collect())
    }
}
