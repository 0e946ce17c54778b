//! Where the content of pages comes from: a dump, or a dataset on the disk.

use super::PageRun;

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
