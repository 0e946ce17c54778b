//! The bytes of a stretch of a store.

use super::board::{Order, PAGE, Store};
use crate::dataset::{PageRun, PageSource, PageSourceError};

/// Reads what an order is for: `count` pages of the store from `first` on, zeros where it has none.
///
/// # Errors
/// A page that cannot be read.
pub fn read(
    runs: &[PageRun],
    start: u64,
    order: &Order,
    pages: &dyn PageSource,
    buffer: &mut Vec<u8>,
) -> Result<(), PageSourceError> {
    let len = usize::try_from(order.count * PAGE).unwrap_or(0);
    buffer.clear();
    buffer.resize(len, 0);
    let begin = start + order.first * PAGE;
    let end = begin + order.count * PAGE;
    let from = runs.partition_point(|run| run.start + run.count.saturating_mul(PAGE) <= begin);
    for run in runs.get(from..).unwrap_or_default() {
        if run.start >= end {
            break;
        }
        let low = run.start.max(begin);
        let high = (run.start + run.count * PAGE).min(end);
        let part = usize::try_from(low - begin).unwrap_or(usize::MAX)
            ..usize::try_from(high - begin).unwrap_or(0);
        if let Some(part) = buffer.get_mut(part) {
            let (first, count) = ((low - run.start) / PAGE, (high - low) / PAGE);
            pages.read_pages(run, first, count, part)?;
        }
    }
    Ok(())
}

/// What [`read`] needs of a store, to be used when the board is no longer locked.
pub fn place<'d>(store: &Store<'d>) -> (&'d [PageRun], u64) {
    (store.runs, store.start)
}
