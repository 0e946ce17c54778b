//! Which processes belong together: those that share a pipe, a connection,
//! memory, a descriptor table, or the position in a file. Restored without
//! each other, they are cut apart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::holders::each_file;
use super::list::{self, PF_KTHREAD, int};
use super::{TaskError, area, file, inode, tcp};
use crate::kernel::{Kernel, KernelError, Object};

/// Most descriptors and shared mappings of a whole host that are looked at.
const MOST: usize = 4 << 20;
const VM_SHARED: u64 = 8;
const VM_MAYWRITE: u64 = 0x20;
const FMODE_WRITE: u64 = 2;
const AF_UNIX: u64 = 1;
/// IPPROTO_TCP.
const TCP: u64 = 6;
const S_IFREG: u32 = 0o100_000;

/// What processes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TieKind {
    /// An anonymous pipe.
    Pipe,
    /// A connection by a UNIX socket, or by TCP within the host, or one socket.
    Socket,
    /// Memory that one of them may write to.
    Memory,
    /// An eventfd, an epoll instance or the like.
    Event,
    /// An open file of a file system, with its position.
    File,
    /// The whole descriptor table (CLONE_FILES).
    Descriptors,
}

impl std::fmt::Display for TieKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pipe => "a pipe",
            Self::Socket => "a socket",
            Self::Memory => "memory",
            Self::Event => "an eventfd or the like",
            Self::File => "the position in a file",
            Self::Descriptors => "all descriptors",
        })
    }
}

/// Processes that share one thing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Together {
    pub by: TieKind,
    /// In the order of their numbers, at least two.
    pub pids: Vec<i32>,
}

/// Finds all that processes share with each other, each set of processes once
/// for each kind of thing. What cannot be read is taken to be shared by nobody.
///
/// # Errors
/// When the list of tasks cannot be read.
pub fn together(kernel: &Kernel) -> Result<Vec<Together>, TaskError> {
    let (tasks, _) = list::leaders(kernel).map_err(|source| TaskError::Kernel {
        what: "list of tasks",
        source,
    })?;
    let mut finder = Finder {
        kernel,
        files: HashMap::new(),
        peers: HashMap::new(),
        connections: HashMap::new(),
        owners: BTreeMap::new(),
        seen: HashSet::new(),
        left: MOST,
    };
    for task in &tasks {
        if task.u("flags").is_ok_and(|flags| flags & PF_KTHREAD == 0)
            && let Ok(pid) = int(task, "tgid")
        {
            finder.process(task, pid);
        }
    }
    Ok(finder.sets())
}

struct Finder<'k> {
    kernel: &'k Kernel,
    /// What an open file (`struct file`) ties by, and by which object.
    files: HashMap<u64, Option<(TieKind, u64)>>,
    /// The other end of a `struct sock`.
    peers: HashMap<u64, u64>,
    /// TCP connections by their own address and the other's: the `struct sock`, or that of the
    /// listener in whose backlog it is.
    connections: HashMap<tcp::Ends, u64>,
    /// Who has an object.
    owners: BTreeMap<(TieKind, u64), BTreeSet<i32>>,
    /// Descriptor tables and address spaces that were gone through.
    seen: HashSet<u64>,
    /// How much more is looked at: a damaged dump may lead on without end.
    left: usize,
}

impl Finder<'_> {
    fn process(&mut self, task: &Object<'_>, pid: i32) {
        let mut found = Vec::new();
        if let Ok(table @ 1..) = task.ptr("files") {
            self.own(TieKind::Descriptors, table, pid);
            if self.seen.insert(table) {
                // A table that cannot be read holds nothing.
                let _ = each_file(task, |file| {
                    if file != 0 && found.len() < self.left {
                        found.push(file);
                    }
                });
            }
        }
        for addr in found {
            let tie = match self.files.get(&addr) {
                Some(tie) => *tie,
                None => {
                    let tie = self.file(addr).unwrap_or(None);
                    self.files.insert(addr, tie);
                    tie
                }
            };
            if let Some((kind, object)) = tie {
                self.own(kind, object, pid);
            }
        }
        let _ = self.memory(task, pid);
    }

    fn own(&mut self, kind: TieKind, object: u64, pid: i32) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        self.owners.entry((kind, object)).or_default().insert(pid);
    }

    fn file(&mut self, addr: u64) -> Result<Option<(TieKind, u64)>, KernelError> {
        let file = self.kernel.object("file", addr)?;
        let private = file.ptr("private_data")?;
        let operations = file::operations(self.kernel, &file)?;
        Ok(match operations.as_str() {
            "pipefifo_fops" | "pipeanon_fops" => Some((TieKind::Pipe, private)),
            "socket_file_ops" => {
                let sk = self.kernel.object("socket", private)?.follow("sk")?;
                if sk.u("__sk_common.skc_family")? == AF_UNIX {
                    let unix = self
                        .kernel
                        .object("unix_sock", sk.addr())
                        .or_else(|_| self.kernel.object_in("unix", "unix_sock", sk.addr()))?;
                    if let peer @ 1.. = unix.ptr("peer")? {
                        self.peers.insert(sk.addr(), peer);
                    }
                }
                if sk.u("sk_protocol").is_ok_and(|protocol| protocol == TCP) {
                    for (ends, socket) in tcp::ends(&sk).unwrap_or_default() {
                        self.connections.insert(ends, socket);
                    }
                }
                Some((TieKind::Socket, sk.addr()))
            }
            "eventfd_fops" | "eventpoll_fops" | "timerfd_fops" | "signalfd_fops" => {
                Some((TieKind::Event, addr))
            }
            _ => {
                let object = file.follow("f_inode")?;
                let is_file = inode::mode(&object)? & 0o170_000 == S_IFREG;
                let writes = file.u("f_mode")? & FMODE_WRITE != 0;
                (is_file && writes).then_some((TieKind::File, addr))
            }
        })
    }

    fn memory(&mut self, task: &Object<'_>, pid: i32) -> Result<(), KernelError> {
        let Some(mm) = task.follow_opt("mm")? else {
            return Ok(());
        };
        if !self.seen.insert(mm.addr()) {
            return Ok(());
        }
        let wanted = VM_SHARED | VM_MAYWRITE;
        for area in area::areas(&mm)? {
            if area.u("vm_flags")? & wanted == wanted
                && let Some(file) = area.follow_opt("vm_file")?
            {
                let object = file.follow("f_inode")?;
                if inode::mode(&object)? & 0o170_000 == S_IFREG {
                    self.own(TieKind::Memory, object.addr(), pid);
                }
            }
        }
        Ok(())
    }

    fn sets(mut self) -> Vec<Together> {
        for ((own, other), socket) in &self.connections {
            // A listener may have several in its backlog, so nothing is taken from it.
            if let Some(peer) = self.connections.get(&(*other, *own))
                && let Some(others) = self.owners.get(&(TieKind::Socket, *peer)).cloned()
            {
                let owners = self.owners.entry((TieKind::Socket, *socket));
                owners.or_default().extend(others);
            }
        }
        for (socket, peer) in &self.peers {
            // Both ends of a connection are one thing.
            let (low, high) = (socket.min(peer), socket.max(peer));
            if let Some(others) = self.owners.remove(&(TieKind::Socket, *high)) {
                self.owners
                    .entry((TieKind::Socket, *low))
                    .or_default()
                    .extend(others);
            }
        }
        let mut seen = BTreeSet::new();
        let mut sets = Vec::new();
        for ((by, _), pids) in self.owners {
            let pids: Vec<i32> = pids.into_iter().collect();
            if pids.len() > 1 && seen.insert((by, pids.clone())) {
                sets.push(Together { by, pids });
            }
        }
        sets
    }
}
