//! One extraction: processes, and the objects that they share, each read once.

use std::collections::{HashMap, HashSet};

use super::clock::{self, Clocks};
use super::page_cache::Wanted;
use super::page_frame::Frames;
use super::path::Place;
use super::swap::SwapReader;
use super::{TaskError, file, inode, list, process, uncommitted};
use crate::dataset::{
    Fidelity, FileKind, Inode, InodeKind, ObjectId, OpenFile, PageContent, PageRun, Pipe, Process,
    SharedMemory,
};
use crate::kernel::{Kernel, KernelError, Object};

/// Most files, pipes or inodes of one extraction: far more than RLIMIT_NOFILE
/// lets a set of processes have, and a bound for a damaged dump.
const MAX_OBJECTS: usize = 4 << 20;

/// What [`extract`] found.
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    /// Parents before children.
    pub processes: Vec<Process>,
    /// Every open file description that they refer to, once.
    pub files: Vec<OpenFile>,
    /// Pipes that the files are ends of.
    pub pipes: Vec<Pipe>,
    /// Inodes of the files.
    pub inodes: Vec<Inode>,
    /// Memory that no file system names.
    pub shared_memory: Vec<SharedMemory>,
    /// What is not exact.
    pub fidelity: Vec<Fidelity>,
}

/// Reads the processes with these PIDs (in the initial PID namespace), with
/// what they share kept shared.
///
/// # Errors
/// A PID that is not a living process, or something that a process cannot do
/// without and that the dump does not hold. What it can do without, and what
/// was reconstructed, is in [`Extracted::fidelity`].
pub fn extract(kernel: &Kernel, pids: &[i32]) -> Result<Extracted, TaskError> {
    let failed = |what| move |source| TaskError::Kernel { what, source };
    let frames = Frames::new(kernel).map_err(failed("struct page"))?;
    let clocks = clock::read(kernel).map_err(failed("timekeeper"))?;
    let swap = SwapReader::new(&frames);
    let mut x = Extraction {
        kernel,
        frames: &frames,
        swap: &swap,
        clocks,
        out: Extracted::default(),
        files: HashMap::new(),
        inodes: HashMap::new(),
        memories: HashMap::new(),
        pipes: HashMap::new(),
        pte_dirty: HashMap::new(),
        references: HashMap::new(),
        orphans: HashSet::new(),
        address_spaces: HashSet::new(),
        children: Vec::new(),
    };
    let clocks = x.clocks.fidelity();
    x.out.fidelity.push(clocks);
    let (leaders, _) = list::leaders(kernel).map_err(failed("list of tasks"))?;
    let by_pid: HashMap<i32, &Object<'_>> = leaders
        .iter()
        .filter_map(|t| Some((list::int(t, "tgid").ok()?, t)))
        .collect();
    let mut done = Vec::new();
    for pid in pids {
        if done.contains(pid) {
            continue;
        }
        let task = by_pid
            .get(pid)
            .ok_or(TaskError::NoSuchProcess { pid: *pid })?;
        let process = process::read(&mut x, task)?;
        x.out.processes.push(process);
        done.push(*pid);
    }
    x.finish();
    Ok(x.out)
}

/// An extraction under way.
pub(super) struct Extraction<'a, 'k> {
    pub kernel: &'k Kernel,
    pub frames: &'a Frames<'k>,
    pub swap: &'a SwapReader<'a, 'k>,
    pub clocks: Clocks,
    pub out: Extracted,
    files: HashMap<u64, usize>,
    inodes: HashMap<u64, usize>,
    memories: HashMap<u64, usize>,
    pipes: HashMap<u64, usize>,
    /// Pages of files that a shared mapping wrote to, by inode.
    pte_dirty: HashMap<u64, Vec<PageRun>>,
    /// How often the processes refer to a file.
    references: HashMap<u64, u64>,
    /// First addresses of the process's areas, and identities of memories,
    /// whose missing pages are a deleted file's that no cache had.
    pub orphans: HashSet<u64>,
    /// Children of the processes: parent, child, whether it was dead.
    pub children: Vec<(i32, i32, bool)>,
    /// `mm_struct`s of the processes.
    pub address_spaces: HashSet<u64>,
}

impl<'k> Extraction<'_, 'k> {
    /// Adds a line to the report.
    pub fn lost(&mut self, subject: &str, what: &str, why: impl Into<String>) {
        self.out.fidelity.push(Fidelity::lost(subject, what, why));
    }

    /// Adds a line to the report.
    pub fn reconstructed(&mut self, subject: &str, what: &str, how: impl Into<String>) {
        self.out
            .fidelity
            .push(Fidelity::reconstructed(subject, what, how));
    }

    /// The open file at `addr`, read when it is new. `root` is the root of the
    /// process that refers to it.
    pub fn file(&mut self, addr: u64, root: Option<Place>) -> ObjectId {
        let id = ObjectId(addr);
        *self.references.entry(addr).or_default() += 1;
        if self.files.contains_key(&addr) || self.out.files.len() >= MAX_OBJECTS {
            return id;
        }
        // Its place is taken before it is read: an epoll instance may watch
        // one that watches it.
        self.files.insert(addr, self.out.files.len());
        self.out.files.push(unreadable(id, String::new()));
        let read = file::read(self, addr, root).unwrap_or_else(|error| {
            self.lost(&format!("file {id}"), "open file", error.to_string());
            unreadable(id, error.to_string())
        });
        if let Some(slot) = self.files.get(&addr).copied()
            && let Some(file) = self.out.files.get_mut(slot)
        {
            *file = read;
        }
        id
    }

    /// How often the processes refer to a file.
    pub fn references(&self, file: ObjectId) -> u64 {
        self.references.get(&file.0).copied().unwrap_or(0)
    }

    /// The inode, read when it is new. `cache` is the `address_space` with its
    /// pages, which for an overlay or a block device is another inode's.
    pub fn inode(
        &mut self,
        object: &Object<'k>,
        cache: Option<&Object<'k>>,
        path: &str,
        writable: bool,
    ) -> Result<ObjectId, KernelError> {
        let id = ObjectId(object.addr());
        let slot = match self.inodes.get(&id.0) {
            Some(slot) => *slot,
            None => {
                let mut inode = inode::identity(object, path.to_owned())?;
                self.unwritten(&mut inode, object, cache);
                self.out.inodes.push(inode);
                self.inodes.insert(id.0, self.out.inodes.len() - 1);
                self.out.inodes.len() - 1
            }
        };
        if writable && self.out.inodes.get(slot).is_some_and(|i| !i.writable) {
            self.uncommitted(slot, object);
        }
        if let Some(inode) = self.out.inodes.get_mut(slot) {
            inode.writable |= writable;
        }
        Ok(id)
    }

    /// Fills in the pages that the disk may not have.
    fn unwritten(&mut self, inode: &mut Inode, object: &Object<'k>, cache: Option<&Object<'k>>) {
        let is_block = inode.mode & 0o170_000 == 0o060_000;
        if inode.kind != InodeKind::Regular && !is_block {
            return;
        }
        let volatile = inode::lives_in_memory(&inode.fs_type) && !is_block;
        let wanted = if volatile {
            Wanted::All
        } else {
            Wanted::Unwritten
        };
        let size = if is_block {
            // The size of a block device is that of its own inode in bdevfs,
            // whose page cache this is.
            cache
                .and_then(|c| c.follow("host").and_then(|h| h.u("i_size")).ok())
                .unwrap_or(u64::MAX)
        } else {
            inode.size
        };
        let mapping = match cache {
            Some(cache) => Ok(cache.clone()),
            None => object.follow("i_mapping"),
        };
        let runs = mapping.and_then(|mapping| {
            inode::cached_runs(
                self.frames,
                self.swap,
                &mapping,
                wanted,
                inode::huge_order(object),
                size,
            )
        });
        match runs {
            Ok(runs) => {
                if volatile && !runs.is_empty() {
                    self.reconstructed(
                        &inode.path,
                        "content",
                        "its file system lived in memory: the whole file is carried over",
                    );
                }
                inode.dirty = runs;
            }
            Err(error) => self.lost(
                &inode.path,
                "unwritten pages",
                format!("its page cache cannot be walked: {error}"),
            ),
        }
    }

    /// Fills in the clean pages that a journal's replay may undo.
    fn uncommitted(&mut self, slot: usize, object: &Object<'k>) {
        let Some(inode) = self.out.inodes.get_mut(slot) else {
            return;
        };
        if inode.kind != InodeKind::Regular || inode::lives_in_memory(&inode.fs_type) {
            return;
        }
        match uncommitted::runs(self.frames, self.swap, object, inode.size) {
            Ok(runs) => inode.uncommitted = runs,
            Err(error) => {
                let path = inode.path.clone();
                self.lost(
                    &path,
                    "pages written right before the crash",
                    format!("its page cache cannot be walked: {error}"),
                );
            }
        }
    }

    /// Remembers pages of a file that a shared mapping wrote to.
    pub fn dirty_by_mapping(&mut self, inode: ObjectId, runs: Vec<PageRun>) {
        self.pte_dirty.entry(inode.0).or_default().extend(runs);
    }

    /// The memory behind an inode that no file system names, read when new.
    pub fn shared_memory(
        &mut self,
        object: &Object<'k>,
        cache: Option<&Object<'k>>,
        name: &str,
    ) -> Result<ObjectId, KernelError> {
        let id = ObjectId(object.addr());
        if self.memories.contains_key(&id.0) {
            return Ok(id);
        }
        let size = object.u("i_size")?;
        let mapping = match cache {
            Some(cache) => cache.clone(),
            None => object.follow("i_mapping")?,
        };
        let pages = inode::cached_runs(
            self.frames,
            self.swap,
            &mapping,
            Wanted::All,
            inode::huge_order(object),
            size,
        )?;
        let memfd = name.strip_prefix("/memfd:");
        self.memories.insert(id.0, self.out.shared_memory.len());
        self.out.shared_memory.push(SharedMemory {
            id,
            name: memfd.unwrap_or(name).to_owned(),
            memfd: memfd.is_some(),
            size,
            seals: seals(object).unwrap_or(0),
            pages,
        });
        Ok(id)
    }

    /// Adds a pipe unless it is known.
    pub fn pipe(
        &mut self,
        id: ObjectId,
        read: impl FnOnce() -> Result<Pipe, KernelError>,
    ) -> Result<(), KernelError> {
        if !self.pipes.contains_key(&id.0) {
            let pipe = read()?;
            self.pipes.insert(id.0, self.out.pipes.len());
            self.out.pipes.push(pipe);
        }
        Ok(())
    }

    /// What can be said only when all processes are read.
    fn finish(&mut self) {
        self.watched_files();
        for (inode, runs) in std::mem::take(&mut self.pte_dirty) {
            if let Some(inode) = self
                .inodes
                .get(&inode)
                .and_then(|slot| self.out.inodes.get_mut(*slot))
            {
                let size = inode.size;
                let runs = runs.into_iter().filter(|r| r.start < size).collect();
                inode.dirty = inode::merge(std::mem::take(&mut inode.dirty), runs);
            }
        }
        super::zeros::settle_shared(self);
        self.note_compressed_swap();
        self.note_children();
        super::holders::close_pipes(self);
        super::holders::foreign_mappings(self);
        super::socket::missing_peers(self);
        // Parents before children, in the order of the set.
        let parents: HashMap<i32, i32> =
            self.out.processes.iter().map(|p| (p.pid, p.ppid)).collect();
        let depth = |pid: i32| {
            let mut at = pid;
            let mut depth = 0;
            // Damaged parents may go in a circle.
            while let Some(parent) = parents.get(&at)
                && parents.contains_key(parent)
                && depth <= parents.len()
            {
                at = *parent;
                depth += 1;
            }
            depth
        };
        self.out.processes.sort_by_cached_key(|p| depth(p.pid));
        self.out.fidelity.dedup();
    }

    /// Children that are not restored with their parents.
    fn note_children(&mut self) {
        let pids: HashSet<i32> = self.out.processes.iter().map(|p| p.pid).collect();
        for (parent, child, dead) in std::mem::take(&mut self.children) {
            if dead {
                self.lost(
                    &format!("pid {parent}"),
                    "child",
                    format!("{child} was dead and not waited for: its exit status is gone"),
                );
            } else if !pids.contains(&child) {
                self.lost(
                    &format!("pid {parent}"),
                    "child",
                    format!("{child} is not restored with it"),
                );
            }
        }
    }

    /// Swapped pages that zswap holds are on no device.
    fn note_compressed_swap(&mut self) {
        let compressed = self.swap.compressed_in_memory();
        let swapped = |runs: &[PageRun]| {
            runs.iter()
                .any(|r| matches!(r.content, PageContent::Swap { .. }))
        };
        let any = self
            .out
            .processes
            .iter()
            .flat_map(|p| &p.mm.vmas)
            .any(|v| swapped(&v.pages))
            || self.out.shared_memory.iter().any(|m| swapped(&m.pages));
        if any && compressed > 0 {
            self.lost(
                "host",
                "swapped pages",
                format!(
                    "zswap held {compressed} swapped pages of the host in memory, compressed: what the swap device has in their slots is not theirs"
                ),
            );
        }
    }

    /// Files that an epoll instance watches and no descriptor is left of.
    fn watched_files(&mut self) {
        /// Instances that watch each other: EP_MAX_NESTS is 4.
        const MOST: usize = 8;
        for _ in 0..MOST {
            let missing: Vec<u64> = self
                .out
                .files
                .iter()
                .filter_map(|f| match &f.kind {
                    FileKind::Epoll { watches } => Some(watches),
                    _ => None,
                })
                .flatten()
                .map(|w| w.file.0)
                .filter(|addr| !self.files.contains_key(addr))
                .collect();
            if missing.is_empty() || self.out.files.len() >= MAX_OBJECTS {
                return;
            }
            for addr in missing {
                self.file(addr, None);
            }
        }
    }
}

/// F_SEAL_* of a memfd: in its shmem or hugetlbfs inode.
fn seals(inode: &Object<'_>) -> Result<u32, KernelError> {
    let owner = match inode::fs_type(inode)?.as_str() {
        "hugetlbfs" => "hugetlbfs_inode_info",
        _ => "shmem_inode_info",
    };
    let info = inode.container_of(owner, "vfs_inode")?;
    Ok(u32::try_from(info.u("seals")?).unwrap_or(0))
}

/// Stands for a file that could not be read.
fn unreadable(id: ObjectId, why: String) -> OpenFile {
    OpenFile {
        id,
        path: String::new(),
        deleted: false,
        flags: 0,
        position: 0,
        inode: None,
        owner: None,
        locks: Vec::new(),
        kind: FileKind::Unsupported {
            operations: String::new(),
            private_data: ObjectId(0),
            why,
        },
    }
}
