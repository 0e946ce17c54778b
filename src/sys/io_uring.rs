//! io_uring as a place where descriptors are kept. Its rings are never used.
//!
//! Numbers and layouts: Linux include/uapi/linux/io_uring.h.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of `struct io_uring_params`, to be all zeros but for what is asked for.
pub const PARAMS: usize = 120;

/// `IORING_REGISTER_RING_FDS`: the calling thread keeps the ring, without a descriptor. Linux 5.18.
pub const KEEP_RING: u64 = 20;

/// `IORING_REGISTER_FILES`, `IORING_UNREGISTER_FILES`, `IORING_REGISTER_FILES_UPDATE`.
const REGISTER_FILES: u64 = 2;
const UNREGISTER_FILES: u64 = 3;
const UPDATE_FILES: u64 = 6;

/// The highest place that a thread has for rings (`IO_RINGFD_REG_MAX` less one): programs are given the
/// lowest that is free.
const LAST_PLACE: u32 = 15;

/// The argument of [`KEEP_RING`]: `struct io_uring_rsrc_update` for a ring that is open at `fd`.
pub fn keep_argument(fd: i32) -> [u8; 16] {
    let mut argument = [0; 16];
    argument[..4].copy_from_slice(&LAST_PLACE.to_ne_bytes());
    argument[8..].copy_from_slice(&u64::from(fd.cast_unsigned()).to_ne_bytes());
    argument
}

/// A ring that keeps open files in its slots.
#[derive(Debug)]
pub struct Ring(OwnedFd);

impl Ring {
    /// Gives a ring that many slots, all empty.
    ///
    /// # Errors
    /// EMFILE: more than this process may have descriptors.
    pub fn with_slots(fd: OwnedFd, slots: usize) -> io::Result<Self> {
        let ring = Self(fd);
        let empty = vec![-1i32; slots];
        ring.register(REGISTER_FILES, empty.as_ptr().cast(), slots)?;
        Ok(ring)
    }

    /// Keeps a file in a slot, instead of what is there; `None`: nothing.
    ///
    /// # Errors
    /// EINVAL: there is no such slot.
    pub fn put(&self, slot: usize, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fd = file.map_or(-1, |file| file.as_raw_fd());
        let slot = u32::try_from(slot).map_err(|_| io::ErrorKind::InvalidInput)?;
        // `struct io_uring_files_update`.
        let argument = [u64::from(slot), (&raw const fd).expose_provenance() as u64];
        self.register(UPDATE_FILES, argument.as_ptr().cast(), 1)
    }

    /// Lets go of all that it keeps, and of the slots.
    ///
    /// # Errors
    /// ENXIO: it has none.
    pub fn let_go(&self) -> io::Result<()> {
        self.register(UNREGISTER_FILES, std::ptr::null(), 0)
    }

    fn register(&self, what: u64, argument: *const u8, count: usize) -> io::Result<()> {
        // SAFETY: each caller's argument is what the operation reads, of that
        // count, and lives until it returns.
        let done = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.0.as_raw_fd(),
                what,
                argument,
                count,
            )
        };
        match done {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
