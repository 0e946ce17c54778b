//! One extraction: processes, and the objects that they share, each read once.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::clock::{self, Clocks};
use super::moved::Beside;
use super::page_cache::Wanted;
use super::page_frame::Frames;
use super::path::{Name, Place};
use super::swap::SwapReader;
use super::{TaskError, file, inode, list, process};
use crate::dataset::{
    Fidelity, FileKind, Inode, MessageQueue, ObjectId, OpenFile, Outside, PageContent, PageRun,
    Pipe, Process, SharedMemory, SwapArea, SysvObject, Zombie,
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
    /// Their children that had ended and not been waited for.
    pub zombies: Vec<Zombie>,
    /// Every open file description that they refer to, once.
    pub files: Vec<OpenFile>,
    /// Pipes that the files are ends of.
    pub pipes: Vec<Pipe>,
    /// Inodes of the files.
    pub inodes: Vec<Inode>,
    /// Memory that no file system names.
    pub shared_memory: Vec<SharedMemory>,
    /// POSIX message queues that the files are of.
    pub message_queues: Vec<MessageQueue>,
    /// System V IPC that they used.
    pub sysv: Vec<SysvObject>,
    /// Processes that are not among them and are tied to them.
    pub outside: Vec<Outside>,
    /// Swap areas that their pages were in.
    pub swap: Vec<SwapArea>,
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
        unreadable_files: 0,
        inodes: HashMap::new(),
        memories: HashMap::new(),
        pipes: HashMap::new(),
        pte_dirty: HashMap::new(),
        references: HashMap::new(),
        orphans: HashSet::new(),
        address_spaces: HashSet::new(),
        busy_epolls: HashSet::new(),
        mounts: 0,
        hosts_mounts: super::namespace::mounts_of_host(kernel),
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
    /// How many of the files could not be read.
    pub unreadable_files: usize,
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
    /// Living children of the processes: parent, child.
    pub children: Vec<(i32, i32)>,
    /// `mm_struct`s of the processes.
    pub address_spaces: HashSet<u64>,
    /// `struct mnt_namespace` of the process that is being read, and of the host.
    pub mounts: u64,
    pub hosts_mounts: u64,
    /// Epoll instances (`struct file`) from which a thread was taking events.
    pub busy_epolls: HashSet<u64>,
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
            self.unreadable_files += 1;
            unreadable(id, error.to_string())
        });
        if let Some(slot) = self.files.get(&addr).copied()
            && let Some(file) = self.out.files.get_mut(slot)
        {
            *file = read;
        }
        id
    }

    /// The name is one of the host's, and the process is elsewhere.
    pub fn is_of_host(&self, name: &Name) -> bool {
        name.mounts != 0 && name.mounts == self.hosts_mounts && name.mounts != self.mounts
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
                if inode.mode & 0o170_000 == 0o060_000
                    && let Some(cache) = cache
                {
                    self.block_device(&mut inode, cache);
                }
                self.unwritten(&mut inode, object, cache);
                self.out.inodes.push(inode);
                let slot = self.out.inodes.len() - 1;
                self.inodes.insert(id.0, slot);
                self.uncommitted(slot, object, false);
                slot
            }
        };
        if writable && self.out.inodes.get(slot).is_some_and(|i| !i.writable) {
            self.uncommitted(slot, object, true);
        }
        if let Some(inode) = self.out.inodes.get_mut(slot) {
            inode.writable |= writable;
        }
        Ok(id)
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
            huge_page: inode::huge_page(object),
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

    /// What a call that was under way has moved is where it belongs.
    pub fn settle(&mut self, beside: Beside) {
        match beside {
            Beside::Position(file, by) => {
                let slot = self.files.get(&file).copied();
                if let Some(file) = slot.and_then(|slot| self.out.files.get_mut(slot)) {
                    file.position = file.position.wrapping_add(by);
                }
            }
            Beside::Pipe(pipe, by) => {
                let slot = self.pipes.get(&pipe).copied();
                if let Some(pipe) = slot.and_then(|slot| self.out.pipes.get_mut(slot)) {
                    pipe.drop_first(by);
                }
            }
        }
    }

    /// What can be said only when all processes are read.
    fn finish(&mut self) {
        self.files_without_descriptors();
        super::epoll::tell_again(self);
        super::sysv::gather(self);
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
        self.swap_areas();
        self.note_children();
        if !self.files_of_kvm() {
            super::kin::note_cut(self);
        }
        let elsewhere = super::holders::elsewhere(self);
        super::holders::close_pipes(self, &elsewhere);
        super::holders::foreign_mappings(self);
        super::socket::missing_peers(self, &elsewhere);
        super::inet::settle_peers(self);
        super::outside::ties(self);
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

    /// A VMM does not ask who its parent is.
    fn files_of_kvm(&self) -> bool {
        self.out
            .files
            .iter()
            .any(|f| matches!(f.kind, FileKind::KvmVm { .. }))
    }

    /// Children that are not restored with their parents.
    fn note_children(&mut self) {
        let pids: HashSet<i32> = self.out.processes.iter().map(|p| p.pid).collect();
        for (parent, child) in std::mem::take(&mut self.children) {
            if !pids.contains(&child) {
                self.lost(
                    &format!("pid {parent}"),
                    "child",
                    format!("{child} is not restored with it (--tree takes them together)"),
                );
            }
        }
    }

    /// Which areas swapped pages are in, and which of the pages nothing can read.
    fn swap_areas(&mut self) {
        let of_processes = self.out.processes.iter().flat_map(|p| &p.mm.vmas);
        let numbers: BTreeSet<u32> = of_processes
            .flat_map(|vma| &vma.pages)
            .chain(self.out.shared_memory.iter().flat_map(|m| &m.pages))
            .chain(self.out.inodes.iter().flat_map(|i| &i.dirty))
            .filter_map(|run| match run.content {
                PageContent::Swap { area, .. } => Some(area),
                _ => None,
            })
            .collect();
        self.out.swap = self.swap.areas(&numbers);
        for area in &self.out.swap {
            let line = match &area.trouble {
                None => Fidelity::exact(
                    "host",
                    "swapped pages",
                    format!(
                        "some are in swap area {} ({}): a restore reads them there, if nothing was swapped to it since",
                        area.number, area.path
                    ),
                ),
                Some(trouble) => Fidelity::lost(
                    "host",
                    "swapped pages",
                    format!(
                        "some are in swap area {} ({}): {trouble}",
                        area.number, area.path
                    ),
                ),
            };
            self.out.fidelity.push(line);
        }
        for (why, pages) in self.swap.troubles() {
            self.lost("host", "swapped pages", format!("{pages} pages: {why}"));
        }
    }

    /// Files of which no descriptor is left: an epoll instance watches them, or
    /// they are under way in a message. Not read as they are found: a damaged
    /// dump may have them in each other without end.
    fn files_without_descriptors(&mut self) {
        /// Instances that watch each other: EP_MAX_NESTS is 4. Sockets in
        /// messages to sockets in messages: MAX_RECURSION_LEVEL of af_unix is 4.
        const MOST: usize = 8;
        for _ in 0..MOST {
            let missing: Vec<u64> = self
                .out
                .files
                .iter()
                .flat_map(|f| held_by(&f.kind))
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

/// Other open files (`struct file`) that an open file keeps alive.
fn held_by(kind: &FileKind) -> Vec<u64> {
    match kind {
        FileKind::Epoll { watches } => watches.iter().map(|watch| watch.file.0).collect(),
        FileKind::UnixSocket(socket) => {
            let waiting = socket.waiting.iter().flat_map(|waiting| &waiting.unread);
            let messages = socket.unread.iter().chain(waiting);
            messages
                .flat_map(|message| &message.files)
                .map(|file| file.0)
                .collect()
        }
        _ => Vec::new(),
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
        of_host: false,
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
