//! Pages straight out of a dump.

use crate::dataset::{Packing, PageContent, PageRun, PageSource, PageSourceError, PlainPages};
use crate::dump::codec::{Codec, Decoder};
use crate::dump::{Dump, PAGE_SIZE, PhysicalMemory};
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    /// A decoder of swapped pages holds buffers that are made once.
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new());
}

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
    fn still_whole(&self) -> Result<(), String> {
        self.dump.still_whole()
    }

    fn plain(&self, run: &PageRun, first: u64) -> Option<PlainPages<'_>> {
        let PageContent::Frame(frame) = run.content else {
            return None;
        };
        let (file, offset, count) = self.dump.plain(frame.checked_add(first)?)?;
        Some(PlainPages {
            file,
            offset,
            count: count.min(run.count.checked_sub(first)?),
        })
    }

    fn set_in_use(&self, frames: &[std::ops::Range<u64>]) {
        self.dump.set_in_use(frames.iter().cloned());
    }

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
            PageContent::Filled(word) => {
                for to in out.chunks_exact_mut(8) {
                    to.copy_from_slice(&word.to_ne_bytes());
                }
                return Ok(());
            }
            PageContent::Packed { by, len, at, rest } => {
                if (first, count) != (0, 1) {
                    return Err(fail(first, "a compressed page is alone in its run".into()));
                }
                return unpack(&*self.dump, by, len, at, rest, out).map_err(|why| fail(0, why));
            }
            PageContent::InPlace(_) => {
                return Err(fail(first, "it is used where it lies, and not read".into()));
            }
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
            PageContent::OutOfReach => {
                return Err(fail(first, "it was swapped out, out of reach".into()));
            }
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

/// Decodes a page that zram or zswap had compressed.
fn unpack(
    memory: &dyn PhysicalMemory,
    by: Packing,
    len: u16,
    at: u64,
    rest: u64,
    page: &mut [u8],
) -> Result<(), String> {
    let len = usize::from(len);
    let mut stored = [0; PAGE_SIZE as usize];
    let stored = stored
        .get_mut(..len)
        .ok_or_else(|| format!("{len} compressed bytes"))?;
    // Not more than is there on its page.
    let here = usize::try_from(PAGE_SIZE - at % PAGE_SIZE)
        .unwrap_or(0)
        .min(len);
    let (head, tail) = stored.split_at_mut(here);
    let read = |address, to: &mut [u8]| {
        memory
            .read_physical(address, to)
            .map_err(|e| format!("the {len} bytes that it was compressed to: {e}"))
    };
    read(at, head)?;
    if !tail.is_empty() {
        read(rest, tail)?;
    }
    let codec = match by {
        Packing::Raw => Codec::Raw,
        Packing::Lzo => Codec::KernelLzo,
        Packing::Lz4 => Codec::Lz4,
        Packing::Zstd => Codec::Zstd,
        Packing::Deflate => Codec::Deflate,
    };
    DECODER.with(|decoder| match decoder.try_borrow_mut() {
        Ok(mut decoder) => decoder.decode(codec, stored, page),
        Err(e) => Err(e.to_string()),
    })
}
