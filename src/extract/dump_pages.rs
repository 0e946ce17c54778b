//! Pages straight out of a dump.

use crate::dataset::{PageContent, PageRun, PageSource, PageSourceError};
use crate::dump::{Dump, PAGE_SIZE, PhysicalMemory};
use std::sync::Arc;

/// A [`PageSource`] whose frames are a dump's.
#[derive(Clone)]
pub struct DumpPages {
    dump: Arc<Dump>,
}

impl DumpPages {
    /// Pages of this dump.
    pub fn new(dump: Arc<Dump>) -> Self {
        Self { dump }
    }
}

impl PageSource for DumpPages {
    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        let fail = |page: u64, why: String| PageSourceError {
            at: run.start.saturating_add(page.saturating_mul(PAGE_SIZE)),
            content: run.content,
            why,
        };
        let frame = match run.content {
            PageContent::Zero => {
                out.fill(0);
                return Ok(());
            }
            PageContent::Frame(pfn) => pfn,
            PageContent::Stored(_) => {
                return Err(fail(
                    first,
                    "it is in a dataset's memory file, not in a dump".into(),
                ));
            }
            PageContent::Swap { area, .. } => {
                return Err(fail(
                    first,
                    format!("it was swapped out, to swap area {area}"),
                ));
            }
            PageContent::Filtered => {
                return Err(fail(first, "makedumpfile left it out of the dump".into()));
            }
            PageContent::Truncated => return Err(fail(first, "the dump ends before it".into())),
            PageContent::Corrupt => return Err(fail(first, "it is damaged".into())),
        };
        let pfns: Vec<u64> = (first..first.saturating_add(count))
            .map(|i| frame.saturating_add(i))
            .collect();
        match self.dump.read_pages(&pfns, out).first() {
            None => Ok(()),
            Some(failure) => Err(fail(
                first.saturating_add(failure.index as u64),
                failure.error.to_string(),
            )),
        }
    }
}
