//! Open files: which kind each one is, told by its `file_operations`.

use super::extract::Extraction;
use super::inode;
use super::list::int;
use super::page_cache::Wanted;
use super::path::{self, Name, Place};
use super::{
    epoll, inotify, io_uring, lock, mqueue, pipe, socket, timer, tty, tty_queue, tun, vhost,
};
use crate::dataset::{FileKind, FileOwner, ObjectId, OpenFile, PageContent, PageRun};
use crate::kernel::{Kernel, KernelError, Object};

/// Bytes in a page.
const PAGE: u64 = 4096;
/// `f_mode`: open for writing.
const FMODE_WRITE: u64 = 2;
/// Flags of the open call that say nothing of the open file: O_CREAT, O_EXCL,
/// O_NOCTTY, O_TRUNC, O_CLOEXEC, and the kernel's own above bit 24.
const NOT_OF_THE_FILE: u64 = 0o100 | 0o200 | 0o400 | 0o1000 | 0o2_000_000 | 0xff00_0000;
/// Major number of /dev/null, /dev/zero, /dev/urandom and their like.
const MEM_MAJOR: u32 = 1;

/// The name of a file's `file_operations`; empty when it has no symbol.
pub(super) fn operations(kernel: &Kernel, file: &Object<'_>) -> Result<String, KernelError> {
    let op = file.ptr("f_op")?;
    Ok(kernel
        .symbol_at(op)
        .filter(|(_, offset)| *offset == 0)
        .map(|(name, _)| name)
        .unwrap_or_default())
}

/// Reads the open file at `addr`.
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    addr: u64,
    root: Option<Place>,
) -> Result<OpenFile, KernelError> {
    let kernel = x.kernel;
    let file = kernel.object("file", addr)?;
    let name = path::name(kernel, Place::of(&file.get("f_path")?)?, root)?;
    let operations = operations(kernel, &file)?;
    let object = file.follow("f_inode")?;
    let flags = file.u("f_flags")? & !NOT_OF_THE_FILE;
    let writable = file.u("f_mode")? & FMODE_WRITE != 0;
    let kind = kind(x, &file, &object, &operations, &name, root).unwrap_or_else(|error| {
        x.lost(
            &name.path,
            "open file",
            format!("its state cannot be read: {error}"),
        );
        FileKind::Unsupported {
            operations: operations.clone(),
            private_data: ObjectId(file.ptr("private_data").unwrap_or(0)),
            why: error.to_string(),
        }
    });
    if let FileKind::Unsupported { why, .. } = &kind {
        let why = why.clone();
        x.lost(&name.path, "open file", why);
    }
    let inode = if name.nameless {
        None
    } else {
        let cache = file.follow("f_mapping")?;
        Some(x.inode(&object, Some(&cache), &name.path, writable)?)
    };
    let locks = lock::held(&object, addr).unwrap_or_else(|error| {
        x.lost(&name.path, "locks", error.to_string());
        Vec::new()
    });
    Ok(OpenFile {
        id: ObjectId(addr),
        of_host: x.is_of_host(&name),
        path: name.path,
        deleted: name.deleted,
        flags: u32::try_from(flags).unwrap_or(0),
        position: file.u("f_pos")?,
        inode,
        owner: owner(&file)?,
        locks,
        kind,
    })
}

fn kind<'k>(
    x: &mut Extraction<'_, 'k>,
    file: &Object<'k>,
    object: &Object<'k>,
    operations: &str,
    name: &Name,
    root: Option<Place>,
) -> Result<FileKind, KernelError> {
    let private = file.ptr("private_data")?;
    let kernel = x.kernel;
    let unsupported = |why: &str| FileKind::Unsupported {
        operations: operations.to_owned(),
        private_data: ObjectId(private),
        why: why.to_owned(),
    };
    // Names of static structs, the same since they exist. An anonymous inode's
    // own name helps where a module's symbols are not in the dump.
    let by_name = name.path.strip_prefix("anon_inode:").unwrap_or("");
    match (operations, by_name) {
        ("pipefifo_fops" | "pipeanon_fops", _) => return pipe::kind(x, file, name),
        ("eventfd_fops", _) | (_, "[eventfd]") => {
            let context = kernel.object("eventfd_ctx", private)?;
            return Ok(FileKind::EventFd {
                context: ObjectId(private),
                count: context.u("count")?,
                flags: u32::try_from(context.u("flags")?).unwrap_or(0),
            });
        }
        ("timerfd_fops", _) | (_, "[timerfd]") => {
            return timer::timerfd(&x.clocks, kernel, private);
        }
        ("signalfd_fops", _) | (_, "[signalfd]") => {
            // Stored inverted: the signals that it does not take.
            let context = kernel.object("signalfd_ctx", private)?;
            return Ok(FileKind::SignalFd {
                mask: !context.u("sigmask.sig[0]")?,
            });
        }
        ("eventpoll_fops", _) | (_, "[eventpoll]") => return epoll::kind(kernel, private),
        ("kvm_chardev_ops", _) => return Ok(FileKind::KvmSystem),
        ("kvm_vm_fops", _) | (_, "kvm-vm") => {
            return Ok(FileKind::KvmVm {
                vm: ObjectId(private),
            });
        }
        ("kvm_vcpu_fops", _) => return kvm_vcpu(kernel, private),
        (_, anon) if anon.starts_with("kvm-vcpu") => return kvm_vcpu(kernel, private),
        ("tun_fops", _) => return tun::kind(x, private, operations, name),
        ("socket_file_ops", _) => return socket::kind(x, private, operations, name),
        ("tty_fops" | "console_fops" | "ptmx_fops" | "hung_up_tty_fops", _) => {
            let waiting =
                |unread| format!("{unread} bytes that had come to it and that nobody has read");
            // A device's come from outside, and are of the past.
            if let Ok(Some(unread)) = tty_queue::of_device(kernel, private) {
                x.lost(&name.path, "terminal", waiting(unread));
            }
            return tty::kind(kernel, private, object);
        }
        ("vhost_net_fops" | "vhost_vsock_fops", _) => {
            return vhost::kind(x, private, operations, name);
        }
        ("pidfd_fops" | "pidfs_file_operations", _) | (_, "[pidfd]") => return pidfd(file, object),
        ("inotify_fops", _) | (_, "inotify") => {
            return inotify::kind(x, private, &name.path, root);
        }
        ("io_uring_fops", _) | (_, "[io_uring]") => {
            return Ok(FileKind::Unsupported {
                // The name by which the restorer knows it, symbols or not.
                operations: "io_uring_fops".into(),
                private_data: ObjectId(private),
                why: io_uring::describe(kernel, private),
            });
        }
        _ => {}
    }
    if name.nameless && !inode::lives_in_memory(&inode::fs_type(object)?) {
        // Newer kernels give anonymous inodes the mode of a regular file.
        return Ok(unsupported("an object of the kernel that is not handled"));
    }
    let mode = inode::mode(object)?;
    match inode::fs_type(object)?.as_str() {
        // Its directory is one like others.
        "mqueue" if mode & 0o170_000 == 0o100_000 => return mqueue::kind(x, object, name),
        "secretmem" | "aio" => return Ok(unsupported("secret memory or an AIO ring")),
        _ => {}
    }
    Ok(match mode & 0o170_000 {
        0o100_000 if name.nameless || name.deleted => {
            let cache = file.follow("f_mapping")?;
            FileKind::Memfd {
                memory: orphan_memory(x, object, &cache, name)?,
            }
        }
        0o100_000 => FileKind::Regular,
        0o040_000 => FileKind::Directory,
        0o020_000 => {
            let (major, minor) = inode::device_number(object)?;
            if major == MEM_MAJOR {
                FileKind::CharDevice { major, minor }
            } else {
                unsupported(&format!(
                    "a character device ({major}:{minor}) whose driver keeps state for each open file"
                ))
            }
        }
        0o060_000 => {
            let (major, minor) = inode::device_number(object)?;
            FileKind::BlockDevice { major, minor }
        }
        _ => unsupported("an object of the kernel that is not handled"),
    })
}

/// Which process it stands for.
fn pidfd(file: &Object<'_>, object: &Object<'_>) -> Result<FileKind, KernelError> {
    /// PIDFD_THREAD, which is O_EXCL.
    const THREAD: u64 = 0o200;
    // A file system of its own has their inodes since Linux commit cb12fd8e0dabb ("pidfd: add
    // pidfs") (in v6.9).
    let addr = match inode::fs_type(object)?.as_str() {
        "pidfs" => object.ptr("i_private")?,
        _ => file.ptr("private_data")?,
    };
    let pid = file.kernel().object("pid", addr)?;
    Ok(FileKind::PidFd {
        pid: super::process::pid_number(&pid, 0)?,
        thread: file.u("f_flags")? & THREAD != 0,
        ended: pid.ptr("tasks[0].first")? == 0,
    })
}

/// `struct kvm_vcpu` knows its `struct kvm`.
fn kvm_vcpu(kernel: &Kernel, private: u64) -> Result<FileKind, KernelError> {
    let vcpu = kernel.object_in("kvm", "kvm_vcpu", private)?;
    Ok(FileKind::KvmVcpu {
        vm: ObjectId(vcpu.ptr("kvm")?),
        vcpu: ObjectId(private),
    })
}

/// F_SETOWN and F_SETSIG.
fn owner(file: &Object<'_>) -> Result<Option<FileOwner>, KernelError> {
    const PIDTYPE_PGID: u64 = 2;
    // Allocated when used since Linux commit 1934b212615d ("file: reclaim 24
    // bytes from f_owner") (in v6.12); part of struct file before.
    let owner = if file.has("f_owner.pid") {
        file.get("f_owner")?
    } else {
        match file.follow_opt("f_owner")? {
            Some(owner) => owner,
            None => return Ok(None),
        }
    };
    let Some(pid) = owner.follow_opt("pid")? else {
        return Ok(None);
    };
    let number = super::process::pid_number(&pid, 0)?;
    Ok(Some(FileOwner {
        pid: if owner.u("pid_type")? == PIDTYPE_PGID {
            -number
        } else {
            number
        },
        signal: int(&owner, "signum")?,
        // PIDTYPE_PID; a process is PIDTYPE_TGID.
        thread: owner.u("pid_type")? == 0,
    }))
}

/// The content of a file that no path leads to, as memory: memfds and their
/// like whole; a deleted file of a disk so far as the page cache has it.
pub(super) fn orphan_memory<'k>(
    x: &mut Extraction<'_, 'k>,
    object: &Object<'k>,
    cache: &Object<'k>,
    name: &Name,
) -> Result<ObjectId, KernelError> {
    let id = x.shared_memory(object, Some(cache), &name.path)?;
    if !inode::lives_in_memory(&inode::fs_type(object)?) {
        x.orphans.insert(id.0);
        let pages = whole_content(x, object, cache)?;
        let missing: u64 = pages
            .iter()
            .filter(|r| r.content == PageContent::Filtered)
            .map(|r| r.count)
            .sum();
        if missing > 0 {
            x.lost(
                &name.path,
                "content of a deleted file",
                format!("{missing} of its pages were in no page cache, and the disk forgets it"),
            );
        } else {
            x.reconstructed(
                &name.path,
                "deleted file",
                "a memory file with its content takes its place",
            );
        }
        if let Some(memory) = x.out.shared_memory.iter_mut().find(|m| m.id == id) {
            memory.pages = pages;
        }
    }
    Ok(id)
}

/// All pages of a file. Where a disk's file has none in the cache, the page is
/// said to be missing; in a file that lives in memory it is a hole of zeros.
pub(super) fn whole_content(
    x: &Extraction<'_, '_>,
    object: &Object<'_>,
    cache: &Object<'_>,
) -> Result<Vec<PageRun>, KernelError> {
    let cached = cached(x, object, cache)?;
    if inode::lives_in_memory(&inode::fs_type(object)?) {
        return Ok(cached);
    }
    Ok(with_gaps(&cached, object.u("i_size")?))
}

/// All pages in a file's cache, whole: what is not there is said not to be.
fn cached(
    x: &Extraction<'_, '_>,
    object: &Object<'_>,
    cache: &Object<'_>,
) -> Result<Vec<PageRun>, KernelError> {
    inode::cached_runs(
        x.frames,
        x.swap,
        cache,
        Wanted::All,
        inode::huge_order(object),
        object.u("i_size")?,
    )
}

/// Runs with what lies between them, up to `size`, said to be missing.
fn with_gaps(runs: &[PageRun], size: u64) -> Vec<PageRun> {
    let mut out = inode::Runs::default();
    let mut at = 0u64;
    let gap = |out: &mut inode::Runs, from: u64, to: u64| {
        if from < to {
            out.push_many(from, (to - from).div_ceil(PAGE), PageContent::Filtered);
        }
    };
    for run in runs {
        gap(&mut out, at, run.start);
        out.push_many(run.start, run.count, run.content);
        at = run.start.saturating_add(run.count.saturating_mul(PAGE));
    }
    gap(&mut out, at, size);
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_cache_has_is_said_to_be_missing() {
        let runs = [PageRun {
            start: 0x2000,
            count: 1,
            content: PageContent::Frame(9),
        }];
        let whole = with_gaps(&runs, 0x4800);
        let pieces: Vec<(u64, u64, PageContent)> = whole
            .iter()
            .map(|r| (r.start, r.count, r.content))
            .collect();
        assert_eq!(
            pieces,
            [
                (0, 2, PageContent::Filtered),
                (0x2000, 1, PageContent::Frame(9)),
                (0x3000, 2, PageContent::Filtered),
            ]
        );
    }
}
