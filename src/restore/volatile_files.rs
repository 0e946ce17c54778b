//! Files on file systems that lived in memory (tmpfs, hugetlbfs) and went with
//! the host: made again at their paths, with their content from the dump.

use super::error::Context;
use super::fill;
use super::{RestoreError, disks};
use crate::dataset::{
    Dataset, Fidelity, Inode, InodeKind, PageRun, PageSource, Process, SharedMemory,
};
use crate::sys::interrupt::Guard;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::fs::{File, FileTimes, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Such files of a dataset, by what of them is looked at.
pub fn of(dataset: &Dataset) -> impl Iterator<Item = &Inode> {
    dataset.inodes.iter().filter(|inode| {
        inode.kind == InodeKind::Regular
            && inode.links > 0
            && inode.path.starts_with('/')
            && disks::lives_in_memory(&inode.fs_type)
    })
}

/// What was made: taken away again with this, unless it is kept.
#[derive(Debug, Default)]
pub struct Made {
    /// Paths on this host.
    pub paths: Vec<PathBuf>,
    /// What is to be said of them.
    pub notes: Vec<Fidelity>,
}

/// Makes all of them.
///
/// # Errors
/// A path where something else is by now; a page that cannot be read; no room.
/// What was made until then is in `made`.
pub fn make(
    dataset: &Dataset,
    pages: &dyn PageSource,
    guard: &Guard,
    fill_them: bool,
    made: &mut Made,
) -> Result<(), RestoreError> {
    let Some(process) = dataset.processes.first() else {
        return Ok(());
    };
    for inode in of(dataset) {
        let path = PathBuf::from(&inode.path);
        match create(process.pid, inode, &path, made)? {
            Some(file) if fill_them => fill_one(process, inode, &file, pages, guard)?,
            Some(_) => {}
            None => same_content(process, inode, &path, pages)?,
        }
    }
    Ok(())
}

/// `None`: there is a file already.
fn create(
    pid: i32,
    inode: &Inode,
    path: &Path,
    made: &mut Made,
) -> Result<Option<File>, RestoreError> {
    let what = || {
        format!(
            "make {} again, which was on a {}",
            path.display(),
            inode.fs_type
        )
    };
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        std::fs::create_dir_all(parent).during(pid, what)?;
        made.notes.push(Fidelity::reconstructed(
            format!("pid {pid}"),
            format!("directory {}", parent.display()),
            "it was on a file system that lived in memory: made again, with the usual rights",
        ));
    }
    let directory = disks::directory(path).during(pid, what)?;
    let inside = disks::in_proc(&directory).join(path.file_name().unwrap_or_default());
    let create = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&inside)
    };
    let file = match create() {
        // A file system of a user namespace to which this user is nobody.
        Err(e) if e.raw_os_error() == Some(libc::EOVERFLOW) => as_owner(inode, create),
        other => other,
    };
    let file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(None),
        Err(e) => return Err(e).during(pid, what),
    };
    made.paths.push(path.to_owned());
    file.set_len(inode.size).during(pid, what)?;
    Ok(Some(file))
}

/// Does something as the owner of a file, for file systems.
fn as_owner<T>(inode: &Inode, what: impl FnOnce() -> T) -> T {
    let user = setfsuid(Uid::from_raw(inode.uid));
    let group = setfsgid(Gid::from_raw(inode.gid));
    let result = what();
    setfsgid(group);
    setfsuid(user);
    result
}

fn fill_one(
    process: &Process,
    inode: &Inode,
    file: &File,
    pages: &dyn PageSource,
    guard: &Guard,
) -> Result<(), RestoreError> {
    let pid = process.pid;
    let memory = SharedMemory {
        id: inode.id,
        name: inode.path.clone(),
        memfd: false,
        size: inode.size,
        seals: 0,
        pages: inode.dirty.clone(),
        huge_page: 0,
    };
    fill::memory(pid, &memory, file, pages, guard, None)?;
    // The last page was written whole.
    file.set_len(inode.size)
        .during(pid, || format!("set the length of {}", inode.path))?;
    let what = || format!("set owner, mode and times of {}", inode.path);
    fchown(file, Some(inode.uid), Some(inode.gid)).during(pid, what)?;
    file.set_permissions(Permissions::from_mode(inode.mode & 0o7777))
        .during(pid, what)?;
    let then = UNIX_EPOCH + Duration::from_nanos(inode.mtime_ns.max(0).cast_unsigned());
    file.set_times(FileTimes::new().set_modified(then))
        .during(pid, what)
}

/// What stands at the path by now must hold what the file held.
fn same_content(
    process: &Process,
    inode: &Inode,
    path: &Path,
    pages: &dyn PageSource,
) -> Result<(), RestoreError> {
    const PAGE: u64 = 4096;
    let pid = process.pid;
    let what = || format!("read {}", path.display());
    let changed = |what, then: String, now: String| RestoreError::FileChanged {
        pid,
        path: inode.path.clone(),
        what,
        then,
        now,
    };
    let file = File::open(path).during(pid, what)?;
    let size = file.metadata().during(pid, what)?.len();
    if size != inode.size {
        return Err(changed(
            "its size",
            inode.size.to_string(),
            size.to_string(),
        ));
    }
    let (mut then, mut now) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
    let mut runs = inode.dirty.iter().peekable();
    for at in (0..size).step_by(PAGE as usize) {
        let behind = |run: &PageRun| run.start.saturating_add(run.count.saturating_mul(PAGE));
        while runs.next_if(|run| behind(run) <= at).is_some() {}
        match runs.peek().filter(|run| run.start <= at) {
            Some(run) => pages
                .read_pages(run, (at - run.start) / PAGE, 1, &mut then)
                .map_err(|source| RestoreError::Page { pid, source })?,
            None => then.fill(0),
        }
        let len = (size - at).min(PAGE) as usize;
        file.read_exact_at(&mut now[..len], at).during(pid, what)?;
        if then[..len] != now[..len] {
            let there = |what| format!("{what} from byte {at} on");
            return Err(changed("its content", there("one"), there("another")));
        }
    }
    Ok(())
}
