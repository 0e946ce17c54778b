//! A process: what its threads share.

use super::hex::u64_hex;
use super::{Blob, Kin, Mm, Namespaces, ObjectId, PendingSignal, Thread};
use serde::{Deserialize, Serialize};

/// A process (a thread group).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// PID (tgid) in the initial PID namespace.
    pub pid: i32,
    /// PID in its own PID namespace; equal to `pid` in the initial one.
    pub ns_pid: i32,
    /// Parent.
    pub ppid: i32,
    /// Process group and session.
    pub pgid: i32,
    pub sid: i32,
    /// Name of the leader (`task.comm`).
    pub comm: String,
    /// Arguments, as its memory holds them now.
    pub cmdline: Vec<String>,
    /// Its address space.
    pub mm: Mm,
    /// Threads, the leader first.
    pub threads: Vec<Thread>,
    /// Descriptors in the order of their numbers.
    pub fds: Vec<Fd>,
    /// Working directory, root, umask.
    pub fs: FsState,
    /// `RLIMIT_*` in the order of their numbers (16).
    pub rlimits: Vec<ResourceLimit>,
    /// Signal dispositions of signals 1..=64.
    pub sigactions: Vec<SigAction>,
    /// Signals pending for the process.
    pub pending: Vec<PendingSignal>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF that run.
    pub itimers: Vec<IntervalTimer>,
    /// `timer_create` timers.
    pub posix_timers: Vec<PosixTimer>,
    /// `personality(2)`.
    #[serde(default)]
    pub personality: u32,
    /// `prctl(PR_SET_CHILD_SUBREAPER)`.
    pub child_subreaper: bool,
    /// The process was stopped by a signal (state T).
    pub stopped: bool,
    /// What ties it to other processes.
    #[serde(default)]
    pub kin: Kin,
    /// Those of its namespaces that were not its host's.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Its cgroup in the unified hierarchy, from its host's root of that; empty:
    /// not known.
    #[serde(default)]
    pub cgroup: String,
    /// Those of the first version's hierarchies, where they were not the root.
    #[serde(default)]
    pub legacy_cgroups: Vec<LegacyCgroup>,
}

/// A cgroup of the first version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LegacyCgroup {
    /// As `/proc/PID/cgroup` names it: `memory`, `cpu,cpuacct`, `name=systemd`.
    pub hierarchy: String,
    /// From the hierarchy's root.
    pub path: String,
}

/// One entry of the descriptor table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd {
    pub fd: i32,
    /// The open file description (in `Dataset::files`).
    pub file: ObjectId,
    pub cloexec: bool,
}

/// `struct fs_struct`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FsState {
    /// From the root of its mount namespace.
    pub cwd: String,
    /// The working directory had been deleted.
    #[serde(default)]
    pub cwd_deleted: bool,
    /// Likewise: `/` but for a chroot.
    pub root: String,
    pub umask: u32,
    /// Where the root of its mount namespace is seen by who restores it; empty:
    /// that is its own root too.
    #[serde(default)]
    pub seen_at: String,
}

/// One `struct rlimit64`; `u64::MAX` is RLIM_INFINITY.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ResourceLimit {
    pub soft: u64,
    pub hard: u64,
}

/// Disposition of one signal (`struct k_sigaction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigAction {
    pub signal: u32,
    /// Address, or 0 SIG_DFL, 1 SIG_IGN.
    #[serde(with = "u64_hex")]
    pub handler: u64,
    #[serde(with = "u64_hex")]
    pub flags: u64,
    #[serde(with = "u64_hex")]
    pub restorer: u64,
    #[serde(with = "u64_hex")]
    pub mask: u64,
}

/// Credentials of a thread (`struct cred`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved, file system.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    #[serde(with = "u64_hex")]
    pub cap_inheritable: u64,
    #[serde(with = "u64_hex")]
    pub cap_permitted: u64,
    #[serde(with = "u64_hex")]
    pub cap_effective: u64,
    #[serde(with = "u64_hex")]
    pub cap_bounding: u64,
    #[serde(with = "u64_hex")]
    pub cap_ambient: u64,
    /// SECBIT_*.
    pub securebits: u32,
}

/// A running interval timer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct IntervalTimer {
    /// ITIMER_REAL 0, ITIMER_VIRTUAL 1, ITIMER_PROF 2.
    pub which: u32,
    /// Until the next expiry, from the crash. Nanoseconds.
    pub remaining_ns: u64,
    pub interval_ns: u64,
}

/// A `timer_create` timer (`struct k_itimer`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PosixTimer {
    pub id: i32,
    pub clock: i32,
    /// SIGEV_*.
    pub notify: i32,
    pub signal: i32,
    /// `sigval`, 8 bytes.
    pub value: Blob,
    /// Target of SIGEV_THREAD_ID; 0 otherwise.
    pub thread: i32,
    /// Until the next expiry, from the crash; `None` when disarmed. Nanoseconds.
    pub remaining_ns: Option<u64>,
    pub interval_ns: u64,
    pub overrun: i32,
}
