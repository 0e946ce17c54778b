//! System calls made by a stopped tracee, one at a time.
//!
//! The tracee runs the `syscall` instruction of the scratch page between two
//! ptrace stops: the entry to the call and its exit. No signal, no breakpoint
//! and no instruction of the process itself takes part in it.

use super::{Errno, Syscalls};
use crate::sys::ptrace::{self, Registers, Stop};
use crate::sys::task_control;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// `syscall; int3`.
pub const CODE: [u8; 3] = [0x0f, 0x05, 0xcc];

/// Bytes of the code page, and of the data behind it.
const PAGE: u64 = 4096;
const DATA: u64 = 128 << 10;

/// One mapping in the tracee that serves all injection: a page of code, and
/// memory for arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Its first address.
    pub start: u64,
}

impl Scratch {
    /// Bytes of the whole mapping.
    pub const LEN: u64 = PAGE + DATA;

    /// First address of the memory for arguments.
    pub fn data(self) -> u64 {
        self.start + PAGE
    }

    /// First address behind it.
    pub fn end(self) -> u64 {
        self.start + Self::LEN
    }

    /// Bytes of the code page.
    pub const CODE_LEN: u64 = PAGE;
}

/// A stopped tracee that makes system calls.
#[derive(Debug)]
pub struct Tracee {
    /// TID on this host.
    pub tid: i32,
    /// Registers that calls start from: user mode's segments and flags.
    base: Registers,
    /// Where the `syscall` instruction is.
    code: u64,
    scratch: Scratch,
    memory: Arc<File>,
    /// TID, on this host, of the last task that a call made.
    born: Option<i32>,
}

fn errno(e: &io::Error) -> Errno {
    Errno(e.raw_os_error().unwrap_or(libc::EIO))
}

impl Tracee {
    /// Takes over a task that is seized and stopped. `code` is the address of
    /// a `syscall` instruction in it; `scratch` may be mapped only later.
    ///
    /// # Errors
    /// The tracee is gone, or its memory cannot be opened.
    pub fn new(tid: i32, code: u64, scratch: Scratch) -> io::Result<Self> {
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{tid}/mem"))?;
        Self::with_memory(tid, code, scratch, Arc::new(memory))
    }

    /// A thread of a process whose memory is open already.
    ///
    /// # Errors
    /// The tracee is gone.
    pub fn sibling(&self, tid: i32) -> io::Result<Self> {
        Self::with_memory(tid, self.code, self.scratch, Arc::clone(&self.memory))
    }

    fn with_memory(tid: i32, code: u64, scratch: Scratch, memory: Arc<File>) -> io::Result<Self> {
        Ok(Self {
            tid,
            base: ptrace::registers(tid)?,
            code,
            scratch,
            memory,
            born: None,
        })
    }

    /// Makes calls by the instruction at `code` from now on.
    pub fn use_code(&mut self, code: u64) {
        self.code = code;
    }

    /// The scratch mapping.
    pub fn scratch_mapping(&self) -> Scratch {
        self.scratch
    }

    /// `/proc/TID/mem`.
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// TID, on this host, of the task that the last clone made. It is
    /// seized, and stops before its first instruction.
    pub fn take_born(&mut self) -> Option<i32> {
        self.born.take()
    }

    /// Runs until the tracee stops at a system call's entry or exit.
    fn run_to_syscall_stop(&mut self) -> Result<(), Errno> {
        // A tracee with all signals blocked meets few other stops.
        for _ in 0..64 {
            ptrace::resume_to_syscall(self.tid).map_err(|e| errno(&e))?;
            match ptrace::wait(self.tid).map_err(|e| errno(&e))? {
                Stop::Syscall => return Ok(()),
                Stop::Event(libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK) => {
                    let tid = ptrace::event_message(self.tid).map_err(|e| errno(&e))?;
                    self.born = i32::try_from(tid).ok();
                }
                // A signal is not passed on: it would run in a half-made process.
                Stop::Event(_) | Stop::Signal(_) => {}
                Stop::Gone(_) => return Err(Errno(libc::ESRCH)),
            }
        }
        Err(Errno(libc::EIO))
    }
}

/// `-ERESTARTSYS` and its like: the kernel wanted to make the call again.
const RESTART: std::ops::RangeInclusive<i32> = 512..=516;

impl Tracee {
    /// Makes one call, once. Error numbers of [`RESTART`] come back as they are.
    fn call(&mut self, number: i64, args: [u64; 6]) -> Result<u64, Errno> {
        let mut regs = self.base;
        regs.rip = self.code;
        regs.rax = number.cast_unsigned();
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        ptrace::set_registers(self.tid, &regs).map_err(|e| errno(&e))?;
        self.run_to_syscall_stop()?;
        self.run_to_syscall_stop()?;
        let answer = ptrace::registers(self.tid).map_err(|e| errno(&e))?;
        match i32::try_from(answer.rax.cast_signed()) {
            Ok(code @ -4095..=-1) => Err(Errno(-code)),
            _ => Ok(answer.rax),
        }
    }
}

impl Syscalls for Tracee {
    fn syscall(&mut self, number: i64, args: [u64; 6]) -> Result<u64, Errno> {
        for _ in 0..16 {
            match self.call(number, args) {
                Err(Errno(code)) if RESTART.contains(&code) => {}
                result => return result,
            }
        }
        Err(Errno(libc::EINTR))
    }

    /// After `limit` the tracee gets a SIGSTOP, which it cannot block; it is
    /// taken back before it could stop anything.
    fn syscall_within(
        &mut self,
        number: i64,
        args: [u64; 6],
        limit: Duration,
    ) -> Result<u64, Errno> {
        let tid = self.tid;
        let result = std::thread::scope(|scope| {
            let (done, is_done) = mpsc::channel::<()>();
            scope.spawn(move || {
                let mut wait = limit;
                while is_done.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    // It may have gone; then its tracer hears of that.
                    let _ = task_control::kill_task(tid, libc::SIGSTOP);
                    // Again, should it have come before the call.
                    wait = Duration::from_millis(50);
                }
            });
            let result = self.call(number, args);
            drop(done);
            result
        });
        match result {
            Err(Errno(code)) if RESTART.contains(&code) => Err(Errno(libc::EINTR)),
            result => result,
        }
    }

    fn scratch(&self) -> (u64, usize) {
        (self.scratch.data(), DATA as usize)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.memory
            .write_all_at(bytes, address)
            .map_err(|e| errno(&e))
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        self.memory
            .read_exact_at(bytes, address)
            .map_err(|e| errno(&e))
    }
}
