//! Open files: each is made once, and put at every number, in every process,
//! that it had.
//!
//! Three rounds, in order of dependency: what stands alone; the descriptors
//! of virtual machines, which KVM makes; epoll instances, which watch the rest.

mod dress;
mod epoll;
mod event;
mod inet;
mod kvm;
mod locks;
mod pipe;
mod regular;
mod terminal;
mod tun;
mod unix;

use super::error::Context;
use super::kvm::KvmFiles;
use super::objects::{Holder, Objects};
use super::stub::Family;
use super::{RestoreError, Syscalls, calls};
use crate::dataset::{Dataset, Fidelity, FileKind, ObjectId, OpenFile};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

pub use event::start_timers;

/// Status flags that F_SETFL takes. Linux fs/fcntl.c, SETFL_MASK.
const STATUS: i32 =
    libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME;

/// Flags of an open(2) that opens the same thing again.
const OPEN: i32 = libc::O_ACCMODE
    | STATUS
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_LARGEFILE
    | libc::O_DIRECTORY
    | libc::O_PATH;

/// The making of files, and what must be remembered between them.
#[derive(Debug)]
pub struct Workshop<'d> {
    dataset: &'d Dataset,
    by_id: HashMap<ObjectId, &'d OpenFile>,
    dry_run: bool,
    pipes: HashMap<ObjectId, pipe::Ends>,
    /// Sockets made as the other half of a pair, by `struct sock`.
    sockets: HashMap<ObjectId, Holder>,
    /// Pseudo-terminals made again: their new numbers by the old ones.
    terminals: HashMap<u32, u32>,
    /// By the index of the stub that owns them.
    kvm: BTreeMap<usize, KvmFiles>,
    /// Paths that came into being, to be removed should the restore fail.
    made_paths: Vec<PathBuf>,
    /// What could not be made exactly.
    pub notes: Vec<Fidelity>,
}

impl Drop for Workshop<'_> {
    fn drop(&mut self) {
        for path in &self.made_paths {
            // It is ours: bound by a stub that dies now.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The process that a file is made in.
struct Place<'s> {
    sys: &'s mut dyn Syscalls,
    /// Index of its stub.
    stub: usize,
    /// PID in the dead host.
    pid: i32,
    /// Temporary descriptors are at or above this.
    base: i32,
    /// Its working directory and root.
    fs: &'s crate::dataset::FsState,
}

/// Which round a file is made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Whatever needs nothing else.
    Plain,
    /// /dev/kvm, VMs, vCPUs.
    Kvm,
    /// Epoll instances.
    Epoll,
}

fn round(kind: &FileKind) -> Round {
    match kind {
        FileKind::KvmSystem | FileKind::KvmVm { .. } | FileKind::KvmVcpu { .. } => Round::Kvm,
        FileKind::Epoll { .. } => Round::Epoll,
        _ => Round::Plain,
    }
}

impl<'d> Workshop<'d> {
    /// Nothing made yet.
    pub fn new(dataset: &'d Dataset, dry_run: bool) -> Self {
        Self {
            dataset,
            by_id: dataset.files.iter().map(|f| (f.id, f)).collect(),
            dry_run,
            pipes: HashMap::new(),
            sockets: HashMap::new(),
            terminals: HashMap::new(),
            kvm: BTreeMap::new(),
            made_paths: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The processes live: the paths that they made are theirs.
    pub fn keep_paths(&mut self) {
        self.made_paths.clear();
    }

    /// Makes and places all files of a round, in every process.
    ///
    /// # Errors
    /// The file that could not be made.
    pub fn make_round(
        &mut self,
        which: Round,
        family: &mut Family<'_>,
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        for stub in 0..family.stubs.len() {
            let process = family.process(stub)?;
            for fd in &process.fds {
                let file = self.file(process.pid, fd.file)?;
                if round(&file.kind) != which {
                    continue;
                }
                let from = match objects.files.get(&fd.file).copied() {
                    Some(holder) => objects.lend(family, holder, stub)?,
                    None => self.make(file, stub, family, objects)?,
                };
                let sys = family.leader(stub)?;
                calls::dup_to(sys, from, fd.fd, fd.cloexec)
                    .during(process.pid, || format!("dup3 to descriptor {}", fd.fd))?;
                // The first holder's number is the file's own, not a temporary.
                objects
                    .files
                    .entry(fd.file)
                    .and_modify(|h| {
                        if h.stub == stub && h.fd >= objects.base {
                            h.fd = fd.fd;
                        }
                    })
                    .or_insert(Holder { stub, fd: fd.fd });
            }
            if which == Round::Epoll {
                for fd in &process.fds {
                    let file = self.file(process.pid, fd.file)?;
                    let holder = objects.files.get(&fd.file);
                    if let FileKind::Epoll { watches } = &file.kind
                        && holder == Some(&Holder { stub, fd: fd.fd })
                    {
                        let sys = family.leader(stub)?;
                        epoll::watch(process, fd.fd, watches, objects, sys, &mut self.notes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes POSIX locks: when the temporary descriptors are closed, since
    /// closing any descriptor of a file drops a process's locks on it.
    ///
    /// # Errors
    /// Somebody else has the lock.
    pub fn posix_locks(&self, family: &mut Family<'_>) -> Result<(), RestoreError> {
        for stub in 0..family.stubs.len() {
            let process = family.process(stub)?;
            for fd in &process.fds {
                let file = self.file(process.pid, fd.file)?;
                locks::posix(process.pid, fd.fd, file, family.leader(stub)?)?;
            }
        }
        Ok(())
    }

    fn file(&self, pid: i32, id: ObjectId) -> Result<&'d OpenFile, RestoreError> {
        self.by_id
            .get(&id)
            .copied()
            .ok_or_else(|| RestoreError::Malformed {
                pid,
                what: format!("the open file {id}"),
                why: "it is not in the dataset".into(),
            })
    }

    /// Makes a file at a temporary number.
    fn make(
        &mut self,
        file: &'d OpenFile,
        stub: usize,
        family: &mut Family<'_>,
        objects: &mut Objects,
    ) -> Result<i32, RestoreError> {
        let process = family.process(stub)?;
        let pid = process.pid;
        if let FileKind::Memfd { memory } = file.kind {
            let held = objects.memory_in(self.dataset, family, stub, memory)?;
            let sys = family.leader(stub)?;
            return regular::reopen(sys, pid, held, file, objects.base);
        }
        // Halves that were made in another process come from there.
        let lent = match &file.kind {
            FileKind::Pipe { pipe, .. } => self.pipes.get(pipe).map(|e| e.stub),
            FileKind::UnixSocket(socket) => self.sockets.get(&socket.socket).map(|h| h.stub),
            _ => None,
        };
        let home = lent.unwrap_or(stub);
        let mut place = Place {
            sys: family.leader(home)?,
            stub: home,
            pid,
            base: objects.base,
            fs: &process.fs,
        };
        let fd = self.make_here(file, &mut place)?;
        let fd = calls::raise(place.sys, fd, objects.base).during(pid, || "fcntl".into())?;
        self.dress(file, fd, &mut place)?;
        let holder = Holder { stub: home, fd };
        objects.files.insert(file.id, holder);
        objects.lend(family, holder, stub)
    }

    fn make_here(
        &mut self,
        file: &'d OpenFile,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        match &file.kind {
            FileKind::Regular
            | FileKind::Directory
            | FileKind::CharDevice { .. }
            | FileKind::BlockDevice { .. } => regular::open(file, place),
            FileKind::Tty {
                major,
                minor,
                termios,
                pty_index,
            } => self.terminal(file, (*major, *minor), termios.as_ref(), *pty_index, place),
            FileKind::Pipe { pipe, end, named } => self.pipe(file, *pipe, *end, *named, place),
            FileKind::EventFd { count, flags, .. } => event::eventfd(place, *count, *flags),
            FileKind::TimerFd { clock, ticks, .. } => event::timerfd(place, *clock, *ticks),
            FileKind::SignalFd { mask } => event::signalfd(place, *mask),
            FileKind::Epoll { .. } => {
                let flags = [libc::EPOLL_CLOEXEC.cast_unsigned().into()];
                calls::make_fd(place.sys, libc::SYS_epoll_create1, flags)
                    .during(pid, || "epoll_create1".into())
            }
            FileKind::UnixSocket(socket) => self.unix(socket, place),
            FileKind::InetSocket(socket) => self.inet(socket, place),
            FileKind::Tun { .. } => tun::open(file, place, &mut self.notes),
            FileKind::KvmSystem | FileKind::KvmVm { .. } | FileKind::KvmVcpu { .. } => {
                self.kvm_file(file, place)
            }
            FileKind::Memfd { .. } => Err(RestoreError::Malformed {
                pid,
                what: format!("the memfd {}", file.path),
                why: "it came the wrong way".into(),
            }),
            FileKind::Unsupported {
                operations, why, ..
            } => self.stand_in(file, operations, why, place),
        }
    }

    /// Closes every temporary descriptor, but those that KVM needs for good.
    ///
    /// # Errors
    /// close_range refused.
    pub fn close_temporary(
        &self,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<(), RestoreError> {
        for stub in 0..family.stubs.len() {
            let pid = family.process(stub)?.pid;
            let mut keep: Vec<i32> = self
                .kvm
                .get(&stub)
                .map(|files| files.temporary.clone())
                .unwrap_or_default();
            keep.sort_unstable();
            let sys = family.leader(stub)?;
            let mut from = u64::from(objects.base.cast_unsigned());
            for last in keep.iter().map(|fd| u64::from(fd.cast_unsigned())) {
                if last > from {
                    calls::plain(sys, libc::SYS_close_range, [from, last - 1, 0])
                        .during(pid, || "close_range".into())?;
                }
                from = from.max(last + 1);
            }
            calls::plain(sys, libc::SYS_close_range, [from, u32::MAX.into(), 0])
                .during(pid, || "close_range".into())?;
        }
        Ok(())
    }
}
