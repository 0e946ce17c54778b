//! A thread: registers, FPU, signals, and how it goes on.

use super::hex::u64_hex;
use super::{Blob, Credentials, InFlightSyscall, SyscallResume};
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
    #[serde(default)]
    pub confinement: Confinement,
    pub scheduling: Scheduling,
    /// `prctl(PR_SET_PDEATHSIG)`.
    pub pdeath_signal: i32,
    /// Nanoseconds; `prctl(PR_SET_TIMERSLACK)`.
    pub timer_slack_ns: u64,
    /// What else it had set of itself.
    #[serde(default)]
    pub controls: Controls,
    /// It is a first thread that had ended before the others; its wait status.
    #[serde(default)]
    pub ended: Option<i32>,
}

/// What a thread may set of itself by prctl(2) and arch_prctl(2), and seldom does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controls {
    /// PR_SET_TSC: reading the time-stamp counter is a fault.
    #[serde(default)]
    pub tsc_faults: bool,
    /// ARCH_SET_CPUID: so is CPUID.
    #[serde(default)]
    pub cpuid_faults: bool,
    /// PR_MCE_KILL_SET: it is killed for a memory error early, or late.
    #[serde(default)]
    pub memory_error_early: Option<bool>,
    /// PR_SET_IO_FLUSHER.
    #[serde(default)]
    pub io_flusher: bool,
    /// PR_SET_SPECULATION_CTRL of store bypass and of indirect branches: PR_SPEC_*; 0: not set.
    #[serde(default)]
    pub speculation: [u32; 2],
    /// PR_SET_SYSCALL_USER_DISPATCH.
    #[serde(default)]
    pub dispatch: Option<Dispatch>,
}

/// Which system calls of a thread are signals to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Calls from here are calls.
    #[serde(with = "u64_hex")]
    pub offset: u64,
    #[serde(with = "u64_hex")]
    pub len: u64,
    /// The byte that turns it on and off.
    #[serde(with = "u64_hex")]
    pub selector: u64,
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
    /// SECCOMP_FILTER_FLAG_* of each filter; where there is none, 0.
    #[serde(default)]
    pub flags: Vec<u32>,
    /// Why it cannot be brought back: the kernel kept no copy of a filter, or
    /// one of them asks a supervisor.
    #[serde(default)]
    pub refused: Option<String>,
}

/// What security modules (LSM) confine a thread to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// AppArmor's label, as /proc/PID/attr/current shows it without its mode; `None`: unconfined.
    #[serde(default)]
    pub apparmor: Option<String>,
    /// The label that it gets at its next execve, where it had set one.
    #[serde(default)]
    pub apparmor_exec: Option<String>,
    /// What confines it, and why it cannot be brought back.
    #[serde(default)]
    pub refused: Option<String>,
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
    /// `ioprio_set`: class and priority of its input and output; 0: by its nice value.
    #[serde(default)]
    pub io_priority: u16,
    /// Of SCHED_DEADLINE.
    #[serde(default)]
    pub deadline: Option<Deadline>,
}

/// What SCHED_DEADLINE grants a thread. Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    /// SCHED_FLAG_*.
    pub flags: u64,
}
