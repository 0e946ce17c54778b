//! Namespaces: what a container is made of.

use serde::{Deserialize, Serialize};

/// Which namespaces a process had that were not its host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    pub own: Vec<Namespace>,
    /// Its root directory was another file system's, or another directory, than
    /// the host's, by its mount namespace: its paths mean nothing to the host.
    pub foreign_root: bool,
    /// The name of its network namespace, as `ip netns` lists it.
    pub net_name: Option<String>,
    /// Its clocks were ahead of the host's by so much (its time namespace).
    pub monotonic_offset_ns: i64,
    pub boottime_offset_ns: i64,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Namespace {
    pub kind: NamespaceKind,
    /// `/proc/PID/ns/KIND` shows it. Equal for those who shared one.
    pub number: u64,
}

/// Kinds of namespaces, in the order in which they are entered: with the user
/// namespace goes the right to enter the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum NamespaceKind {
    Time,
    Ipc,
    Uts,
    Net,
    Cgroup,
    Pid,
    Mount,
    User,
}

impl NamespaceKind {
    /// Its file in `/proc/PID/ns`.
    pub fn file(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Net => "net",
            Self::Cgroup => "cgroup",
            Self::Pid => "pid",
            Self::Mount => "mnt",
            Self::User => "user",
        }
    }
}

impl std::fmt::Display for NamespaceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Time => "time",
            Self::Ipc => "IPC",
            Self::Uts => "UTS",
            Self::Net => "network",
            Self::Cgroup => "cgroup",
            Self::Pid => "PID",
            Self::Mount => "mount",
            Self::User => "user",
        })
    }
}

impl Namespaces {
    /// It had one of this kind.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.own.iter().any(|own| own.kind == kind)
    }
}
