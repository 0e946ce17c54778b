//! ptrace(2) of x86-64, as the restorer needs it: seized tracees that are
//! moved from system call to system call.
//!
//! Everything here must be called by the thread that seized the tracee.

use std::io;
use std::ptr;

/// `struct user_regs_struct`.
pub use libc::user_regs_struct as Registers;

/// Options of every tracee: it dies with its tracer; its children and threads
/// are tracees from their first instruction; system-call stops can be told
/// from SIGTRAPs.
const OPTIONS: i32 = libc::PTRACE_O_EXITKILL
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACESYSGOOD;

/// `PTRACE_O_SUSPEND_SECCOMP`: filters do not apply to injected calls.
/// Linux include/uapi/linux/ptrace.h.
const SUSPEND_SECCOMP: i32 = 1 << 21;

/// `NT_X86_XSTATE`. Linux include/uapi/linux/elf.h.
const NT_X86_XSTATE: i32 = 0x202;

/// More than any XSAVE area of today (AMX: 11 KiB). Bytes.
const XSTATE_MAX: usize = 64 << 10;

/// Why a tracee stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the entry to a system call, or at its exit.
    Syscall,
    /// PTRACE_EVENT_* (STOP among them).
    Event(i32),
    /// A signal is about to be delivered.
    Signal(i32),
    /// It ended: exit code, or the negated signal.
    Gone(i32),
}

fn request(request: libc::c_uint, tid: i32, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: the callers in this file pass for `data` either a plain number
    // or the address of a live buffer of the size that the request documents.
    let value = unsafe {
        libc::ptrace(
            request,
            tid,
            ptr::without_provenance_mut::<libc::c_void>(address),
            ptr::with_exposed_provenance_mut::<libc::c_void>(data),
        )
    };
    if value == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Seizes a task (PTRACE_SEIZE) without stopping it.
///
/// # Errors
/// EPERM, ESRCH.
pub fn seize(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, OPTIONS.cast_unsigned() as usize).map(drop)
}

/// Lets injected calls pass by the tracee's seccomp filters until it is
/// detached. `false`: this kernel or this user cannot.
pub fn suspend_seccomp(tid: i32) -> bool {
    let options = (OPTIONS | SUSPEND_SECCOMP).cast_unsigned() as usize;
    request(libc::PTRACE_SETOPTIONS, tid, 0, options).is_ok()
}

/// From here on the tracee outlives its tracer: were that to die, it would be
/// let go instead of killed.
///
/// # Errors
/// ESRCH when it is not stopped, or gone.
pub fn let_outlive(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, 0).map(drop)
}

/// Stops a seized task (PTRACE_INTERRUPT); wait for `Event(PTRACE_EVENT_STOP)`.
///
/// # Errors
/// ESRCH.
pub fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped tracee run to its next entry to, or exit from, a call.
///
/// # Errors
/// ESRCH when it is not stopped, or gone.
pub fn resume_to_syscall(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Lets a tracee that was stopped before a signal run on with it.
///
/// # Errors
/// ESRCH when it is not stopped, or gone.
pub fn resume_with(tid: i32, signal: i32) -> io::Result<()> {
    let signal = usize::try_from(signal).unwrap_or(0);
    request(libc::PTRACE_CONT, tid, 0, signal).map(drop)
}

/// Lets a stopped tracee go.
///
/// # Errors
/// ESRCH when it is not stopped, or gone.
pub fn detach(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, 0).map(drop)
}

/// The registers of a stopped tracee.
///
/// # Errors
/// ESRCH when it is not stopped, or gone.
pub fn registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: user_regs_struct is made of integers; zero is a value of each.
    let mut regs: Registers = unsafe { std::mem::zeroed() };
    request(
        libc::PTRACE_GETREGS,
        tid,
        0,
        (&raw mut regs).expose_provenance(),
    )?;
    Ok(regs)
}

/// Sets the registers of a stopped tracee.
///
/// # Errors
/// EIO for a value that user mode may not have; ESRCH.
pub fn set_registers(tid: i32, regs: &Registers) -> io::Result<()> {
    let at = ptr::from_ref(regs).expose_provenance();
    request(libc::PTRACE_SETREGS, tid, 0, at).map(drop)
}

/// The XSAVE area of a stopped tracee, in the standard format.
///
/// # Errors
/// ESRCH; EIO, ENODEV without XSAVE.
pub fn xstate(tid: i32) -> io::Result<Vec<u8>> {
    let mut area = vec![0u8; XSTATE_MAX];
    let mut iov = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    let kind = NT_X86_XSTATE.cast_unsigned() as usize;
    let at = (&raw mut iov).expose_provenance();
    request(libc::PTRACE_GETREGSET, tid, kind, at)?;
    area.truncate(iov.iov_len);
    Ok(area)
}

/// Sets the XSAVE area of a stopped tracee; as long as [`xstate`]'s.
///
/// # Errors
/// EFAULT for a wrong length, EINVAL for a component that the CPU has not got.
pub fn set_xstate(tid: i32, area: &[u8]) -> io::Result<()> {
    let mut area = area.to_vec();
    let mut iov = libc::iovec {
        iov_base: area.as_mut_ptr().cast(),
        iov_len: area.len(),
    };
    let kind = NT_X86_XSTATE.cast_unsigned() as usize;
    let at = (&raw mut iov).expose_provenance();
    request(libc::PTRACE_SETREGSET, tid, kind, at).map(drop)
}

/// The blocked signals of a stopped tracee; bit n-1 is signal n.
///
/// # Errors
/// ESRCH.
pub fn signal_mask(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    let at = (&raw mut mask).expose_provenance();
    request(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>(), at)?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped tracee.
///
/// # Errors
/// ESRCH.
pub fn set_signal_mask(tid: i32, mask: u64) -> io::Result<()> {
    let at = (&raw const mask).expose_provenance();
    request(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), at).map(drop)
}

/// PTRACE_GETEVENTMSG: of a clone or fork event, the new task's TID.
///
/// # Errors
/// ESRCH.
pub fn event_message(tid: i32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    let at = (&raw mut message).expose_provenance();
    request(libc::PTRACE_GETEVENTMSG, tid, 0, at)?;
    Ok(message)
}

/// A task's registered restartable sequence area: address, length, signature.
///
/// # Errors
/// EIO before Linux 5.13.
pub fn rseq(tid: i32) -> io::Result<Option<(u64, u32, u32)>> {
    // SAFETY: made of integers; zero is a value of each.
    let mut conf: libc::ptrace_rseq_configuration = unsafe { std::mem::zeroed() };
    let at = (&raw mut conf).expose_provenance();
    request(
        libc::PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of_val(&conf),
        at,
    )?;
    Ok((conf.rseq_abi_pointer != 0).then_some((
        conf.rseq_abi_pointer,
        conf.rseq_abi_size,
        conf.signature,
    )))
}

/// PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: calls from outside of an area (its begin and length) are
/// signals, as a byte at an address says; `None`: no call is.
///
/// # Errors
/// EIO before Linux 6.4; EFAULT for an address that is none.
pub fn set_dispatch(tid: i32, dispatch: Option<([u64; 2], u64)>) -> io::Result<()> {
    /// Linux include/uapi/linux/ptrace.h.
    const SET_CONFIG: libc::c_uint = 0x4210;
    // struct ptrace_sud_config: mode, selector, offset, len.
    let config: [u64; 4] = match dispatch {
        Some(([offset, len], selector)) => [1, selector, offset, len],
        None => [0; 4],
    };
    let at = config.as_ptr().expose_provenance();
    request(SET_CONFIG, tid, size_of_val(&config), at).map(drop)
}

/// Waits for a tracee's next stop, or its end.
///
/// # Errors
/// ECHILD when it is no tracee of this thread; EINTR when Ctrl-C came while
/// waiting.
pub fn wait(tid: i32) -> io::Result<Stop> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a live int.
        let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
        if got == -1 {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::Interrupted && !super::interrupt::pending() {
                continue;
            }
            return Err(e);
        }
        return Ok(stop(status));
    }
}

/// The same, without waiting: `None` when nothing has happened to it.
///
/// # Errors
/// ECHILD when it is no tracee of this thread.
pub fn look(tid: i32) -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: `status` is a live int.
    let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
    match got {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(stop(status))),
    }
}

fn stop(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Gone(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Gone(-libc::WTERMSIG(status));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        event => Stop::Event(event),
    }
}
