//! System V IPC in the dead kernel: which segments, semaphore sets and queues a
//! set of processes had to do with, and what was in them.
//!
//! Nothing in a process says which sets and queues it uses. They are taken to be
//! used by whoever waits in them, has something to undo in them, or used them
//! last; and what nobody has used yet, by the user who made it.

mod line;
pub(super) mod queues;
mod segments;
mod semaphores;

use std::collections::{BTreeSet, HashMap, HashSet};

use super::extract::Extraction;
use super::list::{self, int};
use super::namespace::IdMaps;
use super::process::pid_number;
use crate::dataset::{MappingKind, ObjectId, SysvKind, SysvObject};
use crate::kernel::{KernelError, Object, containers};

pub(super) use line::{Waits, waits};
pub(super) use segments::attachment;

/// Indices of `ipc_namespace.ids`. Linux ipc/util.h.
const SEMAPHORES: u64 = 0;
const QUEUES: u64 = 1;
const SEGMENTS: u64 = 2;

/// The `kern_ipc_perm`s of one kind.
fn objects<'k>(namespace: &Object<'k>, index: u64) -> Result<Vec<Object<'k>>, KernelError> {
    let kernel = namespace.kernel();
    let ids = namespace.get(&format!("ids[{index}].ipcs_idr"))?;
    let mut found = Vec::new();
    for (_, addr) in containers::idr(&ids)? {
        let perm = kernel.object("kern_ipc_perm", addr)?;
        if perm.u("deleted")? == 0 {
            found.push(perm);
        }
    }
    Ok(found)
}

/// A number of the initial PID namespace; 0 for nobody.
pub(in crate::task) fn pid_of(object: &Object<'_>, member: &str) -> Result<i32, KernelError> {
    match object.follow_opt(member)? {
        Some(pid) => pid_number(&pid, 0),
        None => Ok(0),
    }
}

/// Reads what the extracted processes had to do with.
pub(super) fn gather(x: &mut Extraction<'_, '_>) {
    match Finder::new(x).and_then(|finder| finder.all(x)) {
        Ok(found) => x.out.sysv = found,
        Err(error) => x.lost("host", "System V IPC", error.to_string()),
    }
    settle_mappings(x);
}

/// Mappings whose segment was not found are mapped without one.
fn settle_mappings(x: &mut Extraction<'_, '_>) {
    let memory_of = |object: &SysvObject| match object.kind {
        SysvKind::Segment { memory, .. } => Some(memory),
        _ => None,
    };
    let known: HashSet<ObjectId> = x.out.sysv.iter().filter_map(memory_of).collect();
    let mut notes = Vec::new();
    for process in &mut x.out.processes {
        for vma in &mut process.mm.vmas {
            if let MappingKind::Segment { memory, offset, .. } = vma.kind
                && !known.contains(&memory)
            {
                vma.kind = MappingKind::Shared { memory, offset };
                notes.push((process.pid, vma.start));
            }
        }
    }
    for (pid, start) in notes {
        x.lost(
            &format!("pid {pid}"),
            "System V shared memory",
            format!(
                "what is mapped at {start:#x} has its content, but is no segment any more: the \
                 dead kernel's record of it was not found"
            ),
        );
    }
}

struct Finder<'k> {
    namespace: Option<Object<'k>>,
    /// How the processes number users and groups.
    maps: IdMaps,
    pids: HashSet<i32>,
    /// Users as whom the processes act.
    users: HashSet<u32>,
    /// (kind, ID) of calls under way.
    in_calls: HashSet<(u64, i32)>,
    /// Owners of lists of what is undone (`struct sem_undo_list`).
    undo: HashMap<u64, i32>,
}

/// What ties an object to the processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// They use it.
    Used,
    /// Nobody has used it yet, and it is their user's.
    Unused,
    /// It is their user's, and others use it.
    Others,
    None,
}

impl<'k> Finder<'k> {
    fn new(x: &mut Extraction<'_, 'k>) -> Result<Self, KernelError> {
        let processes = &x.out.processes;
        let mut finder = Self {
            namespace: None,
            maps: IdMaps::default(),
            pids: processes.iter().map(|p| p.pid).collect(),
            users: processes
                .iter()
                .flat_map(|p| &p.threads)
                .map(|t| t.credentials.uid[1])
                .collect(),
            in_calls: processes.iter().flat_map(line::calls).collect(),
            undo: HashMap::new(),
        };
        let (leaders, _) = list::leaders(x.kernel)?;
        let mut namespaces = BTreeSet::new();
        for task in leaders {
            let pid = int(&task, "tgid")?;
            if !finder.pids.contains(&pid) {
                continue;
            }
            for thread in super::thread::tasks(&task)? {
                // Since it is set by semop with SEM_UNDO alone, most have none.
                let list = thread.ptr("sysvsem.undo_list").unwrap_or(0);
                if list != 0 {
                    finder.undo.entry(list).or_insert(pid);
                }
                let namespace = thread.follow("nsproxy")?.follow("ipc_ns")?;
                if namespaces.insert(namespace.addr()) && finder.namespace.is_none() {
                    finder.maps = IdMaps::of(&thread.follow("real_cred")?)?;
                    finder.namespace = Some(namespace);
                }
            }
        }
        if namespaces.len() > 1 {
            x.lost(
                "host",
                "IPC namespaces",
                "the processes are of several: what is in that of the first is made again",
            );
        }
        Ok(finder)
    }

    fn all(&self, x: &mut Extraction<'_, 'k>) -> Result<Vec<SysvObject>, KernelError> {
        let Some(namespace) = &self.namespace else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for kind in [SEGMENTS, SEMAPHORES, QUEUES] {
            for perm in objects(namespace, kind)? {
                match self.object(x, kind, &perm) {
                    Ok(object) => found.extend(object),
                    Err(error) => x.lost("host", "an object of System V IPC", error.to_string()),
                }
            }
        }
        Ok(found)
    }

    fn object(
        &self,
        x: &mut Extraction<'_, 'k>,
        kind: u64,
        perm: &Object<'k>,
    ) -> Result<Option<SysvObject>, KernelError> {
        let (tie, kind) = match kind {
            SEGMENTS => self.segment(x, &perm.container_of("shmid_kernel", "shm_perm")?)?,
            SEMAPHORES => self.semaphores(x, perm)?,
            _ => self.queue(perm)?,
        };
        let number = |field: &str| -> Result<u32, KernelError> {
            Ok(u32::try_from(perm.u(field)?).unwrap_or(u32::MAX))
        };
        let id = int(perm, "id")?;
        let key = int(perm, "key")?;
        let Some(kind) = kind else {
            if tie == Tie::Others {
                x.lost(
                    "host",
                    "System V IPC",
                    format!(
                        "ID {id} (key {key:#010x}) is of the same user and was used by others \
                         last: it is not made again (--tree and more selectors take them together)"
                    ),
                );
            }
            return Ok(None);
        };
        Ok(Some(SysvObject {
            id,
            key,
            mode: number("mode")? & 0o777,
            uid: self.maps.user(number("uid.val")?),
            gid: self.maps.group(number("gid.val")?),
            creator_uid: self.maps.user(number("cuid.val")?),
            creator_gid: self.maps.group(number("cgid.val")?),
            unused: tie == Tie::Unused,
            kind,
        }))
    }

    /// `pids`: who used it last.
    fn tie(
        &self,
        perm: &Object<'_>,
        kind: u64,
        pids: &[i32],
        waited_for: bool,
    ) -> Result<Tie, KernelError> {
        let id = int(perm, "id")?;
        if self.in_calls.contains(&(kind, id)) || pids.iter().any(|pid| self.pids.contains(pid)) {
            return Ok(Tie::Used);
        }
        let creator = u32::try_from(perm.u("cuid.val")?).unwrap_or(u32::MAX);
        let creator = self.maps.user(creator);
        if !self.users.contains(&creator) {
            return Ok(Tie::None);
        }
        if !waited_for && pids.iter().all(|pid| *pid == 0) {
            return Ok(Tie::Unused);
        }
        // Of root's there are too many that have nothing to do with each other.
        Ok(if creator == 0 { Tie::None } else { Tie::Others })
    }
}
