//! vmrestore as the first program of a capture kernel, in the initramfs that `prepare` made: there is
//! nothing else.

use super::log::Log;
use super::{disks, go_on, links, modules, save};
use crate::cli::prepare::plan;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sethostname};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whether this process is that.
pub fn is_init() -> bool {
    let called = std::env::args_os().next().map(PathBuf::from);
    std::process::id() == 1 && called.is_some_and(|name| name.ends_with("init"))
}

/// Does all, and resets the machine.
pub fn run() -> ! {
    let all = std::panic::catch_unwind(|| {
        let mut log = Log::new();
        bring_up(&mut log);
    });
    if all.is_err() {
        // Guests may run: nothing but their end, or a person, ends this.
        eprintln!("vmrestore: it has failed itself; the machine is left as it is");
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn bring_up(log: &mut Log) {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("mqueue", "/dev/mqueue"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        let none = None::<&str>;
        // The last ones may not be in this kernel.
        let done = fs::create_dir_all(at).is_ok()
            && mount(Some(kind), at, Some(kind), MsFlags::empty(), none).is_ok();
        if !done {
            log.say(format!("{at} cannot be mounted"));
        }
    }
    log.say("the host has panicked; its guests go on in this capture kernel");
    let (plan, _) = super::plan(Path::new(plan::DEFAULT), log);
    let _ = sethostname(&plan.host);
    for (name, value) in &plan.sysctl {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        if fs::write(&path, value).is_err() {
            log.say(format!("{name} cannot be set to {value}"));
        }
    }
    if let Err(error) = links::loopback() {
        log.say(format!("lo: {error}"));
    }
    modules::load(&plan, log);
    disks::mount_all(&plan.mounts, log);
    disks::set_times(&plan.files, log);
    for directory in &plan.directories {
        // Those in memory that were mounted over.
        let _ = fs::create_dir_all(directory);
    }
    log.keep_in(&plan.state_dir);
    let path = PathBuf::from(plan::DEFAULT);
    let save = match plan.save.directory {
        Some(_) => save::How::Plan,
        None => save::How::Not,
    };
    go_on(&plan, Some(&path), &plan.state_dir, &save, log);
    end(log);
}

/// What runs still is ended, and every disk is clean.
fn end(log: &mut Log) {
    log.say("the machine is reset");
    log.close();
    let everybody = Pid::from_raw(-1);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let _ = kill(everybody, signal);
        std::thread::sleep(Duration::from_millis(500));
    }
    nix::unistd::sync();
    disks::unmount_all(log);
    // What somebody has mounted out of reach is made clean by the kernel itself.
    if fs::write("/proc/sysrq-trigger", "u").is_ok() {
        std::thread::sleep(Duration::from_millis(500));
    }
    nix::unistd::sync();
}
