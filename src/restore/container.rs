//! Which namespaces of this host a set of processes is restored into: those of a
//! container of the same name, one that was named, or this process's own.
//!
//! A container has no name that a kernel knows. What comes nearest to one is the
//! path of its cgroup, in which every container runtime has the container's
//! name: the container of that name is the one whose processes are in the cgroup
//! of the same path. A network namespace by itself may have a name (`ip netns`),
//! and then comes back as the one of that name.
//!
//! When the set has PID 1 of its container, the one that runs here keeps its own:
//! they get a PID namespace below it.

mod network;

use super::error::Context;
use super::{RestoreError, cgroup, pid_space};
use crate::dataset::{Dataset, LegacyCgroup, Namespace, NamespaceKind, ObjectId, Process};
use crate::sys::namespace;
use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Into {
    /// A container in the cgroup of the same path; this host, where that does no
    /// harm.
    #[default]
    SameName,
    /// This host, whatever namespaces they were in.
    Host,
    /// The namespaces of this process.
    Pid(i32),
    /// Those of the processes in this cgroup.
    Cgroup(String),
    /// The network namespace of this name, of those that `ip netns` lists.
    Net(String),
}

impl std::str::FromStr for Into {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("pid:").unwrap_or(text);
        let path = text.strip_prefix("cgroup:").unwrap_or(text);
        match text {
            "host" => Ok(Self::Host),
            _ if let Some(name) = text.strip_prefix("netns:")
                && network::is_name(name) =>
            {
                Ok(Self::Net(name.to_owned()))
            }
            _ if digits.parse::<i32>().is_ok_and(|pid| pid > 0) => {
                Ok(Self::Pid(digits.parse().unwrap_or(0)))
            }
            _ if path.starts_with('/') => Ok(Self::Cgroup(path.to_owned())),
            _ => Err("a PID, the path of a cgroup (/…), netns:NAME, or host".into()),
        }
    }
}

/// A container that runs here, or a network namespace of a name.
#[derive(Debug)]
pub struct Container {
    /// What it is, in words.
    pub found: String,
    /// Its cgroup.
    pub cgroup: String,
    /// Those of the first version.
    pub legacy_cgroups: Vec<LegacyCgroup>,
    /// It was named on the command line, and may have another name.
    pub named: bool,
    /// Namespaces that are entered, in the order in which they can be.
    pub namespaces: Vec<(NamespaceKind, File)>,
    /// The root of its mount namespace, when that is entered.
    root: Option<File>,
}

const HINT: &str = "start a container of the same name (cgroup), empty, and restore again; --into PID or --into \
     CGROUP names another; --into host restores into this host's own namespaces";

fn refused(process: &Process, why: impl std::convert::Into<String>) -> RestoreError {
    RestoreError::Refused {
        pid: process.pid,
        what: match process.cgroup.as_str() {
            "" | "/" => "its container".to_owned(),
            name => format!("its container (cgroup {name})"),
        },
        why: why.into(),
        hint: HINT,
    }
}

/// Namespaces that all processes of a set had of their own, but for clocks,
/// which every restored process gets anew.
fn own(dataset: &Dataset) -> Result<Vec<Namespace>, RestoreError> {
    let of = |process: &Process| -> Vec<Namespace> {
        let own = process.namespaces.own.iter().copied();
        own.filter(|n| n.kind != NamespaceKind::Time).collect()
    };
    let Some(first) = dataset.processes.first() else {
        return Ok(Vec::new());
    };
    let wanted = of(first);
    for process in &dataset.processes {
        if of(process) != wanted {
            let why = format!(
                "it was in other namespaces than pid {}: a set comes into one container",
                first.pid
            );
            return Err(refused(process, why));
        }
    }
    Ok(wanted)
}

/// Finds where a set goes. `None`: into this host's own namespaces.
///
/// # Errors
/// There is no such container, and the processes cannot do without.
pub fn find(dataset: &Dataset, into: &Into) -> Result<Option<Container>, RestoreError> {
    let wanted = match into {
        Into::Host => return Ok(None),
        _ => own(dataset)?,
    };
    let Some(first) = dataset.processes.first() else {
        return Ok(None);
    };
    let (pid, named) = match into {
        Into::Pid(pid) => (*pid, true),
        Into::Net(name) => return network::enter(first, name, &wanted).map(Some),
        Into::Cgroup(path) => match cgroup::first_process(path) {
            Some(pid) => (pid, true),
            None => {
                let why = format!("no process of this host is in the cgroup {path}");
                return Err(refused(first, why));
            }
        },
        Into::SameName | Into::Host if wanted.is_empty() => return Ok(None),
        Into::SameName | Into::Host => {
            if let Some(name) = &first.namespaces.net_name
                && needs(dataset, &wanted, &[NamespaceKind::Net]).is_none()
                && dataset.vms.is_empty()
            {
                return network::enter(first, name, &wanted).map(Some);
            }
            // One that does not run shows as a cgroup without processes, or as none.
            let found = cgroup::first_of_same_name(&first.cgroup, &first.legacy_cgroups);
            match (found, needs(dataset, &wanted, &[])) {
                (Some(pid), _) => (pid, false),
                (None, None) => return Ok(None),
                (None, Some(what)) => {
                    let why = format!("it had {what}, and no container of that name runs here");
                    return Err(refused(first, why));
                }
            }
        }
    };
    match enter(dataset, first, pid, named, &wanted) {
        // What is in the cgroup of that name is no container, and none is needed.
        Err(RestoreError::Refused { .. }) if !named && needs(dataset, &wanted, &[]).is_none() => {
            Ok(None)
        }
        // Nothing of it is entered: it is no container.
        Ok(found) if !named && found.namespaces.is_empty() => Ok(None),
        other => other.map(Some),
    }
}

/// What of its namespaces the set cannot be without, besides those that it gets.
fn needs(dataset: &Dataset, wanted: &[Namespace], gets: &[NamespaceKind]) -> Option<&'static str> {
    let has = |kind| wanted.iter().any(|own| own.kind == kind) && !gets.contains(&kind);
    if !needs_no_root(dataset) {
        Some("a root directory of its own")
    } else if has(NamespaceKind::User) {
        Some("users of its own (a user namespace)")
    } else if has(NamespaceKind::Net) && dataset.vms.is_empty() {
        Some("a network of its own (a network namespace)")
    } else {
        None
    }
}

fn needs_no_root(dataset: &Dataset) -> bool {
    !dataset.processes.iter().any(|p| p.namespaces.foreign_root)
}

fn enter(
    dataset: &Dataset,
    first: &Process,
    pid: i32,
    named: bool,
    wanted: &[Namespace],
) -> Result<Container, RestoreError> {
    // It brings PID 1 along, and so a PID namespace; a copy of the host's mounts can be made too.
    let led = pid_space::first_process(dataset).is_some();
    let can_be_made = |kind| {
        led && (kind == NamespaceKind::Pid
            || kind == NamespaceKind::Mount && needs_no_root(dataset))
    };
    let mut namespaces = Vec::new();
    for kind in wanted.iter().map(|own| own.kind) {
        let file = kind.file();
        let path = format!("/proc/{pid}/ns/{file}");
        let own = format!("/proc/self/ns/{file}");
        let look = |path: &str| fs::read_link(path).during(first.pid, || format!("read {path}"));
        if look(&path)? == look(&own)? {
            if can_be_made(kind) {
                continue;
            }
            let why = format!("pid {pid} here has no {kind} namespace of its own, as it had");
            return Err(refused(first, why));
        }
        let file = File::open(&path).during(first.pid, || format!("open {path}"))?;
        namespaces.push((kind, file));
    }
    namespaces.sort_by_key(|(kind, _)| *kind);
    let mount = namespaces
        .iter()
        .find(|(kind, _)| *kind == NamespaceKind::Mount);
    let root = match mount {
        Some((_, file)) => Some(
            namespace::root_of(file)
                .during(first.pid, || format!("enter the mount namespace of {pid}"))?,
        ),
        None => None,
    };
    let cgroup = cgroup::of(pid).unwrap_or_default();
    Ok(Container {
        found: format!("the namespaces of pid {pid} (cgroup {cgroup})"),
        cgroup,
        legacy_cgroups: cgroup::legacy_of(pid),
        named,
        namespaces,
        root,
    })
}

/// The clocks of a set that had a time namespace of its own: those of the dead
/// host were others.
pub fn set_clocks(dataset: &mut Dataset) {
    if let Some(first) = dataset.processes.first() {
        let spaces = &first.namespaces;
        let host = &mut dataset.host;
        host.monotonic_ns = host.monotonic_ns.saturating_add(spaces.monotonic_offset_ns);
        host.boottime_ns = host.boottime_ns.saturating_add(spaces.boottime_offset_ns);
    }
}

impl Container {
    /// A namespace of this kind is entered.
    pub fn enters(&self, kind: NamespaceKind) -> bool {
        self.namespaces.iter().any(|(entered, _)| *entered == kind)
    }

    /// Where the container's root directory is seen from here.
    pub fn view(&self) -> PathBuf {
        match &self.root {
            Some(root) => format!("/proc/self/fd/{}", root.as_raw_fd()).into(),
            None => "/".into(),
        }
    }

    /// Lets a dataset's paths that are looked at from here lead into the
    /// container. Those that its processes open themselves stay as they are.
    pub fn look_into(&self, dataset: &mut Dataset) {
        if self.root.is_none() {
            return;
        }
        let view = self.view();
        let hosts: HashSet<ObjectId> = dataset
            .files
            .iter()
            .filter(|file| file.of_host)
            .filter_map(|file| file.inode)
            .collect();
        for inode in &mut dataset.inodes {
            if inode.path.starts_with('/') && !hosts.contains(&inode.id) {
                inode.path = below(&view, &inode.path).to_string_lossy().into_owned();
            }
        }
        for process in &mut dataset.processes {
            process.fs.seen_at = view.to_string_lossy().into_owned();
        }
    }
}

/// A path of another root directory, seen from here.
pub fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line() {
        let parsed = |text: &str| text.parse::<Into>();
        assert_eq!(parsed("host"), Ok(Into::Host));
        assert_eq!(parsed("4711"), Ok(Into::Pid(4711)));
        assert_eq!(parsed("pid:4711"), Ok(Into::Pid(4711)));
        assert_eq!(parsed("/a/b"), Ok(Into::Cgroup("/a/b".into())));
        assert_eq!(parsed("cgroup:/a"), Ok(Into::Cgroup("/a".into())));
        assert_eq!(parsed("netns:blue"), Ok(Into::Net("blue".into())));
        assert!(parsed("netns:a/b").is_err() && parsed("netns:..").is_err());
        assert!(parsed("a").is_err() && parsed("0").is_err() && parsed("-3").is_err());
    }

    #[test]
    fn a_path_is_below_its_root() {
        assert_eq!(below(Path::new("/"), "/bin/a"), Path::new("/bin/a"));
        assert_eq!(
            below(Path::new("/proc/self/fd/7"), "/bin/a"),
            Path::new("/proc/self/fd/7/bin/a")
        );
    }
}
