//! System calls made by a stopped tracee, one at a time.
//!
//! The tracee runs the `syscall` instruction of the scratch page between two
//! ptrace stops: the entry to the call and its exit. No signal, no breakpoint
//! and no instruction of the process itself takes part in it.

use super::{Doors, Errno, Syscalls};
use crate::sys::ptrace::{self, Registers, Stop};
use crate::sys::task_control;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// `syscall; int3`.
pub const CODE: [u8; 3] = [0x0f, 0x05, 0xcc];

/// Does the reads of a table until none is left: at `rbx` is a counter, and 32 bytes behind it begin
/// `r12` entries of 32 bytes each: address, length, offset, descriptor. What pread64(2) gives takes
/// the descriptor's place.
///
/// ```text
/// next: mov eax, 1
///       lock xadd [rbx], rax
///       cmp rax, r12
///       jae done
///       shl rax, 5
///       lea rbp, [rbx + rax + 32]
///       mov rsi, [rbp]
///       mov rdx, [rbp + 8]
///       mov r10, [rbp + 16]
///       mov rdi, [rbp + 24]
///       mov eax, 17
///       syscall
///       mov [rbp + 24], rax
///       jmp next
/// done: int3
/// ```
pub const READ_LOOP: [u8; 54] = [
    0xb8, 0x01, 0x00, 0x00, 0x00, 0xf0, 0x48, 0x0f, 0xc1, 0x03, 0x4c, 0x39, 0xe0, 0x73, 0x26, 0x48,
    0xc1, 0xe0, 0x05, 0x48, 0x8d, 0x6c, 0x03, 0x20, 0x48, 0x8b, 0x75, 0x00, 0x48, 0x8b, 0x55, 0x08,
    0x4c, 0x8b, 0x55, 0x10, 0x48, 0x8b, 0x7d, 0x18, 0xb8, 0x11, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x48,
    0x89, 0x45, 0x18, 0xeb, 0xcb, 0xcc,
];

/// Where it is in the code page, behind [`CODE`].
const READ_LOOP_AT: usize = 64;

/// What the code page begins with.
pub fn code() -> Vec<u8> {
    let mut code = CODE.to_vec();
    code.resize(READ_LOOP_AT, 0xcc);
    code.extend(READ_LOOP);
    code
}

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
    doors: Doors,
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
        let memory = Arc::clone(&self.memory);
        let sibling = Self::with_memory(tid, self.code, self.scratch, memory)?;
        Ok(sibling.with_doors(self.doors))
    }

    /// It holds these directories open from now on.
    pub fn set_doors(&mut self, doors: Doors) {
        self.doors = doors;
    }

    /// It holds these directories open: its maker did.
    #[must_use]
    pub fn with_doors(mut self, doors: Doors) -> Self {
        self.doors = doors;
        self
    }

    fn with_memory(tid: i32, code: u64, scratch: Scratch, memory: Arc<File>) -> io::Result<Self> {
        Ok(Self {
            tid,
            base: ptrace::registers(tid)?,
            code,
            scratch,
            memory,
            doors: Doors::default(),
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

    /// After `/proc/PID/mem` has failed: whether that was for memory that is to arrive yet (`lazy`),
    /// for which that file does not wait. This call does, and then it is there.
    fn arrives(&self, error: &io::Error, address: u64, len: usize) -> bool {
        let end = address.saturating_add(len as u64);
        let pages = (address / PAGE * PAGE..end).step_by(PAGE as usize);
        error.raw_os_error() == Some(libc::EIO)
            && pages.into_iter().all(|page| {
                let mut byte = [0];
                let there = RemoteIoVec {
                    base: usize::try_from(page).unwrap_or(0),
                    len: 1,
                };
                let pid = Pid::from_raw(self.tid);
                process_vm_readv(pid, &mut [IoSliceMut::new(&mut byte)], &[there]) == Ok(1)
            })
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

impl Tracee {
    /// Starts [`READ_LOOP`] on the table at this address.
    ///
    /// # Errors
    /// The tracee is gone.
    pub fn start_reads(&mut self, table: u64, reads: u64) -> Result<(), Errno> {
        let mut regs = self.base;
        regs.rip = self.scratch.start.saturating_add(READ_LOOP_AT as u64);
        regs.orig_rax = u64::MAX;
        regs.rbx = table;
        regs.r12 = reads;
        ptrace::set_registers(self.tid, &regs)
            .and_then(|()| ptrace::resume_with(self.tid, 0))
            .map_err(|e| errno(&e))
    }

    /// Waits until it has come to its end.
    ///
    /// # Errors
    /// The tracee is gone; EINTR after Ctrl-C, and then it runs still.
    pub fn finish_reads(&mut self) -> Result<(), Errno> {
        loop {
            match ptrace::wait(self.tid).map_err(|e| errno(&e))? {
                Stop::Signal(libc::SIGTRAP) => break,
                Stop::Gone(_) => return Err(Errno(libc::ESRCH)),
                // Its own faults: it would come to them again.
                Stop::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) => {
                    return Err(Errno(libc::EFAULT));
                }
                _ => ptrace::resume_with(self.tid, 0).map_err(|e| errno(&e))?,
            }
        }
        // A trap is taken out of the blocked signals.
        ptrace::set_signal_mask(self.tid, u64::MAX).map_err(|e| errno(&e))
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

    fn doors(&self) -> Doors {
        self.doors
    }

    fn scratch(&self) -> (u64, usize) {
        (self.scratch.data(), DATA as usize)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        match self.memory.write_all_at(bytes, address) {
            Err(e) if self.arrives(&e, address, bytes.len()) => {
                self.memory.write_all_at(bytes, address)
            }
            result => result,
        }
        .map_err(|e| errno(&e))
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        match self.memory.read_exact_at(bytes, address) {
            Err(e) if self.arrives(&e, address, bytes.len()) => {
                self.memory.read_exact_at(bytes, address)
            }
            result => result,
        }
        .map_err(|e| errno(&e))
    }
}
