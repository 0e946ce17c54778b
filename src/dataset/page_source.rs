//! Where the content of pages comes from: a dump, or a dataset on the disk.

use super::PageRun;
use std::fs::File;

/// A source of page contents. Implementations are shared by threads.
pub trait PageSource: Send + Sync {
    /// Reads `count` pages of `run`, from its page number `first` on, into
    /// `out` (`count` × 4096 bytes). `PageContent::Zero` reads as zeros.
    ///
    /// # Errors
    /// A page that is not there, or is damaged: the error names it. What is
    /// in `out` then is not to be used.
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError>;

    /// Where pages of `run`, from its page number `first` on, stand in a file just as they are, one
    /// behind the other; `None`: they have to be asked for by [`Self::read_pages`].
    fn plain(&self, run: &PageRun, first: u64) -> Option<PlainPages<'_>> {
        let _ = (run, first);
        None
    }

    /// What pages are read from is as it was when it was opened.
    ///
    /// # Errors
    /// What has changed.
    fn still_whole(&self) -> Result<(), String> {
        Ok(())
    }

    /// From now on a guest runs in these page frames, where they lie: they are never read again.
    fn set_in_use(&self, frames: &[std::ops::Range<u64>]) {
        let _ = frames;
    }
}

/// Pages that stand in a file just as they are.
#[derive(Clone, Copy, Debug)]
pub struct PlainPages<'a> {
    /// A regular file. What it holds may have been cut off since it was looked at.
    pub file: &'a File,
    /// Where the first begins. Bytes.
    pub offset: u64,
    /// So many, at least one.
    pub count: u64,
}

/// Why a page could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("page content at {at:#x} ({content:?}): {why}")]
pub struct PageSourceError {
    /// Address (or offset) of the page in its run's terms.
    pub at: u64,
    /// Where it should have been.
    pub content: super::PageContent,
    /// What went wrong.
    pub why: String,
}
