//! Children of this program that are this program still, and stay when it goes.

use super::clone::CloneArgs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `CLONE_FILES`.
const SHARE_FILES: u64 = 0x400;

/// Makes a child that has a copy of everything, does `body`, and ends: with 0, or 101 after a panic.
/// Gives its PID.
///
/// Whoever calls it should have no other threads: what they hold locked stays locked in the child
/// (but for the allocator, of which the C library takes care).
///
/// # Errors
/// The errno of fork.
pub fn fork(body: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: no memory arguments. The child goes on with a copy of this
    // thread, and never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => run(body),
        pid => Ok(pid),
    }
}

/// As [`fork`], but the child has no descriptors of its own: what either opens or closes, the other
/// has or has not. They stay open until the last of the two ends.
///
/// # Errors
/// The errno of clone3.
pub fn sharing_files(body: impl FnOnce()) -> io::Result<i32> {
    let args = CloneArgs {
        flags: SHARE_FILES,
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is a fork. The C library does not know of
    // it; the child uses nothing of it that keeps account of processes.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match i32::try_from(pid) {
        Ok(0) => run(body),
        Ok(pid @ 1..) => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

fn run(body: impl FnOnce()) -> ! {
    // Unwinding would close what it holds; a child that fails ends as it is.
    std::panic::set_hook(Box::new(|_| end(101)));
    body();
    end(0)
}

/// Ends this process as it is: nothing is flushed, dropped or cleaned up.
pub fn end(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

/// Leaves the terminal, its signals and its streams; is not among the first to be killed when memory
/// runs out; has a name of its own.
pub fn stay_behind(name: &std::ffi::CStr) {
    // SAFETY: plain numbers and constant strings; /dev/null takes the place of
    // the three streams.
    unsafe {
        libc::setsid();
        for signal in [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGPIPE,
        ] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        if null >= 0 {
            for stream in 0..3 {
                libc::dup2(null, stream);
            }
            if null > 2 {
                libc::close(null);
            }
        }
    }
    // Refused in a container: then it is as likely to be killed as others.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// What a pager works with, as `/proc/self/fd` names it.
const KEPT: [&str; 2] = ["anon_inode:[userfaultfd]", "anon_inode:[io_uring]"];

/// Closes what a pipe, a connection or a device's user would wait for, which this process has from
/// its parent: all but files, block devices, userfaultfds, what holds these, and the physical memory.
pub fn keep_files_only() {
    use std::os::unix::fs::FileTypeExt;
    let own = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let own: Vec<i32> = own
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in own {
        let path = format!("/proc/self/fd/{fd}");
        let target = std::fs::read_link(&path).unwrap_or_default();
        let kept = target
            .to_str()
            .is_some_and(|t| KEPT.iter().any(|kept| t.starts_with(kept)) || t == "/dev/mem")
            || std::fs::metadata(&path)
                .is_ok_and(|m| m.file_type().is_file() || m.file_type().is_block_device());
        if fd > 2 && !kept {
            // SAFETY: whoever of this program had it was the parent; the child
            // ends without dropping any of its values.
            unsafe { libc::close(fd) };
        }
    }
}

/// Closes everything but the three streams.
pub fn close_all() {
    // SAFETY: plain numbers; as in `keep_files_only`.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// ESRCH.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the call made it for us.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to the process of a pidfd: never to another one that has its PID by now.
///
/// # Errors
/// ESRCH.
pub fn signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers and no siginfo.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// How a child of this process ended: its exit code, or the negated signal; `None`: it runs, and
/// with `wait` until it does not.
pub fn ended(pid: i32, wait: bool) -> Option<i32> {
    let mut status = 0;
    let flags = if wait { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` is a live int.
        let got = unsafe { libc::waitpid(pid, &raw mut status, flags) };
        return match got {
            0 => None,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => continue,
            // Somebody else has waited for it.
            -1 => Some(0),
            _ if libc::WIFSIGNALED(status) => Some(-libc::WTERMSIG(status)),
            _ => Some(libc::WEXITSTATUS(status)),
        };
    }
}

/// Runs this thread at a lower priority than others, by `nice` steps.
pub fn be_nice(nice: i32) {
    // SAFETY: plain numbers; on Linux it is the thread's own.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// Waits until one of the descriptors can be read, or so many milliseconds (-1: for ever). Which
/// can, in their order.
pub fn poll(fds: &[std::os::fd::BorrowedFd<'_>], milliseconds: i32) -> Vec<bool> {
    let mut set: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the array lives, and its length is passed.
    unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, milliseconds) };
    set.iter().map(|p| p.revents != 0).collect()
}
