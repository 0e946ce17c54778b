//! A working directory that had been deleted: another one that is deleted too.
//!
//! It is made in a file system that lives in memory, so that no disk is touched:
//! what a process can do in a directory without a name is the same everywhere.

use super::{Errno, Syscalls, calls};
use crate::dataset::{Fidelity, Process};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// File systems that live in memory, on any host.
const PLACES: [&str; 3] = ["/dev/shm", "/run", "/dev"];

/// Makes one, goes there, and deletes it. False, and said, when that cannot be.
pub fn enter(process: &Process, sys: &mut dyn Syscalls, notes: &mut Vec<Fidelity>) -> bool {
    let subject = format!("pid {}", process.pid);
    let what = format!("working directory {}", process.fs.cwd);
    match go(process, sys) {
        Ok(()) => {
            let how = "it had been deleted: it is another one that was deleted";
            notes.push(Fidelity::reconstructed(subject, what, how));
            true
        }
        Err(error) => {
            let how = format!("it had been deleted, and no other can be made: {error}: it is /");
            notes.push(Fidelity::lost(subject, what, how));
            calls::with_path(sys, libc::SYS_chdir, &process.fs.root).is_ok()
        }
    }
}

fn go(process: &Process, sys: &mut dyn Syscalls) -> io::Result<()> {
    let name = Path::new(&process.fs.cwd)
        .file_name()
        .unwrap_or_else(|| "deleted".as_ref());
    let above = make_above(process.pid)?;
    let path = above.join(name);
    let entered = fs::create_dir(&path).and_then(|()| {
        let at = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        calls::with_path(sys, libc::SYS_chdir, at)
            .map_err(|Errno(errno)| io::Error::from_raw_os_error(errno))
    });
    let _ = fs::remove_dir(&path);
    fs::remove_dir(&above)?;
    entered.map(drop)
}

/// A directory that is nobody else's.
fn make_above(pid: i32) -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in PLACES {
        let path = Path::new(place).join(format!("vmrestore-{}-{pid}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) => last = error,
        }
    }
    Err(last)
}
