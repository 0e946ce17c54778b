//! The thread that runs a vCPU, and where it was when the host died.

use super::field::words;
use super::{GuestError, field};
use crate::kernel::{Kernel, Object, containers};

/// The thread that last called KVM_RUN.
pub(super) struct VcpuThread<'k> {
    task: Object<'k>,
    /// TID in the initial PID namespace.
    pub tid: i32,
    /// CPU that it was on; `None` when it was on none.
    pub on_cpu: Option<u32>,
}

/// Where a CPU was when the crash stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoppedAt {
    pub rip: u64,
    pub rsp: u64,
}

impl<'k> VcpuThread<'k> {
    /// The thread of a `struct kvm_vcpu`; `None` when the vCPU never ran or its thread is gone.
    pub fn of(vcpu: &Object<'k>) -> Result<Option<VcpuThread<'k>>, GuestError> {
        let Some(pid) = vcpu.follow_opt("pid")? else {
            return Ok(None);
        };
        // tasks[PIDTYPE_PID]: the one task that has this number.
        let Some(link) = pid.follow_opt("tasks[0].first")? else {
            return Ok(None);
        };
        let task = link.container_of("task_struct", "pid_links[0]")?;
        let tid = i32::try_from(task.i("pid")?).unwrap_or_default();
        // `cpu` moved into thread_info with bcf9033e5449 ("sched: move CPU field back into
        // thread_info if THREAD_INFO_IN_TASK=y") (in v5.16).
        let cpu = if task.has("thread_info.cpu") {
            "thread_info.cpu"
        } else {
            "cpu"
        };
        let on_cpu = (task.u("on_cpu")? != 0)
            .then(|| field::narrow(&task, cpu))
            .transpose()?;
        Ok(Some(VcpuThread { task, tid, on_cpu }))
    }

    /// The FPU registers of its CPU were its own, and newer than what is in memory:
    /// `TIF_NEED_FPU_LOAD` is clear, since 5f409e20b794 ("x86/fpu: Defer FPU state load until
    /// return to userspace") (in v5.2).
    pub fn fpu_is_live(&self) -> Result<bool, GuestError> {
        if self.on_cpu.is_none() {
            return Ok(false);
        }
        // Which bit that is, the process's other threads tell, which were switched away from.
        let threads = self.task.follow("signal")?.get("thread_head")?;
        let mut others = containers::list(&threads, "task_struct", "thread_node")?;
        others.retain(|t| t.u("on_cpu").is_ok_and(|on| on == 0));
        let need_load = crate::task::need_load_bit(others.iter());
        Ok(self.task.u("thread_info.flags")? & need_load == 0)
    }

    /// The FPU state that the thread works on is this one, so it is within KVM_RUN. KVM swaps the
    /// guest's in when KVM_RUN begins, and out when it ends.
    pub fn works_on(&self, fpstate: u64) -> Result<bool, GuestError> {
        Ok(crate::task::fpu(&self.task)?.ptr("fpstate")? == fpstate)
    }

    /// It is between `vcpu_load` and `vcpu_put` of this `struct kvm_vcpu`.
    pub fn has_loaded(&self, vcpu: &Object<'_>) -> Result<bool, GuestError> {
        let link = vcpu.get("preempt_notifier.link")?.addr();
        Ok(self.task.ptr("preempt_notifiers.first")? == link)
    }

    /// Top of its kernel stack when it last left its CPU.
    pub fn switched_stack(&self) -> Result<u64, GuestError> {
        Ok(self.task.u("thread.sp")?)
    }

    /// What took it out of user mode was not a system call: it was, or had just been, there. Its
    /// registers cannot tell when they cannot be read.
    pub fn came_by_interrupt(&self) -> bool {
        crate::task::user_registers(&self.task).is_ok_and(|regs| regs.orig_rax.cast_signed() < 0)
    }

    /// It waits for something (it is neither running nor ready to run).
    pub fn sleeps(&self) -> Result<bool, GuestError> {
        // `state` became `__state` with 2f064a59a11f ("sched: Change task_struct::state") (in
        // v5.14).
        let state = if self.task.has("__state") {
            "__state"
        } else {
            "state"
        };
        Ok(self.task.u(state)? != 0)
    }
}

/// Where `cpu` was when the crash stopped it, from its note in `crash_notes`, which the kernel
/// fills as it dies. `None` when there is no such note: this CPU did not answer, or the dump was
/// taken from outside a kernel that never crashed.
pub(super) fn stopped_at(kernel: &Kernel, cpu: u32) -> Option<StoppedAt> {
    // struct elf_note header, "CORE" padded to eight bytes, struct elf_prstatus.
    const DESCRIPTION: u64 = 20;
    const NT_PRSTATUS: u32 = 1;
    // pr_reg is a user_regs_struct: r15 … rip (16), cs, flags, rsp (19).
    const RIP: u64 = 16 * 8;
    const RSP: u64 = 19 * 8;
    let notes = kernel.read_u64(kernel.symbol("crash_notes").ok()?).ok()?;
    let note = kernel.per_cpu(notes, cpu).ok()?;
    if kernel.read_u32(note.wrapping_add(8)).ok()? != NT_PRSTATUS {
        return None;
    }
    let regs = kernel
        .offset_of("elf_prstatus", "pr_reg")
        .ok()?
        .wrapping_add(note)
        .wrapping_add(DESCRIPTION);
    let stopped = StoppedAt {
        rip: kernel.read_u64(regs.wrapping_add(RIP)).ok()?,
        rsp: kernel.read_u64(regs.wrapping_add(RSP)).ok()?,
    };
    (stopped.rip != 0).then_some(stopped)
}

/// What stands on the stack from `rsp` up, as far as it can be read and for at most two pages.
pub(super) fn stack_words(kernel: &Kernel, rsp: u64) -> Vec<u64> {
    const PAGE: u64 = 4096;
    let mut found = Vec::new();
    let mut at = rsp & !7;
    for _ in 0..2 {
        let len = PAGE - at % PAGE;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        if kernel.read(at, &mut bytes).is_err() {
            break;
        }
        found.extend(words(&bytes));
        at = at.wrapping_add(len);
    }
    found
}
