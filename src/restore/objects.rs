//! Objects that mappings, descriptors and processes share: who holds which,
//! and how another process gets it.

use super::error::Context;
use super::huge_pages::{self, Mapped};
use super::stub::Family;
use super::{Errno, RestoreError, Syscalls, calls};
use crate::dataset::{Dataset, Fidelity, ObjectId, PageContent, PageRun, SharedMemory};
use std::collections::HashMap;
use std::fs::OpenOptions;

/// `MFD_ALLOW_SEALING`, `MFD_CLOEXEC`.
const ALLOW_SEALING: u64 = 2;
const CLOEXEC: u64 = 1;

/// A descriptor of the stub with this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub stub: usize,
    pub fd: i32,
}

/// What has been made so far.
#[derive(Debug)]
pub struct Objects {
    /// Descriptors from here on are the restorer's; they are closed at the end.
    pub base: i32,
    /// Open file descriptions.
    pub files: HashMap<ObjectId, Holder>,
    /// Shared memory.
    memory: HashMap<ObjectId, Holder>,
    /// What could not be made as it was.
    pub notes: Vec<Fidelity>,
}

impl Objects {
    /// Nothing made yet.
    pub fn new(dataset: &Dataset) -> Self {
        Self {
            base: base(dataset),
            files: HashMap::new(),
            memory: HashMap::new(),
            notes: Vec::new(),
        }
    }

    /// A descriptor of the stub `into` for what `holder` holds; a temporary
    /// one when that is another process.
    ///
    /// # Errors
    /// pidfd_getfd refused.
    pub fn lend(
        &self,
        family: &mut Family<'_>,
        holder: Holder,
        into: usize,
    ) -> Result<i32, RestoreError> {
        if holder.stub == into {
            return Ok(holder.fd);
        }
        let owner = family.process(holder.stub)?;
        let pid = family.process(into)?.pid;
        let sys = family.leader(into)?;
        let target = i64::from(owner.ns_pid).cast_unsigned();
        let fd = i64::from(holder.fd).cast_unsigned();
        let pidfd = calls::make_fd(sys, libc::SYS_pidfd_open, [target, 0])
            .during(pid, || format!("pidfd_open of pid {}", owner.pid))?;
        let pidfd_arg = i64::from(pidfd).cast_unsigned();
        let got = calls::make_fd(sys, libc::SYS_pidfd_getfd, [pidfd_arg, fd, 0])
            .and_then(|got| calls::raise(sys, got, self.base))
            .during(pid, || format!("pidfd_getfd from pid {}", owner.pid))?;
        calls::close(sys, pidfd).during(pid, || "close".into())?;
        Ok(got)
    }

    /// A descriptor of the stub `at` for a shared memory, which is made (empty)
    /// the first time.
    ///
    /// # Errors
    /// memfd_create refused.
    pub fn memory_in(
        &mut self,
        dataset: &Dataset,
        family: &mut Family<'_>,
        at: usize,
        id: ObjectId,
    ) -> Result<i32, RestoreError> {
        if let Some(holder) = self.memory.get(&id).copied() {
            return self.lend(family, holder, at);
        }
        let pid = family.process(at)?.pid;
        let memory = dataset
            .shared_memory
            .iter()
            .find(|m| m.id == id)
            .ok_or_else(|| RestoreError::Malformed {
                pid,
                what: format!("shared memory {id}"),
                why: "it is not in the dataset".into(),
            })?;
        let leader = family.leader(at)?;
        let tid = leader.tid;
        let what = || format!("memfd of {} bytes for {:?}", memory.size, memory.name);
        let in_place = |run: &PageRun| matches!(run.content, PageContent::InPlace(_));
        let in_place = memory.pages.iter().any(in_place);
        let huge = match memory.huge_page {
            0 => None,
            _ if in_place => None,
            size => match make_memory(leader, memory, huge_pages::memfd_flags(size)) {
                Ok(fd) if has_huge_pages(tid, fd, memory.size) => Some(fd),
                Ok(fd) => {
                    calls::close(leader, fd).during(pid, || "close".into())?;
                    None
                }
                Err(_) => None,
            },
        };
        let fd = match huge {
            Some(fd) => Ok(fd),
            None => make_memory(leader, memory, 0),
        };
        let fd = fd
            .and_then(|fd| calls::raise(leader, fd, self.base))
            .during(pid, what)?;
        if memory.huge_page != 0 && huge.is_none() {
            self.notes.push(match in_place {
                true => huge_pages::note_in_place(pid, what()),
                false => huge_pages::note(pid, what(), memory.huge_page),
            });
        }
        self.memory.insert(id, Holder { stub: at, fd });
        Ok(fd)
    }

    /// All shared memories that were made, and who holds them.
    pub fn memories(&self) -> impl Iterator<Item = (ObjectId, Holder)> {
        self.memory.iter().map(|(id, holder)| (*id, *holder))
    }
}

/// Descriptors from here on are free in all processes.
pub fn base(dataset: &Dataset) -> i32 {
    let highest = dataset
        .processes
        .iter()
        .flat_map(|p| p.fds.iter().map(|f| f.fd))
        .max()
        .unwrap_or(0);
    highest.saturating_add(1).max(256)
}

/// Whether so many huge pages could be reserved for a stub's memory file.
fn has_huge_pages(tid: i32, fd: i32, size: u64) -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{tid}/fd/{fd}"))
        .and_then(|file| Mapped::new(&file, size))
        .is_ok()
}

fn make_memory(sys: &mut dyn Syscalls, memory: &SharedMemory, flags: u64) -> Result<i32, Errno> {
    // The kernel takes names of up to 249 bytes.
    let name = memory.name.trim_start_matches("/memfd:");
    let name = name.trim_end_matches(" (deleted)");
    let mut bytes: Vec<u8> = name.bytes().filter(|b| *b != 0).take(249).collect();
    bytes.push(0);
    let at = calls::put(sys, &bytes)?;
    let fd = calls::make_fd(
        sys,
        libc::SYS_memfd_create,
        [at, CLOEXEC | ALLOW_SEALING | flags],
    )?;
    let raw = i64::from(fd).cast_unsigned();
    calls::plain(sys, libc::SYS_ftruncate, [raw, memory.size])?;
    Ok(fd)
}
