//! Why a process could not be brought back.

use super::Errno;
use super::kvm::KvmError;
use crate::dataset::PageSourceError;
use std::io;

/// Why nothing was restored. What had been made by then is gone again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A system call made for the process was refused.
    #[error("pid {pid}: {what}")]
    Call {
        /// PID in the dead host.
        pid: i32,
        /// Which call, for which of its objects.
        what: String,
        #[source]
        errno: Errno,
    },
    /// Something that vmrestore itself did for the process failed.
    #[error("pid {pid}: {what}")]
    Host {
        /// PID in the dead host; 0 before there is one.
        pid: i32,
        what: String,
        #[source]
        source: io::Error,
    },
    /// A process or thread ID is in use.
    #[error("PID {pid} is in use on this host")]
    PidTaken {
        /// The ID, a TID perhaps.
        pid: i32,
    },
    /// The stub ended, or stopped where it should not.
    #[error("pid {pid}: the process that was to become it {how}")]
    Lost {
        /// PID in the dead host.
        pid: i32,
        how: String,
    },
    /// Memory that the dump has not got.
    #[error(
        "pid {pid}: {pages} of {of} pages of its memory are not in the dump ({why}), the first at {first:#x}"
    )]
    PagesMissing {
        pid: i32,
        /// 4 KiB pages.
        pages: u64,
        of: u64,
        first: u64,
        /// `filtered`, `truncated`, `corrupt` or `out of reach`.
        why: &'static str,
    },
    /// A page's content could not be read.
    #[error("pid {pid}: its memory cannot be read")]
    Page {
        pid: i32,
        #[source]
        source: PageSourceError,
    },
    /// What of its memory was to arrive later could not be had: it was ended.
    #[error("pid {pid}: it was ended, since the rest of its memory cannot be had: {why}")]
    Arrival { pid: i32, why: String },
    /// A file that was open or mapped is not the one that it was.
    #[error("pid {pid}: {path} is not the file of the crash: {what} was {then} and is {now}")]
    FileChanged {
        pid: i32,
        path: String,
        what: &'static str,
        then: String,
        now: String,
    },
    /// The running kernel's vDSO is another one.
    #[error("pid {pid}: this kernel's vDSO is not the dead kernel's: {what}")]
    Vdso { pid: i32, what: String },
    /// Nothing in this version can make it again.
    #[error("pid {pid}: {what} cannot be brought back: {why}")]
    Unsupported { pid: i32, what: String, why: String },
    /// It could be brought back only in part, which nobody would want.
    #[error("pid {pid}: {what} cannot be brought back: {why}")]
    Refused {
        pid: i32,
        what: String,
        why: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The dataset contradicts itself.
    #[error("pid {pid}: {what} in the dataset is not possible: {why}")]
    Malformed { pid: i32, what: String, why: String },
    /// What was read back is not what was set.
    #[error("pid {pid}: {what} reads back as {got} (was set to {wanted})")]
    Differs {
        pid: i32,
        what: String,
        wanted: String,
        got: String,
    },
    /// The virtual machine.
    #[error("pid {pid}: its virtual machine")]
    Kvm {
        pid: i32,
        #[source]
        source: KvmError,
    },
    /// `strict`, and something would not be exact.
    #[error("not exact, and strictness was asked for: {subject}: {what}: {how}")]
    NotExact {
        subject: String,
        what: String,
        how: String,
    },
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl RestoreError {
    /// What to do about it; empty where the error says all.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::PidTaken { .. } => "a PID namespace of its own has every PID free: run as root",
            Self::PagesMissing {
                why: "filtered", ..
            } => {
                "makedumpfile left user memory out: dump with a level without bit 8 (-d 23 or \
                 less; -d 17 keeps shared memory too)"
            }
            Self::PagesMissing {
                why: "out of reach",
                ..
            } => {
                "they were swapped out (`vmrestore show` says where each is, and why that is not read), or a guest that was resumed in place runs in them"
            }
            Self::PagesMissing { .. } => {
                "the dump is not whole: was there room for it where kdump wrote it?"
            }
            Self::Arrival { .. } => {
                "with --memory eager all of it is read before it runs; if it has run, its disks have \
                 gone on"
            }
            Self::Page { .. } => "the dump is damaged there; is there another copy of it?",
            Self::FileChanged { .. } => {
                "it was replaced since (an update, a log's rotation?): put the one of the crash back; \
                 the process has it open, or parts of it in its memory"
            }
            Self::Vdso { .. } => {
                "boot the kernel that crashed (`vmrestore list` shows its release)"
            }
            Self::Call { errno, .. } => match errno.0 {
                libc::EPERM | libc::EACCES => {
                    "run as root, outside of containers and seccomp filters"
                }
                libc::ENOENT => "what the process had open must be where it was",
                libc::EAGAIN | libc::EDEADLK => {
                    "is the guest, or another process on the same files, running already?"
                }
                libc::ENOMEM => {
                    "is there enough memory (see vm.overcommit_memory, vm.max_map_count)?"
                }
                libc::EADDRINUSE => "another process listens at that address",
                _ => "",
            },
            Self::Host { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "run as root, outside of containers",
                io::ErrorKind::NotFound => "what the process had open must be where it was",
                io::ErrorKind::AddrInUse => "another process listens at that address",
                _ => "",
            },
            Self::Refused { hint, .. } => hint,
            Self::NotExact { .. } => "without --strict it is restored, and the loss reported",
            _ => "",
        }
    }
}

/// Turns the errno of an injected call into an error that names the call.
pub(super) trait Context<T> {
    /// `what` is the call and its object; `pid` the dead host's.
    fn during(self, pid: i32, what: impl FnOnce() -> String) -> Result<T, RestoreError>;
}

impl<T> Context<T> for Result<T, Errno> {
    fn during(self, pid: i32, what: impl FnOnce() -> String) -> Result<T, RestoreError> {
        self.map_err(|errno| RestoreError::Call {
            pid,
            what: what(),
            errno,
        })
    }
}

impl<T> Context<T> for io::Result<T> {
    fn during(self, pid: i32, what: impl FnOnce() -> String) -> Result<T, RestoreError> {
        self.map_err(|source| RestoreError::Host {
            pid,
            what: what(),
            source,
        })
    }
}
