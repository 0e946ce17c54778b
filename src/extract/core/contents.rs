//! What a core holds: pages of the dump, one batch after the other.

use super::unfinished::Unfinished;
use super::{BATCH, CoreError, PAGE};
use crate::dataset::{PageRun, PageSource};
use crate::sys::interrupt;

/// Copies pages into a core that is being written.
pub(super) struct Contents<'a> {
    file: &'a Unfinished<'a>,
    pages: &'a dyn PageSource,
    guard: &'a interrupt::Guard,
    buffer: Vec<u8>,
}

impl<'a> Contents<'a> {
    pub fn new(
        file: &'a Unfinished<'a>,
        pages: &'a dyn PageSource,
        guard: &'a interrupt::Guard,
    ) -> Self {
        Self {
            file,
            pages,
            guard,
            buffer: vec![0; (BATCH * PAGE) as usize],
        }
    }

    /// Copies `count` pages of a run, from its page number `first` on, to offset `at` of the file;
    /// how many bytes were zeros, which stay holes.
    pub fn copy(
        &mut self,
        run: &PageRun,
        first: u64,
        count: u64,
        at: u64,
    ) -> Result<u64, CoreError> {
        let mut zeros = 0;
        for batch in (0..count).step_by(BATCH as usize) {
            if self.guard.interrupted() {
                return Err(CoreError::Interrupted);
            }
            let n = BATCH.min(count - batch);
            let bytes = self
                .buffer
                .get_mut(..(n * PAGE) as usize)
                .unwrap_or_default();
            self.pages
                .read_pages(run, first + batch, n, bytes)
                .map_err(CoreError::Page)?;
            zeros += self
                .file
                .write_sparse(bytes, at.saturating_add(batch * PAGE))?;
        }
        Ok(zeros)
    }
}
