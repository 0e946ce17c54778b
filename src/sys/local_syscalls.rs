//! System calls made in this very process, for tests of the stages that are
//! otherwise injected into another one.

use crate::restore::{Errno, Syscalls};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// [`Syscalls`] on the calling thread.
pub struct LocalSyscalls {
    scratch: Vec<u64>,
}

const SCRATCH: usize = 64 * 1024;

impl LocalSyscalls {
    /// # Safety
    /// The calls that are asked of it act on this process's memory and
    /// descriptors: whoever holds it must not use it to pull these away from
    /// under Rust.
    pub unsafe fn new() -> Self {
        Self {
            scratch: vec![0; SCRATCH / 8],
        }
    }
}

/// The signal that ends a call that took too long.
const INTERRUPT: i32 = libc::SIGURG;

/// How long after one such signal the next is sent.
const AGAIN: Duration = Duration::from_millis(50);

extern "C" fn on_interrupt(_: i32) {}

impl Syscalls for LocalSyscalls {
    fn syscall(&mut self, number: i64, args: [u64; 6]) -> Result<u64, Errno> {
        let [a, b, c, d, e, f] = args;
        // SAFETY: that the call does no harm is what `new`'s caller promised.
        let value = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        match value {
            -1 => Err(Errno(
                std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            )),
            value => Ok(value.cast_unsigned()),
        }
    }

    fn syscall_within(
        &mut self,
        number: i64,
        args: [u64; 6],
        limit: Duration,
    ) -> Result<u64, Errno> {
        // SAFETY: zeros are a valid sigaction; the handler does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_interrupt as *const () as usize;
            libc::sigaction(INTERRUPT, &raw const action, std::ptr::null_mut());
        }
        // SAFETY: no preconditions.
        let (pid, tid) = unsafe { (libc::getpid(), libc::gettid()) };
        std::thread::scope(|scope| {
            let (done, is_done) = mpsc::channel::<()>();
            scope.spawn(move || {
                let mut wait = limit;
                while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    // SAFETY: the thread waits for this scope to end, so its
                    // tid is its own still.
                    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, INTERRUPT) };
                    // Again, should it have come before the call.
                    wait = AGAIN;
                }
            });
            let result = self.syscall(number, args);
            drop(done);
            result
        })
    }

    fn scratch(&self) -> (u64, usize) {
        (self.scratch.as_ptr() as u64, SCRATCH)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        // SAFETY: no preconditions.
        let pid = unsafe { libc::getpid() };
        let local = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel checks both ranges; that nothing of Rust's is
        // overwritten is what `new`'s caller promised.
        let n =
            unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
        whole(n, bytes.len())
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        // SAFETY: no preconditions.
        let pid = unsafe { libc::getpid() };
        let local = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        let remote = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: bytes.len(),
        };
        // SAFETY: the kernel checks both ranges; `bytes` is ours to write.
        let n =
            unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        whole(n, bytes.len())
    }
}

fn whole(n: isize, len: usize) -> Result<(), Errno> {
    match usize::try_from(n) {
        Ok(n) if n == len => Ok(()),
        Ok(_) => Err(Errno(libc::EFAULT)),
        Err(_) => Err(Errno(
            std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
        )),
    }
}
