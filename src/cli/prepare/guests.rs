//! What the guests that run now would need in a capture kernel.

use super::plan::PlannedGuest;
use crate::cli::check::in_place::{self as estimate, Need};
use crate::cli::exit::{Exit, Failure};
use crate::dataset::{
    Dataset, FileKind, InodeKind, MappingKind, OpenFile, UnixListener, VhostDevice,
};
use crate::extract::DeadHost;
use crate::guest::GuestSummary;
use crate::restore::{disks, outside};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One guest, or all of them together.
#[derive(Debug, Default)]
pub struct Needs {
    pub modules: BTreeSet<String>,
    /// Files that must be the very ones, on their file systems.
    pub written: BTreeSet<PathBuf>,
    /// Files that must be the same.
    pub read: BTreeSet<PathBuf>,
    pub block_devices: BTreeSet<PathBuf>,
    pub directories: BTreeSet<PathBuf>,
    pub bridges: BTreeSet<String>,
    pub taps: BTreeSet<String>,
}

/// All guests that were read.
#[derive(Debug, Default)]
pub struct Guests {
    pub planned: Vec<PlannedGuest>,
    pub needs: Needs,
    /// Guests that could not be read, and why.
    pub unread: Vec<String>,
    pub sizes: Vec<Need>,
}

/// Reads the guests that run on this host.
///
/// # Errors
/// The kernel's memory cannot be read.
pub fn read() -> Result<Guests, Failure> {
    let dead = estimate::open().map_err(|why| {
        Failure::new(
            Exit::HostCannot,
            format!("the living kernel cannot be read: {why}"),
            "run as root; a locked-down kernel (Secure Boot) shows neither /proc/kcore nor /dev/mem, and \
             without the latter no guest goes on in place",
        )
    })?;
    let mut all = Guests::default();
    let mut seen = BTreeSet::new();
    for guest in dead.guests()? {
        if !seen.insert(guest.pid) {
            continue;
        }
        let named = || guest.name.clone().unwrap_or_else(|| guest.vmm.clone());
        // It runs while it is read: what moved meanwhile may be right the next time.
        let read = (0..3).find_map(|_| one(&dead, &guest).ok());
        match read.map_or_else(|| one(&dead, &guest), Ok) {
            Ok((planned, size, dataset)) => {
                all.needs.add(&dataset);
                all.planned.push(planned);
                all.sizes.push(size);
            }
            Err(why) => all
                .unread
                .push(format!("{} (pid {}): {why}", named(), guest.pid)),
        }
    }
    Ok(all)
}

fn one(dead: &DeadHost, guest: &GuestSummary) -> Result<(PlannedGuest, Need, Dataset), String> {
    let (need, dataset) = estimate::need(dead, guest.pid)?;
    let planned = PlannedGuest {
        name: need.name.clone(),
        uuid: guest.uuid.clone(),
        vcpus: guest.vcpus,
        copied_bytes: need.copied,
        untouched_bytes: need.untouched,
        cannot: cannot(guest, &dataset),
    };
    Ok((planned, need, dataset))
}

/// What speaks against a guest's going on, as far as that is known while it lives.
fn cannot(guest: &GuestSummary, dataset: &Dataset) -> Vec<String> {
    let mut found = outside::missing(dataset);
    found.extend(guest.unsupported.clone());
    for file in &dataset.files {
        if let FileKind::Unsupported { why, .. } = &file.kind
            && found.iter().all(|f| !f.contains(&file.path))
        {
            found.push(format!("{}: {why}", file.path));
        }
    }
    found
}

impl Needs {
    /// Adds what a dataset needs.
    pub fn add(&mut self, dataset: &Dataset) {
        self.modules.insert("kvm".into());
        for process in &dataset.processes {
            // Paths of another root mean nothing here.
            if !process.namespaces.foreign_root {
                self.read
                    .extend(process.mm.exe_path.iter().map(PathBuf::from));
                self.directories.insert(PathBuf::from(&process.fs.cwd));
            }
            for vma in &process.mm.vmas {
                if let MappingKind::File { inode, .. } = vma.kind
                    && let Some(inode) = dataset.inode(inode)
                {
                    self.file(&inode.path, &inode.fs_type, inode.writable);
                }
            }
        }
        for file in &dataset.files {
            self.open_file(dataset, file);
        }
        let devices = dataset.swap.iter().filter_map(|area| area.device.as_ref());
        self.block_devices
            .extend(devices.map(|d| Path::new("/dev").join(&d.name)));
    }

    fn open_file(&mut self, dataset: &Dataset, file: &OpenFile) {
        let path = Path::new(&file.path);
        match &file.kind {
            FileKind::Regular if !file.deleted => {
                if let Some(inode) = file.inode.and_then(|id| dataset.inode(id))
                    && inode.kind == InodeKind::Regular
                {
                    self.file(&inode.path, &inode.fs_type, inode.writable);
                }
            }
            FileKind::Regular | FileKind::Pipe { named: true, .. } => {
                self.directories.extend(path.parent().map(Path::to_owned));
            }
            FileKind::Directory if path.is_absolute() => {
                self.directories.insert(path.to_owned());
            }
            FileKind::BlockDevice { .. } => {
                self.block_devices.insert(path.to_owned());
            }
            FileKind::UnixSocket(socket) => self.directories.extend(directory_of(socket)),
            FileKind::Tun {
                interface, link, ..
            } => {
                self.modules.insert("tun".into());
                self.taps.insert(interface.clone());
                if let Some(master) = link.as_ref().and_then(|l| l.master.as_ref()) {
                    self.bridges.insert(master.name.clone());
                }
            }
            FileKind::Vhost(vhost) => {
                self.modules.insert(match vhost.device {
                    VhostDevice::Net => "vhost_net".into(),
                    VhostDevice::Vsock { .. } => "vhost_vsock".into(),
                });
            }
            _ => {}
        }
    }

    fn file(&mut self, path: &str, fs_type: &str, written: bool) {
        let path = PathBuf::from(path);
        if disks::is_volatile(fs_type) {
            self.directories.extend(path.parent().map(Path::to_owned));
        } else if written {
            self.written.insert(path);
        } else {
            self.read.insert(path);
        }
    }
}

/// Of a socket that is bound to a path: where it is.
fn directory_of(socket: &UnixListener) -> Option<PathBuf> {
    let name = std::str::from_utf8(&socket.address.0).ok()?;
    let path = Path::new(name);
    path.is_absolute()
        .then(|| path.parent().map(Path::to_owned))?
}

/// Settings of this kernel that guests may count on, and another does not have by itself.
pub fn sysctl() -> BTreeMap<String, String> {
    // A PID above the greatest cannot be had again; a limit of open files above the greatest cannot be
    // set.
    const NAMES: [&str; 6] = [
        "kernel.pid_max",
        "fs.nr_open",
        "fs.file-max",
        "fs.aio-max-nr",
        "vm.max_map_count",
        "vm.overcommit_memory",
    ];
    let read = |name: &str| {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        let value = std::fs::read_to_string(path).ok()?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    NAMES.into_iter().filter_map(read).collect()
}
