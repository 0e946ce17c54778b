//! Threads: registers, FPU, signals, and how each goes on.

use super::extract::Extraction;
use super::list::{int, raw_state};
use super::live::{self, Live};
use super::path::{self, Place};
use super::resume::{self, Facts};
use super::{
    confinement, controls, credentials, entry, epoll, fpu, kernel_stack, moved, process, registers,
    sched, seccomp, signal, sysv,
};
use crate::dataset::{
    Confinement, Controls, Fidelity, FidelityLevel, REGISTERS, RobustList, Rseq, RunState,
    Scheduling, SeccompState, SignalStack, SyscallResume, Thread,
};
use crate::kernel::{AddressSpace, KernelError, Object, XsaveLayout};

/// `task.flags`: io_uring and vhost made it, and will make it again.
/// PF_IO_WORKER, PF_USER_WORKER.
const WORKERS: u64 = 0x10 | 0x4000;
/// Bytes of a `struct robust_list_head`.
const ROBUST_LIST_LEN: u64 = 24;
/// Bytes of the `struct rseq` that every kernel knows.
const RSEQ_LEN: u64 = 32;
/// `task.atomic_flags`: PFA_NO_NEW_PRIVS.
const NO_NEW_PRIVS: u64 = 1;

/// Threads of the process whose leader is `task`, the leader first; those
/// that were dead or belong to the kernel are left out.
pub(super) fn tasks<'k>(leader: &Object<'k>) -> Result<Vec<Object<'k>>, KernelError> {
    let head = leader.follow("signal")?.get("thread_head")?;
    let mut all = crate::kernel::containers::list(&head, "task_struct", "thread_node")?;
    all.sort_by_key(|t| t.addr() != leader.addr());
    let mut out = Vec::new();
    for task in all {
        if task.u("flags")? & WORKERS == 0 && task.u("exit_state")? == 0 {
            out.push(task);
        }
    }
    Ok(out)
}

/// What the threads of a process have in common for their reading.
pub(super) struct Context<'a, 'k> {
    pub pid: i32,
    pub space: &'a AddressSpace<'k>,
    pub layout: &'a XsaveLayout,
    /// See [`fpu::need_load_bit`].
    pub need_fpu_load: u64,
    pub root: Option<Place>,
}

/// Reads one thread.
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    context: &Context<'_, '_>,
    task: &Object<'_>,
) -> Result<Thread, KernelError> {
    let tid = int(task, "pid")?;
    let subject = format!("pid {} thread {tid}", context.pid);
    let saved = registers::find(task)?;
    let mut regs = saved.regs;
    let on_cpu = on_cpu(task)?;
    match on_cpu.map_or(Ok(None), |cpu| entry::registers(task, cpu, &saved)) {
        Ok(entering) => regs = entering.unwrap_or(regs),
        Err(error) => {
            let why = format!(
                "it was on a CPU, and whether it was just entering the kernel there cannot be told: {error}"
            );
            x.lost(&subject, REGISTERS, why);
        }
    }
    if let Some(cpu) = on_cpu
        && live::stopped_from_outside(x.kernel)
    {
        match live::registers(task, cpu)? {
            Live::InKernel => {}
            Live::InUserMode(live) => {
                regs = *live;
                let how = "it was on a CPU; from what a hypervisor says of it";
                x.out
                    .fidelity
                    .push(Fidelity::exact(&subject, REGISTERS, how));
            }
            Live::Unknown(why) => {
                let why = format!(
                    "it was on a CPU of a host that was stopped from outside, and {why}: what is \
                     here is what it last entered the kernel with"
                );
                x.lost(&subject, REGISTERS, why);
            }
        }
    }
    let facts = Facts {
        regs,
        running: raw_state(task)? == 0,
        restart_function: x
            .kernel
            .symbol_at(task.ptr("restart_block.fn")?)
            .map(|(name, _)| name)
            .unwrap_or_default(),
        vfork_child: vfork_child(task).unwrap_or(None),
        sleeps_ns: kernel_stack::sleep_left(&x.clocks, task),
        moved: moved::moved(task, context.space, &regs).unwrap_or_default(),
        waits: sysv::waits(task, regs.orig_rax, regs.rdi).unwrap_or_default(),
        crashed_the_host: on_cpu.is_some() && writes_sysrq(task, &regs, context.root),
    };
    let decision = resume::decide(&facts);
    if let Some(number) = decision.number {
        regs.orig_rax = number;
    }
    if let Some(beside) = decision.beside {
        x.settle(beside);
    }
    if let Some((level, how)) = decision.report {
        let what = decision
            .syscall
            .as_ref()
            .map_or("user mode", |s| s.name.as_str());
        match level {
            FidelityLevel::Lost => x.lost(&subject, what, how),
            _ => x.reconstructed(&subject, what, how),
        }
    }
    let fpu = fpu::read(task, context.layout, context.need_fpu_load, on_cpu);
    let (xsave, fpu_stale) = match fpu {
        Ok(fpu) => (Some(fpu.xsave), note_fpu(x, &subject, &fpu.found)),
        Err(error) => {
            x.lost(&subject, FPU, error.to_string());
            (None, true)
        }
    };
    let kept_bases = match on_cpu {
        Some(cpu) => live::user_bases(task, cpu).unwrap_or_default(),
        None => None,
    };
    if let Some((fs_base, gs_base)) = kept_bases {
        (regs.fs_base, regs.gs_base) = (fs_base, gs_base);
    }
    if on_cpu.is_some() && kept_bases.is_none() && !points_to_itself(context.space, regs.fs_base) {
        x.reconstructed(
            &subject,
            "FS and GS base",
            "it was on a CPU; as of its last switch",
        );
    }
    let seccomp = seccomp::read(task)?;
    if let Some(why) = &seccomp.refused {
        x.lost(&subject, "seccomp filters", why.clone());
    }
    let (confinement, losses) = confinement::read(task)?;
    for (what, why) in losses {
        x.lost(&subject, what, why);
    }
    if let Some(why) = &confinement.refused {
        x.lost(&subject, "confinement", why.clone());
    }
    let in_call = decision.syscall.as_ref().map(|s| s.number);
    if facts.running && in_call.is_some_and(|number| epoll::WAITS.contains(&number)) {
        // It may have taken events that it had not handed on yet.
        if let Ok(file) = process::descriptor(task, regs.rdi) {
            x.busy_epolls.insert(file.addr());
        }
    }
    let mut pending = signal::pending(&task.get("pending")?)?;
    if task.u("ptrace")? != 0 {
        let tracer = task.follow("parent").and_then(|p| int(&p, "tgid"));
        let how = "it goes on as it would have, had its tracer ended";
        let what = format!("tracer {}", tracer.unwrap_or(0));
        x.lost(&subject, &what, how);
        pending.extend(signal::before_delivery(task)?);
    }
    Ok(Thread {
        tid,
        ns_tid: process::innermost_pid(task)?,
        comm: task.get("comm")?.string()?,
        run_state: match (on_cpu, &decision.syscall) {
            (Some(cpu), None) => RunState::OnCpuUser { cpu },
            (Some(cpu), Some(_)) => RunState::OnCpuKernel { cpu },
            (None, None) => RunState::PreemptedUser,
            (None, Some(_)) => RunState::InSyscall,
        },
        regs,
        syscall: decision.syscall,
        resume: decision.resume,
        xsave,
        fpu_stale,
        sigmask: signal::mask(task, in_call)?,
        pending,
        sigaltstack: signal::alternate_stack(task)?,
        rseq: rseq(task)?,
        robust_list: robust_list(task)?,
        clear_child_tid: task.ptr("clear_child_tid")?,
        credentials: credentials::read(task)?,
        no_new_privs: task.u("atomic_flags")? & NO_NEW_PRIVS != 0,
        seccomp,
        confinement,
        scheduling: sched::read(task)?,
        pdeath_signal: int(task, "pdeath_signal")?,
        timer_slack_ns: task.u("timer_slack_ns")?,
        controls: controls::read(x, task, context.need_fpu_load, &subject)?,
        ended: None,
    })
}

/// A first thread that has ended: nothing of it but its number and its name is left, and `like`,
/// another thread, says what all threads of the process have.
pub(super) fn ended(leader: &Object<'_>, like: &Thread) -> Result<Thread, KernelError> {
    Ok(Thread {
        tid: int(leader, "pid")?,
        ns_tid: process::innermost_pid(leader)?,
        comm: leader.get("comm")?.string()?,
        run_state: RunState::PreemptedUser,
        syscall: None,
        resume: SyscallResume::UserMode,
        xsave: None,
        fpu_stale: false,
        sigmask: u64::MAX,
        pending: Vec::new(),
        sigaltstack: SignalStack::default(),
        rseq: None,
        robust_list: None,
        clear_child_tid: 0,
        credentials: credentials::read(leader)?,
        no_new_privs: false,
        seccomp: SeccompState::default(),
        confinement: Confinement::default(),
        scheduling: Scheduling::default(),
        pdeath_signal: 0,
        controls: Controls::default(),
        ended: Some(int(leader, "exit_code")?),
        ..like.clone()
    })
}

/// The fidelity report's word for FPU registers.
const FPU: &str = "FPU registers";

/// Says where they are from; true when they are older than the thread.
fn note_fpu(x: &mut Extraction<'_, '_>, subject: &str, found: &fpu::Found) -> bool {
    match found {
        fpu::Found::InMemory => false,
        fpu::Found::Kept(state) => {
            let how = format!("it was on a CPU; from {}", state.source);
            x.out.fidelity.push(Fidelity::exact(subject, FPU, how));
            false
        }
        fpu::Found::Lost(why) => {
            x.lost(
                subject,
                FPU,
                format!("it was on a CPU: {why}; those of its last switch are used"),
            );
            true
        }
    }
}

/// The CPU that a thread was on.
pub(super) fn on_cpu(task: &Object<'_>) -> Result<Option<u32>, KernelError> {
    if task.u("on_cpu")? == 0 {
        return Ok(None);
    }
    // In thread_info since Linux commit bcf9033e5449 ("sched: move CPU field
    // back into thread_info if THREAD_INFO_IN_TASK=y") (in v5.16).
    let cpu = if task.has("thread_info.cpu") {
        task.u("thread_info.cpu")?
    } else {
        task.u("cpu")?
    };
    Ok(Some(u32::try_from(cpu).unwrap_or(u32::MAX)))
}

/// A TLS block of glibc or musl begins with its own address: then the base is
/// known to be right.
fn points_to_itself(space: &AddressSpace<'_>, base: u64) -> bool {
    let mut word = [0; 8];
    base != 0 && space.read(base, &mut word).is_ok() && u64::from_le_bytes(word) == base
}

/// The child that a thread which sleeps in vfork waits for.
fn vfork_child(task: &Object<'_>) -> Result<Option<i32>, KernelError> {
    let children =
        crate::kernel::containers::list(&task.get("children")?, "task_struct", "sibling")?;
    for child in children {
        if child.ptr("vfork_done")? != 0 {
            return Ok(Some(int(&child, "pid")?));
        }
    }
    Ok(None)
}

/// The descriptor that a write goes to is /proc/sysrq-trigger's.
fn writes_sysrq(task: &Object<'_>, regs: &crate::dataset::UserRegs, root: Option<Place>) -> bool {
    const WRITE: u64 = 1;
    let path = || -> Result<String, KernelError> {
        let file = process::descriptor(task, regs.rdi)?;
        Ok(path::name(task.kernel(), Place::of(&file.get("f_path")?)?, root)?.path)
    };
    regs.orig_rax == WRITE && path().is_ok_and(|p| p.ends_with("/sysrq-trigger"))
}

fn rseq(task: &Object<'_>) -> Result<Option<Rseq>, KernelError> {
    // A struct of its own since v6.19; pointer, length (since v6.3) and
    // signature apart before.
    let (address, len, signature) = if task.has("rseq.usrptr") {
        (
            task.ptr("rseq.usrptr")?,
            task.u("rseq.len")?,
            task.u("rseq.sig")?,
        )
    } else if task.has("rseq") {
        let len = if task.has("rseq_len") {
            task.u("rseq_len")?
        } else {
            RSEQ_LEN
        };
        (task.ptr("rseq")?, len, task.u("rseq_sig")?)
    } else {
        return Ok(None);
    };
    Ok((address != 0).then(|| Rseq {
        address,
        len: u32::try_from(len).unwrap_or(32),
        signature: u32::try_from(signature).unwrap_or(0),
    }))
}

fn robust_list(task: &Object<'_>) -> Result<Option<RobustList>, KernelError> {
    // With the rest of the futex code's state in a struct of its own since v7.1
    // or so.
    let head = if task.has("robust_list") {
        task.ptr("robust_list")?
    } else {
        task.ptr("futex.robust_list")?
    };
    Ok((head != 0).then_some(RobustList {
        head,
        len: ROBUST_LIST_LEN,
    }))
}
