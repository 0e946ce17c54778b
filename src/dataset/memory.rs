//! An address space: VMAs, and where the content of each page is.

use super::hex::u64_hex;
use super::{AioContext, ObjectId};
use serde::{Deserialize, Serialize};

/// An address space (`struct mm_struct`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mm {
    /// VMAs in the order of their addresses, without overlap.
    pub vmas: Vec<Vma>,
    /// Where the kernel believes code, data, heap, stack, arguments and
    /// environment to be: `prctl(PR_SET_MM_MAP)`'s addresses.
    #[serde(with = "u64_hex")]
    pub start_code: u64,
    #[serde(with = "u64_hex")]
    pub end_code: u64,
    #[serde(with = "u64_hex")]
    pub start_data: u64,
    #[serde(with = "u64_hex")]
    pub end_data: u64,
    #[serde(with = "u64_hex")]
    pub start_brk: u64,
    #[serde(with = "u64_hex")]
    pub brk: u64,
    #[serde(with = "u64_hex")]
    pub start_stack: u64,
    #[serde(with = "u64_hex")]
    pub arg_start: u64,
    #[serde(with = "u64_hex")]
    pub arg_end: u64,
    #[serde(with = "u64_hex")]
    pub env_start: u64,
    #[serde(with = "u64_hex")]
    pub env_end: u64,
    /// The auxiliary vector, pairs flattened. `mm.saved_auxv` up to AT_NULL.
    pub auxv: Vec<u64>,
    /// `/proc/PID/exe`.
    pub exe: Option<ObjectId>,
    /// Path of the executable.
    pub exe_path: Option<String>,
    /// Address of the vDSO; 0 when there is none. `mm.context.vdso`.
    #[serde(with = "u64_hex")]
    pub vdso: u64,
    /// `mm.def_flags`: VM_LOCKED for `mlockall(MCL_FUTURE)`.
    #[serde(with = "u64_hex")]
    pub def_flags: u64,
    /// `prctl(PR_SET_DUMPABLE)`: 0, 1 or 2.
    pub dumpable: u32,
    /// `prctl(PR_SET_THP_DISABLE)`.
    pub thp_disabled: bool,
    /// `prctl(PR_SET_MDWE)`: PR_MDWE_*; 0: not set.
    #[serde(default)]
    pub mdwe: u32,
    /// `prctl(PR_SET_MEMORY_MERGE)`.
    #[serde(default)]
    pub memory_merge: bool,
    /// `oom_score_adj` of the process.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`; `None`: not known.
    #[serde(default)]
    pub core_filter: Option<u32>,
    /// Allocated protection keys, bit N for key N (`pkey_alloc`).
    #[serde(default)]
    pub protection_keys: u16,
    /// What the process registered for with `membarrier`: `mm.membarrier_state`, MEMBARRIER_STATE_*
    /// of Linux include/linux/sched/mm.h.
    #[serde(default)]
    pub membarrier: u32,
    /// Asynchronous I/O contexts (`io_setup`), in the order of their numbers.
    #[serde(default)]
    pub aio: Vec<AioContext>,
}

/// One VMA (`struct vm_area_struct`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vma {
    /// First address.
    #[serde(with = "u64_hex")]
    pub start: u64,
    /// First address behind it.
    #[serde(with = "u64_hex")]
    pub end: u64,
    /// The dead kernel's `vm_flags`, VM_* of include/linux/mm.h (x86-64).
    /// PROT_* are its low three bits, VM_MAYSHARE is 0x80.
    #[serde(with = "u64_hex")]
    pub flags: u64,
    /// What is mapped.
    pub kind: MappingKind,
    /// Pages whose content is not simply "what the mapped object holds", in
    /// the order of their addresses. Private mappings: pages written to;
    /// anonymous memory: pages ever touched. A page without a run is the
    /// mapped object's page (or zero, where nothing is mapped).
    pub pages: Vec<PageRun>,
    /// Bytes of its huge pages (hugetlb), 0 for ordinary pages.
    #[serde(default)]
    pub huge_page: u64,
}

/// What a VMA maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum MappingKind {
    /// Private anonymous memory. `name` is `prctl(PR_SET_VMA_ANON_NAME)`'s.
    Anonymous {
        name: Option<String>,
        /// Grows downwards (VM_GROWSDOWN): a main thread's stack.
        stack: bool,
        heap: bool,
    },
    /// A file of a file system, private or shared.
    File {
        /// The `struct file` of the mapping (in `Dataset::files`).
        file: ObjectId,
        /// Its inode (in `Dataset::inodes`).
        inode: ObjectId,
        /// Offset of the VMA's start. Bytes.
        offset: u64,
    },
    /// Shared memory without a name in a file system (in
    /// `Dataset::shared_memory`).
    Shared { memory: ObjectId, offset: u64 },
    /// A System V segment, or a part of it.
    Segment {
        /// Its content (in `Dataset::shared_memory`).
        memory: ObjectId,
        /// Which `shmat` it is of: `shmdt` takes away all that one has made.
        attachment: ObjectId,
        /// Bytes.
        offset: u64,
    },
    /// The vDSO's code pages.
    Vdso,
    /// The vDSO's data pages.
    Vvar,
    /// The `kvm_run` area of a vCPU: page 0 kvm_run, 1 PIO data, 2 coalesced
    /// MMIO ring. `file` is the vCPU's `struct file`; offset in bytes.
    KvmVcpu { file: ObjectId, offset: u64 },
    /// A character device's mapping, with its `struct file`.
    Device {
        file: ObjectId,
        path: String,
        offset: u64,
    },
    /// The ring of an asynchronous I/O context (in `Mm::aio`).
    AioRing,
    /// Something that cannot be made again; why.
    Unsupported { why: String },
}

/// Pages next to each other with one kind of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// First address in the process, or first byte offset in a file or a
    /// shared memory. A multiple of 4096.
    #[serde(with = "u64_hex")]
    pub start: u64,
    /// Number of 4 KiB pages, at least 1.
    pub count: u64,
    /// Where their content is. For `Frame`, `InPlace` and `Stored`, consecutive
    /// pages have consecutive places.
    pub content: PageContent,
}

/// Where a page's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageContent {
    /// Nothing but zeros; it need not be touched.
    Zero,
    /// In physical page frame N (PFN) of the dump.
    Frame(u64),
    /// In physical page frame N, where the dead host's memory still stands (in kdump's capture
    /// kernel): it is mapped from there, and never copied.
    InPlace(u64),
    /// In the dataset's own memory file, at this byte offset.
    Stored(u64),
    /// In slot `offset` (pages) of swap area `area` (in `Dataset::swap`).
    Swap { area: u32, offset: u64 },
    /// This word, over and over: how zram and zswap keep such a page.
    Filled(u64),
    /// Compressed in the dump's memory, by zram or zswap. Never more than one
    /// page to a run.
    Packed {
        by: Packing,
        /// Compressed bytes.
        len: u16,
        /// Physical address of the first; they go on to the end of its page.
        at: u64,
        /// Physical address of those that do not fit there.
        rest: u64,
    },
    /// Not in the dump: makedumpfile's level left it out.
    Filtered,
    /// Not in the dump: the file ends before it.
    Truncated,
    /// In the dump, but damaged.
    Corrupt,
    /// Where nothing of vmrestore can read it; the fidelity report says why.
    OutOfReach,
}

/// How a page of swap is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// It is not: 4096 bytes.
    Raw,
    /// The kernel's `lzo` and `lzo-rle`.
    Lzo,
    /// `lz4` and `lz4hc`: a block.
    Lz4,
    /// A frame.
    Zstd,
    /// Without a header.
    Deflate,
}

impl PageContent {
    /// The content was there once and cannot be had from this dump.
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::Filtered | Self::Truncated | Self::Corrupt | Self::OutOfReach
        )
    }
}

/// Shared memory that no file system names: memfd, `MAP_SHARED|MAP_ANONYMOUS`,
/// a deleted tmpfs file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SharedMemory {
    /// Its inode's identity.
    pub id: ObjectId,
    /// Name given to memfd_create, or the deleted path.
    pub name: String,
    /// Made by memfd_create (it may be a descriptor too).
    pub memfd: bool,
    /// Bytes.
    pub size: u64,
    /// F_SEAL_* of a memfd.
    pub seals: u32,
    /// Its pages by byte offset; what is not here is zero.
    pub pages: Vec<PageRun>,
    /// Bytes of its huge pages (hugetlbfs, MFD_HUGETLB), 0 for ordinary pages.
    #[serde(default)]
    pub huge_page: u64,
}

impl Vma {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// A VMA of no length does not exist in a kernel, but it may in a damaged dump.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// PROT_READ | PROT_WRITE | PROT_EXEC.
    pub fn prot(&self) -> i32 {
        (self.flags & 7) as i32
    }

    /// Its protection key: `VM_PKEY_BIT0` to `VM_PKEY_BIT3`.
    pub fn protection_key(&self) -> u64 {
        self.flags >> 32 & 15
    }

    /// MAP_SHARED: `VM_MAYSHARE`. (`VM_SHARED` is not set in a shared mapping
    /// of a file that was opened for reading. Linux mm/mmap.c.)
    pub fn shared(&self) -> bool {
        self.flags & 0x80 != 0
    }
}
