//! What a dataset from a directory must fulfil before anybody works with it:
//! its page runs are in order, and lead into the memory file.

use super::PAGE;
use crate::dataset::{Dataset, PageContent, PageRun};

/// Checks every page run. `pages`: of the memory file, with its header.
///
/// # Errors
/// What is wrong with the first bad one.
pub(super) fn check(dataset: &Dataset, pages: u64) -> Result<(), String> {
    for process in &dataset.processes {
        for vma in &process.mm.vmas {
            runs(&vma.pages, pages).map_err(|why| {
                format!("memory of pid {} at {:#x}: {why}", process.pid, vma.start)
            })?;
        }
    }
    for memory in &dataset.shared_memory {
        runs(&memory.pages, pages)
            .map_err(|why| format!("shared memory {:?}: {why}", memory.name))?;
    }
    for inode in &dataset.inodes {
        runs(&inode.dirty, pages)
            .and_then(|()| runs(&inode.uncommitted, pages))
            .map_err(|why| format!("pages of {}: {why}", inode.path))?;
    }
    Ok(())
}

fn runs(runs: &[PageRun], pages: u64) -> Result<(), String> {
    let mut free = 0;
    for run in runs {
        let what = || format!("the run of {} pages at {:#x}", run.count, run.start);
        let end = run
            .count
            .checked_mul(PAGE)
            .and_then(|len| run.start.checked_add(len));
        match end {
            Some(end) if run.start >= free && run.start % PAGE == 0 && run.count > 0 => free = end,
            _ => return Err(format!("{} is not one, or out of order", what())),
        }
        let kept = match run.content {
            PageContent::Zero => true,
            PageContent::Stored(at) => {
                let first = at / PAGE;
                let behind = first.checked_add(run.count);
                at % PAGE == 0 && first > 0 && behind.is_some_and(|behind| behind <= pages)
            }
            _ => false,
        };
        if !kept {
            return Err(format!("{} is not in the memory file", what()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_lead_into_the_file() {
        let run = |start, count, content| PageRun {
            start,
            count,
            content,
        };
        let stored = PageContent::Stored;
        let good = [run(0, 2, stored(0x1000)), run(0x4000, 1, PageContent::Zero)];
        assert_eq!(runs(&good, 3), Ok(()));
        assert!(runs(&good, 2).is_err(), "the file is cut");
        for bad in [
            run(0, 0, stored(0x1000)),
            run(0, u64::MAX, stored(0x1000)),
            run(0x800, 1, stored(0x1000)),
            run(0, 1, stored(0)),
            run(0, 1, stored(0x1001)),
            run(0, 1, stored(u64::MAX)),
            run(0, 1, PageContent::Frame(1)),
        ] {
            assert!(runs(&[bad], 9).is_err(), "{bad:?}");
        }
        let twice = [
            run(0, 2, PageContent::Zero),
            run(0x1000, 1, PageContent::Zero),
        ];
        assert!(runs(&twice, 9).is_err());
    }
}
