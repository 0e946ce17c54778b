//! What ties processes to each other: by whom a death is heard of, what they
//! share as a whole, and children that have ended and not been waited for.

use super::ObjectId;
use serde::{Deserialize, Serialize};

/// SIGCHLD of x86-64.
const SIGCHLD: i32 = 17;

/// A process's ties to others. Identities are equal for those who share an
/// object; 0: not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kin {
    /// The signal by which its parent hears of its end (`task.exit_signal`),
    /// 0 for none.
    pub exit_signal: i32,
    /// Its descriptor table (`struct files_struct`): CLONE_FILES.
    #[serde(default)]
    pub files: ObjectId,
    /// Its directories and umask (`struct fs_struct`): CLONE_FS.
    #[serde(default)]
    pub fs: ObjectId,
    /// Its address space (`struct mm_struct`): CLONE_VM.
    #[serde(default)]
    pub mm: ObjectId,
    /// Its parent waits in vfork until it executes or ends.
    #[serde(default)]
    pub vforked: bool,
    /// Of the leader of a session: its controlling terminal.
    #[serde(default)]
    pub terminal: Option<ControllingTerminal>,
}

impl Default for Kin {
    /// A process made by fork, without a terminal, of which nothing is shared.
    fn default() -> Self {
        Self {
            exit_signal: SIGCHLD,
            files: ObjectId::default(),
            fs: ObjectId::default(),
            mm: ObjectId::default(),
            vforked: false,
            terminal: None,
        }
    }
}

/// The terminal of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllingTerminal {
    pub major: u32,
    pub minor: u32,
    /// Of a pseudo-terminal: its number.
    pub pty_index: Option<u32>,
    /// The process group in the foreground; 0: none.
    pub foreground: i32,
}

/// A process that had ended, and that its parent had not waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    pub pid: i32,
    /// PID in its own PID namespace.
    pub ns_pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub comm: String,
    /// What wait(2) will say: the exit code times 256, or the signal that
    /// ended it, plus 128 where it left a core.
    pub status: i32,
    /// See [`Kin::exit_signal`].
    pub exit_signal: i32,
    /// Its real user, whom `siginfo_t` and `ps` name.
    pub uid: u32,
}
