//! Who else held what the extracted processes hold?

use std::collections::{HashMap, HashSet};

use super::extract::Extraction;
use super::list::{self, int};
use crate::dataset::{FileKind, ObjectId};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// Most descriptors that are looked at in one process.
const MAX_FDS: u64 = 1 << 20;
/// Descriptors read at a time.
const CHUNK: u64 = 512;

/// Says of each pipe whether all of its ends are in the extraction.
pub(super) fn close_pipes(x: &mut Extraction<'_, '_>) {
    let kernel = x.kernel;
    let mut ends: HashMap<ObjectId, u64> = HashMap::new();
    // Ends that somebody else may hold too: another process, or just a system
    // call that is under way.
    let mut doubtful: HashMap<u64, ObjectId> = HashMap::new();
    for file in &x.out.files {
        if let FileKind::Pipe { pipe, .. } = file.kind {
            *ends.entry(pipe).or_default() += 1;
            if references(kernel, file.id).unwrap_or(u64::MAX) > x.references(file.id) {
                doubtful.insert(file.id.0, pipe);
            }
        }
    }
    let elsewhere = held_elsewhere(x, &doubtful);
    let mut open = Vec::new();
    for pipe in &mut x.out.pipes {
        let files = kernel
            .object("pipe_inode_info", pipe.id.0)
            .and_then(|p| p.u("files"))
            .unwrap_or(u64::MAX);
        pipe.closed_set = ends.get(&pipe.id) == Some(&files) && !elsewhere.contains(&pipe.id);
        if !pipe.closed_set {
            open.push(pipe.id);
        }
    }
    for id in open {
        x.reconstructed(
            &format!("pipe {id}"),
            "other end",
            "processes that are not restored held an end of it too; what is restored sees them gone",
        );
    }
}

/// How many references a file has.
fn references(kernel: &Kernel, file: ObjectId) -> Result<u64, KernelError> {
    let file = kernel.object("file", file.0)?;
    if file.has("f_count") {
        return file.u("f_count.counter");
    }
    // file_ref_t counts from -1 since Linux commit 90ee6ed776c0 ("fs: port
    // files to file_ref") (in v6.13).
    Ok(file.u("f_ref.refcnt.counter")?.wrapping_add(1))
}

/// Which of the pipes have an end in the table of another process.
fn held_elsewhere(x: &Extraction<'_, '_>, doubtful: &HashMap<u64, ObjectId>) -> HashSet<ObjectId> {
    let mut found = HashSet::new();
    if doubtful.is_empty() {
        return found;
    }
    let ours: HashSet<i32> = x.out.processes.iter().map(|p| p.pid).collect();
    let Ok((leaders, _)) = list::leaders(x.kernel) else {
        return doubtful.values().copied().collect();
    };
    // Threads of the kernel share one table.
    let mut seen = HashSet::new();
    for task in leaders {
        if int(&task, "tgid").is_ok_and(|pid| ours.contains(&pid)) {
            continue;
        }
        if task.ptr("files").is_ok_and(|files| !seen.insert(files)) {
            continue;
        }
        // A table that cannot be read is taken to hold none of them.
        let _ = each_file(&task, |file| {
            if let Some(pipe) = doubtful.get(&file) {
                found.insert(*pipe);
            }
        });
    }
    found
}

/// Calls `visit` with every `struct file` of a process's descriptor table.
fn each_file(task: &Object<'_>, mut visit: impl FnMut(u64)) -> Result<(), KernelError> {
    let Some(files) = task.follow_opt("files")? else {
        return Ok(());
    };
    let table = files.follow("fdt")?;
    let (array, max) = (table.ptr("fd")?, table.u("max_fds")?.min(MAX_FDS));
    let mut first = 0;
    while first < max {
        let count = (max - first).min(CHUNK);
        let mut bytes = vec![0; usize::try_from(count * 8).unwrap_or(0)];
        task.kernel()
            .read(array.wrapping_add(first * 8), &mut bytes)?;
        super::page_cache::words(&bytes)
            .into_iter()
            .for_each(&mut visit);
        first += count;
    }
    Ok(())
}

/// Names the shared memories that processes outside the extraction mapped: what
/// these would have written there from now on is not written.
pub(super) fn foreign_mappings(x: &mut Extraction<'_, '_>) {
    let kernel = x.kernel;
    let foreign = |x: &Extraction<'_, '_>, memory: ObjectId| -> Result<usize, KernelError> {
        let root = kernel
            .object("inode", memory.0)?
            .follow("i_mapping")?
            .get("i_mmap.rb_root")?;
        let mut owners = HashSet::new();
        for area in containers::rbtree(&root, "vm_area_struct", "shared.rb")? {
            let owner = area.ptr("vm_mm")?;
            if !x.address_spaces.contains(&owner) {
                owners.insert(owner);
            }
        }
        Ok(owners.len())
    };
    let memories: Vec<(ObjectId, String)> = x
        .out
        .shared_memory
        .iter()
        .map(|m| (m.id, m.name.clone()))
        .collect();
    for (id, name) in memories {
        if let Ok(count @ 1..) = foreign(x, id) {
            x.lost(
                &format!("shared memory {name}"),
                "sharing",
                format!("{count} processes that are not restored had it mapped too"),
            );
        }
    }
}
