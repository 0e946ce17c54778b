//! File systems of the plan, mounted where there is no root file system.

use super::RUN;
use super::log::Log;
use crate::cli::prepare::identity;
use crate::cli::prepare::plan::{Mount, PlannedFile};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How long disks may take to be found.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one may take to be mounted: its journal is played back.
const MOUNT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(100);

/// Mounts all that is there; what is not, is said. A guest whose disk is missing is refused later.
pub fn mount_all(mounts: &[Mount], log: &mut Log) {
    let deadline = Instant::now() + PATIENCE;
    let mut devices = BTreeMap::new();
    while mounts.iter().any(|m| !devices.contains_key(&m.uuid)) && Instant::now() < deadline {
        if !devices.is_empty() || !mounts.is_empty() {
            find(&mut devices);
        }
        if mounts.iter().any(|m| !devices.contains_key(&m.uuid)) {
            std::thread::sleep(PAUSE);
        }
    }
    for (number, wanted) in mounts.iter().enumerate() {
        let Some(device) = devices.get(&wanted.uuid) else {
            log.say(format!("no disk has the file system {}", wanted.uuid));
            continue;
        };
        let at = Path::new(RUN).join("disks").join(number.to_string());
        match mount_one(wanted, device.clone(), at.clone()) {
            Ok(()) => bind(wanted, &at, log),
            Err(error) => log.say(format!("{} ({}): {error}", device.display(), wanted.uuid)),
        }
    }
}

/// Takes all disks off again, whoever has mounted them, so that they are clean: the last first.
pub fn unmount_all(log: &mut Log) {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let on_disk = |line: &&str| line.contains(" - ") && line.contains(" /dev/");
    for line in all.lines().rev().filter(on_disk) {
        let Some(at) = line.split(' ').nth(4) else {
            continue;
        };
        if let Err(error) = umount2(at, MntFlags::empty()) {
            log.say(format!("unmount {at}: {error}"));
        }
    }
}

/// Gives packed files their times back: the format of an initramfs knows seconds only, and a VMM's
/// libraries must be the very ones.
pub fn set_times(files: &[PlannedFile], log: &mut Log) {
    for file in files.iter().filter(|f| f.packed) {
        let then = UNIX_EPOCH + Duration::from_nanos(file.mtime_ns.max(0).cast_unsigned());
        let done = File::open(&file.path).and_then(|open| open.set_modified(then));
        if let Err(error) = done {
            log.say(format!("{}: {error}", file.path.display()));
        }
    }
}

/// Every device with a file system that is known, by its UUID.
fn find(devices: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
    {
        let device = Path::new("/dev").join(entry.file_name());
        if let Some((_, uuid)) = identity(&device) {
            devices.entry(uuid).or_insert(device);
        }
    }
}

fn mount_one(wanted: &Mount, device: PathBuf, at: PathBuf) -> io::Result<()> {
    fs::create_dir_all(&at)?;
    let (kind, options) = (wanted.kind.clone(), own_options(&wanted.options));
    let (done, waiting) = mpsc::channel();
    // A disk that does not answer must not hold up guests that are on others.
    std::thread::spawn(move || {
        let mount = |options: &str| {
            mount(
                Some(&device),
                &at,
                Some(kind.as_str()),
                MsFlags::empty(),
                Some(options),
            )
        };
        let result = match mount(&options) {
            Err(nix::Error::EINVAL) => mount(""),
            other => other,
        };
        let _ = done.send(result.map_err(io::Error::from));
    });
    waiting
        .recv_timeout(MOUNT)
        .unwrap_or_else(|_| Err(io::Error::other("mounting it takes too long")))
}

/// Options that the file system itself takes.
fn own_options(options: &str) -> String {
    let own = options
        .split(',')
        .filter(|o| !matches!(*o, "rw" | "ro" | "seclabel"));
    own.collect::<Vec<_>>().join(",")
}

fn bind(wanted: &Mount, from: &Path, log: &mut Log) {
    for (inside, at) in &wanted.binds {
        let source = from.join(inside.strip_prefix("/").unwrap_or(inside));
        let done = fs::create_dir_all(at).and_then(|()| {
            mount(
                Some(&source),
                at,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .map_err(io::Error::from)
        });
        match done {
            Ok(()) => log.say(format!("mounted {}", at.display())),
            Err(error) => log.say(format!("mount {}: {error}", at.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_file_systems_own_options_are_given_to_it() {
        assert_eq!(
            super::own_options("rw,errors=remount-ro,data=ordered"),
            "errors=remount-ro,data=ordered"
        );
        assert_eq!(super::own_options("rw"), "");
    }
}
