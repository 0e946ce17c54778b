//! File locks: `inode.i_flctx`.

use super::list::int;
use crate::dataset::FileLock;
use crate::kernel::{KernelError, Object, containers};

/// `fl_flags`. Linux include/linux/filelock.h.
const FL_OFDLCK: u64 = 1024;
const FL_LEASE: u64 = 32;
const F_WRLCK: u64 = 1;
const F_UNLCK: u64 = 2;

/// Locks that the open file at `file` holds on `inode`. Their `end` is the
/// last byte; `i64::MAX` is the end of the file.
pub(super) fn held(inode: &Object<'_>, file: u64) -> Result<Vec<FileLock>, KernelError> {
    let Some(context) = inode.follow_opt("i_flctx")? else {
        return Ok(Vec::new());
    };
    // The common part is a struct of its own since Linux commit a69ce85ec9af
    // ("filelock: split common fields into struct file_lock_core") (in v6.9).
    let split = context.kernel().has_type("file_lock_core");
    let (link, prefix) = if split {
        ("c.flc_list", "c.flc_")
    } else {
        ("fl_list", "fl_")
    };
    // A struct of its own since Linux commit c69ff4071935 ("filelock: split
    // leases out of struct file_lock") (in v6.9).
    let lease = if context.kernel().has_type("file_lease") {
        "file_lease"
    } else {
        "file_lock"
    };
    let mut out = Vec::new();
    for lock in containers::list(&context.get("flc_posix")?, "file_lock", link)? {
        let field = |name: &str| format!("{prefix}{name}");
        let kind = lock.u(&field("type"))?;
        if lock.ptr(&field("file"))? != file || kind == F_UNLCK {
            continue;
        }
        let (start, end) = (lock.u("fl_start")?, lock.u("fl_end")?);
        let write = kind == F_WRLCK;
        out.push(if lock.u(&field("flags"))? & FL_OFDLCK != 0 {
            FileLock::Ofd { write, start, end }
        } else {
            FileLock::Posix {
                pid: int(&lock, &field("pid")).unwrap_or(0),
                write,
                start,
                end,
            }
        });
    }
    for lock in containers::list(&context.get("flc_flock")?, "file_lock", link)? {
        let kind = lock.u(&format!("{prefix}type"))?;
        if lock.ptr(&format!("{prefix}file"))? == file && kind != F_UNLCK {
            out.push(FileLock::Flock {
                write: kind == F_WRLCK,
            });
        }
    }
    for lock in containers::list(&context.get("flc_lease")?, lease, link)? {
        let field = |name: &str| format!("{prefix}{name}");
        let kind = lock.u(&field("type"))?;
        // Delegations are of the kernel's NFS server.
        if lock.ptr(&field("file"))? == file
            && kind != F_UNLCK
            && lock.u(&field("flags"))? & FL_LEASE != 0
        {
            out.push(FileLock::Lease {
                write: kind == F_WRLCK,
            });
        }
    }
    Ok(out)
}
