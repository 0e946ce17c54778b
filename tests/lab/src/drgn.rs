//! drgn, to be asked what it reads of the same dump: the newest from PyPI, in
//! a Python environment of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::run;

/// A Python that has drgn, below `lab`; installed now if it is not there.
pub fn python(lab: &Path) -> Result<PathBuf> {
    let home = lab.join("drgn");
    let python = home.join("bin/python3");
    let ready = home.join("ready");
    if !ready.exists() {
        eprintln!("lab: installing drgn into {}", home.display());
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&home))
        .context("python3 -m venv (run scripts/setup?)")?;
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "drgn",
        ]))?;
        std::fs::write(&ready, "")?;
    }
    Ok(python)
}
