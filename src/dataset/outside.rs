//! Processes that are not in the dataset, and what ties them to it.

use super::ObjectId;
use serde::{Deserialize, Serialize};

/// A process that is not restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Its PID in the dead host; 0 when unknown.
    pub pid: i32,
    /// Its command's name (`comm`).
    pub command: String,
    pub tie: Tie,
}

/// What it shares with a process of the dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Tie {
    /// It has this inode mapped, shared and writable (`SharedMemory::id`,
    /// `Inode::id`).
    Memory { object: ObjectId },
    /// It was at the other end of this UNIX socket (`UnixListener::socket`).
    Socket { socket: ObjectId },
}
