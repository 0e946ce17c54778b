//! The cgroups that a process was in: one of the unified hierarchy, and one of each of the first
//! version's hierarchies, where a host has those.

use super::list::int;
use crate::dataset::LegacyCgroup;
use crate::kernel::{KernelError, Object, containers};

/// Controllers are the bits of a 16-bit mask. Linux include/linux/cgroup-defs.h: subsys_mask.
const MOST_CONTROLLERS: u64 = 16;
const LONGEST_NAME: usize = 64;

/// The path of a task's cgroup below the root of the unified hierarchy.
pub(super) fn unified(task: &Object<'_>) -> Result<String, KernelError> {
    path(&task.follow("cgroups")?.follow("dfl_cgrp")?)
}

/// Those of the first version that are not their hierarchy's root.
pub(super) fn legacy(task: &Object<'_>) -> Result<Vec<LegacyCgroup>, KernelError> {
    let set = task.follow("cgroups")?;
    let unified = set.follow("dfl_cgrp")?.ptr("root")?;
    let links = containers::list(&set.get("cgrp_links")?, "cgrp_cset_link", "cgrp_link")?;
    let mut found = Vec::new();
    for link in links {
        let cgroup = link.follow("cgrp")?;
        let root = cgroup.follow("root")?;
        let path = path(&cgroup)?;
        if root.addr() != unified && path != "/" {
            let hierarchy = hierarchy(&root)?;
            found.push(LegacyCgroup { hierarchy, path });
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// As `/proc/PID/cgroup` names it: its controllers, or `name=` and its name.
fn hierarchy(root: &Object<'_>) -> Result<String, KernelError> {
    let kernel = root.kernel();
    let mask = root.u("subsys_mask")?;
    let array = kernel.symbol("cgroup_subsys")?;
    let mut words = Vec::new();
    for bit in (0..MOST_CONTROLLERS).filter(|bit| mask >> bit & 1 == 1) {
        let controller = kernel.read_u64(array.wrapping_add(bit.wrapping_mul(8)))?;
        let name = kernel
            .object("cgroup_subsys", controller)?
            .ptr("legacy_name")?;
        words.push(kernel.read_cstr(name, LONGEST_NAME)?);
    }
    let name = root.get("name")?.string()?;
    if !name.is_empty() {
        words.push(format!("name={name}"));
    }
    match words.is_empty() {
        true => Ok(format!("number {}", int(root, "hierarchy_id")?)),
        false => Ok(words.join(",")),
    }
}

fn path(cgroup: &Object<'_>) -> Result<String, KernelError> {
    /// A cgroup's path has at most PATH_MAX bytes.
    const DEEPEST: usize = 2048;
    let mut node = cgroup.follow("kn")?;
    // `__parent` since Linux commit 633488947ef6 ("kernfs: Use RCU to access
    // kernfs_node::parent.") (in v6.15).
    let up = if node.has("__parent") {
        "__parent"
    } else {
        "parent"
    };
    let mut names = Vec::new();
    while let Some(parent) = node.follow_opt(up)? {
        if names.len() >= DEEPEST {
            return Err(KernelError::Damaged {
                what: "kernfs_node",
                addr: node.addr(),
                detail: "its parents go in a circle".into(),
            });
        }
        names.push(node.get("name")?.string()?);
        node = parent;
    }
    names.reverse();
    Ok(format!("/{}", names.join("/")))
}
