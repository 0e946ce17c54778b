//! userfaultfd(2): another process's missing pages, delivered from here.
//!
//! Numbers and layouts: Linux include/uapi/linux/userfaultfd.h.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `UFFD_API`.
const API: u64 = 0xaa;

/// `UFFDIO_*`, as <asm-generic/ioctl.h> puts them together.
mod request {
    pub const API: u64 = 0xc018_aa3f;
    pub const REGISTER: u64 = 0xc020_aa00;
    pub const WAKE: u64 = 0x8010_aa02;
    pub const COPY: u64 = 0xc028_aa03;
    pub const ZEROPAGE: u64 = 0xc020_aa04;
}

/// `USERFAULTFD_IOC_NEW`: what /dev/userfaultfd answers with a descriptor.
pub const IOC_NEW: u64 = 0xaa00;

/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1;

/// `UFFD_FEATURE_EVENT_FORK`, `_REMAP`, `_REMOVE`, `_UNMAP`, `_MISSING_HUGETLBFS`, `_MISSING_SHMEM`: all
/// of Linux 4.11.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 4 | 1 << 5;

/// Bit of `UFFDIO_ZEROPAGE` in what registering answers: ordinary pages have it, huge pages have not.
const HAS_ZEROPAGE: u64 = 1 << 4;

/// Bytes of `struct uffd_msg`.
const MESSAGE: usize = 32;

/// Address of the last page that a process may have, below what the CPU's erratum forbids.
const LAST_PAGE: u64 = 0x7fff_ffff_e000;

/// Messages read at once.
const MESSAGES: usize = 64;

/// A userfaultfd of another process's address space.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

/// What happened in the address space.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page with this address.
    Fault(u64),
    /// It forked: the child's own.
    Fork(Uffd),
    /// `mremap`.
    Remap { from: u64, to: u64, len: u64 },
    /// The pages were given back: they read as zeros from now on.
    Remove { start: u64, end: u64 },
    /// `munmap`.
    Unmap { start: u64, end: u64 },
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Uffd {
    /// To poll it.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.as_fd()
    }

    fn ioctl(&self, request: u64, argument: &mut [u64]) -> io::Result<()> {
        // SAFETY: each caller's `argument` has the length that the request's
        // number says, and lives; whatever address is in it is of the other
        // process, or of a buffer that the caller holds.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) };
        match done {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Agrees on events and kinds of memory. Once, and first.
    ///
    /// # Errors
    /// EINVAL before Linux 4.11; EPERM without CAP_SYS_PTRACE.
    pub fn agree(&self) -> io::Result<()> {
        self.ioctl(request::API, &mut [API, FEATURES, 0])
    }

    /// Has missing pages of a range reported from now on. `true`: they are huge pages.
    ///
    /// # Errors
    /// EINVAL for memory of another kind; EBUSY when it has another userfaultfd.
    pub fn register(&self, start: u64, len: u64) -> io::Result<bool> {
        let mut argument = [start, len, MODE_MISSING, 0];
        self.ioctl(request::REGISTER, &mut argument)?;
        Ok(argument[3] & HAS_ZEROPAGE == 0)
    }

    /// Puts pages where none are. How many bytes of them, and why not the rest.
    ///
    /// # Errors
    /// In the second value: EEXIST, there is a page; ENOENT, the range is not registered (any more);
    /// EAGAIN, an event is to be read first; ESRCH, the address space has gone.
    pub fn copy(&self, to: u64, bytes: &[u8]) -> (u64, io::Result<()>) {
        let from = bytes.as_ptr().expose_provenance() as u64;
        let mut argument = [to, from, bytes.len() as u64, 0, 0];
        let result = self.ioctl(request::COPY, &mut argument);
        (argument[4].cast_signed().max(0).cast_unsigned(), result)
    }

    /// Puts a page of zeros where none is.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub fn zero(&self, to: u64, len: u64) -> io::Result<()> {
        self.ioctl(request::ZEROPAGE, &mut [to, len, 0, 0])
    }

    /// Lets those look again who wait for a page of the range.
    ///
    /// # Errors
    /// EINVAL.
    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(request::WAKE, &mut [start, len])
    }

    /// The address space is still there.
    pub fn lives(&self) -> bool {
        // Linux sees that the address is possible, then looks for the address
        // space, then for what is mapped there. The last page never is.
        let page = [0u8; 4096];
        let (_, result) = self.copy(LAST_PAGE, &page);
        !matches!(result, Err(e) if e.raw_os_error() == Some(libc::ESRCH))
    }

    /// What has happened, without waiting. Whoever caused an event other than a fault goes on when
    /// it was read.
    ///
    /// # Errors
    /// None that would not be a defect here.
    pub fn read(&self, events: &mut Vec<Event>) -> io::Result<()> {
        self.read_some(&mut [0u8; MESSAGE * MESSAGES], events)
    }

    /// The same, of the next fault or event alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_one(&self, events: &mut Vec<Event>) -> io::Result<()> {
        self.read_some(&mut [0u8; MESSAGE], events)
    }

    fn read_some(&self, buffer: &mut [u8], events: &mut Vec<Event>) -> io::Result<()> {
        // SAFETY: the buffer lives, and its length is passed.
        let got =
            unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                _ => Err(error),
            };
        };
        for message in buffer[..got].chunks_exact(MESSAGE) {
            let word = |n: usize| {
                let bytes = message
                    .get(8 * n..8 * n + 8)
                    .and_then(|b| b.try_into().ok());
                bytes.map_or(0, u64::from_ne_bytes)
            };
            match message[0] {
                0x12 => events.push(Event::Fault(word(2))),
                0x13 => {
                    let fd = (word(1) & u64::from(u32::MAX)) as i32;
                    // SAFETY: the kernel has just made this descriptor for us.
                    events.push(Event::Fork(Self(unsafe { OwnedFd::from_raw_fd(fd) })));
                }
                0x14 => events.push(Event::Remap {
                    from: word(1),
                    to: word(2),
                    len: word(3),
                }),
                0x15 => events.push(Event::Remove {
                    start: word(1),
                    end: word(2),
                }),
                0x16 => events.push(Event::Unmap {
                    start: word(1),
                    end: word(2),
                }),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The address space of the userfaultfd with this number still is there.
pub fn lives_by_number(fd: i32) -> bool {
    // SAFETY: a plain number; the copy is one of our own, if there is such a descriptor.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return false;
    }
    // SAFETY: just made.
    Uffd(unsafe { OwnedFd::from_raw_fd(copy) }).lives()
}

/// Asks the kernel to put a range of another process's memory into huge pages, where it can:
/// `MADV_COLLAPSE`, Linux 6.1. A matter of speed alone.
///
/// # Errors
/// EINVAL before that; EAGAIN and ENOMEM when there are none.
pub fn collapse(pidfd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    const MADV_COLLAPSE: i32 = 25;
    let range = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(usize::try_from(start).unwrap_or(0)),
        iov_len: usize::try_from(len).unwrap_or(0),
    };
    // SAFETY: `range` lives; the address in it is the other process's.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            &raw const range,
            1usize,
            MADV_COLLAPSE,
            0u32,
        )
    };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
