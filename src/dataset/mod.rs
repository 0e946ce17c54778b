//! The *restoration dataset*: plain, versioned data that says everything that
//! is needed to bring processes (and the guests that live in them) back, and
//! where the content of each page is.
//!
//! It is the vocabulary that the reading side ([`crate::task`],
//! [`crate::guest`]) and the living side ([`crate::restore`]) share. It knows
//! nothing of either: no dump, no kernel, no system call. `vmrestore extract`
//! writes it as JSON; `vmrestore guests` passes it on in memory, through the
//! same types.
//!
//! Conventions: identities are [`ObjectId`]s, the addresses that the objects
//! had in the dead kernel; two descriptors with the same id shared one object
//! and will share one again. Times are nanoseconds. Addresses and bit masks
//! are written as `"0x…"` strings in JSON.

mod aio;
mod block_device;
mod fidelity;
mod file;
mod guest_memory;
mod hex;
mod kin;
mod memory;
mod message_queue;
mod namespace;
mod network;
mod outside;
mod page_source;
mod process;
mod resume;
mod socket;
mod swap;
mod sysv;
mod tcp;
mod terminal;
mod thread;
mod vcpu;
mod vm;

pub use aio::{AioContext, IO_EVENT};
pub use block_device::{BlockDevice, place};
pub use fidelity::{Fidelity, FidelityLevel, REGISTERS};
pub use file::{
    BlockRun, EpollWatch, FileKind, FileLock, FileOwner, Inode, InodeKind, InotifyWatch, OpenFile,
    Pipe, PipeEnd,
};
pub use guest_memory::{Area, GuestMemory, PlacedSlot, Stretch, StretchContent};
pub use hex::{Blob, ObjectId, u64_hex};
pub use kin::{ControllingTerminal, Kin, Zombie};
pub use memory::{MappingKind, Mm, Packing, PageContent, PageRun, SharedMemory, Vma};
pub use message_queue::{MessageQueue, QueueNotice};
pub use namespace::{Namespace, NamespaceKind, Namespaces};
pub use network::{
    HeardAddress, InterfaceAddress, Master, PortVlan, TapLink, Vhost, VhostDevice, VhostRegion,
    VhostRing,
};
pub use outside::{Outside, Tie};
pub use page_source::{PageSource, PageSourceError, PlainPages};
pub use process::{
    Credentials, Fd, FsState, IntervalTimer, LegacyCgroup, PosixTimer, Process, ResourceLimit,
    SigAction,
};
pub use resume::{CallMemory, InFlightSyscall, LentWord, SyscallResume};
pub use socket::{
    Datagram, InetSocket, MulticastGroup, Rights, SocketFile, SocketOption, UnixListener,
    UnixMessage, UnixState, UnixWaiting,
};
pub use swap::{SwapArea, SwapExtent, SwapFile};
pub use sysv::{Semaphore, SemaphoreUndo, SysvKind, SysvMessage, SysvObject};
pub use tcp::{TcpConnection, TcpPeer, TcpState, TcpTimestamp, TcpWaiting, TcpWindow};
pub use terminal::TerminalEnd;
pub use thread::{
    Confinement, Controls, Deadline, Dispatch, PendingSignal, RobustList, Rseq, RunState,
    Scheduling, SeccompState, SignalStack, Thread, UserRegs,
};
pub use vcpu::{
    CpuidEntry, DebugRegs, ExitInFlight, Lapic, MmioPart, MsrEntry, Segment, SystemRegs,
    TablePointer, Vcpu, VcpuActivity, VcpuEvents, VcpuRegs,
};
pub use vm::{
    CoalescedZone, IoApic, IoEventFd, IrqFd, IrqRoute, IrqRouteTarget, Irqchip, Memslot, MsrFilter,
    MsrFilterRange, Pic, Pit, PitChannel, PmuEventFilter, Vm, VmCaps, VmClock,
};

use serde::{Deserialize, Serialize};

/// The version of the dataset's schema that this build writes.
pub const SCHEMA_VERSION: u32 = 1;

/// One set of processes that is restored all or not at all, as it was at the
/// instant of the crash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dataset {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The crash that this was read from; equal for every dump of one crash.
    pub crash_id: String,
    /// The host that died.
    pub host: Host,
    /// The processes, parents before children.
    pub processes: Vec<Process>,
    /// Children of `processes` that had ended and not been waited for.
    #[serde(default)]
    pub zombies: Vec<Zombie>,
    /// Every open file description (`struct file`) that a descriptor of
    /// `processes`, or a mapping, refers to.
    pub files: Vec<OpenFile>,
    /// Pipes that `files` are ends of.
    pub pipes: Vec<Pipe>,
    /// Inodes of `files` and of file mappings: identity on the disk, and the
    /// page cache that never reached it.
    pub inodes: Vec<Inode>,
    /// Shared anonymous memory (memfd, shmem, `MAP_SHARED|MAP_ANONYMOUS`).
    pub shared_memory: Vec<SharedMemory>,
    /// System V IPC that `processes` used.
    #[serde(default)]
    pub sysv: Vec<SysvObject>,
    /// POSIX message queues that `files` are of.
    #[serde(default)]
    pub message_queues: Vec<MessageQueue>,
    /// Virtual machines that `processes` own.
    pub vms: Vec<Vm>,
    /// Processes that are not among `processes` and are tied to them.
    #[serde(default)]
    pub outside: Vec<Outside>,
    /// Swap areas that pages of it were in.
    #[serde(default)]
    pub swap: Vec<SwapArea>,
    /// What is exact, what was reconstructed, what is lost.
    pub fidelity: Vec<Fidelity>,
}

/// The dead host, so far as the restored processes can tell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Kernel release, as `uname -r` printed it.
    pub release: String,
    /// Build string (`linux_banner` or `init_uts_ns.name.version`).
    pub version: String,
    /// Host name.
    pub hostname: String,
    /// CLOCK_REALTIME at the crash. Nanoseconds since 1970.
    pub realtime_ns: i64,
    /// CLOCK_MONOTONIC at the crash. Nanoseconds.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME at the crash. Nanoseconds.
    pub boottime_ns: i64,
    /// The time-stamp counter's frequency. kHz; 0 where the dump does not say.
    pub tsc_khz: u64,
    /// Host TSC at the crash, computed from the timekeeper. 0 when unknown.
    pub tsc: u64,
}

impl Dataset {
    /// The process with this PID (as the initial PID namespace numbered it).
    pub fn process(&self, pid: i32) -> Option<&Process> {
        self.processes.iter().find(|p| p.pid == pid)
    }

    /// The open file description with this identity.
    pub fn file(&self, id: ObjectId) -> Option<&OpenFile> {
        self.files.iter().find(|f| f.id == id)
    }

    /// The inode with this identity.
    pub fn inode(&self, id: ObjectId) -> Option<&Inode> {
        self.inodes.iter().find(|i| i.id == id)
    }
}
