//! Network namespaces that have a name: files in a directory of `ip netns`, on which they are mounted.

use super::Container;
use crate::dataset::{Namespace, NamespaceKind, Process};
use crate::restore::RestoreError;
use crate::restore::error::Context;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// Where `ip netns` has them. iproute2 include/namespace.h: NETNS_RUN_DIR.
const DIRECTORY: &str = "/run/netns";

/// It can be the name of one.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !matches!(name, "." | "..")
}

/// The one of that name, alone: all other namespaces are this host's.
///
/// # Errors
/// There is none.
pub(super) fn enter(
    process: &Process,
    name: &str,
    wanted: &[Namespace],
) -> Result<Container, RestoreError> {
    let refused = |why: String| RestoreError::Refused {
        pid: process.pid,
        what: format!("its network namespace {name}"),
        why,
        hint: "make it with the addresses that it had (ip netns add NAME), and restore again; \
               --into netns:NAME names another, --into host restores into this host's own",
    };
    if !wanted.iter().any(|own| own.kind == NamespaceKind::Net) {
        return Err(refused("it was in the host's own".into()));
    }
    if !is_name(name) {
        return Err(refused("that is no name of one".into()));
    }
    let path = format!("{DIRECTORY}/{name}");
    let file = File::open(&path).map_err(|error| refused(format!("open {path}: {error}")))?;
    let device = |meta: fs::Metadata| meta.dev();
    let of = |file: &File| file.metadata().map(device);
    let own = fs::metadata("/proc/self/ns/net").map(device);
    let (of, own) = (of(&file), own);
    let same = of.during(process.pid, || format!("look at {path}"))?
        == own.during(process.pid, || "look at /proc/self/ns/net".into())?;
    if !same {
        return Err(refused(format!(
            "{path} is only a file: none is mounted on it"
        )));
    }
    Ok(Container {
        found: format!("the network namespace {name}"),
        cgroup: String::new(),
        legacy_cgroups: Vec::new(),
        named: false,
        namespaces: vec![(NamespaceKind::Net, file)],
        root: None,
    })
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_lead_nowhere_else() {
        assert!(is_name("blue") && is_name("a.b"));
        assert!(!is_name("") && !is_name("..") && !is_name("a/b"));
    }
}
