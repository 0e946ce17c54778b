//! A part of a file, mapped for reading, of which children get nothing.

use std::fs::File;
use std::io;
use vm_memory::{FileOffset, MmapRegion};

/// Maps `size` bytes from `offset` on, which must be a multiple of a page.
///
/// # Errors
/// The file cannot be mapped, or not so.
pub fn open(file: &File, offset: u64, size: u64) -> io::Result<MmapRegion> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let file = FileOffset::new(file.try_clone()?, offset);
    let region = MmapRegion::build(Some(file), size, libc::PROT_READ, libc::MAP_SHARED)
        .map_err(io::Error::other)?;
    // SAFETY: the range is the region's own mapping; the advice changes nothing here.
    let advised =
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTFORK) };
    match advised {
        0 => Ok(region),
        _ => Err(io::Error::last_os_error()),
    }
}
