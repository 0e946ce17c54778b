//! The mark on a guest's disk image that says: a guest was let run on it.
//!
//! The journal knows what this host has restored. Another host that sees the
//! same image by shared storage does not, and asks the image: an extended
//! attribute, or, where the file system has none, a small file beside it.

use super::{DiskError, is_block_device, key, on_disk, state};
use crate::dataset::{Dataset, Inode};
use crate::restore::journal::Journal;
use crate::sys::file_facts;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const ATTRIBUTE: &CStr = c"user.vmrestore";
/// Behind the image's name, for file systems without extended attributes.
const SUFFIX: &str = ".vmrestore-marker";

/// Who let a guest run on this image.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// Identity of the crash.
    crash: String,
    /// The VMM's PID in the dead host.
    pid: i32,
    /// Name of the host on which it was restored.
    host: String,
    /// Seconds since 1970.
    when: u64,
}

/// Refuses an image on which a guest of this crash, or of a later one, was let
/// run. A mark from before the crash is history.
pub(super) fn refuse(
    inode: &Inode,
    file: &File,
    dataset: &Dataset,
    journal: Option<&Journal>,
) -> Result<(), DiskError> {
    let read = read(inode, file).map_err(|source| DiskError::Io {
        what: "read the marker of",
        path: inode.path.clone(),
        source,
    })?;
    let Some(marker) = read else {
        return Ok(());
    };
    let crashed_at = dataset.host.realtime_ns / 1_000_000_000;
    let from_this_crash = marker.crash == dataset.crash_id;
    let later = i64::try_from(marker.when).is_ok_and(|when| when >= crashed_at);
    // Our own mark, of an attempt that was killed before the guest could run.
    let unfinished = from_this_crash && journal.is_some_and(|j| j.is_unfinished(marker.pid));
    if unfinished || !(from_this_crash || later) {
        return Ok(());
    }
    Err(DiskError::Marked {
        path: inode.path.clone(),
        crash: marker.crash,
        host: marker.host,
        when: marker.when,
    })
}

/// Marks that were set; [`Markers::remove`] takes them off again.
#[derive(Debug)]
pub struct Markers<'d> {
    /// Each with the mark of an earlier restore that it took the place of.
    set: Vec<(&'d Inode, Option<Marker>)>,
}

impl<'d> Markers<'d> {
    /// Marks every image that the dataset's guests may write to.
    ///
    /// # Errors
    /// The first that could not be marked; then none is.
    pub fn set(dataset: &'d Dataset, journal: &Journal) -> Result<Self, DiskError> {
        let mut markers = Self { set: Vec::new() };
        let Some(vm) = dataset.vms.first() else {
            return Ok(markers);
        };
        let marker = Marker {
            crash: dataset.crash_id.clone(),
            pid: vm.pid,
            host: nix::sys::utsname::uname().map_or_else(
                |_| "?".into(),
                |u| u.nodename().to_string_lossy().into_owned(),
            ),
            when: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
        };
        for inode in on_disk(dataset).filter(|i| i.writable && !is_block_device(i)) {
            let marked = earlier(inode, &marker, journal).and_then(|before| {
                markers.set.push((inode, before));
                write(inode, &marker, journal)
            });
            if let Err(source) = marked {
                markers.remove(journal);
                return Err(DiskError::Io {
                    what: "mark",
                    path: inode.path.clone(),
                    source,
                });
            }
        }
        Ok(markers)
    }

    /// Takes the marks off, or puts back what they replaced: the guests did not
    /// run after all.
    pub fn remove(self, journal: &Journal) {
        for (inode, before) in self.set {
            let undone = match before {
                Some(before) => write(inode, &before, journal),
                None => remove(inode, journal),
            };
            if let Err(e) = undone {
                tracing::warn!("the marker of {} stays: {e}", inode.path);
            }
        }
    }
}

/// The mark of an earlier restore, which a failure of this one must not take
/// away; but not what an attempt from here that was cut off has left.
fn earlier(inode: &Inode, new: &Marker, journal: &Journal) -> io::Result<Option<Marker>> {
    let mark = read(inode, &File::open(&inode.path)?)?;
    Ok(mark.filter(|mark| {
        let ours = (&mark.crash, mark.pid, &mark.host) == (&new.crash, new.pid, &new.host);
        !(ours && journal.is_resuming(mark.pid))
    }))
}

fn beside(inode: &Inode) -> PathBuf {
    let mut path = inode.path.clone();
    path.push_str(SUFFIX);
    path.into()
}

fn read(inode: &Inode, file: &File) -> io::Result<Option<Marker>> {
    let bytes = match file_facts::attribute(file, ATTRIBUTE)? {
        Some(bytes) => bytes,
        None => match fs::read(beside(inode)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        },
    };
    serde_json::from_slice(&bytes).map(Some).map_err(Into::into)
}

fn write(inode: &Inode, marker: &Marker, journal: &Journal) -> io::Result<()> {
    let bytes = serde_json::to_vec(marker)?;
    let file = OpenOptions::new().write(true).open(&inode.path)?;
    let set = noted(inode, &file, journal, || {
        match file_facts::set_attribute(&file, ATTRIBUTE, &bytes) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            other => other.map(|()| true),
        }
    })?;
    if !set {
        let mut beside = File::create(beside(inode))?;
        beside.write_all(&bytes)?;
        beside.sync_all()?;
    }
    Ok(())
}

fn remove(inode: &Inode, journal: &Journal) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(&inode.path)?;
    match fs::remove_file(beside(inode)) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    noted(inode, &file, journal, || {
        file_facts::remove_attribute(&file, ATTRIBUTE)
    })
}

/// A mark changes the inode's change time: the journal must know that this was
/// us, or the next attempt would take the disk for one that has moved on.
fn noted<T>(
    inode: &Inode,
    file: &File,
    journal: &Journal,
    change: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let key = key(inode);
    let before = state(inode, file).map_err(io::Error::other)?;
    journal
        .touching(&key, &inode.path, before)
        .map_err(io::Error::other)?;
    let changed = change()?;
    file.sync_all()?;
    let after = state(inode, file).map_err(io::Error::other)?;
    journal
        .touched(&key, &inode.path, after)
        .map_err(io::Error::other)?;
    Ok(changed)
}
