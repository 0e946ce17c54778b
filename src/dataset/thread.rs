//! A thread: registers, FPU, signals, and how it goes on.

use super::hex::u64_hex;
use super::{Blob, Credentials};
use serde::{Deserialize, Serialize};

/// A thread (`struct task_struct`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Thread {
    /// TID in the initial PID namespace.
    pub tid: i32,
    /// TID in its own PID namespace.
    pub ns_tid: i32,
    pub comm: String,
    /// Where it was at the panic.
    pub run_state: RunState,
    /// User registers as they stood at the panic: in a system call, `rax` is
    /// -ENOSYS (or the kernel's half-made answer) and `orig_rax` its number.
    pub regs: UserRegs,
    /// The system call that it was in.
    pub syscall: Option<InFlightSyscall>,
    /// How it goes on.
    pub resume: SyscallResume,
    /// XSAVE area in the *standard* (not compacted) format, as
    /// PTRACE_SETREGSET(NT_X86_XSTATE) takes it. `None`: never used the FPU.
    pub xsave: Option<Blob>,
    /// The thread was on a CPU in user mode, where the true FPU registers
    /// stayed; `xsave` is what was last saved.
    pub fpu_stale: bool,
    /// Blocked signals that hold when it goes on (bit n-1 is signal n). A
    /// mask that ppoll and its like had put in place for their duration is
    /// not this one: this is `saved_sigmask` then.
    #[serde(with = "u64_hex")]
    pub sigmask: u64,
    /// Signals pending for this thread alone.
    pub pending: Vec<PendingSignal>,
    pub sigaltstack: SignalStack,
    pub rseq: Option<Rseq>,
    pub robust_list: Option<RobustList>,
    /// `set_tid_address` / CLONE_CHILD_CLEARTID; 0 when none.
    #[serde(with = "u64_hex")]
    pub clear_child_tid: u64,
    pub credentials: Credentials,
    pub no_new_privs: bool,
    pub seccomp: SeccompState,
    pub scheduling: Scheduling,
    /// `prctl(PR_SET_PDEATHSIG)`.
    pub pdeath_signal: i32,
    /// Nanoseconds; `prctl(PR_SET_TIMERSLACK)`.
    pub timer_slack_ns: u64,
}

/// Where a thread was at the panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum RunState {
    /// On a CPU, in user mode.
    OnCpuUser { cpu: u32 },
    /// On a CPU, in the kernel (or in a guest, inside KVM_RUN).
    OnCpuKernel { cpu: u32 },
    /// Not on a CPU, interrupted in user mode.
    PreemptedUser,
    /// Not on a CPU, in a system call.
    InSyscall,
}

/// x86-64 `struct user_regs_struct`'s content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct UserRegs {
    #[serde(with = "u64_hex")]
    pub r15: u64,
    #[serde(with = "u64_hex")]
    pub r14: u64,
    #[serde(with = "u64_hex")]
    pub r13: u64,
    #[serde(with = "u64_hex")]
    pub r12: u64,
    #[serde(with = "u64_hex")]
    pub rbp: u64,
    #[serde(with = "u64_hex")]
    pub rbx: u64,
    #[serde(with = "u64_hex")]
    pub r11: u64,
    #[serde(with = "u64_hex")]
    pub r10: u64,
    #[serde(with = "u64_hex")]
    pub r9: u64,
    #[serde(with = "u64_hex")]
    pub r8: u64,
    #[serde(with = "u64_hex")]
    pub rax: u64,
    #[serde(with = "u64_hex")]
    pub rcx: u64,
    #[serde(with = "u64_hex")]
    pub rdx: u64,
    #[serde(with = "u64_hex")]
    pub rsi: u64,
    #[serde(with = "u64_hex")]
    pub rdi: u64,
    #[serde(with = "u64_hex")]
    pub orig_rax: u64,
    #[serde(with = "u64_hex")]
    pub rip: u64,
    #[serde(with = "u64_hex")]
    pub cs: u64,
    #[serde(with = "u64_hex")]
    pub rflags: u64,
    #[serde(with = "u64_hex")]
    pub rsp: u64,
    #[serde(with = "u64_hex")]
    pub ss: u64,
    #[serde(with = "u64_hex")]
    pub fs_base: u64,
    #[serde(with = "u64_hex")]
    pub gs_base: u64,
    #[serde(with = "u64_hex")]
    pub ds: u64,
    #[serde(with = "u64_hex")]
    pub es: u64,
    #[serde(with = "u64_hex")]
    pub fs: u64,
    #[serde(with = "u64_hex")]
    pub gs: u64,
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum SyscallResume {
    /// It was in user mode: its registers are all.
    UserMode,
    /// The call is made again: rip is set back by the two bytes of the
    /// instruction and rax to its number.
    Reissue,
    /// The call returns this value (`rax`), e.g. -EINTR.
    Return { value: i64 },
}

/// A queued signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSignal {
    pub signal: u32,
    /// `siginfo_t`, 128 bytes in the user's layout; empty when the kernel
    /// kept none (a bit in the set alone).
    pub info: Blob,
}

/// `sigaltstack`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalStack {
    #[serde(with = "u64_hex")]
    pub sp: u64,
    pub flags: u32,
    pub size: u64,
}

/// A restartable-sequences registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rseq {
    #[serde(with = "u64_hex")]
    pub address: u64,
    pub len: u32,
    pub signature: u32,
}

/// A robust futex list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobustList {
    #[serde(with = "u64_hex")]
    pub head: u64,
    pub len: u64,
}

/// Seccomp mode; filters are classic BPF programs, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompState {
    /// 0 none, 1 strict, 2 filter.
    pub mode: u32,
    /// `struct sock_filter` arrays. Empty with mode 2: they could not be read.
    pub filters: Vec<Blob>,
}

/// Scheduling attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// SCHED_*.
    pub policy: u32,
    pub nice: i32,
    pub rt_priority: u32,
    /// CPUs it may run on; empty: all.
    pub affinity: Vec<u32>,
}
