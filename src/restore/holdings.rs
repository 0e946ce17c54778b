//! What a process holds and cannot be given again: found before anything is
//! made.

use super::RestoreError;
use super::files::is_bearable;
use crate::dataset::{Dataset, FileKind, OpenFile, Process};

/// Refuses open files whose loss no program is built to bear.
///
/// # Errors
/// The first of them, with what to do about it.
pub fn check(dataset: &Dataset) -> Result<(), RestoreError> {
    for process in &dataset.processes {
        let pid = process.pid;
        for fd in &process.fds {
            let Some(file) = dataset.file(fd.file) else {
                continue;
            };
            if let FileKind::Unsupported {
                operations, why, ..
            } = &file.kind
                && !is_bearable(operations)
            {
                return Err(RestoreError::Refused {
                    pid,
                    what: format!("descriptor {}, {} ({operations})", fd.fd, file.path),
                    why: why.clone(),
                    hint: hint(operations),
                });
            }
        }
        in_messages(dataset, process)?;
    }
    Ok(())
}

fn hint(operations: &str) -> &'static str {
    match operations {
        "io_uring_fops" => {
            "run the VMM without it: QEMU aio=threads, Firecracker's io_engine Sync, Cloud \
             Hypervisor's _disable_io_uring=on. --bare brings the guest alone back, for a look"
        }
        _ => "",
    }
}

/// Open files under way in messages: of some kinds there is none to send.
fn in_messages(dataset: &Dataset, process: &Process) -> Result<(), RestoreError> {
    let sockets = process.fds.iter().filter_map(|fd| dataset.file(fd.file));
    for socket in sockets {
        let FileKind::UnixSocket(unix) = &socket.kind else {
            continue;
        };
        for id in unix.unread.iter().flat_map(|message| &message.files) {
            let refused = match dataset.file(*id) {
                None => Some("it is not in the dataset".to_owned()),
                Some(file) => unsendable(file),
            };
            if let Some(why) = refused {
                return Err(RestoreError::Refused {
                    pid: process.pid,
                    what: format!("an open file under way in a message in {}", socket.path),
                    why,
                    hint: "",
                });
            }
        }
    }
    Ok(())
}

fn unsendable(file: &OpenFile) -> Option<String> {
    match &file.kind {
        FileKind::Unsupported {
            operations, why, ..
        } => Some(format!("{} ({operations}): {why}", file.path)),
        FileKind::Epoll { .. }
        | FileKind::KvmSystem
        | FileKind::KvmVm { .. }
        | FileKind::KvmVcpu { .. } => Some(format!(
            "{} is made only after all messages are sent",
            file.path
        )),
        _ => None,
    }
}
