//! Builds the programs of `guest-images` for the lab's host and guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::debian::run;

/// The built programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// PID 1 of the small guest; static, it is alone in its initramfs.
    pub guest_init: PathBuf,
    /// PID 1 of the host; dynamic, as Debian's programs are.
    pub agent: PathBuf,
    /// The ordinary program; dynamic.
    pub process: PathBuf,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGE: &str = "vmrestore-guest-images";

impl Programs {
    /// Builds with the cargo that builds the lab, into a directory of its own:
    /// the lab may be running under `cargo test`, which holds the usual one.
    pub fn build(dir: &Path) -> Result<Self> {
        let target = dir.join("cargo");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-images/Cargo.toml");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let build = |bins: &[&str], flags: &str| {
            let mut command = Command::new(&cargo);
            command
                .args(["build", "--quiet", "--release", "--package", PACKAGE])
                .args(["--target", TARGET, "--manifest-path"])
                .arg(&manifest)
                .arg("--target-dir")
                .arg(target.join(if flags.is_empty() {
                    "dynamic"
                } else {
                    "static"
                }))
                .env("RUSTFLAGS", flags)
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env_remove("CARGO_TARGET_DIR");
            for bin in bins {
                command.args(["--bin", bin]);
            }
            run(&mut command)
        };
        build(&["guest-init"], "-C target-feature=+crt-static")?;
        build(&["lab-agent", "lab-process"], "")?;
        let out = |kind: &str, bin: &str| target.join(kind).join(TARGET).join("release").join(bin);
        Ok(Self {
            guest_init: out("static", "guest-init"),
            agent: out("dynamic", "lab-agent"),
            process: out("dynamic", "lab-process"),
        })
    }
}
