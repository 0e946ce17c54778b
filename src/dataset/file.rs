//! Open files, pipes, and the inodes behind them.

use super::hex::u64_hex;
use super::{
    Blob, BlockDevice, InetSocket, ObjectId, PageRun, TapLink, TerminalEnd, UnixListener, Vhost,
};
use serde::{Deserialize, Serialize};

/// An open file description (`struct file`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenFile {
    pub id: ObjectId,
    /// Path from the root of the process's mount namespace; for nameless files
    /// what `/proc/PID/fd` would show.
    pub path: String,
    /// The path is one of the host's mount namespace, and the process was in
    /// another.
    #[serde(default)]
    pub of_host: bool,
    /// Its name was unlinked.
    pub deleted: bool,
    /// `f_flags`: O_* of the open call, less O_CREAT, O_EXCL and so on.
    pub flags: u32,
    /// `f_pos`. Bytes.
    pub position: u64,
    /// Its inode (in `Dataset::inodes`) when that is a file of a file system.
    pub inode: Option<ObjectId>,
    /// F_SETOWN / F_SETSIG.
    pub owner: Option<FileOwner>,
    /// POSIX, OFD and flock locks that it holds.
    pub locks: Vec<FileLock>,
    pub kind: FileKind,
}

/// `struct fown_struct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// Positive: a PID; negative: a process group.
    pub pid: i32,
    pub signal: i32,
    /// A thread alone is told (F_OWNER_TID), and `pid` is its ID.
    #[serde(default)]
    pub thread: bool,
}

/// One lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileLock {
    /// fcntl(F_SETLK) of process `pid`.
    Posix {
        pid: i32,
        write: bool,
        start: u64,
        end: u64,
    },
    /// fcntl(F_OFD_SETLK).
    Ofd { write: bool, start: u64, end: u64 },
    /// flock().
    Flock { write: bool },
    /// fcntl(F_SETLEASE).
    Lease { write: bool },
}

/// What kind of thing is open.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum FileKind {
    Regular,
    Directory,
    /// Opened by path again: /dev/null, /dev/zero, /dev/urandom and the like.
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    /// A terminal; `termios` is the kernel's `struct ktermios`, when read (of a
    /// pseudo-terminal's master: its slave's), `window` its `struct winsize`.
    Tty {
        major: u32,
        minor: u32,
        termios: Option<Blob>,
        pty_index: Option<u32>,
        #[serde(default)]
        window: Option<Blob>,
        /// Of a pseudo-terminal: what is in it.
        #[serde(default)]
        inside: Option<Box<TerminalEnd>>,
    },
    /// A named pipe on a file system, or an end of an anonymous one.
    Pipe {
        pipe: ObjectId,
        end: PipeEnd,
        named: bool,
    },
    EventFd {
        context: ObjectId,
        count: u64,
        flags: u32,
    },
    TimerFd {
        clock: i32,
        /// Until the next expiry from the crash; `None`: disarmed. Nanoseconds.
        remaining_ns: Option<i64>,
        interval_ns: u64,
        /// Expirations not read yet.
        ticks: u64,
        settime_flags: u32,
    },
    /// `mask`: signals that it takes (bit n-1 is signal n).
    SignalFd {
        #[serde(with = "u64_hex")]
        mask: u64,
    },
    Epoll {
        watches: Vec<EpollWatch>,
    },
    UnixSocket(UnixListener),
    /// A TCP or UDP socket.
    InetSocket(InetSocket),
    /// A memfd or a deleted tmpfs file (in `Dataset::shared_memory`).
    Memfd {
        memory: ObjectId,
    },
    /// A POSIX message queue (in `Dataset::message_queues`).
    MessageQueue {
        queue: ObjectId,
    },
    /// /dev/kvm.
    KvmSystem,
    /// A virtual machine (`Vm::id`).
    KvmVm {
        vm: ObjectId,
    },
    /// A vCPU; two files may be one vCPU's.
    KvmVcpu {
        vm: ObjectId,
        vcpu: ObjectId,
    },
    /// A tap or tun queue.
    Tun {
        interface: String,
        flags: u32,
        vnet_header_len: u32,
        offloads: u32,
        sndbuf: i32,
        persist: bool,
        /// TUNSETQUEUE: the queue was taken out of service.
        #[serde(default)]
        detached: bool,
        /// The interface itself. The same for all of its queues.
        #[serde(default)]
        link: Option<Box<TapLink>>,
    },
    /// The kernel's half of a virtio device.
    Vhost(Vhost),
    /// A process, or with `thread` one thread of it.
    PidFd {
        pid: i32,
        thread: bool,
        /// It had ended, and been waited for.
        ended: bool,
    },
    /// An inotify instance; `queued` events had not been read.
    Inotify {
        watches: Vec<InotifyWatch>,
        queued: u32,
    },
    /// A fanotify instance, socket, or other thing not handled (yet): the name of
    /// its `file_operations`, and its private data's address.
    Unsupported {
        operations: String,
        private_data: ObjectId,
        why: String,
    },
}

/// Which end of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum PipeEnd {
    Read,
    Write,
    Both,
}

/// A pipe's buffer (`struct pipe_inode_info`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pipe {
    pub id: ObjectId,
    /// F_GETPIPE_SZ. Bytes.
    pub capacity: u64,
    /// What was written and not read.
    pub content: Blob,
    /// Parts of `content` that are read one at a time: what was written with
    /// O_DIRECT. The rest is a stream. First byte and length.
    #[serde(default)]
    pub packets: Vec<(u64, u64)>,
    /// Every end of it is held by the processes of this dataset.
    pub closed_set: bool,
}

impl Pipe {
    /// Its first bytes have gone.
    pub fn drop_first(&mut self, bytes: u64) {
        let bytes = bytes.min(self.content.0.len() as u64);
        self.content.0.drain(..usize::try_from(bytes).unwrap_or(0));
        self.packets.retain_mut(|(first, len)| {
            let gone = bytes.saturating_sub(*first).min(*len);
            *first = first.saturating_sub(bytes);
            *len -= gone;
            *len > 0
        });
    }
}

/// One watch of an epoll instance (`struct epitem`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollWatch {
    /// Descriptor number at the time of EPOLL_CTL_ADD.
    pub fd: i32,
    /// The file watched.
    pub file: ObjectId,
    /// EPOLL* bits, EPOLLET and EPOLLONESHOT among them.
    pub events: u32,
    #[serde(with = "u64_hex")]
    pub data: u64,
    /// It was on the ready list, or may have been: an edge that nobody has
    /// been told of yet. Without it an edge-triggered watch whose readiness
    /// was told must not be told again.
    #[serde(default = "pending")]
    pub pending: bool,
}

/// An edge too many does no harm, one too few does.
fn pending() -> bool {
    true
}

/// One watch of an inotify instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InotifyWatch {
    /// Its number (`wd`).
    pub number: i32,
    /// What is watched, from the process's root.
    pub path: String,
    /// IN_*.
    pub mask: u32,
}

/// A file's inode: how to know it again on the disk, and what never got there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inode {
    pub id: ObjectId,
    /// Path of the first file that referred to it.
    pub path: String,
    /// `super_block.s_id`, e.g. `vda1`, and its `s_uuid` when it has one.
    pub device: String,
    pub fs_uuid: Option<String>,
    /// `ext4`, `xfs`, `tmpfs`, …
    pub fs_type: String,
    pub number: u64,
    /// `i_generation`: differs when the number was given to another file.
    #[serde(default)]
    pub generation: Option<u32>,
    pub kind: InodeKind,
    /// Permission and type bits.
    pub mode: u32,
    /// Its owner.
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    pub links: u32,
    /// `i_size`: what the file must be long after write-back. Bytes.
    pub size: u64,
    /// Nanoseconds since 1970, as the dead kernel had them in memory.
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// Some file has it open for writing, or it is mapped shared and writable.
    pub writable: bool,
    /// Dirty page-cache pages by byte offset: newer than the disk.
    pub dirty: Vec<PageRun>,
    /// Clean page-cache pages by byte offset whose way to the disk a journal
    /// had not committed: the disk has them, or something older.
    ///
    /// Of a block device: clean pages, which the device must hold.
    #[serde(default)]
    pub uncommitted: Vec<PageRun>,
    /// Where the disk had the file's data, by offset, as far as the dead kernel
    /// knew, where a journal had not committed all of it.
    #[serde(default)]
    pub blocks: Vec<BlockRun>,
    /// Of a block device: which one it is.
    #[serde(default)]
    pub block: Option<BlockDevice>,
    /// It was made right before the crash, and its file system's journal had not
    /// committed that: the disk may have no such file. All that it held is in
    /// `dirty` and `uncommitted`.
    #[serde(default)]
    pub newborn: bool,
}

/// A part of a file that was in one piece on its disk. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRun {
    /// Offset in the file.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// Offset on the device of the file system.
    pub place: u64,
}

/// What kind of inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum InodeKind {
    Regular,
    Directory,
    Device,
    Fifo,
    Socket,
    Other,
}
