//! Processes that are not extracted, and what ties them to those that are.
//!
//! Some of a guest's devices live in processes of their own: a vhost-user back
//! end works in the guest's memory, a TPM or a shared directory is served over
//! a socket. Whether that matters is not decided here.

use std::collections::HashSet;

use super::extract::Extraction;
use super::list::int;
use crate::dataset::{FileKind, ObjectId, Outside, Tie, UnixState};
use crate::kernel::{KernelError, Object, containers};

const VM_SHARED: u64 = 8;
const VM_MAYWRITE: u64 = 0x20;

/// Notes the ties of everything that has been extracted.
pub(super) fn ties(x: &mut Extraction<'_, '_>) {
    let memories = x.out.shared_memory.iter().map(|m| m.id);
    let files = x.out.inodes.iter().filter(|i| i.writable).map(|i| i.id);
    let objects: Vec<ObjectId> = memories.chain(files).collect();
    let mut found = Vec::new();
    for object in objects {
        // What cannot be read is taken to be shared with nobody: its own
        // pages are then not readable either, which is said elsewhere.
        found.extend(sharers(x, object).unwrap_or_default());
    }
    let known: HashSet<ObjectId> = x.out.files.iter().filter_map(|f| socket(&f.kind)).collect();
    for file in &x.out.files {
        if let FileKind::UnixSocket(socket) = &file.kind
            && let UnixState::Connected { peer } = socket.state
            && !known.contains(&peer)
            && let Ok(Some((pid, command))) = peer_of(x, socket.socket)
        {
            let tie = Tie::Socket {
                socket: socket.socket,
            };
            found.push(Outside { pid, command, tie });
        }
    }
    x.out.outside = found;
}

fn socket(kind: &FileKind) -> Option<ObjectId> {
    match kind {
        FileKind::UnixSocket(socket) => Some(socket.socket),
        _ => None,
    }
}

/// Who else has mapped the pages of this `struct inode` to write to them.
fn sharers(x: &Extraction<'_, '_>, object: ObjectId) -> Result<Vec<Outside>, KernelError> {
    let mapping = x.kernel.object("inode", object.0)?.follow("i_mapping")?;
    if mapping.i("i_mmap_writable.counter").unwrap_or(1) <= 0 {
        return Ok(Vec::new());
    }
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let areas = containers::rbtree(
        &mapping.get("i_mmap.rb_root")?,
        "vm_area_struct",
        "shared.rb",
    )?;
    for area in areas {
        let wanted = VM_SHARED | VM_MAYWRITE;
        let owner = area.ptr("vm_mm")?;
        if area.u("vm_flags")? & wanted != wanted
            || x.address_spaces.contains(&owner)
            || !seen.insert(owner)
        {
            continue;
        }
        let (pid, command) = owner_of(&area).unwrap_or((0, "an unknown process".into()));
        let tie = Tie::Memory { object };
        found.push(Outside { pid, command, tie });
    }
    Ok(found)
}

/// The process of an area's `mm_struct`, where the kernel keeps it (CONFIG_MEMCG).
fn owner_of(area: &Object<'_>) -> Option<(i32, String)> {
    let mm = area.follow("vm_mm").ok()?;
    describe(&mm.follow_opt("owner").ok()??).ok()
}

/// The process that had connected, or listened, at the other end of a `struct
/// sock`.
fn peer_of(x: &Extraction<'_, '_>, sock: ObjectId) -> Result<Option<(i32, String)>, KernelError> {
    let sk = x.kernel.object("sock", sock.0)?;
    let Some(pid) = sk.follow_opt("sk_peer_pid")? else {
        return Ok(None);
    };
    // tasks[PIDTYPE_TGID]: none when it has ended.
    let Some(link) = pid.follow_opt("tasks[1].first")? else {
        return Ok(None);
    };
    Ok(Some(describe(
        &link.container_of("task_struct", "pid_links[1]")?,
    )?))
}

fn describe(task: &Object<'_>) -> Result<(i32, String), KernelError> {
    Ok((int(task, "tgid")?, task.get("comm")?.string()?))
}
