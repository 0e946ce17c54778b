//! The thread that runs a vCPU, and where it was when the host died.

use super::field::words;
use super::{GuestError, field};
use crate::kernel::{CpuState, Kernel, Object, containers};
use crate::task::FpuFound;

/// The thread that last called KVM_RUN.
pub(super) struct VcpuThread<'k> {
    task: Object<'k>,
    /// TID in the initial PID namespace.
    pub tid: i32,
    /// CPU that it was on; `None` when it was on none.
    pub on_cpu: Option<u32>,
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

    /// Where the FPU registers that it works on were: in memory when `TIF_NEED_FPU_LOAD` is set,
    /// since 5f409e20b794 ("x86/fpu: Defer FPU state load until return to userspace") (in v5.2).
    pub fn find_fpu(&self) -> Result<FpuFound, GuestError> {
        // Which bit that is, the process's other threads tell, which were switched away from.
        let threads = self.task.follow("signal")?.get("thread_head")?;
        let mut others = containers::list(&threads, "task_struct", "thread_node")?;
        others.retain(|t| t.u("on_cpu").is_ok_and(|on| on == 0));
        let need_load = crate::task::need_load_bit(others.iter());
        let in_memory = self.task.u("thread_info.flags")? & need_load != 0;
        Ok(crate::task::find_fpu(&self.task, self.on_cpu, in_memory))
    }

    /// What is known of its CPU, if it was on one and what is known is of this thread.
    pub fn cpu_state(&self) -> Option<CpuState> {
        let state = self.task.kernel().cpu_state(self.on_cpu?).ok()??;
        let of_it = state.thread.is_none_or(|t| t.task == self.task.addr());
        of_it.then_some(state)
    }

    /// The FPU state that the thread works on is this one, so it is within KVM_RUN. KVM swaps the
    /// guest's in when KVM_RUN begins, and out when it ends.
    pub fn works_on(&self, fpstate: u64) -> Result<bool, GuestError> {
        Ok(crate::task::fpu(&self.task)?.ptr("fpstate")? == fpstate)
    }

    /// CR3 points to the page tables of its memory.
    pub fn has_page_tables(&self, cr3: u64) -> Result<bool, GuestError> {
        Ok(crate::task::has_page_tables(&self.task, cr3)?)
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
