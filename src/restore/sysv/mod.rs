//! System V IPC: segments, semaphore sets and queues, made again with their
//! IDs, keys, owners and content, before anything is mapped.
//!
//! They belong to no process, so they outlive those that made them: what was
//! made is removed again, unless all of it comes to a good end. Where vmrestore is
//! killed it cannot do that. So nobody has any right to what it makes until the
//! processes are about to run, and whoever finds an object of the ID and the key
//! that it wants, to which nobody has a right, knows whose it is.

mod create;
mod queues;
mod segments;
mod semaphores;

use super::error::Context;
use super::fill::Progress;
use super::stub::Family;
use super::{PageSource, RestoreError, fill};
use crate::dataset::{Dataset, Fidelity, MappingKind, ObjectId, SysvKind, SysvObject};
use crate::sys::interrupt::Guard;
use crate::sys::sysv::{self, Kind};
use std::collections::HashMap;
use std::fs::File;

pub use create::check;
pub use segments::attach;

/// What to do where an ID or a key is in use.
const IN_USE: &str = "`ipcs` shows what there is, `ipcrm` removes what nobody needs";

/// A segment that was made.
#[derive(Debug)]
struct Segment {
    id: i32,
    /// Its content.
    file: File,
}

/// An object, and the permission bits that it is to have.
#[derive(Clone, Copy, Debug)]
struct Object {
    kind: Kind,
    id: i32,
    mode: u32,
}

/// What was made: removed again with this, unless it is kept.
#[derive(Debug, Default)]
pub struct Made {
    /// By their content's identity.
    segments: HashMap<ObjectId, Segment>,
    objects: Vec<Object>,
    /// POSIX message queues, and their permission bits.
    queues: Vec<(String, u32)>,
    /// Of the IPC namespace that they are in; none: this process's own.
    namespace: Option<File>,
}

impl Made {
    /// A POSIX queue of this name was made.
    pub fn remember_queue(&mut self, name: &str, mode: u32) {
        self.queues.push((name.to_owned(), mode));
    }

    /// It has no name any more.
    pub fn forget_queue(&mut self, name: &str) {
        self.queues.retain(|(known, _)| known != name);
    }

    fn remember(&mut self, kind: Kind, object: &SysvObject, id: i32) {
        let mode = object.mode & 0o777;
        self.objects.push(Object { kind, id, mode });
    }

    /// Gives everything the rights that it had: the processes are about to run.
    ///
    /// # Errors
    /// IPC_SET or fchmod was refused.
    pub fn publish(&self) -> Result<(), RestoreError> {
        let namespace = self.namespace.as_ref();
        for Object { kind, id, mode } in &self.objects {
            sysv::set_mode(*kind, *id, *mode, namespace)
                .during(0, || format!("IPC_SET of System V {kind:?} {id}"))?;
        }
        for (name, mode) in &self.queues {
            sysv::set_queue_mode(name, *mode, namespace)
                .during(0, || format!("fchmod of message queue /{name}"))?;
        }
        Ok(())
    }

    /// Somebody lives who uses them.
    pub fn keep(&mut self) {
        self.objects.clear();
        self.queues.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for Object { kind, id, .. } in &self.objects {
            if let Err(error) = sysv::remove(*kind, *id, self.namespace.as_ref()) {
                tracing::error!("System V {kind:?} {id}, which was just made, stays: {error}");
            }
        }
        for (name, _) in &self.queues {
            if let Err(error) = sysv::remove_queue(name, self.namespace.as_ref()) {
                tracing::error!("message queue /{name}, which was just made, stays: {error}");
            }
        }
    }
}

/// A process of the dataset has the memory mapped as a segment.
fn is_mapped(dataset: &Dataset, wanted: ObjectId) -> bool {
    let mut vmas = dataset.processes.iter().flat_map(|p| &p.mm.vmas);
    vmas.any(|v| matches!(v.kind, MappingKind::Segment { memory, .. } if memory == wanted))
}

/// The objects that are made: a removed segment that nobody has mapped has
/// ended with its processes.
fn wanted(dataset: &Dataset) -> impl Iterator<Item = &SysvObject> {
    dataset.sysv.iter().filter(|object| match object.kind {
        SysvKind::Segment {
            removed, memory, ..
        } => !removed || is_mapped(dataset, memory),
        _ => true,
    })
}

/// The stub of a process, or the first one.
fn stub_of(family: &Family<'_>, pid: i32) -> usize {
    let of = family.stubs.iter().position(|s| s.process.pid == pid);
    of.unwrap_or(0)
}

/// Makes all objects: segments without their content.
///
/// # Errors
/// An ID or a key is in use; a limit of this host's is too low. What was made
/// until then is in `made`.
pub fn make(
    dataset: &Dataset,
    family: &mut Family<'_>,
    made: &mut Made,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    if dataset.sysv.is_empty() && dataset.message_queues.is_empty() {
        return Ok(());
    }
    made.namespace = other_namespace(family)?;
    for object in wanted(dataset) {
        let result = match &object.kind {
            SysvKind::Segment { creator, .. } => {
                let stub = stub_of(family, *creator);
                segments::make(dataset, family, stub, object, made, notes)
            }
            SysvKind::Semaphores { .. } => semaphores::make(family, object, made),
            SysvKind::Queue { .. } => queues::make(family, object, made),
        };
        let pid = family.stubs.first().map_or(0, |s| s.process.pid);
        match result {
            Err(RestoreError::Refused { why, .. }) if object.unused => {
                let what = object.name();
                notes.push(Fidelity::lost(format!("pid {pid}"), what, why));
            }
            Err(error) => return Err(error),
            Ok(()) => notes.push(note(dataset, object, pid)),
        }
    }
    Ok(())
}

/// What is to be said of an object that was made. When it was used last is of this host now, as the
/// time at which a file was read last is: programs work with what is in it, and whether it was used.
fn note(dataset: &Dataset, object: &SysvObject, pid: i32) -> Fidelity {
    let known = |pid: &i32| *pid == 0 || dataset.processes.iter().any(|p| p.pid == *pid);
    let all_known = match &object.kind {
        SysvKind::Segment { creator, .. } => known(creator),
        SysvKind::Semaphores { values, .. } => values.iter().all(|one| known(&one.pid)),
        SysvKind::Queue {
            sender, receiver, ..
        } => known(sender) && known(receiver),
    };
    let subject = format!("pid {pid}");
    let again = "made again with its ID, key, owner, rights and content";
    match all_known {
        true => Fidelity::exact(
            subject,
            object.name(),
            format!(
                "{again}; the times of its last use, and who had a segment last, are of the restore"
            ),
        ),
        false => Fidelity::reconstructed(
            subject,
            object.name(),
            format!("{again}; who of those that are not restored used it last it no longer says"),
        ),
    }
}

/// The stubs' IPC namespace, when it is not this process's.
fn other_namespace(family: &mut Family<'_>) -> Result<Option<File>, RestoreError> {
    let leader = family.leader(0)?;
    let path = format!("/proc/{}/ns/ipc", leader.tid);
    let theirs = std::fs::read_link(&path).during(0, || format!("read {path}"))?;
    let own = "/proc/self/ns/ipc";
    let ours = std::fs::read_link(own).during(0, || format!("read {own}"))?;
    if theirs == ours {
        return Ok(None);
    }
    File::open(&path)
        .map(Some)
        .during(0, || format!("open {path}"))
}

/// Fills the segments.
///
/// # Errors
/// A page that cannot be read or written; Ctrl-C.
pub fn fill_all(
    dataset: &Dataset,
    made: &Made,
    pages: &dyn PageSource,
    guard: &Guard,
    progress: Option<&Progress>,
) -> Result<(), RestoreError> {
    let pid = dataset.processes.first().map_or(0, |p| p.pid);
    for (id, segment) in &made.segments {
        if let Some(memory) = dataset.shared_memory.iter().find(|m| m.id == *id) {
            fill::whole_pages(pid, memory, &segment.file, pages, guard, progress)?;
        }
    }
    Ok(())
}

/// What can be said of segments only when their content is there and whoever
/// uses them has attached them: that they are locked, or removed.
///
/// # Errors
/// shmctl refused.
pub fn finish(
    dataset: &Dataset,
    family: &mut Family<'_>,
    made: &mut Made,
) -> Result<(), RestoreError> {
    for object in wanted(dataset) {
        if let SysvKind::Segment {
            memory,
            removed,
            locked,
            creator,
            ..
        } = object.kind
            && let Some(segment) = made.segments.get(&memory)
        {
            let id = segment.id;
            let stub = stub_of(family, creator);
            if removed {
                let mode = object.mode & 0o777;
                sysv::set_mode(Kind::Segment, id, mode, made.namespace.as_ref())
                    .during(0, || format!("IPC_SET of {}", object.name()))?;
            }
            segments::finish(family.leader(stub)?, object, id, locked, removed)?;
            if removed {
                // It ends with the last process that has it.
                made.objects
                    .retain(|known| (known.kind, known.id) != (Kind::Segment, id));
            }
        }
    }
    made.segments.clear();
    Ok(())
}
