//! System V IPC: shared memory segments, semaphore sets, message queues. They
//! belong to nobody, and are found by their ID or their key.

use super::{Blob, ObjectId};
use serde::{Deserialize, Serialize};

/// One segment, set or queue (`struct kern_ipc_perm`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysvObject {
    /// What `shmget`, `semget` or `msgget` gave.
    pub id: i32,
    /// By which it is found; 0 (IPC_PRIVATE): by its ID alone.
    pub key: i32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    pub gid: u32,
    /// Who made it.
    pub creator_uid: u32,
    pub creator_gid: u32,
    /// Nobody had used it yet; it is here because one of the same user's
    /// processes is. It is done without where its ID or key is in use.
    #[serde(default)]
    pub unused: bool,
    pub kind: SysvKind,
}

/// What kind of object it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum SysvKind {
    Segment {
        /// Its content (in `Dataset::shared_memory`).
        memory: ObjectId,
        /// `shm_segsz`: bytes, not of whole pages.
        size: u64,
        /// The process that made it; 0: unknown.
        creator: i32,
        /// IPC_RMID: it ends with its last attachment (SHM_DEST).
        removed: bool,
        /// SHM_LOCK.
        locked: bool,
        /// SHM_NORESERVE.
        no_reserve: bool,
    },
    Semaphores {
        values: Vec<Semaphore>,
        /// What ends of processes will do to them (SEM_UNDO).
        undo: Vec<SemaphoreUndo>,
        /// Some `semop` has been done (`sem_otime`), by which programs know
        /// that whoever made the set has given it its values.
        operated: bool,
    },
    Queue {
        /// `msg_qbytes`.
        max_bytes: u64,
        /// In the order in which they came.
        messages: Vec<SysvMessage>,
        /// Processes that sent and received last; 0: nobody, or unknown.
        sender: i32,
        receiver: i32,
    },
}

/// `struct sem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Semaphore {
    pub value: i32,
    /// The process that changed it last; 0: nobody, or unknown.
    pub pid: i32,
}

/// A part of a `struct sem_undo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SemaphoreUndo {
    /// When this process ends,
    pub pid: i32,
    /// this semaphore of the set
    pub number: u16,
    /// changes by so much.
    pub adjust: i16,
}

/// `struct msg_msg`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysvMessage {
    /// `mtype`; of a POSIX queue its priority.
    pub kind: i64,
    pub data: Blob,
}

impl SysvObject {
    /// As a person names it, and as `ipcs` shows it.
    pub fn name(&self) -> String {
        let kind = match self.kind {
            SysvKind::Segment { .. } => "shared memory",
            SysvKind::Semaphores { .. } => "semaphores",
            SysvKind::Queue { .. } => "message queue",
        };
        format!("System V {kind} {} (key {:#010x})", self.id, self.key)
    }
}
