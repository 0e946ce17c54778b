//! A dump against the truth, page by page, and against drgn.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use vmrestore::dump::{Dump, Missing, PAGE_SIZE, PageState, PhysicalMemory, ReadError};

use crate::drgn::Drgn;
use crate::truth::{PAGE, Truth};

/// Pages compared at once.
const BATCH: u64 = 4096;

/// Which page frames a dump holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Held(Vec<bool>);

impl Held {
    pub fn count(&self) -> usize {
        self.0.iter().filter(|held| **held).count()
    }

    /// Frames that `other` holds and this does not.
    pub fn lacks<'a>(&'a self, other: &'a Held) -> impl Iterator<Item = u64> + 'a {
        let frames = (0..).zip(&other.0);
        frames
            .filter(|(pfn, held)| **held && !self.0.get(*pfn as usize).unwrap_or(&false))
            .map(|(pfn, _)| pfn)
    }

    /// Runs of neighbours with the same answer, at most [`BATCH`] long: (first, count, held).
    fn runs(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        let mut runs: Vec<(u64, u64, bool)> = Vec::new();
        for (pfn, &held) in (0..).zip(&self.0) {
            match runs.last_mut() {
                Some((_, count, same)) if *same == held && *count < BATCH => *count += 1,
                _ => runs.push((pfn, 1, held)),
            }
        }
        runs.into_iter()
    }
}

/// What `filtered` pages may have been.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// None may be missing.
    Nothing,
    /// Pages of zeros.
    Zeros,
    /// What the level says.
    Anything,
}

/// Every page that `dump` holds is what the machine had, every other is missing with the reason
/// that it should have, and reads as an error. Returns what it holds.
pub fn with_truth(dump: &Dump, truth: &Truth, left_out: LeftOut) -> Result<Held> {
    let frames = truth.max_pfn();
    ensure!(
        dump.max_pfn() >= frames,
        "ends at page frame {:#x} and not at {frames:#x}",
        dump.max_pfn()
    );
    let mut held = Vec::new();
    for pfn in 0..dump.max_pfn() {
        match dump.page_state(pfn) {
            PageState::Present => ensure!(truth.has(pfn), "page frame {pfn:#x} was never there"),
            PageState::Missing(Missing::NotRam) => {
                ensure!(!truth.has(pfn), "page frame {pfn:#x} was there");
            }
            PageState::Missing(Missing::Filtered) => match left_out {
                LeftOut::Nothing => bail!("page frame {pfn:#x} is left out"),
                LeftOut::Anything => ensure!(truth.has(pfn), "{pfn:#x} was never there"),
                LeftOut::Zeros => {
                    let mut page = [1; PAGE];
                    truth.read(pfn, &mut page)?;
                    ensure!(page == [0; PAGE], "page frame {pfn:#x} is left out");
                }
            },
            PageState::Missing(why) => bail!("page frame {pfn:#x} is missing: {why:?}"),
        }
        held.push(dump.page_state(pfn) == PageState::Present);
    }
    let held = Held(held);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (first, count, held) in held.runs() {
        if !held {
            // Absent is not zero, whichever way it is read.
            let mut word = [0; 8];
            let read = dump.read_physical((first + count / 2) * PAGE_SIZE, &mut word);
            let missing = matches!(read, Err(ReadError::Missing { .. }));
            // Low memory ends within a page, whose first bytes can be read.
            ensure!(missing || count == 1, "{first:#x}: {read:?}");
            continue;
        }
        read_ours(dump, first, count, &mut ours)?;
        theirs.resize(ours.len(), 0);
        truth.read(first, &mut theirs)?;
        same(first, &ours, &theirs, "the machine had")?;
    }
    Ok(held)
}

/// Every page that the dump holds reads the same in drgn; and what it does not hold, drgn does not
/// read either, where `excluded_fails` (in ELF dumps it takes them for zeros).
pub fn with_drgn(
    python: &Path,
    file: &Path,
    dump: &Dump,
    held: &Held,
    excluded_fails: bool,
) -> Result<()> {
    let mut drgn = Drgn::open(python, file)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (first, count, held) in held.runs() {
        if !held {
            if excluded_fails {
                let readable = drgn.readable(first, count)?;
                ensure!(
                    readable == 0,
                    "drgn reads {readable} of {count} pages from {first:#x} on that are not there"
                );
            }
            continue;
        }
        read_ours(dump, first, count, &mut ours)?;
        theirs.resize(ours.len(), 0);
        drgn.read(first, &mut theirs)?;
        same(first, &ours, &theirs, "drgn reads")?;
    }
    Ok(())
}

fn read_ours(dump: &Dump, first: u64, count: u64, out: &mut Vec<u8>) -> Result<()> {
    let pfns: Vec<u64> = (first..first + count).collect();
    out.resize(pfns.len() * PAGE, 0xa5);
    if let Some(failure) = dump.read_pages(&pfns, out).into_iter().next() {
        return Err(failure.error.into());
    }
    Ok(())
}

fn same(first: u64, ours: &[u8], theirs: &[u8], who: &str) -> Result<()> {
    if let Some(at) = (ours != theirs).then(|| ours.iter().zip(theirs).position(|(a, b)| a != b)) {
        let at = at.unwrap_or(0);
        bail!(
            "physical address {:#x}: vmrestore reads {:02x}, {who} {:02x}",
            first * PAGE_SIZE + at as u64,
            ours[at],
            theirs[at]
        );
    }
    Ok(())
}
