//! How a thread that was in a system call goes on.

use super::Blob;
use super::hex::u64_hex;
use serde::{Deserialize, Serialize};

/// A system call that was under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlightSyscall {
    /// x86-64 number.
    pub number: u64,
    /// Its name, where known.
    pub name: String,
    /// rdi, rsi, rdx, r10, r8, r9.
    pub args: [u64; 6],
}

/// How a thread that was in a system call goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum SyscallResume {
    /// It was in user mode: its registers are all.
    UserMode,
    /// The call is made again: rip is set back by the two bytes of the
    /// instruction and rax to its number.
    Reissue,
    /// The same, after the time that was left of its timeout was written to where its caller had put
    /// the timeout: two words at `at`, seconds and their fraction. It is what the kernel does when
    /// select, pselect6 or ppoll is interrupted.
    ReissueLeft {
        #[serde(with = "u64_hex")]
        at: u64,
        seconds: i64,
        fraction: i64,
    },
    /// What was left of the call is made, with other arguments; when it returns, the registers are
    /// as if the whole had.
    Rest {
        /// rdi, rsi, rdx, r10, r8, r9.
        args: [u64; 6],
        /// The argument that is to point to a `struct timespec`, with its seconds and nanoseconds.
        timespec: Option<(u8, i64, i64)>,
        /// Bytes (of sendmmsg and recvmmsg: messages) that had been moved before, which count in what
        /// the call returns; if nothing more can be moved, it returns these.
        moved: u64,
        /// What it needs of the process's memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<Box<CallMemory>>,
    },
    /// The call returns this value (`rax`), e.g. -EINTR.
    Return { value: i64 },
}

/// Memory of the process that the rest of a call needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallMemory {
    /// What the call is given by a pointer; it is put somewhere into the process.
    #[serde(default)]
    pub bytes: Blob,
    /// The argument that points to the first of these bytes.
    #[serde(default)]
    pub argument: Option<u8>,
    /// Where, in these bytes, there are words that are offsets in them and are to be addresses.
    #[serde(default)]
    pub pointers: Vec<u32>,
    /// Words of the caller's own that are others during the call.
    #[serde(default)]
    pub lent: Vec<LentWord>,
    /// 32 bits of the caller's that are larger by so much, if the call succeeds: where, how much.
    #[serde(default)]
    pub grows: Option<(u64, u32)>,
    /// What the call returns if nothing more can be moved, where that is not what was moved.
    #[serde(default)]
    pub failed: Option<u64>,
}

/// 64 bits of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LentWord {
    #[serde(with = "u64_hex")]
    pub address: u64,
    /// During the call.
    #[serde(with = "u64_hex")]
    pub during: u64,
    /// `during` is an offset in [`CallMemory::bytes`], and is to be an address.
    #[serde(default)]
    pub points: bool,
    /// Behind it; `None`: what the call made of it.
    pub after: Option<u64>,
}
