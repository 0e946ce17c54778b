//! The keeper (scripts/keeper), built for the lab's kernel against Debian's
//! own headers, which are unpacked and never installed.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::{Debian, Kernel, run};

/// The module's name, and its file's without `.ko`.
pub const MODULE: &str = "vmrestore_keeper";
/// Where the host finds it: on the dump disk.
pub const IN_HOST: &str = "/dump/vmrestore_keeper.ko";
/// What it is built of.
const SOURCES: [&str; 4] = [
    "Kbuild",
    "Makefile",
    "vmrestore_keeper.c",
    "vmrestore_keeper.h",
];

fn source_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/keeper")
}

/// A hash of the sources: dumps of hosts with another keeper are other dumps.
pub fn key() -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for name in SOURCES {
        let path = source_directory().join(name);
        std::fs::read(&path)
            .with_context(|| path.display().to_string())?
            .hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// The module, built for the lab's kernel; from the lab's directory if it was
/// built before.
pub fn module(lab: &Path) -> Result<PathBuf> {
    let debian = Debian::new(lab);
    let kernel = debian.kernel()?;
    let name = format!("keeper-{}-{:016x}", kernel.release, key()?);
    let home = lab.join("packages").join(name);
    let built = home.join(format!("{MODULE}.ko"));
    if built.exists() {
        return Ok(built);
    }
    let headers = headers(&debian, &kernel)?;
    let work = home.with_extension(format!("work{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    for name in SOURCES {
        std::fs::copy(source_directory().join(name), work.join(name))?;
    }
    eprintln!("lab: building the keeper for {}", kernel.release);
    run(Command::new("make")
        .arg("-C")
        .arg(&work)
        .arg(format!("KERNEL={}", headers.display()))
        .env_remove("MAKEFLAGS"))
    .context("the keeper cannot be built (run scripts/setup: make, gcc)")?;
    ensure!(
        work.join(format!("{MODULE}.ko")).exists(),
        "make has built no {MODULE}.ko"
    );
    match std::fs::rename(&work, &home) {
        Ok(()) => {}
        // Another run of the lab was faster.
        Err(_) if built.exists() => std::fs::remove_dir_all(&work)?,
        Err(error) => return Err(error.into()),
    }
    Ok(built)
}

/// The directory that modules of this kernel are built against.
fn headers(debian: &Debian, kernel: &Kernel) -> Result<PathBuf> {
    let release = &kernel.release;
    let flavour = format!("linux-headers-{release}");
    let root = debian.unpacked_headers(release, |root| {
        // The one place with an absolute path: the flavour's Makefile includes
        // that of the package which all flavours share.
        let makefile = root.join("usr/src").join(&flavour).join("Makefile");
        let text =
            std::fs::read_to_string(&makefile).with_context(|| makefile.display().to_string())?;
        let common = text
            .split_whitespace()
            .find(|word| word.ends_with("/Makefile"))
            .with_context(|| format!("{}: includes nothing", makefile.display()))?;
        let relative = common.trim_start_matches("/usr/src/");
        let text = format!("include $(dir $(lastword $(MAKEFILE_LIST)))../{relative}\n");
        Ok(std::fs::write(&makefile, text)?)
    })?;
    Ok(root.join("usr/src").join(flavour))
}
