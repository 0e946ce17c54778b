//! Builds the programs of `guest-images` for the lab's host and guests.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
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
    /// The other side of the guests' networks; dynamic.
    pub net: PathBuf,
    /// The VMM that is not QEMU; dynamic.
    pub stand_in: PathBuf,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGE: &str = "vmrestore-guest-images";

/// Builds one of `tests/programs` with the C compiler, into a directory.
pub(crate) fn build_static(name: &str, dir: &Path) -> Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs");
    let program = dir.join(format!("{name}-{}", std::process::id()));
    run(Command::new("cc")
        .args(["-O1", "-pthread", "-static", "-o"])
        .arg(&program)
        .arg(sources.join(format!("{name}.c"))))?;
    Ok(program)
}

impl Programs {
    /// Builds with the cargo that builds the lab, into a directory of its own:
    /// the lab may be running under `cargo test`, which holds the usual one.
    pub fn build(dir: &Path) -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-images/Cargo.toml");
        let target = dir.join("cargo");
        std::fs::create_dir_all(&target)?;
        // Several source trees may share one lab: one builds at a time, and
        // takes its programs away before the next one's replace them.
        let turn = File::create(target.join("lock"))?;
        turn.lock()?;
        let mut tree = DefaultHasher::new();
        manifest.hash(&mut tree);
        let home = dir.join("programs").join(format!("{:016x}", tree.finish()));
        std::fs::create_dir_all(&home)?;
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
        build(&["lab-agent", "lab-process", "lab-net", "stand-in"], "")?;
        let out = |kind: &str, bin: &str| {
            let built = target.join(kind).join(TARGET).join("release").join(bin);
            let kept = home.join(bin);
            // Under a name of its own first: another run may be reading it.
            let fresh = home.join(format!("{bin}.{}", std::process::id()));
            std::fs::copy(&built, &fresh)?;
            std::fs::rename(&fresh, &kept)?;
            anyhow::Ok(kept)
        };
        Ok(Self {
            guest_init: out("static", "guest-init")?,
            agent: out("dynamic", "lab-agent")?,
            process: out("dynamic", "lab-process")?,
            net: out("dynamic", "lab-net")?,
            stand_in: out("dynamic", "stand-in")?,
        })
    }
}
