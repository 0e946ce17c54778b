//! Has somebody else a guest's disk in hand?
//!
//! A guest that was started anew after the crash, or a backup that writes, must
//! not meet the old one on the same image.

use super::DiskError;
use crate::dataset::Inode;
use crate::sys::file_facts;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Refuses a file that somebody else has open for writing, or locked.
/// `ours` are processes that were restored from the same crash: what they
/// shared there they may share here. `file` is open for reading alone.
pub(super) fn refuse(inode: &Inode, file: &File, ours: &[i32]) -> Result<(), DiskError> {
    let in_use = |how: String| DiskError::InUse {
        path: inode.path.clone(),
        how,
    };
    let leases = matches!(inode.fs_type.as_str(), "ext4" | "xfs" | "btrfs" | "ext3");
    let written = match file_facts::is_written_elsewhere(file) {
        Ok(written) => written && leases,
        // No leases here: what /proc shows has to do.
        Err(_) => false,
    };
    let writers = writers(file, |m| (m.dev(), m.ino()));
    let strangers: Vec<&Writer> = writers.iter().filter(|w| !ours.contains(&w.pid)).collect();
    if let Some(first) = strangers.first() {
        return Err(in_use(format!(
            "{} (pid {}) has it open for writing",
            first.name, first.pid
        )));
    }
    if written && writers.is_empty() {
        return Err(in_use(
            "the kernel itself (a loop device, an NFS server, swap) or a process that is not \
             visible from here has it open for writing"
                .into(),
        ));
    }
    if !writers.is_empty() {
        // They have their locks; and they are ours.
        return Ok(());
    }
    if let Ok(Some(holder)) = file_facts::locked_elsewhere(file) {
        return Err(in_use(match holder {
            pid @ 1.. => format!("pid {pid} holds a lock on it"),
            _ => "somebody holds a lock on it".into(),
        }));
    }
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        return Err(in_use("somebody holds flock(2) on it".into()));
    }
    Ok(())
}

/// Refuses a block device that a stranger has open for writing.
pub(super) fn refuse_device(inode: &Inode, file: &File, ours: &[i32]) -> Result<(), DiskError> {
    let writers = writers(file, |m| match m.file_type().is_block_device() {
        true => (m.rdev(), 0),
        false => (m.dev(), m.ino()),
    });
    match writers.iter().find(|w| !ours.contains(&w.pid)) {
        None => Ok(()),
        Some(first) => Err(DiskError::InUse {
            path: inode.path.clone(),
            how: format!("{} (pid {}) has it open for writing", first.name, first.pid),
        }),
    }
}

struct Writer {
    pid: i32,
    name: String,
}

/// The processes that have a file open for writing, as far as /proc shows.
/// `which` tells one from another.
fn writers(file: &File, which: impl Fn(&fs::Metadata) -> (u64, u64)) -> Vec<Writer> {
    let Ok(wanted) = file.metadata() else {
        return Vec::new();
    };
    let wanted = which(&wanted);
    let own = std::process::id().cast_signed();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && has_open_for_writing(*pid, |m| which(m) == wanted))
        .map(|pid| Writer {
            pid,
            name: fs::read_to_string(format!("/proc/{pid}/comm"))
                .map_or_else(|_| "a process".into(), |name| name.trim().to_owned()),
        })
        .collect()
}

fn has_open_for_writing(pid: i32, wanted: impl Fn(&fs::Metadata) -> bool) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    fds.flatten().any(|fd| {
        let same = fs::metadata(fd.path()).is_ok_and(|m| wanted(&m));
        same && fd
            .file_name()
            .to_str()
            .and_then(|fd| fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok())
            .is_some_and(|info| is_writable(&info))
    })
}

/// The access mode in the `flags:` line (octal) of /proc/PID/fdinfo/FD.
fn is_writable(info: &str) -> bool {
    info.lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok())
        .is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

#[cfg(test)]
mod tests {
    #[test]
    fn access_modes() {
        assert!(super::is_writable("pos:\t0\nflags:\t0100002\nmnt_id:\t1\n"));
        assert!(super::is_writable("flags:\t0100001\n"));
        assert!(!super::is_writable("flags:\t0100000\n"));
        assert!(!super::is_writable(""));
    }
}
