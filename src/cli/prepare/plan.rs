//! What is to be done when this host panics, made while it is well: which guests first, and what the
//! capture kernel must have for them. A file that people read and edit.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where it is, on the host and in the initramfs.
pub const DEFAULT: &str = "/etc/vmrestore/in-place.json";
/// The version of the file that this build writes.
const VERSION: u32 = 1;

/// The plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// When, for people.
    pub made: String,
    /// The host's name: block devices are known again only on the host that died.
    pub host: String,
    /// `uname -r` of the capture kernel.
    pub kernel: String,
    /// The order of priority, which is kept when the plan is made again.
    pub guests: Vec<PlannedGuest>,
    /// The machine is reset when no guest has been there for a while, and at the latest so many minutes
    /// after they went on; `None`: not before they have gone.
    pub reboot_after_minutes: Option<u64>,
    /// The dump for the kernel's developers.
    pub save: Save,
    /// Where the journal of restores is.
    pub state_dir: PathBuf,
    /// Kernel modules, each after those that it needs.
    pub modules: Vec<Module>,
    /// File systems of guests' disks, of the journal and of the dump.
    pub mounts: Vec<Mount>,
    /// Bridges that guests' taps are ports of, with what hangs on them, in the order in which they are
    /// made.
    pub links: Vec<Link>,
    /// Directories of sockets and of files in memory.
    pub directories: Vec<PathBuf>,
    /// Settings below `/proc/sys`.
    pub sysctl: BTreeMap<String, String>,
    /// Commands that are started when the guests run.
    pub run: Vec<String>,
    /// Files that must be what they are now.
    pub files: Vec<PlannedFile>,
    /// What was made of it for a capture kernel without a root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<Image>,
}

/// A guest that ran when the plan was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlannedGuest {
    pub name: String,
    pub uuid: Option<String>,
    pub vcpus: u32,
    /// Bytes of the capture kernel's memory that it takes, and of its own that it had not touched.
    pub copied_bytes: u64,
    pub untouched_bytes: u64,
    /// What kept it from going on in place, when the plan was made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cannot: Vec<String>,
}

/// How and where the dump is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Save {
    /// Without a root file system: the directory, in which one is made for each dump. `None`: none is
    /// saved.
    pub directory: Option<PathBuf>,
    /// makedumpfile's options when all guests run: without what is theirs.
    pub options: String,
    /// And when one does not, and may come back from the dump after the reboot.
    pub options_for_the_rest: String,
}

impl Default for Save {
    fn default() -> Self {
        Self {
            directory: None,
            options: "-l -d 31".into(),
            options_for_the_rest: "-l -d 17".into(),
        }
    }
}

/// A kernel module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Module {
    pub name: String,
    /// Its file on the host.
    pub path: PathBuf,
    /// Its parameters, as they are now.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub options: String,
}

/// A file system, and what of it is put where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// UUID of the file system: names of devices are dealt out anew at each boot.
    pub uuid: String,
    /// `ext4`, `xfs`, `btrfs`.
    pub kind: String,
    /// Options that the file system itself was mounted with.
    pub options: String,
    /// A directory in it, from its own root, and where that was.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

/// A network interface of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    pub name: String,
    pub kind: LinkKind,
    /// `52:54:00:…`; a card is known by it.
    pub mac: String,
    pub mtu: u32,
    pub up: bool,
    /// The bridge that it is a port of.
    pub bridge: Option<String>,
    /// With bits of the network's part.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The default route that leads through it.
    pub gateway: Option<IpAddr>,
    /// A bridge's own settings: files below `/sys/class/net/NAME/bridge`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// What kind of interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum LinkKind {
    /// A network card.
    #[default]
    Card,
    /// A bridge.
    Bridge,
    /// A VLAN of another interface.
    Vlan {
        /// Of which.
        of: String,
        /// Its number.
        id: u16,
    },
}

/// A file as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlannedFile {
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// It is in the initramfs; else on a file system that is mounted.
    pub packed: bool,
}

/// An initramfs that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    pub path: PathBuf,
    /// Bytes of the file, and of all that is in it.
    pub size: u64,
    pub unpacked: u64,
}

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is none.
    #[error("{path} is no plan of vmrestore's: {source}")]
    NotAPlan {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A later version wrote it.
    #[error("{path} is of version {version}, and this vmrestore knows {VERSION}")]
    Version { path: PathBuf, version: u32 },
}

impl Plan {
    /// An empty one, for this host.
    pub fn new(host: String, kernel: String, made: String) -> Self {
        Self {
            version: VERSION,
            made,
            host,
            kernel,
            ..Self::default()
        }
    }

    /// Reads one; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, or is of a later version.
    pub fn load(path: &Path) -> Result<Option<Self>, PlanError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(PlanError::Io {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let plan: Self = serde_json::from_slice(&bytes).map_err(|source| PlanError::NotAPlan {
            path: path.to_owned(),
            source,
        })?;
        if plan.version != VERSION {
            return Err(PlanError::Version {
                path: path.to_owned(),
                version: plan.version,
            });
        }
        Ok(Some(plan))
    }

    /// Writes it, durably: whoever reads it finds the old one or the new one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), PlanError> {
        let io = |source| PlanError::Io {
            path: path.to_owned(),
            source,
        };
        write_durably(path, &self.text().into_bytes()).map_err(io)
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Takes over what an administrator may have changed in an earlier plan: the order of guests, and
    /// how the dump is saved. Guests that do not run now keep their place.
    pub fn keep_choices_of(&mut self, earlier: &Plan) {
        let mut guests = Vec::new();
        for old in &earlier.guests {
            match self.guests.iter().position(|new| new.is(old)) {
                Some(at) => guests.push(self.guests.remove(at)),
                None => guests.push(PlannedGuest {
                    name: old.name.clone(),
                    uuid: old.uuid.clone(),
                    ..PlannedGuest::default()
                }),
            }
        }
        guests.append(&mut self.guests);
        self.guests = guests;
        self.reboot_after_minutes = earlier.reboot_after_minutes;
        self.save = earlier.save.clone();
    }

    /// Puts these guests before the others; those that it does not know are given back.
    pub fn put_first(&mut self, names: &[String]) -> Vec<String> {
        let mut unknown = Vec::new();
        let mut first = Vec::new();
        for name in names {
            match self.guests.iter().position(|g| g.answers_to(name)) {
                Some(at) => first.push(self.guests.remove(at)),
                None if first.iter().any(|g: &PlannedGuest| g.answers_to(name)) => {}
                None => unknown.push(name.clone()),
            }
        }
        first.append(&mut self.guests);
        self.guests = first;
        unknown
    }

    /// A guest's place in the order; those that are not in it come last.
    pub fn rank(&self, name: Option<&str>, uuid: Option<&str>) -> usize {
        let same = |guest: &PlannedGuest| uuid.is_some() && guest.uuid.as_deref() == uuid;
        // Another guest may have its name.
        let alike = |guest: &PlannedGuest| {
            Some(guest.name.as_str()) == name && (guest.uuid.is_none() || uuid.is_none())
        };
        let mut guests = self.guests.iter();
        let place = guests.position(same);
        place
            .or_else(|| self.guests.iter().position(alike))
            .unwrap_or(usize::MAX)
    }
}

impl PlannedGuest {
    fn is(&self, other: &PlannedGuest) -> bool {
        match (&self.uuid, &other.uuid) {
            (Some(one), Some(two)) => one == two,
            _ => self.name == other.name,
        }
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.uuid.as_deref() == Some(name)
    }
}

/// Writes a file anew and sees that it is on the disk before it has its name.
///
/// # Errors
/// It cannot be written there.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(names: &[&str]) -> Plan {
        let guests = names.iter().map(|name| PlannedGuest {
            name: (*name).into(),
            vcpus: 1,
            ..PlannedGuest::default()
        });
        Plan {
            version: VERSION,
            guests: guests.collect(),
            ..Plan::default()
        }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.guests.iter().map(|g| g.name.as_str()).collect()
    }

    #[test]
    fn an_edited_order_is_kept_and_new_guests_come_last() {
        let mut edited = plan(&["db", "gone", "web"]);
        edited.reboot_after_minutes = Some(30);
        let mut now = plan(&["new", "web", "db"]);
        now.keep_choices_of(&edited);
        assert_eq!(names(&now), ["db", "gone", "web", "new"]);
        assert_eq!(now.guests[0].vcpus, 1, "as it is now");
        assert_eq!(now.guests[1].vcpus, 0, "not there now");
        assert_eq!(now.reboot_after_minutes, Some(30));
        let unknown = now.put_first(&["new".into(), "nobody".into()]);
        assert_eq!(unknown, ["nobody"]);
        assert_eq!(names(&now), ["new", "db", "gone", "web"]);
    }

    #[test]
    fn a_uuid_says_more_than_a_name() {
        let mut known = plan(&["a", "b"]);
        known.guests[1].uuid = Some("u".into());
        assert_eq!(known.rank(Some("a"), Some("u")), 1);
        assert_eq!(known.rank(Some("a"), None), 0);
        assert_eq!(known.rank(None, None), usize::MAX);
    }

    #[test]
    fn what_is_written_is_read_and_a_later_version_is_not() {
        let dir = std::env::temp_dir().join(format!("vmrestore-plan-{}", std::process::id()));
        let path = dir.join("sub/in-place.json");
        assert_eq!(Plan::load(&path).expect("nothing"), None);
        let mut some = plan(&["a"]);
        some.links.push(Link {
            kind: LinkKind::Vlan {
                of: "eth0".into(),
                id: 20,
            },
            addresses: vec![("10.9.0.1".parse().expect("an address"), 24)],
            ..Link::default()
        });
        some.store(&path).expect("writes");
        assert_eq!(Plan::load(&path).expect("reads"), Some(some.clone()));
        some.version = VERSION + 1;
        some.store(&path).expect("writes");
        assert!(matches!(Plan::load(&path), Err(PlanError::Version { .. })));
        fs::write(&path, "{").expect("writes");
        assert!(matches!(Plan::load(&path), Err(PlanError::NotAPlan { .. })));
        fs::remove_dir_all(&dir).expect("cleans up");
    }
}
