//! Files that were made right before the crash, and that the disk never came to know of: their file
//! system's journal had not committed them. They are made again, whole or not at all, at their path.
//!
//! Such a file gets another inode number. Until the write-back has come to its end an extended
//! attribute says whose it is, so that a restore that was killed can be run again.

use super::{DiskError, PAGE, has_room, identity, key, lost_pages};
use crate::dataset::{Dataset, Fidelity, Inode, InodeKind, PageSource, SharedMemory};
use crate::restore::error::Context;
use crate::restore::journal::Journal;
use crate::restore::volatile_files::Made;
use crate::restore::{RestoreError, fill};
use crate::sys::file_facts;
use crate::sys::interrupt::Guard;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag};
use std::ffi::CStr;
use std::fs::{File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Of which crash it is.
const ATTRIBUTE: &CStr = c"user.vmrestore.newborn";

/// Whether the file is one that is to be made.
pub(in crate::restore) fn is_to_be_made(inode: &Inode) -> bool {
    inode.newborn
        && inode.kind == InodeKind::Regular
        && inode.links > 0
        && inode.path.starts_with('/')
        && std::fs::symlink_metadata(&inode.path)
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether it can be made, for the dead host's processes `pids`. Changes nothing.
pub(super) fn check(
    inode: &Inode,
    pids: &[i32],
    journal: Option<&Journal>,
) -> Result<(), DiskError> {
    let missing = |why: String| DiskError::Missing {
        path: inode.path.clone(),
        inode: inode.number,
        device: inode.device.clone(),
        source: io::Error::other(why),
    };
    lost_pages(inode)?;
    // One that failed took its file away with it.
    if let Some(journal) = journal
        && journal.has_written(&key(inode))?
        && any_resumed(pids, journal)?
    {
        let why = "a restore had made it again, and it was removed since";
        return Err(missing(why.into()));
    }
    let directory = directory(Path::new(&inode.path)).map_err(|e| {
        missing(format!(
            "the crash came before its disk knew of it, and it cannot be made again: its directory: {e}"
        ))
    })?;
    identity::same_file_system(inode, &directory)?;
    if let Some(name) = elsewhere(inode, &directory) {
        let why = format!("it has another name here: {}", name.display());
        return Err(missing(why));
    }
    let pages = inode.dirty.iter().chain(&inode.uncommitted);
    let pages = pages.fold(0u64, |sum, run| sum.saturating_add(run.count));
    let needed = pages
        .saturating_mul(PAGE)
        .min(inode.size.next_multiple_of(PAGE));
    has_room(inode, needed, &directory)
}

fn any_resumed(pids: &[i32], journal: &Journal) -> Result<bool, DiskError> {
    for pid in pids {
        if journal.has_resumed(*pid)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file was made by [`make`], by an attempt that was cut off.
pub(super) fn is_ours(inode: &Inode, file: &File, dataset: &Dataset) -> bool {
    inode.newborn
        && file_facts::attribute(file, ATTRIBUTE)
            .is_ok_and(|value| value.as_deref() == Some(whose(inode, dataset).as_bytes()))
}

/// It is known to the journal from here on.
pub(super) fn settle(inode: &Inode, file: &File) -> io::Result<()> {
    match inode.newborn {
        true => file_facts::remove_attribute(file, ATTRIBUTE),
        false => Ok(()),
    }
}

/// Makes all of them; for a dry run without their content.
///
/// # Errors
/// A page that cannot be read; no room; Ctrl-C. What was made until then is in `made`.
pub(in crate::restore) fn make(
    dataset: &Dataset,
    pages: &dyn PageSource,
    guard: &Guard,
    fill_them: bool,
    made: &mut Made,
) -> Result<(), RestoreError> {
    let pid = dataset.processes.first().map_or(0, |p| p.pid);
    for inode in dataset.inodes.iter().filter(|inode| is_to_be_made(inode)) {
        let what = || format!("make {} again", inode.path);
        let path = PathBuf::from(&inode.path);
        let directory = directory(&path).during(pid, what)?;
        let file = nameless(&directory).during(pid, what)?;
        if fill_them {
            fill_it(pid, inode, &file, pages, guard)?;
        }
        // The last page was written whole.
        file.set_len(inode.size)
            .during(pid, || format!("set the length of {}", inode.path))?;
        dress(inode, &file, &whose(inode, dataset)).during(pid, what)?;
        name(&file, &directory, &path).during(pid, what)?;
        made.paths.push(path);
        directory.sync_all().during(pid, what)?;
        made.notes.push(Fidelity::reconstructed(
            format!("pid {pid}"),
            inode.path.clone(),
            "it was made so shortly before the crash that its disk had not got to know of it: made \
             again with its content, owner and times; its inode number is another",
        ));
    }
    Ok(())
}

/// The directory of a path that has no symbolic links: the dead kernel's have none, and what has
/// become one since leads who knows where.
pub(in crate::restore) fn directory(path: &Path) -> io::Result<File> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(nix::fcntl::openat2(AT_FDCWD, parent, how)?.into())
}

/// A file without a name, which goes with us.
fn nameless(directory: &File) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(in_proc(directory))
}

/// A path of this process's to what a descriptor leads to.
pub(in crate::restore) fn in_proc(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn fill_it(
    pid: i32,
    inode: &Inode,
    file: &File,
    pages: &dyn PageSource,
    guard: &Guard,
) -> Result<(), RestoreError> {
    let content = SharedMemory {
        id: inode.id,
        name: inode.path.clone(),
        memfd: false,
        size: inode.size,
        seals: 0,
        pages: [inode.dirty.as_slice(), inode.uncommitted.as_slice()].concat(),
        huge_page: 0,
    };
    fill::memory(pid, &content, file, pages, guard, None)
}

/// Owner, mode and times, all of it on the disk.
fn dress(inode: &Inode, file: &File, whose: &str) -> io::Result<()> {
    fchown(file, Some(inode.uid), Some(inode.gid))?;
    file.set_permissions(Permissions::from_mode(inode.mode & 0o7777))?;
    file_facts::set_attribute(file, ATTRIBUTE, whose.as_bytes())?;
    let then = UNIX_EPOCH + Duration::from_nanos(inode.mtime_ns.max(0).cast_unsigned());
    file.set_times(FileTimes::new().set_modified(then))?;
    file.sync_all()
}

/// Fails where there is one of that name.
fn name(file: &File, directory: &File, path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let flags = AtFlags::AT_SYMLINK_FOLLOW;
    nix::unistd::linkat(AT_FDCWD, &in_proc(file), directory, name, flags)?;
    Ok(())
}

fn whose(inode: &Inode, dataset: &Dataset) -> String {
    format!("{} {}", dataset.crash_id, key(inode))
}

/// The name under which its file system has it after all: it was renamed right before the crash.
fn elsewhere(inode: &Inode, directory: &File) -> Option<PathBuf> {
    let generation = inode.generation?;
    let file = match inode.fs_type.as_str() {
        "ext4" => file_facts::by_number(directory, inode.number, generation, false),
        "xfs" => file_facts::by_number(directory, inode.number, generation, true),
        _ => None,
    }?;
    std::fs::read_link(in_proc(&file)).ok()
}
