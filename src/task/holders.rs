//! Who else held what the extracted processes hold?

use std::collections::{BTreeSet, HashMap, HashSet};

use super::extract::Extraction;
use super::list::{self, int};
use crate::dataset::{FileKind, ObjectId};
use crate::kernel::{Kernel, KernelError, Object, containers};

/// Most descriptors that are looked at in one process.
const MAX_FDS: u64 = 1 << 20;
/// Most open files of a whole host that are looked at.
const MOST_FILES: usize = 4 << 20;
/// Descriptors read at a time.
const CHUNK: u64 = 512;

/// Processes that are not in the extraction and have a certain thing open: by
/// the private data of its open files, PIDs and names.
pub(super) type Elsewhere = HashMap<u64, BTreeSet<(i32, String)>>;

/// Looks for everybody else who holds an end of the extracted pipes and
/// connections. Where all ends are known to be inside, nobody is looked for.
pub(super) fn elsewhere(x: &Extraction<'_, '_>) -> Elsewhere {
    let ends = ends(x);
    let mut wanted: HashSet<u64> = HashSet::new();
    for file in &x.out.files {
        if let FileKind::Pipe { pipe, .. } = file.kind
            && (ends.get(&pipe).copied() != Some(ends_of(x.kernel, pipe))
                || references(x.kernel, file.id).unwrap_or(u64::MAX) > x.references(file.id))
        {
            wanted.insert(pipe.0);
        }
    }
    wanted.extend(super::socket::peers_outside(x).into_values());
    // Of whatever has no private data.
    wanted.remove(&0);
    let mut found = Elsewhere::new();
    if wanted.is_empty() {
        return found;
    }
    let ours: HashSet<i32> = x.out.processes.iter().map(|p| p.pid).collect();
    let Ok((leaders, _)) = list::leaders(x.kernel) else {
        return found;
    };
    // Threads of the kernel share one table.
    let mut tables = HashSet::new();
    let mut files: HashMap<u64, Option<u64>> = HashMap::new();
    for task in leaders {
        let Ok(pid) = int(&task, "tgid") else {
            continue;
        };
        if ours.contains(&pid) || task.ptr("files").is_ok_and(|table| !tables.insert(table)) {
            continue;
        }
        // A table that cannot be read is taken to hold none of them.
        let _ = each_file(&task, |addr| {
            if addr == 0 || files.len() >= MOST_FILES {
                return;
            }
            let thing = *files.entry(addr).or_insert_with(|| {
                let file = x.kernel.object("file", addr).ok()?;
                file.ptr("private_data").ok().filter(|p| wanted.contains(p))
            });
            if let Some(thing) = thing {
                let name = task.get("comm").and_then(|c| c.string());
                let name = name.unwrap_or_else(|_| "?".into());
                found.entry(thing).or_default().insert((pid, name));
            }
        });
    }
    found
}

/// Holders as a person reads them; empty where none is known.
pub(super) fn names(elsewhere: &Elsewhere, thing: u64) -> String {
    const MOST: usize = 4;
    let Some(holders) = elsewhere.get(&thing) else {
        return String::new();
    };
    let mut words: Vec<String> = holders
        .iter()
        .take(MOST)
        .map(|(pid, name)| format!("pid {pid} ({name})"))
        .collect();
    if let Some(more) = holders.len().checked_sub(MOST).filter(|more| *more > 0) {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}

/// How many open files of each pipe are in the extraction.
fn ends(x: &Extraction<'_, '_>) -> HashMap<ObjectId, u64> {
    let mut ends = HashMap::new();
    for file in &x.out.files {
        if let FileKind::Pipe { pipe, .. } = file.kind {
            *ends.entry(pipe).or_default() += 1;
        }
    }
    ends
}

/// How many open files a pipe had.
fn ends_of(kernel: &Kernel, pipe: ObjectId) -> u64 {
    kernel
        .object("pipe_inode_info", pipe.0)
        .and_then(|p| p.u("files"))
        .unwrap_or(u64::MAX)
}

/// Says of each pipe whether all of its ends are in the extraction, and who
/// else had one.
pub(super) fn close_pipes(x: &mut Extraction<'_, '_>, elsewhere: &Elsewhere) {
    let kernel = x.kernel;
    let ends = ends(x);
    let mut open = Vec::new();
    for pipe in &mut x.out.pipes {
        let all = ends_of(kernel, pipe.id);
        pipe.closed_set = ends.get(&pipe.id) == Some(&all) && !elsewhere.contains_key(&pipe.id.0);
        if !pipe.closed_set {
            open.push(pipe.id);
        }
    }
    for id in open {
        let who = match names(elsewhere, id.0) {
            who if who.is_empty() => "processes that are not restored".to_owned(),
            who => who,
        };
        x.reconstructed(
            &format!("pipe {id}"),
            "other end",
            format!("not restored: {who} held an end of it too; what is restored sees them gone"),
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

/// Calls `visit` with every `struct file` of a process's descriptor table.
pub(super) fn each_file(task: &Object<'_>, mut visit: impl FnMut(u64)) -> Result<(), KernelError> {
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
