//! Memory in huge pages (hugetlb): in such pages again where this host has
//! them, in ordinary ones where not.
//!
//! Huge pages are reserved when a mapping is made, and a mapping without
//! reservation would die of SIGBUS later. So whether there are enough is found
//! out by reserving.

use crate::dataset::Fidelity;
use std::fs::File;
use std::io;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// `MAP_HUGE_SHIFT`, and `MFD_HUGE_SHIFT`.
const SIZE_SHIFT: u32 = 26;
/// `MFD_HUGETLB`.
const MFD_HUGETLB: u64 = 4;

/// The size of a huge page as mmap, memfd_create and shmget want it in their flags.
pub fn size_bits(huge_page: u64) -> u32 {
    huge_page.checked_ilog2().unwrap_or(0) << SIZE_SHIFT
}

/// MAP_* for private memory in pages of that size (0: whatever the host's
/// usual size is).
pub fn map_flags(huge_page: u64) -> i32 {
    libc::MAP_HUGETLB | size_bits(huge_page).cast_signed()
}

/// MFD_* for a memory file in pages of that size.
pub fn memfd_flags(huge_page: u64) -> u64 {
    MFD_HUGETLB | u64::from(size_bits(huge_page))
}

/// A memory file's pages, reserved and mapped here: files in huge pages cannot
/// be written to by a call.
#[derive(Debug)]
pub struct Mapped(MmapRegion);

impl Mapped {
    /// Maps `size` bytes of the file, which reserves them for as long as the
    /// file lives.
    ///
    /// # Errors
    /// There are not enough huge pages.
    pub fn new(file: &File, size: u64) -> io::Result<Self> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), size)
            .map(Self)
            .map_err(io::Error::other)
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// Outside of the file.
    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.0
            .as_volatile_slice()
            .write_slice(bytes, at)
            .map_err(io::Error::other)
    }
}

/// What to say of memory for which there were no huge pages.
pub fn note(pid: i32, what: impl Into<String>, huge_page: u64) -> Fidelity {
    Fidelity::reconstructed(
        format!("pid {pid}"),
        what,
        format!(
            "in ordinary pages: this host has not got enough free huge pages of {} KiB (see \
             /proc/sys/vm/nr_hugepages)",
            huge_page >> 10
        ),
    )
}

/// What to say of such memory that goes on in place: huge pages of this kernel would be needed for
/// all of it, and would hold nothing.
pub fn note_in_place(pid: i32, what: impl Into<String>) -> Fidelity {
    Fidelity::reconstructed(
        format!("pid {pid}"),
        what,
        "mapped as ordinary pages: it is in place, and takes no huge pages of this kernel",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(map_flags(2 << 20), libc::MAP_HUGETLB | libc::MAP_HUGE_2MB);
        assert_eq!(map_flags(1 << 30), libc::MAP_HUGETLB | libc::MAP_HUGE_1GB);
        assert_eq!(map_flags(0), libc::MAP_HUGETLB);
        assert_eq!(
            memfd_flags(1 << 30),
            u64::from(libc::MFD_HUGETLB | libc::MFD_HUGE_1GB)
        );
    }
}
