//! Did the path lead to the file that it led to in the dead host?
//!
//! Between crash and restore a file may have been replaced: by an update, by a log's rotation, or by
//! somebody who would like a process that root restores to open another file for him. What was opened
//! is therefore looked at, and not what the path led to a moment before.

use super::error::Context;
use super::{RestoreError, disks};
use crate::dataset::{Fidelity, Inode, InodeKind};
use crate::sys::file_facts;
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// File systems whose inode numbers are those that stat(2) shows, and mean a file for as long as it lives.
const NUMBERED: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"];

/// Looks at descriptor `fd` of this host's process `tid`, that `pid` of the dead host had as `inode`.
///
/// # Errors
/// `FileChanged`: it is another file.
pub(super) fn check(
    pid: i32,
    tid: i32,
    fd: i32,
    inode: &Inode,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let regular = inode.kind == InodeKind::Regular;
    if !(regular || inode.kind == InodeKind::Directory)
        || !NUMBERED.contains(&inode.fs_type.as_str())
        || inode.links == 0
    {
        return Ok(());
    }
    let path = format!("/proc/{tid}/fd/{fd}");
    let what = || format!("look at {}", inode.path);
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags).open(&path)
    };
    // Somebody's lease keeps others from opening it, and O_PATH does not ask.
    let file = open(libc::O_NONBLOCK)
        .or_else(|_| open(libc::O_PATH))
        .during(pid, what)?;
    let now = file.metadata().during(pid, what)?;
    let made_again = inode.newborn && now.ino() != inode.number;
    match disks::is_on_same_file_system(inode, &file) {
        _ if made_again => has_same_rights(inode, &now),
        Some(false) if regular => is_alike(inode, &now),
        Some(false) => Ok(()),
        _ => is_same(inode, &now, &file),
    }
    .map_err(|(what, then, now)| RestoreError::FileChanged {
        pid,
        path: inode.path.clone(),
        what,
        then,
        now,
    })?;
    let unwritten = made_again || !inode.dirty.is_empty() || !inode.uncommitted.is_empty();
    if regular && !inode.writable && !unwritten && inode.mtime_ns != 0 {
        let same = mtime(&now) == inode.mtime_ns && now.size() == inode.size;
        if !same {
            notes.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                inode.path.clone(),
                "it was written to since the crash: the process reads what it holds now",
            ));
        }
    }
    Ok(())
}

/// What differs, as it was, as it is.
type Difference = (&'static str, String, String);

/// On the file system of then a number and its generation are one file's.
fn is_same(inode: &Inode, now: &Metadata, file: &File) -> Result<(), Difference> {
    let differs = |what, then: u64, now: u64| match then == now {
        true => Ok(()),
        false => Err((what, then.to_string(), now.to_string())),
    };
    differs("its inode number", inode.number, now.ino())?;
    match (inode.generation, file_facts::generation(file)) {
        (Some(then), Some(now)) => {
            differs("its inode's generation", u64::from(then), u64::from(now))
        }
        _ => Ok(()),
    }
}

/// Another host has a copy of it: the same size, time, owner and mode.
fn is_alike(inode: &Inode, now: &Metadata) -> Result<(), Difference> {
    let wrong = |what, then: String, now: String| Err((what, then, now));
    if now.size() != inode.size {
        return wrong("its size", inode.size.to_string(), now.size().to_string());
    }
    if inode.mtime_ns != 0 && mtime(now) != inode.mtime_ns {
        let (then, now) = (inode.mtime_ns, mtime(now));
        return wrong(
            "its time of modification",
            format!("{then} ns"),
            format!("{now} ns"),
        );
    }
    has_same_rights(inode, now)
}

/// One that was made again has a number of its own, and what it may hold nobody knows but its owner.
fn has_same_rights(inode: &Inode, now: &Metadata) -> Result<(), Difference> {
    let wrong = |what, then: String, now: String| Err((what, then, now));
    if (inode.uid, inode.gid) != (now.uid(), now.gid()) {
        let (then, here) = (
            format!("{}:{}", inode.uid, inode.gid),
            format!("{}:{}", now.uid(), now.gid()),
        );
        return wrong("its owner", then, here);
    }
    if inode.mode != now.mode() {
        return wrong(
            "its mode",
            format!("{:o}", inode.mode),
            format!("{:o}", now.mode()),
        );
    }
    Ok(())
}

fn mtime(meta: &Metadata) -> i64 {
    meta.mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(meta.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::ObjectId;
    use std::fs;
    use std::os::fd::AsRawFd;

    fn looked_at(path: &std::path::Path, inode: &Inode) -> (Result<(), RestoreError>, usize) {
        let file = File::open(path).expect("opens");
        let mut notes = Vec::new();
        let tid = std::process::id().cast_signed();
        let result = check(1, tid, file.as_raw_fd(), inode, &mut notes);
        (result, notes.len())
    }

    #[test]
    fn a_path_that_leads_elsewhere_by_now_is_refused() {
        let dir = std::env::temp_dir().join(format!("vmrestore-same-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("makes a directory");
        let (path, secret) = (dir.join("log"), dir.join("secret"));
        fs::write(&path, "a line").expect("writes");
        fs::write(&secret, "secret").expect("writes");
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
        let file = File::options().write(true).open(&secret).expect("opens");
        file.set_modified(later).expect("sets its time");
        let meta = fs::metadata(&path).expect("stats");
        let mut inode = Inode {
            id: ObjectId(1),
            path: path.display().to_string(),
            device: "vda".into(),
            fs_uuid: None,
            fs_type: "ext4".into(),
            number: meta.ino(),
            generation: None,
            kind: InodeKind::Regular,
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            links: 1,
            size: meta.size(),
            mtime_ns: mtime(&meta),
            ctime_ns: mtime(&meta),
            writable: false,
            dirty: Vec::new(),
            uncommitted: Vec::new(),
            blocks: Vec::new(),
            block: None,
            newborn: false,
        };
        assert!(matches!(looked_at(&path, &inode), (Ok(()), 0)));
        fs::write(&path, "a line and another").expect("writes");
        assert!(matches!(looked_at(&path, &inode), (Ok(()), 1)), "said");
        fs::remove_file(&path).expect("removes");
        std::os::unix::fs::symlink(&secret, &path).expect("links");
        let (refused, _) = looked_at(&path, &inode);
        let error = refused.expect_err("another file");
        assert!(error.to_string().contains("its inode number"), "{error}");
        // On another host it may have any number, but must be alike.
        let now = fs::metadata(&secret).expect("stats");
        assert!(is_alike(&inode, &now).is_err(), "another time");
        inode.mtime_ns = mtime(&now);
        assert!(is_alike(&inode, &now).is_ok());
        inode.mode ^= 0o044;
        assert!(is_alike(&inode, &now).is_err(), "another mode");
        // One that was made again has another number, but no other's rights.
        inode.newborn = true;
        assert!(looked_at(&path, &inode).0.is_err(), "another mode");
        inode.mode = now.mode();
        inode.mtime_ns = 0;
        assert!(looked_at(&path, &inode).0.is_ok());
        inode.uid ^= 1;
        assert!(looked_at(&path, &inode).0.is_err(), "another owner");
        fs::remove_dir_all(&dir).expect("cleans up");
    }
}
