//! The io_uring that the disk's requests go through, and one request that
//! never ends: it keeps a kernel thread (`iou-wrk`) waiting.

use std::fs::File;
use std::io::{Error, PipeWriter, pipe};
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, opcode, squeue, types};

use crate::machine::Result;

/// Entries of the ring.
const ENTRIES: u32 = 8;
/// `user_data` of the disk's requests.
const DISK: u64 = 1;

/// A ring.
pub struct Ring {
    ring: IoUring,
}

impl Ring {
    /// An empty one.
    pub fn new() -> Result<Self> {
        Ok(Self {
            ring: IoUring::new(ENTRIES)?,
        })
    }

    /// Reads or writes all of the buffer.
    pub fn transfer(&mut self, fd: i32, buffer: &mut [u8], at: u64, write: bool) -> Result<()> {
        let len = buffer.len() as u32;
        let entry = if write {
            opcode::Write::new(types::Fd(fd), buffer.as_ptr(), len)
                .offset(at)
                .build()
        } else {
            opcode::Read::new(types::Fd(fd), buffer.as_mut_ptr(), len)
                .offset(at)
                .build()
        };
        let entry = entry.user_data(DISK);
        // SAFETY: the buffer outlives the request, which is waited for below.
        unsafe { self.ring.submission().push(&entry) }?;
        let done = loop {
            if let Some(done) = self.ring.completion().next() {
                break done;
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.raw_os_error() != Some(libc::EINTR) => return Err(error.into()),
                _ => {}
            }
        };
        match done.result() {
            n if n == len as i32 => Ok(()),
            n if n < 0 => Err(Error::from_raw_os_error(-n).into()),
            n => Err(format!("{n} bytes of {len}").into()),
        }
    }
}

/// A ring with a request that nothing will ever answer.
pub struct Endless {
    _ring: IoUring,
    _pipe: (OwnedFd, PipeWriter),
}

impl Endless {
    /// Starts it.
    pub fn new() -> Result<Self> {
        /// What the request would read into, for ever.
        static mut NOTHING: [u8; 8] = [0; 8];
        let mut ring = IoUring::new(ENTRIES)?;
        let (reader, writer) = pipe()?;
        let reader = OwnedFd::from(reader);
        let entry = opcode::Read::new(types::Fd(reader.as_raw_fd()), (&raw mut NOTHING).cast(), 8)
            .build()
            // By a worker at once, which then sleeps in the pipe.
            .flags(squeue::Flags::ASYNC);
        // SAFETY: the buffer is static.
        unsafe { ring.submission().push(&entry) }?;
        ring.submit()?;
        Ok(Self {
            _ring: ring,
            _pipe: (reader, writer),
        })
    }
}

/// Opens a disk's file.
pub fn open(path: &str) -> Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}
