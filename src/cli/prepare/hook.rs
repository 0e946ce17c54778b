//! The hook for Debian's kdump-tools: a script in the place of its own, by drop-ins of systemd.

use crate::cli::exit::{Exit, Failure};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What kdump-tools' units start instead of `/etc/init.d/kdump-tools`.
const START: &str = include_str!("../../../scripts/kdump/kdump-start");
const DROP_IN: &str = include_str!("../../../scripts/kdump/vmrestore.conf");
/// Stands in the script for the path of vmrestore.
const PLACE: &str = "@VMRESTORE@";
const SCRIPT: &str = "usr/local/lib/vmrestore/kdump-start";
/// The one is started in the capture kernel, the other on every boot, and in a capture kernel where an
/// administrator has chosen another target.
const UNITS: [&str; 2] = ["kdump-tools-dump.service", "kdump-tools.service"];

/// Puts the hook in, below `root`.
///
/// # Errors
/// There is no kdump-tools; a file cannot be written.
pub fn install(root: &Path) -> Result<(), Failure> {
    if !root.join("usr/sbin/kdump-config").exists() || !root.join("etc/init.d/kdump-tools").exists()
    {
        return Err(Failure::new(
            Exit::HostCannot,
            "kdump-tools is not on this host",
            "apt install kdump-tools; where another kdump is, --initramfs FILE needs none of it",
        ));
    }
    let me = std::env::current_exe()?;
    let script = START.replace(PLACE, &me.display().to_string());
    write(&root.join(SCRIPT), &script, 0o755)?;
    for drop_in in drop_ins(root) {
        write(&drop_in, DROP_IN, 0o644)?;
    }
    reload(root);
    Ok(())
}

/// Takes the hook out.
///
/// # Errors
/// A file cannot be removed.
pub fn uninstall(root: &Path) -> Result<(), Failure> {
    for path in drop_ins(root).into_iter().chain([root.join(SCRIPT)]) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("{}: {e}", path.display()),
                    "run as root",
                ));
            }
            _ => {
                // Only when nothing else is in it.
                let _ = path.parent().map(fs::remove_dir);
            }
        }
    }
    reload(root);
    Ok(())
}

/// Whether it is in, and leads to a vmrestore that is there; what is wrong with it.
pub fn state(root: &Path) -> Result<bool, String> {
    let there = |path: &PathBuf| path.exists();
    let script = root.join(SCRIPT);
    let parts = drop_ins(root).into_iter().chain([script.clone()]);
    match parts.filter(there).count() {
        0 => return Ok(false),
        n if n <= UNITS.len() => return Err("a part of it is missing".into()),
        _ => {}
    }
    let text = fs::read_to_string(&script).map_err(|e| e.to_string())?;
    let path = text.lines().find_map(|l| l.strip_prefix("vmrestore="));
    match path.map(|p| p.trim_matches('\'')) {
        Some(path) if Path::new(path).exists() => Ok(true),
        Some(path) => Err(format!("it calls {path}, which is not there")),
        None => Err(format!("{} is another's", script.display())),
    }
}

fn drop_ins(root: &Path) -> Vec<PathBuf> {
    let drop_in = |unit| root.join(format!("etc/systemd/system/{unit}.d/vmrestore.conf"));
    UNITS.iter().map(drop_in).collect()
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    super::plan::write_durably(path, text.as_bytes())
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|e| {
            Failure::new(
                Exit::Failed,
                format!("{}: {e}", path.display()),
                "run as root",
            )
        })
}

fn reload(root: &Path) {
    if root != Path::new("/") || !Path::new("/run/systemd/system").exists() {
        return;
    }
    if !Command::new("systemctl")
        .arg("daemon-reload")
        .status()
        .is_ok_and(|s| s.success())
    {
        eprintln!("warning: systemctl daemon-reload failed: systemd knows it at its next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_taken_out() {
        let root = std::env::temp_dir().join(format!("vmrestore-hook-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        assert!(install(&root).is_err(), "no kdump-tools");
        for file in ["usr/sbin/kdump-config", "etc/init.d/kdump-tools"] {
            write(&root.join(file), "", 0o755).expect("writes");
        }
        assert_eq!(state(&root), Ok(false));
        install(&root).expect("installs");
        assert_eq!(state(&root), Ok(true));
        let script = root.join(SCRIPT);
        let good = Command::new("sh")
            .arg("-n")
            .arg(&script)
            .status()
            .expect("sh");
        assert!(good.success());
        fs::remove_file(&script).expect("removes");
        assert!(state(&root).is_err(), "a drop-in without its script");
        uninstall(&root).expect("uninstalls");
        assert_eq!(state(&root), Ok(false));
        assert!(root.join("usr/sbin/kdump-config").exists());
        fs::remove_dir_all(&root).expect("cleans up");
    }
}
