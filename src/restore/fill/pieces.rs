//! Runs of pages, in pieces of which each goes its way as one.

use super::PAGE;
use crate::dataset::{PageContent, PageRun};

/// Pages of one batch: one huge page's worth.
pub const BATCH: u64 = 512;
/// Pages that go their way at once: what is read is still in the CPU's cache when it is looked at and
/// written.
const AT_ONCE: u64 = 64;

/// A part of a run that lies in one huge page.
pub struct Piece<'a> {
    pub run: &'a PageRun,
    pub first: u64,
    pub count: u64,
    /// Where nothing is written, zeros are read.
    pub zero_already: bool,
}

impl<'a> Piece<'a> {
    /// It in smaller parts.
    pub fn parts(&self) -> impl Iterator<Item = Piece<'a>> {
        let (first, behind) = (self.first, self.first + self.count);
        (first..behind)
            .step_by(AT_ONCE as usize)
            .map(move |first| Piece {
                run: self.run,
                first,
                count: AT_ONCE.min(behind - first),
                zero_already: self.zero_already,
            })
    }
}

/// Splits runs where huge pages begin, and leaves out what is zero already or is there already.
pub fn split<'a>(
    runs: impl Iterator<Item = (&'a PageRun, bool)> + Send,
) -> impl Iterator<Item = Piece<'a>> + Send {
    let is_there = |run: &PageRun, zero_already: bool| match run.content {
        PageContent::Zero => zero_already,
        PageContent::InPlace(_) => true,
        _ => false,
    };
    runs.filter(move |(run, zero_already)| !is_there(run, *zero_already))
        .flat_map(|(run, zero_already)| {
            let mut first = 0;
            std::iter::from_fn(move || {
                if first >= run.count {
                    return None;
                }
                let page = run.start / PAGE as u64 + first;
                let count = (BATCH - page % BATCH).min(run.count - first);
                let piece = Piece {
                    run,
                    first,
                    count,
                    zero_already,
                };
                first += count;
                Some(piece)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_huge_pages_begin() {
        let run = PageRun {
            start: 0x1f_f000,
            count: 1025,
            content: PageContent::Frame(7),
        };
        let parts: Vec<_> = split([(&run, true)].into_iter())
            .map(|p| (p.first, p.count))
            .collect();
        assert_eq!(parts, [(0, 1), (1, 512), (513, 512)]);
    }

    #[test]
    fn zeros_stay_only_where_something_else_would_be_read() {
        let run = PageRun {
            start: 0,
            count: 3,
            content: PageContent::Zero,
        };
        assert_eq!(split([(&run, true)].into_iter()).count(), 0);
        assert_eq!(split([(&run, false)].into_iter()).count(), 1);
    }
}
