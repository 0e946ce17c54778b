//! A child that does nothing: the seed of every restored process.

use std::io;

/// `CLONE_CLEAR_SIGHAND`. Linux include/uapi/linux/sched.h.
const CLEAR_SIGHAND: u64 = 1 << 32;

/// `struct clone_args` of clone3(2), Linux include/uapi/linux/sched.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

impl CloneArgs {
    /// As the kernel reads it.
    pub fn to_bytes(self) -> Vec<u8> {
        [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ]
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
    }
}

/// Makes a child that dies with the calling thread, and until then does
/// nothing but wait for a tracer to take it over.
///
/// # Errors
/// The errno of clone3.
pub fn idle_child() -> io::Result<i32> {
    let args = CloneArgs {
        flags: CLEAR_SIGHAND,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of
    // the address space. It makes nothing but raw system calls there (no
    // allocation, no lock that another thread might have held) and never
    // returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    if pid == 0 {
        loop {
            // SAFETY: plain system calls without memory arguments.
            unsafe {
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::syscall(libc::SYS_pause);
            }
        }
    }
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(pid).map_err(io::Error::other)
}
