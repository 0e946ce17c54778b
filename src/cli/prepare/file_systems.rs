//! On which file system a file is, and how that is known again under another kernel.

use super::modules;
use super::plan::Mount;
use crate::restore::disks;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Directory of the file system that is the root of the mount.
    pub root: PathBuf,
    /// Where it is mounted.
    pub at: PathBuf,
    pub kind: String,
    /// What was mounted.
    pub source: String,
    /// Options of the file system itself.
    pub options: String,
}

/// All mounts that this process sees, and what of them is wanted.
#[derive(Debug)]
pub struct FileSystems {
    entries: Vec<Entry>,
    /// What is to be mounted.
    pub mounts: Vec<Mount>,
    /// Modules that it takes.
    pub modules: BTreeSet<String>,
}

impl FileSystems {
    /// # Errors
    /// procfs cannot be read.
    pub fn here() -> io::Result<Self> {
        Ok(Self::of(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn of(mountinfo: &str) -> Self {
        Self {
            entries: mountinfo.lines().filter_map(entry).collect(),
            mounts: Vec::new(),
            modules: BTreeSet::new(),
        }
    }

    /// What is mounted where a path is.
    pub fn of_path(&self, path: &Path) -> Option<&Entry> {
        // Of two at one place the later hides the earlier.
        self.entries
            .iter()
            .filter(|e| path.starts_with(&e.at))
            .max_by_key(|e| e.at.components().count())
    }

    /// Whether something that is wanted already brings a path along.
    pub fn brings(&self, path: &Path) -> bool {
        let mut binds = self.mounts.iter().flat_map(|m| &m.binds);
        binds.any(|(_, at)| path.starts_with(at))
    }

    /// Wants a directory to be there.
    ///
    /// # Errors
    /// Why an initramfs cannot mount it.
    pub fn want(&mut self, directory: &Path) -> Result<(), String> {
        if self.brings(directory) {
            return Ok(());
        }
        let entry = self
            .of_path(directory)
            .ok_or("it is not on any file system that is mounted")?
            .clone();
        if disks::is_volatile(&entry.kind) {
            return Err(format!(
                "it is on {}, which is gone with the host",
                entry.kind
            ));
        }
        let device = fs::metadata(&entry.source).map_err(|_| {
            format!(
                "{} ({}) is no device of this host",
                entry.source, entry.kind
            )
        })?;
        let sysfs = sysfs(device.rdev());
        for (what, word) in [
            ("dm", "the device mapper (LVM, multipath, encryption)"),
            ("md", "software RAID"),
            ("loop", "a loop device"),
        ] {
            if sysfs.join(what).exists() || sysfs.join("..").join(what).exists() {
                return Err(format!(
                    "{} is {word}, which nothing in an initramfs sets up; with kdump-tools' hook the \
                     host's own start does",
                    entry.source
                ));
            }
        }
        let (kind, uuid) = identity(Path::new(&entry.source)).ok_or_else(|| {
            format!(
                "{} has no UUID that is known: ext2 to ext4, xfs and btrfs have",
                entry.source
            )
        })?;
        // All of what is mounted there; of the root only what is needed.
        let bind = match entry.at.parent() {
            Some(_) => (entry.root.clone(), entry.at.clone()),
            None if directory.parent().is_none() => {
                return Err("it is in the root directory itself".into());
            }
            None => {
                let inside = directory.strip_prefix("/").unwrap_or(directory);
                (entry.root.join(inside), directory.to_owned())
            }
        };
        self.modules.extend(modules::drivers(&sysfs));
        self.modules.insert(match kind {
            "ext" => "ext4".into(),
            other => other.into(),
        });
        match self.mounts.iter_mut().find(|m| m.uuid == uuid) {
            Some(mount) => mount.binds.push(bind),
            None => self.mounts.push(Mount {
                uuid,
                kind: entry.kind.clone(),
                options: entry.options.clone(),
                binds: vec![bind],
            }),
        }
        Ok(())
    }
}

/// The directory in sysfs of a block device.
pub fn sysfs(rdev: u64) -> PathBuf {
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    fs::canonicalize(&link).unwrap_or(link)
}

/// The kind and the UUID of the file system on a device: `ext`, `xfs` or `btrfs`.
pub fn identity(device: &Path) -> Option<(&'static str, String)> {
    let file = File::open(device).ok()?;
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    };
    // Offsets: Linux fs/ext4/ext4.h (struct ext4_super_block, 1024 bytes in), fs/xfs/libxfs/xfs_format.h
    // (struct xfs_dsb), include/uapi/linux/btrfs_tree.h (struct btrfs_super_block, 64 KiB in).
    let known = [
        ("ext", 1024 + 56, &[0x53, 0xef][..], 1024 + 104),
        ("xfs", 0, b"XFSB", 32),
        ("btrfs", 0x10040, b"_BHRfS_M", 0x10020),
    ];
    known.into_iter().find_map(|(kind, at, magic, uuid)| {
        let found = read(at, magic.len())?;
        (found == magic).then_some(())?;
        let digits: String = read(uuid, 16)?.iter().map(|b| format!("{b:02x}")).collect();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
        Some((kind, parts.map(|part| digits[part].to_owned()).join("-")))
    })
}

fn entry(line: &str) -> Option<Entry> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let mut right = right.split(' ');
    Some(Entry {
        root: unescape(left.next()?),
        at: unescape(left.next()?),
        kind: right.next()?.to_owned(),
        source: unescape(right.next()?).display().to_string(),
        options: right.next().unwrap_or("").to_owned(),
    })
}

/// Blanks and backslashes are written as `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_on_the_nearest_mount() {
        let here = FileSystems::of(
            "21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n\
             30 21 254:16 /vms /srv/my\\040vms rw shared:2 - xfs /dev/vdb rw,noquota\n\
             31 21 0:20 / /run rw - tmpfs tmpfs rw,size=1k\n",
        );
        let at = |path: &str| here.of_path(Path::new(path)).map(|e| e.at.clone());
        assert_eq!(at("/srv/my vms/a"), Some("/srv/my vms".into()));
        assert_eq!(at("/srv/my"), Some("/".into()));
        assert_eq!(at("/run/x"), Some("/run".into()));
        let xfs = here.of_path(Path::new("/srv/my vms")).expect("is there");
        assert_eq!(
            (xfs.kind.as_str(), xfs.options.as_str(), xfs.root.as_path()),
            ("xfs", "rw,noquota", Path::new("/vms"))
        );
    }

    #[test]
    fn a_file_system_is_known_by_its_superblock() {
        let path = std::env::temp_dir().join(format!("vmrestore-super-{}", std::process::id()));
        let mut image = vec![0u8; 0x11000];
        fs::write(&path, &image).expect("writes");
        assert_eq!(identity(&path), None);
        image[1024 + 56..][..2].copy_from_slice(&[0x53, 0xef]);
        for (n, byte) in image[1024 + 104..][..16].iter_mut().enumerate() {
            *byte = n as u8;
        }
        fs::write(&path, &image).expect("writes");
        let uuid = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        assert_eq!(identity(&path), Some(("ext", uuid.to_owned())));
        fs::remove_file(&path).expect("cleans up");
    }
}
