//! Open files, pipes, and the inodes behind them.

use super::hex::u64_hex;
use super::{Blob, ObjectId, PageRun};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// An open file description (`struct file`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenFile {
    pub id: ObjectId,
    /// Path from the process's root; for nameless files what
    /// `/proc/PID/fd` would show.
    pub path: String,
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
    /// A terminal; `termios` is the kernel's `struct ktermios`, when read.
    Tty {
        major: u32,
        minor: u32,
        termios: Option<Blob>,
        pty_index: Option<u32>,
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
    },
    /// A pidfd, inotify, socket, or other thing not handled (yet): the name of
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
    /// Every end of it is held by the processes of this dataset.
    pub closed_set: bool,
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
}

/// A UNIX socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixListener {
    /// `struct sock`'s identity.
    pub socket: ObjectId,
    /// SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_SEQPACKET 5.
    pub socket_type: i32,
    /// `sun_path`, without a trailing NUL; an abstract name starts with NUL.
    /// Empty: unnamed.
    pub address: Blob,
    pub state: UnixState,
}

/// What a UNIX socket was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum UnixState {
    Unconnected,
    Listening {
        backlog: u32,
    },
    /// `peer` is the other `struct sock`; it is in the same dataset or gone.
    Connected {
        peer: ObjectId,
    },
}

/// A TCP or UDP socket over IPv4 or IPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetSocket {
    /// AF_INET 2, AF_INET6 10.
    pub family: i32,
    /// SOCK_STREAM 1, SOCK_DGRAM 2.
    pub socket_type: i32,
    /// IPPROTO_TCP 6, IPPROTO_UDP 17.
    pub protocol: i32,
    /// Where it is bound; port 0: nowhere.
    pub local: SocketAddr,
    /// Whom it is connected to.
    pub remote: Option<SocketAddr>,
    /// Of a listener: how many connections may wait.
    pub backlog: Option<u32>,
    /// SO_REUSEADDR, SO_REUSEPORT, IPV6_V6ONLY.
    pub reuse_address: bool,
    pub reuse_port: bool,
    pub v6only: bool,
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
    #[serde(default)]
    pub uncommitted: Vec<PageRun>,
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
