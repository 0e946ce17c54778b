//! inotify instances: `struct fsnotify_group` and its marks.

use super::extract::Extraction;
use super::list::int;
use super::path::{self, Place};
use crate::dataset::{FileKind, InotifyWatch};
use crate::kernel::{KernelError, Object, containers};

/// IN_ALL_EVENTS.
const EVENTS: u64 = 0xfff;
/// IN_EXCL_UNLINK and IN_ONESHOT, which were bits of a mark's mask before v5.19 ...
const IN_EXCL_UNLINK: u32 = 1 << 26;
const IN_ONESHOT: u32 = 1 << 31;
/// ... and are these flags of the mark since.
const FLAG_EXCL_UNLINK: u64 = 0x10;
const FLAG_ONESHOT: u64 = 0x20;
/// IN_*.
const NAMES: [(u64, &str); 16] = [
    (1, "IN_ACCESS"),
    (2, "IN_MODIFY"),
    (4, "IN_ATTRIB"),
    (8, "IN_CLOSE_WRITE"),
    (0x10, "IN_CLOSE_NOWRITE"),
    (0x20, "IN_OPEN"),
    (0x40, "IN_MOVED_FROM"),
    (0x80, "IN_MOVED_TO"),
    (0x100, "IN_CREATE"),
    (0x200, "IN_DELETE"),
    (0x400, "IN_DELETE_SELF"),
    (0x800, "IN_MOVE_SELF"),
    (0x2000, "IN_UNMOUNT"),
    (0x4000, "IN_Q_OVERFLOW"),
    (0x8000, "IN_IGNORED"),
    (0x4000_0000, "IN_ISDIR"),
];
/// Mounts of a file system that are looked through for one that shows a file.
const MOST_MOUNTS: usize = 1 << 16;

/// Reads the instance whose `fsnotify_group` is at `addr`.
pub(super) fn kind(
    x: &mut Extraction<'_, '_>,
    addr: u64,
    name: &str,
    root: Option<Place>,
) -> Result<FileKind, KernelError> {
    let kernel = x.kernel;
    let group = kernel.object("fsnotify_group", addr)?;
    let queued = u32::try_from(group.u("q_len")?).unwrap_or(u32::MAX);
    let mut watches = Vec::new();
    for mark in containers::list(&group.get("marks_list")?, "fsnotify_mark", "g_list")? {
        let number = int(&mark.container_of("inotify_inode_mark", "fsn_mark")?, "wd")?;
        match watched(&mark, root) {
            Ok(path) => watches.push(InotifyWatch {
                number,
                path,
                mask: mask(&mark)?,
            }),
            Err(error) => x.lost(name, "inotify", format!("watch {number}: {error}")),
        }
    }
    watches.sort_by_key(|watch| watch.number);
    if queued > 0 {
        let named = unread(&group).unwrap_or_default();
        x.lost(
            name,
            "inotify",
            format!("{queued} events that nobody has read{named}"),
        );
    }
    Ok(FileKind::Inotify { watches, queued })
}

/// The first of its events that nobody has read, as a report names them. No call puts them back: only
/// what they tell of could make them anew.
fn unread(group: &Object<'_>) -> Result<String, KernelError> {
    const NAMED: usize = 8;
    let events = containers::list(&group.get("notification_list")?, "fsnotify_event", "list")?;
    let mut text = String::new();
    for (i, event) in events.iter().take(NAMED).enumerate() {
        text.push_str(if i == 0 { ": " } else { ", " });
        text.push_str(&describe(event)?);
    }
    if events.len() > NAMED {
        text.push_str(&format!(", and {} more", events.len() - NAMED));
    }
    Ok(text)
}

/// One event: what, on which watch, of which name.
fn describe(event: &Object<'_>) -> Result<String, KernelError> {
    const MAX_NAME: u64 = 255;
    let info = event.container_of("inotify_event_info", "fse")?;
    // A member of its own since Linux commit a0a92d261f29 ("fsnotify: move mask out of struct
    // fsnotify_event") (in v5.3).
    let mask = match info.has("mask") {
        true => info.u("mask")?,
        false => event.u("mask")?,
    };
    let names: Vec<&str> = NAMES
        .iter()
        .filter(|(bit, _)| mask & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    let mut text = format!("{} on watch {}", names.join("|"), int(&info, "wd")?);
    let len = info.u("name_len")?.min(MAX_NAME);
    if len > 0 {
        let kernel = info.kernel();
        let at = kernel.offset_of("inotify_event_info", "name")?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        kernel.read(info.addr().wrapping_add(at), &mut bytes)?;
        text.push_str(&format!(" {:?}", String::from_utf8_lossy(&bytes)));
    }
    Ok(text)
}

fn mask(mark: &Object<'_>) -> Result<u32, KernelError> {
    let raw = mark.u("mask")?;
    let flags = mark.u("flags")?;
    let once = flags & FLAG_ONESHOT != 0 || raw & u64::from(IN_ONESHOT) != 0;
    let linked = flags & FLAG_EXCL_UNLINK != 0 || raw & u64::from(IN_EXCL_UNLINK) != 0;
    let mut mask = u32::try_from(raw & EVENTS).unwrap_or(0);
    if once {
        mask |= IN_ONESHOT;
    }
    if linked {
        mask |= IN_EXCL_UNLINK;
    }
    Ok(mask)
}

/// A path to what a mark watches.
fn watched(mark: &Object<'_>, root: Option<Place>) -> Result<String, KernelError> {
    let kernel = mark.kernel();
    let object = mark.follow("connector")?.get("obj")?;
    // The inode itself since Linux commit 687c217c6aa0 ("fsnotify: pass object pointer and type to
    // fsnotify mark helpers") (in v6.10); before, its member that points back to the connector.
    let inode = if object.type_name().starts_with("void") {
        kernel.object("inode", object.unsigned()?)?
    } else {
        object.deref()?.container_of("inode", "i_fsnotify_marks")?
    };
    let damaged = |detail: &str| KernelError::Damaged {
        what: "inode that is watched",
        addr: inode.addr(),
        detail: detail.into(),
    };
    let first = inode.ptr("i_dentry.first")?;
    if first == 0 {
        return Err(damaged("no path leads to it any more"));
    }
    let alias = ["d_u.d_alias", "d_alias"]
        .into_iter()
        .find_map(|member| kernel.offset_of("dentry", member).ok())
        .ok_or_else(|| damaged("no dentry leads to it"))?;
    let dentry = kernel.object("dentry", first.wrapping_sub(alias))?;
    if dentry.ptr("d_parent")? != dentry.addr() && dentry.ptr("d_hash.pprev")? == 0 {
        return Err(damaged("it was deleted"));
    }
    let mount = shows(&inode, &dentry)?.ok_or_else(|| damaged("no mount shows it"))?;
    let place = Place {
        mnt: mount,
        dentry: dentry.addr(),
    };
    Ok(path::name(kernel, place, root)?.path)
}

/// The `struct vfsmount` of a mount of its file system that shows a dentry, and is part of a tree
/// that processes have.
fn shows(inode: &Object<'_>, dentry: &Object<'_>) -> Result<Option<u64>, KernelError> {
    const MOST_STEPS: usize = 4096;
    let kernel = inode.kernel();
    let mut above = Vec::new();
    let mut at = dentry.clone();
    while above.len() < MOST_STEPS {
        above.push(at.addr());
        let parent = at.follow("d_parent")?;
        if parent.addr() == at.addr() {
            break;
        }
        at = parent;
    }
    let block = inode.follow("i_sb")?;
    let offset = kernel.offset_of("mount", "mnt")?;
    // A list of its own kind since v6.18: then none is found.
    let mounts = containers::list(&block.get("s_mounts")?, "mount", "mnt_instance")?;
    for mount in mounts.into_iter().take(MOST_MOUNTS) {
        let has_namespace = mount.ptr("mnt_ns")? != 0;
        if has_namespace && above.contains(&mount.ptr("mnt.mnt_root")?) {
            return Ok(Some(mount.addr().wrapping_add(offset)));
        }
    }
    Ok(None)
}
