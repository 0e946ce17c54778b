//! The parts of a dump that makedumpfile --split wrote: which page frames are in which of them.
//!
//! Each part has headers, notes and *both* bitmaps of the whole dump, and descriptors and data of
//! its own page frames alone, `start_pfn..end_pfn` of its sub-header. makedumpfile puts nearly
//! everything into the first part unless it is told `--splitblock-size`; the last parts may then be
//! empty. makedumpfile.c, `writeout_multiple_dumpfiles`; diskdump_mod.h.

use std::ops::Range;
use std::sync::OnceLock;

use super::image::Image;
use super::kdump::DESC_SIZE;
use super::kdump_headers::Headers;
use super::refusal::Refusal;

/// Page frames whose descriptors stand together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which source of the image.
    pub source: usize,
    pub pfns: Range<u64>,
    /// Where its descriptors stand in the image.
    pub descriptors: u64,
    /// Pages in the dump before the first of this part, and in this part.
    pub before: u64,
    pub pages: u64,
    /// Whether its first stored page is zeros, once that was asked.
    pub zeros_first: OnceLock<bool>,
}

impl Part {
    /// Where its first page's data stand in the image: right behind the descriptors.
    pub fn data(&self) -> u64 {
        self.descriptors
            .saturating_add(self.pages.saturating_mul(DESC_SIZE))
    }

    /// The offset of its file's first byte in the image.
    pub fn begin(&self) -> u64 {
        Image::part_begin(self.source)
    }
}

/// The parts in the order of their page frames, those without pages too. Parts that are missing
/// leave gaps.
pub(super) fn arrange(headers: &[Headers]) -> Result<Vec<Part>, Refusal> {
    let mut parts = Vec::with_capacity(headers.len());
    for (source, header) in headers.iter().enumerate() {
        let pfns = match &header.split {
            Some(pfns) => pfns.clone(),
            None if headers.len() == 1 => 0..header.max_pfn,
            None => {
                return Err(Refusal::part(
                    source,
                    None,
                    "is a whole dump and no part of a split one",
                ));
            }
        };
        if let Some(differs) = headers[0].difference(header) {
            return Err(Refusal::part(
                source,
                Some(0),
                format!("belongs to another dump than {{}}: {differs} differs"),
            ));
        }
        parts.push(Part {
            source,
            pfns,
            descriptors: Image::part_begin(source) + header.descriptors(),
            before: 0,
            pages: 0,
            zeros_first: OnceLock::new(),
        });
    }
    parts.sort_by_key(|part| (part.pfns.start, part.pfns.end));
    for pair in parts.windows(2) {
        let [a, b] = pair else { continue };
        if a.pfns == b.pfns && !a.pfns.is_empty() {
            return Err(Refusal::part(
                b.source,
                Some(a.source),
                "is the same part as {}",
            ));
        }
        if a.pfns.end > b.pfns.start {
            let what = format!(
                "holds page frames {:#x} to {:#x}, some of which are in {{}} too: they come from two ways to split the dump",
                b.pfns.start, b.pfns.end
            );
            return Err(Refusal::part(b.source, Some(a.source), what));
        }
    }
    Ok(parts)
}

/// The page frames that no part holds.
pub(super) fn gaps(parts: &[Part], max_pfn: u64) -> Vec<Range<u64>> {
    let mut next = 0;
    let mut gaps = Vec::new();
    for part in parts {
        if part.pfns.start > next {
            gaps.push(next..part.pfns.start);
        }
        next = next.max(part.pfns.end);
    }
    if next < max_pfn {
        gaps.push(next..max_pfn);
    }
    gaps
}
