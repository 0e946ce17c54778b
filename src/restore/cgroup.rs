//! Cgroups: a process goes into the one of the same path, of the unified hierarchy and of each of the
//! first version's, where this host has it.

use super::RestoreError;
use super::container::{Container, below};
use super::error::Context;
use super::stub::Family;
use crate::dataset::{Fidelity, LegacyCgroup};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a hierarchy is mounted; `None`: the unified one.
fn mounted(hierarchy: Option<&str>) -> Option<PathBuf> {
    mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?, hierarchy)
}

/// The first mount that shows all of it.
fn mount_point(text: &str, hierarchy: Option<&str>) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut words = mount.split_ascii_whitespace().skip(3);
        let (root, point) = (words.next()?, words.next()?);
        let mut fs = fs.split_ascii_whitespace();
        let (kind, _, options) = (fs.next()?, fs.next()?, fs.next().unwrap_or_default());
        let is_it = match hierarchy {
            None => kind == "cgroup2",
            Some(wanted) => {
                let has = |word: &str| options.split(',').any(|option| option == word);
                kind == "cgroup" && wanted.split(',').all(has)
            }
        };
        (is_it && root == "/").then(|| PathBuf::from(point))
    })
}

/// The directory of a cgroup; `None` for what is no cgroup's path, or of a
/// hierarchy that is not mounted.
fn directory(hierarchy: Option<&str>, path: &str) -> Option<PathBuf> {
    let plain = path.starts_with('/') && !path.split('/').any(|part| part == "..");
    plain.then_some(())?;
    Some(below(&mounted(hierarchy)?, path))
}

/// The cgroup of a process of this host.
pub fn of(pid: i32) -> Option<String> {
    path_in(
        &fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?,
        None,
    )
}

/// Those of the first version that a process of this host is in.
pub fn legacy_of(pid: i32) -> Vec<LegacyCgroup> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let parsed = |line: &str| -> Option<LegacyCgroup> {
        let (_, rest) = line.split_once(':')?;
        let (hierarchy, path) = rest.split_once(':')?;
        (!hierarchy.is_empty()).then(|| LegacyCgroup {
            hierarchy: hierarchy.to_owned(),
            path: path.to_owned(),
        })
    };
    text.lines().filter_map(parsed).collect()
}

/// `NUMBER:HIERARCHY:PATH` of `/proc/PID/cgroup`; that of the unified one is empty.
fn path_in(text: &str, hierarchy: Option<&str>) -> Option<String> {
    let wanted = hierarchy.unwrap_or_default();
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (name, path) = rest.split_once(':')?;
        let is_it = match hierarchy {
            None => name.is_empty(),
            Some(_) => wanted.split(',').all(|w| name.split(',').any(|n| n == w)),
        };
        is_it.then(|| path.to_owned())
    })
}

/// The first process in any of the cgroups that a process was in, but for roots.
pub fn first_of_same_name(path: &str, legacy: &[LegacyCgroup]) -> Option<i32> {
    let of_legacy = |l: &LegacyCgroup| lowest(&directory(Some(&l.hierarchy), &l.path)?, 0);
    let unified = match path {
        "" | "/" => None,
        path => first_process(path),
    };
    unified.or_else(|| legacy.iter().filter(|l| l.path != "/").find_map(of_legacy))
}

/// The process with the lowest PID in a cgroup, or in those below it.
pub fn first_process(path: &str) -> Option<i32> {
    lowest(&directory(None, path)?, 0)
}

fn lowest(dir: &Path, depth: usize) -> Option<i32> {
    /// Far more than a host has.
    const DEEPEST: usize = 64;
    let text = fs::read_to_string(dir.join("cgroup.procs")).ok()?;
    // One of another PID namespace shows as 0.
    let own = text
        .lines()
        .filter_map(|l| l.parse().ok())
        .filter(|p| *p > 0);
    if let Some(pid) = own.min() {
        return Some(pid);
    }
    if depth >= DEEPEST {
        return None;
    }
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| lowest(&entry.path(), depth + 1))
        .min()
}

/// Puts each stub into the cgroups that its process was in: before it takes
/// memory, which is charged to them.
///
/// # Errors
/// A stub has gone.
pub fn place(
    family: &Family<'_>,
    container: Option<&Container>,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    for stub in &family.stubs {
        let process = stub.process;
        let (unified, legacy) = match container {
            // It may have another name than that of the crash.
            Some(container) if container.named => (&container.cgroup, &container.legacy_cgroups),
            _ => (&process.cgroup, &process.legacy_cgroups),
        };
        let path = format!("/proc/{}/cgroup", stub.pid);
        let text = fs::read_to_string(&path).during(process.pid, || format!("read {path}"))?;
        let legacy = legacy.iter().map(|l| (Some(l.hierarchy.as_str()), &l.path));
        for (hierarchy, wanted) in std::iter::once((None, unified)).chain(legacy) {
            let now = path_in(&text, hierarchy);
            let unknown = hierarchy.is_none() && now.is_none();
            if wanted.is_empty() || unknown || now.as_ref() == Some(wanted) {
                continue;
            }
            if let Err(why) = put(stub.pid, hierarchy, wanted) {
                let of = hierarchy.map_or_else(String::new, |name| format!("{name}:"));
                notes.push(Fidelity::reconstructed(
                    format!("pid {}", process.pid),
                    format!("cgroup {of}{wanted}"),
                    match now {
                        Some(now) => format!("{why}: it is in {now}"),
                        None => why,
                    },
                ));
            }
        }
    }
    Ok(())
}

/// Moves a process; else says why not.
fn put(pid: i32, hierarchy: Option<&str>, path: &str) -> Result<(), String> {
    let Some(dir) = directory(hierarchy, path) else {
        let which = hierarchy.map_or("the unified hierarchy".into(), |name| {
            format!("the hierarchy {name} of the first version")
        });
        return Err(format!("{which} is not mounted here"));
    };
    if !dir.is_dir() {
        return Err("there is none of that name here".into());
    }
    // In a frozen one it could not be made ready.
    for (file, frozen) in [("cgroup.freeze", "1"), ("freezer.state", "FROZEN")] {
        let state = fs::read_to_string(dir.join(file));
        if state.is_ok_and(|text| text.trim() == frozen) {
            return Err("it is frozen".into());
        }
    }
    fs::write(dir.join("cgroup.procs"), pid.to_string()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_found() {
        let text = "25 1 0:22 / /sys rw - sysfs sysfs rw\n\
                    30 25 0:26 /a /x rw - cgroup2 cgroup2 rw\n\
                    31 25 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
                    32 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let at = |hierarchy| mount_point(text, hierarchy);
        assert_eq!(at(None), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let cpu = Some(PathBuf::from("/sys/fs/cgroup/cpu"));
        assert_eq!(at(Some("cpuacct")), cpu);
        assert_eq!(at(Some("cpu,cpuacct")), cpu);
        assert_eq!(at(Some("memory")), None);
        assert_eq!(mount_point("", None), None);
    }

    #[test]
    fn where_a_process_is() {
        let text = "4:cpu,cpuacct:/a\n3:name=systemd:/b:c\n0::/d\n";
        assert_eq!(path_in(text, None), Some("/d".into()));
        assert_eq!(path_in(text, Some("cpuacct,cpu")), Some("/a".into()));
        assert_eq!(path_in(text, Some("name=systemd")), Some("/b:c".into()));
        assert_eq!(path_in(text, Some("memory")), None);
    }
}
