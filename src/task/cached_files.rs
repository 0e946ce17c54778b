//! Pages of files that the page cache had: for a look at a process, not for its
//! restore, which takes clean pages from the disk.

use super::inode;
use super::page_cache::Wanted;
use super::page_frame::Frames;
use super::swap::SwapReader;
use crate::dataset::{ObjectId, PageRun};
use crate::kernel::{Kernel, KernelError};

/// The pages of an inode that are in the page cache and in the dump, by offset.
///
/// # Errors
/// The page cache cannot be read.
pub fn cached_pages(kernel: &Kernel, id: ObjectId) -> Result<Vec<PageRun>, KernelError> {
    let frames = Frames::new(kernel)?;
    let swap = SwapReader::new(&frames);
    let object = kernel.object("inode", id.0)?;
    let cache = object.follow("i_mapping")?;
    let mut runs = inode::cached_runs(
        &frames,
        &swap,
        &cache,
        Wanted::All,
        inode::huge_order(&object),
        object.u("i_size")?,
    )?;
    runs.retain(|run| !run.content.is_missing());
    Ok(runs)
}
