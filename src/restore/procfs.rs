//! The /proc of a new PID namespace, in a mount namespace of its own: over the one that is there, with
//! the same parts of it hidden or made read-only as a container's runtime had them.

use super::error::Context;
use super::inject::Tracee;
use super::{Errno, RestoreError, calls};
use crate::dataset::Fidelity;

/// Linux include/uapi/linux/mount.h, asm-generic/unistd.h.
const OPEN_TREE: i64 = 428;
const MOVE_MOUNT: i64 = 429;
const OPEN_TREE_CLONE: u64 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
/// Far more than a runtime hides.
const MOST: usize = 256;

/// A line of `mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    point: String,
    kind: String,
    /// Flags of mount(2).
    flags: u64,
    /// The file system's own options, but for `ro` and `rw`.
    options: String,
}

/// Mounts it, by the hand of PID 1 of the namespace, which is `pid` in the dead host.
///
/// # Errors
/// A part of it that was hidden or read-only would not be.
pub fn mount(first: &mut Tracee, pid: i32) -> Result<Option<Fidelity>, RestoreError> {
    let path = format!("/proc/{}/mountinfo", first.tid);
    let text = std::fs::read_to_string(&path).during(pid, || format!("read {path}"))?;
    let mounts: Vec<Mount> = text.lines().filter_map(parsed).collect();
    let is_proc = |m: &&Mount| m.point == "/proc" && m.kind == "proc";
    let Some(old) = mounts.iter().rfind(is_proc) else {
        return Ok(None);
    };
    let below = mounts.iter().filter(|m| m.point.starts_with("/proc/"));
    let below: Vec<&Mount> = below.take(MOST).collect();
    let mut hidden = Vec::new();
    // What is no part of procfs itself is taken along; one that lies under another cannot be had.
    for mount in below.iter().filter(|m| m.kind != "proc") {
        if let Ok(fd) = clone_of(first, &mount.point) {
            hidden.push((fd, &mount.point));
        }
    }
    match new_proc(first, old) {
        Ok(_) => {}
        Err(errno) => {
            for (fd, _) in hidden {
                calls::close(first, fd).during(pid, || "close".into())?;
            }
            let how = format!("it is that of the mount namespace here (mount: {errno})");
            let subject = format!("pid {pid}");
            return Ok(Some(Fidelity::lost(subject, "/proc with its PIDs", how)));
        }
    }
    for mount in below.iter().filter(|m| m.kind == "proc") {
        made_again(first, mount).during(pid, || format!("mount {} again", mount.point))?;
    }
    for (fd, point) in hidden {
        move_to(first, fd, point)
            .and_then(|()| calls::close(first, fd))
            .during(pid, || format!("hide {point} again"))?;
    }
    Ok(None)
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS…] - TYPE SOURCE OPTIONS`. Linux fs/proc_namespace.c.
fn parsed(line: &str) -> Option<Mount> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut words = mount.split_ascii_whitespace().skip(4);
    let (point, own) = (words.next()?, words.next()?);
    let mut fs = fs.split_ascii_whitespace();
    let (kind, _, options) = (fs.next()?, fs.next()?, fs.next().unwrap_or_default());
    let flags = own.split(',').map(|word| match word {
        "ro" => libc::MS_RDONLY,
        "nosuid" => libc::MS_NOSUID,
        "nodev" => libc::MS_NODEV,
        "noexec" => libc::MS_NOEXEC,
        "noatime" => libc::MS_NOATIME,
        "relatime" => libc::MS_RELATIME,
        _ => 0,
    });
    let options = options.split(',').filter(|o| !matches!(*o, "ro" | "rw"));
    Some(Mount {
        point: point.to_owned(),
        kind: kind.to_owned(),
        flags: flags.fold(0, |all, flag| all | flag),
        options: options.collect::<Vec<_>>().join(","),
    })
}

/// Several words in the scratch memory; their addresses.
fn put_words<const N: usize>(sys: &mut Tracee, words: [&str; N]) -> Result<[u64; N], Errno> {
    let mut bytes = Vec::new();
    let mut at = [0u64; N];
    for (at, word) in at.iter_mut().zip(words) {
        *at = bytes.len() as u64;
        bytes.extend(word.bytes());
        bytes.push(0);
    }
    let start = calls::put(sys, &bytes)?;
    Ok(at.map(|offset| start.saturating_add(offset)))
}

fn new_proc(sys: &mut Tracee, old: &Mount) -> Result<u64, Errno> {
    let [kind, point, options] = put_words(sys, ["proc", &old.point, &old.options])?;
    calls::plain(
        sys,
        libc::SYS_mount,
        [kind, point, kind, old.flags, options],
    )
}

/// A part of procfs that had a mount of its own, mostly to be read-only.
fn made_again(sys: &mut Tracee, mount: &Mount) -> Result<(), Errno> {
    let [point] = put_words(sys, [&mount.point])?;
    let call = [point, point, 0, libc::MS_BIND, 0];
    match calls::plain(sys, libc::SYS_mount, call) {
        // A part that this kernel has not got needs no lid.
        Err(errno) if errno.0 == libc::ENOENT => return Ok(()),
        other => other?,
    };
    let [point] = put_words(sys, [&mount.point])?;
    let flags = libc::MS_REMOUNT | libc::MS_BIND | mount.flags;
    calls::plain(sys, libc::SYS_mount, [0, point, 0, flags, 0]).map(drop)
}

/// A descriptor of a mount like the one at a path.
fn clone_of(sys: &mut Tracee, point: &str) -> Result<i32, Errno> {
    let [point] = put_words(sys, [point])?;
    let here = i64::from(libc::AT_FDCWD).cast_unsigned();
    let flags = OPEN_TREE_CLONE | u64::from(libc::O_CLOEXEC.cast_unsigned());
    calls::make_fd(sys, OPEN_TREE, [here, point, flags])
}

fn move_to(sys: &mut Tracee, fd: i32, point: &str) -> Result<(), Errno> {
    let [point, empty] = put_words(sys, [point, ""])?;
    let here = i64::from(libc::AT_FDCWD).cast_unsigned();
    let fd = i64::from(fd).cast_unsigned();
    let call = [fd, empty, here, point, MOVE_MOUNT_F_EMPTY_PATH];
    match calls::plain(sys, MOVE_MOUNT, call) {
        Err(errno) if errno.0 == libc::ENOENT => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_a_container() {
        let found = parsed(
            "812 790 0:61 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw,hidepid=invisible",
        );
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME;
        assert_eq!(
            found,
            Some(Mount {
                point: "/proc".into(),
                kind: "proc".into(),
                flags,
                options: "hidepid=invisible".into(),
            })
        );
        let masked = parsed(
            "820 812 0:5 /null /proc/kcore rw,nosuid shared:7 - devtmpfs devtmpfs rw,size=4m",
        )
        .expect("a mount");
        assert_eq!(
            (masked.point.as_str(), masked.kind.as_str()),
            ("/proc/kcore", "devtmpfs")
        );
        assert_eq!(parsed("no mount"), None);
    }
}
