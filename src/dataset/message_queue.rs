//! POSIX message queues.

use super::{Blob, ObjectId, SysvMessage};
use serde::{Deserialize, Serialize};

/// One queue (`struct mqueue_inode_info`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageQueue {
    /// Its inode's identity.
    pub id: ObjectId,
    /// Without the slash.
    pub name: String,
    /// It was unlinked.
    pub removed: bool,
    /// Permission bits, and owner.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// `mq_maxmsg` and `mq_msgsize`.
    pub max_messages: u64,
    pub max_size: u64,
    /// Of each priority (their `kind`) the oldest first.
    pub messages: Vec<SysvMessage>,
    /// Who is told of a message that comes when there is none.
    #[serde(default)]
    pub notify: Option<QueueNotice>,
}

/// What `mq_notify` was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueNotice {
    /// The process.
    pub pid: i32,
    /// SIGEV_SIGNAL or SIGEV_NONE.
    pub how: i32,
    pub signal: i32,
    /// `sigval`, 8 bytes.
    pub value: Blob,
}
