//! What is in a terminal and on its way.

use super::{Blob, ObjectId};
use serde::{Deserialize, Serialize};

/// One end of a pseudo-terminal (`struct tty_struct`): what was written at the
/// other end and nobody has read here, and how it was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalEnd {
    /// Its identity: several open files may be one terminal's.
    pub terminal: ObjectId,
    /// What the line discipline had taken in: of a terminal in line mode with
    /// erasures done, echoed.
    pub line: Blob,
    /// Bytes of `line` that end a line. One that is NUL stands for an end of
    /// file.
    pub ends: Vec<u32>,
    /// What the line discipline had not looked at yet.
    pub behind: Blob,
    /// Of a master: packet mode (TIOCPKT).
    #[serde(default)]
    pub packets: bool,
    /// Of a master: its slave cannot be opened (TIOCSPTLCK).
    #[serde(default)]
    pub locked: bool,
    /// Of a master: its slave had been opened, by whomever.
    #[serde(default)]
    pub was_open: bool,
    /// TIOCEXCL.
    #[serde(default)]
    pub exclusive: bool,
    /// Its output was stopped: by tcflow(TCOOFF).
    #[serde(default)]
    pub flow_off: bool,
    /// Its output was stopped: by the stop character (^S).
    #[serde(default)]
    pub stopped: bool,
    /// Bytes of echo that had not found room at the other end.
    #[serde(default)]
    pub echo: u32,
}

impl TerminalEnd {
    /// Bytes that nobody has read.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.line.0.len().saturating_add(self.behind.0.len())
    }
}
