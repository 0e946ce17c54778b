//! Open files: each is made once, and put at every number, in every process,
//! that it had.
//!
//! Rounds in order of dependency: what stands alone; connections, which share the
//! ports of listeners; the descriptors of virtual machines, which KVM makes; epoll
//! instances, which watch the rest.

mod backlog;
mod dress;
mod epoll;
mod event;
mod inet;
mod ip_packet;
mod kvm;
mod locks;
mod message_queue;
mod pipe;
mod regular;
mod socket_options;
mod tcp;
mod tcp_resume;
mod terminal;
mod terminal_queue;
mod tun;
mod unix;
mod unix_queue;
mod watchers;

use super::error::Context;
use super::kvm::KvmFiles;
use super::objects::{Holder, Objects};
use super::same_file;
use super::stub::Family;
use super::taps::Taps;
use super::terminals::{Master, Masters};
use super::{Options, RestoreError, Syscalls, TcpPolicy, calls, confinement, sysv, vhost};
use crate::dataset::{Dataset, EpollWatch, Fidelity, FileKind, ObjectId, OpenFile};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

pub use dress::is_bearable;
pub use event::start_timers;
pub use terminal::{open_master, terminal_master};

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
    /// The operator answers for files that are others by now.
    force: bool,
    tcp: TcpPolicy,
    /// Connections that speak to nobody before the processes run.
    unfinished: Vec<tcp::Unfinished<'d>>,
    pipes: HashMap<ObjectId, pipe::Ends>,
    /// Sockets made as the other half of a pair, by `struct sock`.
    sockets: HashMap<ObjectId, Holder>,
    /// POSIX message queues that were made.
    queues: HashMap<ObjectId, Holder>,
    /// Other halves whose owners died with the host.
    hung_up: Vec<Holder>,
    /// Pseudo-terminals made again: their new numbers by the old ones.
    terminals: HashMap<u32, u32>,
    /// Masters that every stub was born with, by the old numbers.
    masters: HashMap<u32, Master>,
    /// Interfaces behind taps.
    pub taps: Taps,
    /// By the index of the stub that owns them.
    kvm: BTreeMap<usize, KvmFiles>,
    /// System V IPC that came into being, to be removed likewise.
    pub sysv: sysv::Made,
    /// Paths that came into being, to be removed should the restore fail.
    pub made_paths: Vec<PathBuf>,
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
    /// PID in the dead host, and of the stub on this one.
    pid: i32,
    tid: i32,
    /// Temporary descriptors are at or above this.
    base: i32,
    /// Its working directory and root.
    fs: &'s crate::dataset::FsState,
}

/// Which round a file is made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Masters of pseudo-terminals, whose slaves may be another process's.
    Master,
    /// Whatever needs nothing else.
    Plain,
    /// TCP connections: they may share the ports of listeners, which must not find them taken.
    Connections,
    /// /dev/kvm, VMs, vCPUs.
    Kvm,
    /// Epoll instances.
    Epoll,
}

fn round(kind: &FileKind) -> Round {
    match kind {
        FileKind::KvmSystem | FileKind::KvmVm { .. } | FileKind::KvmVcpu { .. } => Round::Kvm,
        FileKind::Epoll { .. } => Round::Epoll,
        FileKind::Tty { .. } if terminal_master(kind).is_some() => Round::Master,
        FileKind::InetSocket(socket) if socket.connection.is_some() => Round::Connections,
        _ => Round::Plain,
    }
}

/// Stubs whose descriptor table is no earlier one's.
fn own_tables(family: &Family<'_>) -> Vec<usize> {
    let stubs = family.stubs.iter().enumerate();
    stubs
        .filter(|(_, stub)| !stub.shares_files)
        .map(|(at, _)| at)
        .collect()
}

impl<'d> Workshop<'d> {
    /// Nothing made yet.
    pub fn new(dataset: &'d Dataset, options: &Options) -> Self {
        Self {
            dataset,
            by_id: dataset.files.iter().map(|f| (f.id, f)).collect(),
            dry_run: options.dry_run,
            force: options.force,
            tcp: options.tcp,
            unfinished: Vec::new(),
            pipes: HashMap::new(),
            sockets: HashMap::new(),
            queues: HashMap::new(),
            hung_up: Vec::new(),
            terminals: HashMap::new(),
            masters: HashMap::new(),
            taps: Taps::default(),
            kvm: BTreeMap::new(),
            sysv: sysv::Made::default(),
            made_paths: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Sessions have these as their terminals already.
    pub fn know_terminals(&mut self, masters: &Masters) {
        self.masters.clone_from(&masters.0);
        let numbers = masters.0.iter().map(|(old, new)| (*old, new.number));
        self.terminals.extend(numbers);
    }

    /// The processes are about to run: what was made for them is theirs to use.
    ///
    /// # Errors
    /// Its rights cannot be set.
    pub fn publish_what_was_made(&self) -> Result<(), RestoreError> {
        self.sysv.publish()
    }

    /// The processes live: the paths and objects that they made are theirs.
    pub fn keep_what_was_made(&mut self) {
        self.sysv.keep();
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
        for stub in own_tables(family) {
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
                self.watch_all(stub, family, objects)?;
            }
        }
        Ok(())
    }

    /// Adds the watches of the epoll instances that a stub holds first, those
    /// of an instance that another one watches before the other's.
    fn watch_all(
        &mut self,
        stub: usize,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<(), RestoreError> {
        let process = family.process(stub)?;
        let find = |id: ObjectId| self.by_id.get(&id).copied();
        let mut instances: Vec<(usize, i32, &'d [EpollWatch])> = Vec::new();
        for fd in &process.fds {
            let file = self.file(process.pid, fd.file)?;
            let holder = objects.files.get(&fd.file);
            if let FileKind::Epoll { watches } = &file.kind
                && holder == Some(&Holder { stub, fd: fd.fd })
            {
                instances.push((epoll::depth(file, &find), fd.fd, watches));
            }
        }
        instances.sort_by_key(|(depth, ..)| *depth);
        for (_, fd, watches) in instances {
            let sys = family.leader(stub)?;
            epoll::watch(process, fd, watches, objects, sys, &mut self.notes)?;
        }
        Ok(())
    }

    /// Takes POSIX locks: when the temporary descriptors are closed, since
    /// closing any descriptor of a file drops a process's locks on it.
    ///
    /// # Errors
    /// Somebody else has the lock.
    pub fn posix_locks(&self, family: &mut Family<'_>) -> Result<(), RestoreError> {
        for stub in own_tables(family) {
            let process = family.process(stub)?;
            for fd in &process.fds {
                let file = self.file(process.pid, fd.file)?;
                locks::posix(process.pid, fd.fd, file, family.leader(stub)?)?;
                dress::set_async(process.pid, fd.fd, file, family.leader(stub)?)?;
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
        if let FileKind::PidFd { .. } = file.kind {
            let fd = self.pidfd(file, stub, family, objects.base)?;
            let sys = family.leader(stub)?;
            let mut place = Place {
                tid: sys.tid,
                sys,
                stub,
                pid,
                base: objects.base,
                fs: &process.fs,
            };
            self.dress(file, fd, &mut place)?;
            objects.files.insert(file.id, Holder { stub, fd });
            return Ok(fd);
        }
        if let FileKind::MessageQueue { queue } = file.kind {
            let held = self.queue_in(family, stub, queue, objects)?;
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
        let sys = family.leader(home)?;
        let mut place = Place {
            tid: sys.tid,
            sys,
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

    /// A file or directory, which must be the one of then.
    fn on_disk(&mut self, file: &'d OpenFile, place: &mut Place<'_>) -> Result<i32, RestoreError> {
        let fd = regular::open(file, place)?;
        let inode = file.inode.and_then(|id| self.dataset.inode(id));
        if let Some(inode) = inode.filter(|_| !self.force) {
            same_file::check(place.pid, place.tid, fd, inode, &mut self.notes)?;
        }
        Ok(fd)
    }

    fn make_here(
        &mut self,
        file: &'d OpenFile,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        match &file.kind {
            FileKind::Regular | FileKind::Directory => self.on_disk(file, place),
            FileKind::CharDevice { .. } | FileKind::BlockDevice { .. } => {
                regular::open(file, place)
            }
            FileKind::Tty {
                major,
                minor,
                termios,
                pty_index,
                window,
                inside: _,
            } => {
                let settings = (termios.as_ref(), window.as_ref());
                self.terminal(file, (*major, *minor), settings, *pty_index, place)
            }
            FileKind::Pipe { pipe, end, named } => self.pipe(file, *pipe, *end, *named, place),
            FileKind::EventFd { count, flags, .. } => event::eventfd(place, *count, *flags),
            FileKind::TimerFd { .. } => event::timerfd(place, &self.dataset.host, &file.kind),
            FileKind::SignalFd { mask } => event::signalfd(place, *mask),
            FileKind::Epoll { .. } => {
                let flags = [libc::EPOLL_CLOEXEC.cast_unsigned().into()];
                calls::make_fd(place.sys, libc::SYS_epoll_create1, flags)
                    .during(pid, || "epoll_create1".into())
            }
            FileKind::UnixSocket(socket) => self.unix(socket, place),
            FileKind::InetSocket(socket) => self.inet(socket, place),
            FileKind::Tun { .. } => self.tun(file, place),
            FileKind::Vhost(device) => vhost::open(device, pid, place.sys),
            FileKind::KvmSystem | FileKind::KvmVm { .. } | FileKind::KvmVcpu { .. } => {
                self.kvm_file(file, place)
            }
            FileKind::Inotify { .. } => {
                let flags = [libc::IN_CLOEXEC.cast_unsigned().into()];
                calls::make_fd(place.sys, libc::SYS_inotify_init1, flags)
                    .during(pid, || "inotify_init1".into())
            }
            FileKind::Memfd { .. } | FileKind::MessageQueue { .. } | FileKind::PidFd { .. } => {
                Err(RestoreError::Malformed {
                    pid,
                    what: format!("the open file {}", file.path),
                    why: "it came the wrong way".into(),
                })
            }
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
            if confinement::is_confined(family.process(stub)?) {
                keep.push(objects.base);
            }
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
