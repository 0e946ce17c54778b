//! Which namespaces a process was in, and what its IDs were there.

use super::list;
use super::path::{self, Place};
use crate::dataset::{Namespace, NamespaceKind, Namespaces};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// Members of `struct nsproxy`. That of PIDs is where its children would be.
const MEMBERS: [(&str, NamespaceKind); 6] = [
    ("mnt_ns", NamespaceKind::Mount),
    ("net_ns", NamespaceKind::Net),
    ("uts_ns", NamespaceKind::Uts),
    ("ipc_ns", NamespaceKind::Ipc),
    ("cgroup_ns", NamespaceKind::Cgroup),
    ("time_ns", NamespaceKind::Time),
];

/// Most parts of an ID map. Linux include/linux/user_namespace.h:
/// UID_GID_MAP_MAX_EXTENTS, and how many are in the structure itself.
const MAX_EXTENTS: u64 = 340;
const IN_PLACE: u64 = 5;

/// Reads what namespaces a process had of its own.
pub(super) fn read(kernel: &Kernel, task: &Object<'_>) -> Result<Namespaces, KernelError> {
    let init = kernel.object("task_struct", kernel.symbol("init_task")?)?;
    let (own, initial) = (task.follow("nsproxy")?, init.follow("nsproxy")?);
    // The mount namespace of the first process, not of the swapper, is the
    // host's: the kernel mounts its root after init_task was made.
    let first_task = list::find(kernel, 1).ok();
    let first = first_task.as_ref().and_then(|t| t.follow("nsproxy").ok());
    let mut found = Namespaces::default();
    let number = |space: &Object<'_>| space.u("ns.inum").unwrap_or(0);
    for (member, kind) in MEMBERS {
        if !own.has(member) {
            continue;
        }
        let mine = own.follow(member)?;
        let hosts = match &first {
            Some(first) => first.ptr(member)?,
            None => initial.ptr(member)?,
        };
        if mine.addr() != hosts && mine.addr() != initial.ptr(member)? {
            found.own.push(Namespace {
                kind,
                number: number(&mine),
            });
            if kind == NamespaceKind::Time {
                (found.monotonic_offset_ns, found.boottime_offset_ns) = offsets(&mine)?;
            }
        }
    }
    let pid = task.follow("thread_pid")?;
    let level = pid.u("level")?;
    if level > 0 {
        let at = pid
            .addr()
            .wrapping_add(kernel.offset_of("pid", "numbers")?)
            .wrapping_add(level.wrapping_mul(kernel.size_of("upid")?));
        found.own.push(Namespace {
            kind: NamespaceKind::Pid,
            number: number(&kernel.object("upid", at)?.follow("ns")?),
        });
    }
    let user = task.follow("real_cred")?.follow("user_ns")?;
    if user.addr() != init.follow("real_cred")?.ptr("user_ns")? {
        found.own.push(Namespace {
            kind: NamespaceKind::User,
            number: number(&user),
        });
    }
    found.own.sort_unstable();
    let net = found.own.iter().find(|own| own.kind == NamespaceKind::Net);
    if let (Some(net), Some(first)) = (net, &first) {
        // Without a name it is one of a container's, or nobody's.
        found.net_name = name_of_net(kernel, &first.follow("mnt_ns")?, net.number).unwrap_or(None);
    }
    if found.has(NamespaceKind::Mount)
        && let Some(first) = &first_task
    {
        let root = |task: &Object<'_>| Place::of(&task.follow("fs")?.get("root")?);
        // A namespace alone does no harm (libvirt gives each QEMU one): it is
        // another root that makes its paths mean other files.
        found.foreign_root = top(kernel, root(task)?)?.dentry != top(kernel, root(first)?)?.dentry;
    }
    Ok(found)
}

/// The name under which `ip netns` keeps a network namespace: that of the file on which it is
/// mounted.
fn name_of_net(
    kernel: &Kernel,
    mounts: &Object<'_>,
    number: u64,
) -> Result<Option<String>, KernelError> {
    // A tree since Linux commit 2eea9ce4310d ("mounts: keep list of mounts in an rbtree") (in v6.8).
    let mounts = match mounts.has("list") {
        true => containers::list(&mounts.get("list")?, "mount", "mnt_list")?,
        false => containers::rbtree(&mounts.get("mounts")?, "mount", "mnt_node")?,
    };
    let offset = kernel.offset_of("mount", "mnt")?;
    // Readers of /proc/mounts are in the list as well, as mounts of nothing.
    let is_it = |mount: &Object<'_>| -> Result<bool, KernelError> {
        let root = mount.follow("mnt.mnt_root")?;
        Ok(path::fs_type(&root)? == "nsfs" && root.follow("d_inode")?.u("i_ino")? == number)
    };
    let Some(mount) = mounts.iter().find(|m| is_it(m).unwrap_or(false)) else {
        return Ok(None);
    };
    let place = Place {
        mnt: mount.ptr("mnt_parent")?.wrapping_add(offset),
        dentry: mount.ptr("mnt_mountpoint")?,
    };
    let name = path::name(kernel, place, None)?.path;
    let kept = name.strip_prefix("/run/netns/");
    Ok(kept.filter(|name| !name.contains('/')).map(str::to_owned))
}

/// The host's `struct mnt_namespace`; 0: not known.
pub(super) fn mounts_of_host(kernel: &Kernel) -> u64 {
    let of = |task: Object<'_>| task.follow("nsproxy")?.ptr("mnt_ns");
    list::find(kernel, 1)
        .ok()
        .and_then(|task| of(task).ok())
        .unwrap_or(0)
}

/// Says into which namespaces it is to come back.
pub(super) fn describe(spaces: &Namespaces, cgroup: &str) -> Option<String> {
    let kinds: Vec<String> = spaces.own.iter().map(|own| own.kind.to_string()).collect();
    (!kinds.is_empty()).then(|| {
        format!(
            "of its own: {}; it comes into those of a container of the same cgroup \
             ({cgroup}), or what it can do without is this host's",
            kinds.join(", ")
        )
    })
}

/// The root of the tree of mounts that a place is in.
fn top(kernel: &Kernel, place: Place) -> Result<Place, KernelError> {
    /// Mounts upon mounts.
    const DEEPEST: usize = 4096;
    let offset = kernel.offset_of("mount", "mnt")?;
    let mut mount = kernel.object("mount", place.mnt.wrapping_sub(offset))?;
    for _ in 0..DEEPEST {
        let above = mount.ptr("mnt_parent")?;
        // The first process's root lies on the kernel's own rootfs, which
        // nothing shows: it counts as the top.
        if above == mount.addr() || above == 0 || on_rootfs(&mount)? {
            return Ok(Place {
                mnt: mount.addr().wrapping_add(offset),
                dentry: mount.ptr("mnt.mnt_root")?,
            });
        }
        mount = kernel.object("mount", above)?;
    }
    Err(KernelError::Damaged {
        what: "chain of mounts",
        addr: place.mnt,
        detail: format!("no top within {DEEPEST} steps"),
    })
}

/// A mount that covers all of its parent: that of the kernel's rootfs, or of a
/// container that was put over the host's root by MS_MOVE.
fn on_rootfs(mount: &Object<'_>) -> Result<bool, KernelError> {
    let parent = mount.follow("mnt_parent")?;
    Ok(mount.ptr("mnt_mountpoint")? == parent.ptr("mnt.mnt_root")?)
}

/// `struct timens_offsets`: nanoseconds of the monotonic and the boot-time clock.
fn offsets(time: &Object<'_>) -> Result<(i64, i64), KernelError> {
    let one = |clock: &str| -> Result<i64, KernelError> {
        let seconds = time.i(&format!("offsets.{clock}.tv_sec"))?;
        let rest = time.i(&format!("offsets.{clock}.tv_nsec"))?;
        Ok(seconds.saturating_mul(1_000_000_000).saturating_add(rest))
    };
    Ok((one("monotonic")?, one("boottime")?))
}

/// How a user namespace numbers the kernel's users and groups.
#[derive(Clone, Debug, Default)]
pub(super) struct IdMaps {
    users: Option<Vec<Extent>>,
    groups: Option<Vec<Extent>>,
}

/// `struct uid_gid_extent`.
#[derive(Clone, Copy, Debug)]
struct Extent {
    first: u32,
    lower_first: u32,
    count: u32,
}

impl IdMaps {
    /// Those of the namespace of a `struct cred`. In the initial one IDs are
    /// what they are.
    pub fn of(cred: &Object<'_>) -> Result<Self, KernelError> {
        let kernel = cred.kernel();
        let space = cred.follow("user_ns")?;
        if space.addr() == kernel.symbol("init_user_ns")? {
            return Ok(Self::default());
        }
        Ok(Self {
            users: Some(extents(&space.get("uid_map")?)?),
            groups: Some(extents(&space.get("gid_map")?)?),
        })
    }

    /// A user as the namespace says it.
    pub fn user(&self, id: u32) -> u32 {
        mapped(self.users.as_deref(), id)
    }

    /// A group as the namespace says it.
    pub fn group(&self, id: u32) -> u32 {
        mapped(self.groups.as_deref(), id)
    }
}

/// One that is not mapped shows as `overflowuid`, which is 65534 everywhere.
fn mapped(extents: Option<&[Extent]>, id: u32) -> u32 {
    const OVERFLOW: u32 = 65534;
    let Some(extents) = extents else {
        return id;
    };
    let within = |extent: &Extent| {
        let at = id.checked_sub(extent.lower_first)?;
        (at < extent.count).then(|| extent.first.saturating_add(at))
    };
    extents.iter().find_map(within).unwrap_or(OVERFLOW)
}

fn extents(map: &Object<'_>) -> Result<Vec<Extent>, KernelError> {
    let count = map.u("nr_extents")?;
    if count > MAX_EXTENTS {
        return Err(KernelError::Damaged {
            what: "uid_gid_map",
            addr: map.addr(),
            detail: format!("nr_extents is {count}"),
        });
    }
    // Sorted, in memory of its own, when there are many. Linux commit
    // 6397fac4915a ("userns: bump idmap limits to 340") (in v4.15).
    let array = if count > IN_PLACE {
        map.get("forward")?
    } else {
        map.get("extent")?
    };
    (0..count)
        .map(|at| {
            let one = array.element(at)?;
            let number =
                |field: &str| Ok::<u32, KernelError>(u32::try_from(one.u(field)?).unwrap_or(0));
            Ok(Extent {
                first: number("first")?,
                lower_first: number("lower_first")?,
                count: number("count")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_of_a_namespace_has_another_number_there() {
        let maps = IdMaps {
            users: Some(vec![
                Extent {
                    first: 0,
                    lower_first: 100_000,
                    count: 1000,
                },
                Extent {
                    first: 1000,
                    lower_first: 5,
                    count: 1,
                },
            ]),
            groups: None,
        };
        assert_eq!(maps.user(100_033), 33);
        assert_eq!(maps.user(5), 1000);
        assert_eq!(maps.user(0), 65534);
        assert_eq!(maps.group(7), 7);
    }
}
