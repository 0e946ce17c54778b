//! Names of files: from a `struct path` up to a root.

use crate::kernel::{Kernel, KernelError, Object};

/// Deepest path, in components and mounts. PATH_MAX is 4096 bytes.
const MAX_DEPTH: usize = 2048;
/// Longest name of one component.
const MAX_NAME: usize = 255;

/// A place in the tree of mounts: `struct path`'s pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `struct vfsmount`.
    pub mnt: u64,
    /// `struct dentry`.
    pub dentry: u64,
}

impl Place {
    /// Reads a `struct path`.
    pub fn of(path: &Object<'_>) -> Result<Self, KernelError> {
        Ok(Self {
            mnt: path.ptr("mnt")?,
            dentry: path.ptr("dentry")?,
        })
    }
}

/// A file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// From the given root; for files without a name in any file system what
    /// `/proc/PID/fd` shows, less " (deleted)".
    pub path: String,
    /// It was unlinked.
    pub deleted: bool,
    /// No file system that one can look into names it: pipes, sockets, memfds.
    pub nameless: bool,
    /// The `struct mnt_namespace` in which it has that name; 0: none.
    pub mounts: u64,
}

/// The name of `place` as a process with root `root` would say it.
pub(super) fn name(
    kernel: &Kernel,
    place: Place,
    root: Option<Place>,
) -> Result<Name, KernelError> {
    let dentry = kernel.object("dentry", place.dentry)?;
    let fs_type = fs_type(&dentry)?;
    let unlinked = dentry.ptr("d_parent")? != place.dentry && dentry.ptr("d_hash.pprev")? == 0;
    let nameless = |path: String| Name {
        path,
        deleted: false,
        nameless: true,
        mounts: 0,
    };
    match fs_type.as_str() {
        "pipefs" => return Ok(nameless(format!("pipe:[{}]", number(&dentry)?))),
        "sockfs" => return Ok(nameless(format!("socket:[{}]", number(&dentry)?))),
        "anon_inodefs" => {
            return Ok(nameless(format!("anon_inode:{}", component(&dentry)?)));
        }
        "pidfs" => return Ok(nameless("anon_inode:[pidfd]".into())),
        _ => {}
    }
    // The kernel's own mounts of tmpfs and hugetlbfs (memfd, MAP_SHARED) name
    // their files with simple_dname().
    let named_by = dentry
        .ptr("d_op")
        .ok()
        .filter(|op| *op != 0)
        .and_then(|op| {
            kernel
                .object("dentry_operations", op)
                .and_then(|op| op.ptr("d_dname"))
                .ok()
        });
    if named_by.is_some_and(|f| f != 0) {
        return Ok(Name {
            path: format!("/{}", component(&dentry)?),
            deleted: true,
            nameless: true,
            mounts: 0,
        });
    }
    let (path, mounts) = climb(kernel, place, root)?;
    Ok(Name {
        path,
        deleted: unlinked,
        nameless: false,
        mounts,
    })
}

/// The type of the file system that a dentry is on.
pub(super) fn fs_type(dentry: &Object<'_>) -> Result<String, KernelError> {
    let kind = dentry.follow("d_sb")?.follow("s_type")?;
    dentry.kernel().read_cstr(kind.ptr("name")?, 64)
}

fn number(dentry: &Object<'_>) -> Result<u64, KernelError> {
    dentry.follow("d_inode")?.u("i_ino")
}

/// One component's name.
fn component(dentry: &Object<'_>) -> Result<String, KernelError> {
    dentry
        .kernel()
        .read_cstr(dentry.ptr("d_name.name")?, MAX_NAME + 1)
}

/// A path, and the mount namespace in which it is one.
fn climb(kernel: &Kernel, from: Place, root: Option<Place>) -> Result<(String, u64), KernelError> {
    let mnt_offset = kernel.offset_of("mount", "mnt")?;
    let mut at = from;
    let mut components = Vec::new();
    for _ in 0..MAX_DEPTH {
        let mount = kernel.object("mount", at.mnt.wrapping_sub(mnt_offset))?;
        if Some(at) == root {
            return Ok((join(&components), mount.ptr("mnt_ns")?));
        }
        let dentry = kernel.object("dentry", at.dentry)?;
        let parent = dentry.ptr("d_parent")?;
        if at.dentry == mount.ptr("mnt.mnt_root")? || parent == at.dentry {
            let above = mount.ptr("mnt_parent")?;
            if above == mount.addr() || above == 0 {
                return Ok((join(&components), mount.ptr("mnt_ns")?));
            }
            at = Place {
                mnt: above.wrapping_add(mnt_offset),
                dentry: mount.ptr("mnt_mountpoint")?,
            };
            continue;
        }
        components.push(component(&dentry)?);
        at.dentry = parent;
    }
    Err(KernelError::Damaged {
        what: "chain of dentries",
        addr: from.dentry,
        detail: format!("no root within {MAX_DEPTH} steps"),
    })
}

fn join(components: &[String]) -> String {
    if components.is_empty() {
        return "/".into();
    }
    components
        .iter()
        .rev()
        .flat_map(|c| ["/", c.as_str()])
        .collect()
}
