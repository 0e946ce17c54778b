//! Where the data of a page stand: from its frame number over the bitmap to its descriptor.
//!
//! A descriptor's place in the table is the page's *rank*, the number of pages in the dump before
//! it. One page costs a few cached words; of many ([`KdumpMemory::locate_all`]) the descriptors are
//! read in strides, past the cache and its locks.

use std::ops::Range;
use std::sync::OnceLock;

use super::super::codec::Codec;
use super::super::image::{Image, ImageError, PART_SHIFT};
use super::super::refusal::Refusal;
use super::super::split::Part;
use super::super::words::{u32_at, u64_at, words};
use super::super::{Missing, PAGE_SIZE, PageKind, PageState, ReadError};
use super::{DESC_SIZE, KdumpMemory, PFNS_PER_STRIDE, STRIDE};

const PAGE: usize = PAGE_SIZE as usize;
/// From one descriptor to the next that is wanted, at most, to read both at once: to copy so many
/// bytes costs less than another system call.
const MAX_GAP: u64 = 64 * DESC_SIZE;
/// Descriptors that are read at once, at most, in bytes.
const MAX_RUN: u64 = 1024 * DESC_SIZE;

/// A page's descriptor, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Stored {
    pub offset: u64,
    pub size: usize,
    pub codec: Codec,
}

/// What [`KdumpMemory::locate_all`] needs, to be kept from one call to the next.
#[derive(Default)]
pub(in super::super) struct Locator {
    rank: Rank,
    /// Pages that are in the dump: their descriptors' place, and index in the caller's list.
    wanted: Vec<(u64, usize)>,
    descriptors: Vec<u8>,
}

impl KdumpMemory {
    pub fn page_state(&self, image: &Image, pfn: u64) -> PageState {
        match self.locate_next(image, pfn) {
            Err(ReadError::Missing { why, .. }) => PageState::Missing(why),
            // Damaged pages are there; what is wrong is said on reading them.
            _ => PageState::Present,
        }
    }

    /// The state of a page, and of how many from it on, of `most` at most, it is the same.
    ///
    /// Of a dump that has all of its end the bitmap says it, and descriptors are not looked at: one
    /// that is damaged says so when its page is read.
    pub fn page_states(&self, image: &Image, pfn: u64, most: u64) -> (PageState, u64) {
        let whole = !self.is_truncated(image) && !image.is_cut();
        if whole && self.part_of(pfn).is_some() {
            let most = most.min(self.max_pfn - pfn);
            let set = self
                .bits(image, pfn)
                .map_or(0, |bits| set_from(bits, pfn, most));
            if set > 0 {
                return (PageState::Present, set);
            }
        }
        (self.page_state(image, pfn), 1)
    }

    /// The part of the second bitmap that a page's bit is in; it is kept.
    fn bits(&self, image: &Image, pfn: u64) -> Option<&[u8; STRIDE]> {
        let stride = usize::try_from(pfn / PFNS_PER_STRIDE).ok()?;
        let strides = || self.ranks.iter().map(|_| OnceLock::new()).collect();
        let kept = self.bits.get_or_init(strides).get(stride)?;
        if let Some(bits) = kept.get() {
            return Some(bits);
        }
        let mut bits = Box::new([0; STRIDE]);
        let at = self.dumped_bitmap + (stride * STRIDE) as u64;
        self.read_small(image, at, &mut bits[..]).ok()?;
        Some(kept.get_or_init(|| bits))
    }

    /// What the descriptor says of a page. `is_zeros` tells whether a stored page is zeros.
    ///
    /// makedumpfile and QEMU store one page of zeros, before all others, that every page of zeros
    /// shares.
    pub fn page_kind(
        &self,
        image: &Image,
        pfn: u64,
        is_zeros: impl FnOnce(Stored) -> bool,
    ) -> PageKind {
        match self.locate_next(image, pfn) {
            Ok(stored) => match self.part_of(pfn) {
                Some(part) if stored.offset == part.data() => {
                    match *part.zeros_first.get_or_init(|| is_zeros(stored)) {
                        true => PageKind::Zero,
                        false => PageKind::Stored,
                    }
                }
                _ => PageKind::Stored,
            },
            Err(ReadError::Missing { why, .. }) => PageKind::Missing(why),
            Err(_) => PageKind::Damaged,
        }
    }

    /// The next page frames from `from` on whose bits in the second bitmap are set; those in between
    /// are passed over without a look where a whole stride has none.
    pub fn next_dumped(&self, image: &Image, mut from: u64) -> Option<Range<u64>> {
        while from < self.max_pfn {
            let stride = (from / PFNS_PER_STRIDE) as usize;
            let behind = ((stride as u64 + 1) * PFNS_PER_STRIDE).min(self.max_pfn);
            let before = self.ranks[stride];
            if self.ranks.get(stride + 1).unwrap_or(&self.dumped) == &before {
                from = behind;
                continue;
            }
            let mut bits = [0; STRIDE];
            let at = self.dumped_bitmap + (stride * STRIDE) as u64;
            if self.read_small(image, at, &mut bits).is_err() {
                // Each of them says so when it is read.
                return Some(from..behind);
            }
            let is_set = |pfn: &u64| {
                let within = (pfn % PFNS_PER_STRIDE) as usize;
                bits[within / 8] >> (within % 8) & 1 != 0
            };
            if let Some(start) = (from..behind).find(is_set) {
                let end = (start..behind).find(|pfn| !is_set(pfn)).unwrap_or(behind);
                return Some(start..end);
            }
            from = behind;
        }
        None
    }

    /// [`KdumpMemory::locate`] for a page that is mostly the neighbour of the last.
    fn locate_next(&self, image: &Image, pfn: u64) -> Result<Stored, ReadError> {
        match self.last.try_lock() {
            Ok(mut rank) => self.locate(image, &mut rank, pfn),
            // Another thread asks too.
            Err(_) => self.locate(image, &mut Rank::default(), pfn),
        }
    }

    /// Where a page stands in the file. `rank` speeds up asking for one page after another.
    pub fn locate(&self, image: &Image, rank: &mut Rank, pfn: u64) -> Result<Stored, ReadError> {
        let at = self.descriptor_of(image, rank, pfn)?;
        let mut desc = [0; DESC_SIZE as usize];
        self.read_descriptor(image, at, pfn, &mut desc)?;
        self.check(image, pfn, at, &desc)
    }

    /// The same for many pages; calls `found` with each one's index in `pfns`, in no order.
    pub fn locate_all(
        &self,
        image: &Image,
        locator: &mut Locator,
        pfns: &[u64],
        mut found: impl FnMut(usize, Result<Stored, ReadError>),
    ) {
        let Locator {
            rank,
            wanted,
            descriptors,
        } = locator;
        wanted.clear();
        for (index, &pfn) in pfns.iter().enumerate() {
            match self.descriptor_of(image, rank, pfn) {
                Ok(at) => wanted.push((at, index)),
                Err(error) => found(index, Err(error)),
            }
        }
        wanted.sort_unstable();
        let mut rest = &wanted[..];
        while let Some(&(first, _)) = rest.first() {
            let mut last = first;
            let run = rest
                .iter()
                .take_while(|&&(at, _)| {
                    let near = at - last <= MAX_GAP && at - first < MAX_RUN;
                    last = if near { at } else { last };
                    near
                })
                .count();
            let (run, others) = rest.split_at(run);
            rest = others;
            let len = (last - first + DESC_SIZE) as usize;
            if descriptors.len() < len {
                descriptors.resize(len, 0);
            }
            let bytes = &mut descriptors[..len];
            let together = image.read_at(first, bytes).is_ok();
            for &(at, index) in run {
                let desc = &mut bytes[(at - first) as usize..][..DESC_SIZE as usize];
                // One that cannot be read must not cost its neighbours.
                let read = match together {
                    true => Ok(()),
                    false => self.read_descriptor(image, at, pfns[index], desc),
                };
                let stored = read.and_then(|()| self.check(image, pfns[index], at, desc));
                found(index, stored);
            }
        }
    }

    /// Where the page's descriptor stands in the file.
    fn descriptor_of(&self, image: &Image, rank: &mut Rank, pfn: u64) -> Result<u64, ReadError> {
        let index = self.rank_of(image, rank, pfn)?;
        // Under a number before the part's first, the bitmap was read anew and is not what it was.
        self.part_of(pfn)
            .and_then(|part| Some(part.descriptors + index.checked_sub(part.before)? * DESC_SIZE))
            .ok_or(ReadError::Missing {
                addr: pfn.saturating_mul(PAGE_SIZE),
                why: Missing::Truncated,
            })
    }

    fn part_of(&self, pfn: u64) -> Option<&Part> {
        let next = self.parts.partition_point(|part| part.pfns.end <= pfn);
        self.parts.get(next).filter(|part| part.pfns.contains(&pfn))
    }

    /// Pages in the dump before a page frame.
    pub(super) fn pages_before(&self, image: &Image, pfn: u64) -> Result<u64, Refusal> {
        if pfn >= self.max_pfn {
            return Ok(self.dumped);
        }
        let stride = pfn / PFNS_PER_STRIDE;
        let at = self.dumped_bitmap + stride * STRIDE as u64;
        let mut rank = Rank::default();
        self.read_small(image, at, &mut rank.bits)
            .map_err(|e| Refusal::unreadable("bitmap", at, e))?;
        rank.before = self.ranks[stride as usize];
        let word = (pfn % PFNS_PER_STRIDE / 64) as usize;
        let below = rank.word(word) & ((1 << (pfn % 64)) - 1);
        Ok(rank.before_word(word) + u64::from(below.count_ones()))
    }

    /// The page's place among those in the dump.
    fn rank_of(&self, image: &Image, rank: &mut Rank, pfn: u64) -> Result<u64, ReadError> {
        let addr = pfn.saturating_mul(PAGE_SIZE);
        let missing = |why| Err(ReadError::Missing { addr, why });
        if pfn >= self.max_pfn {
            return missing(Missing::NotRam);
        }
        let stride = pfn / PFNS_PER_STRIDE;
        let (word, bit) = ((pfn % PFNS_PER_STRIDE / 64) as usize, pfn % 64);
        if rank.stride != Some(stride) {
            rank.stride = None;
            let at = self.dumped_bitmap + stride * STRIDE as u64;
            self.read_small(image, at, &mut rank.bits)
                .map_err(|e| read_error(addr, at, e))?;
            rank.stride = Some(stride);
            rank.word = 0;
            rank.before = self.ranks[stride as usize];
        }
        let here = rank.word(word);
        if here >> bit & 1 == 0 {
            let at = self.ram_bitmap + pfn / 8;
            let mut byte = [0];
            self.read_small(image, at, &mut byte)
                .map_err(|e| read_error(addr, at, e))?;
            return missing(if byte[0] >> (pfn % 8) & 1 == 1 {
                Missing::Filtered
            } else {
                Missing::NotRam
            });
        }
        Ok(rank.before_word(word) + u64::from((here & ((1 << bit) - 1)).count_ones()))
    }

    fn read_descriptor(
        &self,
        image: &Image,
        at: u64,
        pfn: u64,
        desc: &mut [u8],
    ) -> Result<(), ReadError> {
        self.read_small(image, at, desc)
            .map_err(|e| read_error(pfn.saturating_mul(PAGE_SIZE), at, e))
    }

    /// Takes the descriptor of page `pfn`, which stands at `at`, apart.
    pub(super) fn check(
        &self,
        image: &Image,
        pfn: u64,
        at: u64,
        desc: &[u8],
    ) -> Result<Stored, ReadError> {
        let addr = pfn.saturating_mul(PAGE_SIZE);
        let Some(part) = self.part_of(pfn) else {
            return Err(ReadError::Missing {
                addr,
                why: Missing::Truncated,
            });
        };
        self.check_in(part, image, addr, at, desc)
    }

    /// The same, of a page that is in `part`.
    pub(super) fn check_in(
        &self,
        part: &Part,
        image: &Image,
        addr: u64,
        at: u64,
        desc: &[u8],
    ) -> Result<Stored, ReadError> {
        let (offset, size, flags) = (u64_at(desc, 0), u32_at(desc, 8), u32_at(desc, 12));
        // The bits above are the part's number; no file is as long.
        let offset = offset.min((1 << PART_SHIFT) - PAGE_SIZE);
        let corrupt = |what| {
            Err(ReadError::Corrupt {
                addr,
                offset: at,
                what,
            })
        };
        if desc.iter().all(|&b| b == 0) {
            // A page that makedumpfile had no space for, or lost before it reached the disk.
            return Err(ReadError::Missing {
                addr,
                why: Missing::Truncated,
            });
        }
        let Some(codec) = Codec::from_flags(flags) else {
            return corrupt(format!(
                "page_desc.flags {flags:#x} name no known compression"
            ));
        };
        if size == 0 || u64::from(size) > PAGE_SIZE {
            return corrupt(format!("page_desc.size is {size}, not 1 to {PAGE_SIZE}"));
        }
        if part.begin() + offset < part.data() {
            return corrupt(format!(
                "page_desc.offset {offset:#x} lies before the pages' data"
            ));
        }
        let offset = part.begin() + offset;
        if !image.has(offset, u64::from(size)) {
            return Err(ReadError::Missing {
                addr,
                why: Missing::Truncated,
            });
        }
        Ok(Stored {
            offset,
            size: size as usize,
            codec,
        })
    }

    /// Reads a few bytes of bitmap or descriptors through the cache; may cross blocks.
    fn read_small(&self, image: &Image, mut at: u64, mut buf: &mut [u8]) -> Result<(), ImageError> {
        while !buf.is_empty() {
            let inside = (at % PAGE_SIZE) as usize;
            let n = buf.len().min(PAGE - inside);
            let (head, rest) = buf.split_at_mut(n);
            if !self.blocks.get(at / PAGE_SIZE, inside, head) {
                self.read_block(image, at, head)?;
            }
            at += n as u64;
            buf = rest;
        }
        Ok(())
    }

    /// Takes the block that holds `at` into the cache, and `out` from it.
    #[cold]
    fn read_block(&self, image: &Image, at: u64, out: &mut [u8]) -> Result<(), ImageError> {
        let mut block = [0u8; PAGE];
        let inside = (at % PAGE_SIZE) as usize;
        match image.read_at(at - inside as u64, &mut block) {
            Ok(()) => {
                self.blocks.put(at / PAGE_SIZE, &block);
                out.copy_from_slice(&block[inside..inside + out.len()]);
                Ok(())
            }
            // The last block of a bitmap in a flattened file: zeros follow.
            Err(ImageError::Absent(_)) if at < self.bitmaps_end => image.read_padded(at, out),
            // The last block of the file is not whole.
            Err(ImageError::Absent(_)) => image.read_at(at, out),
            Err(e) => Err(e),
        }
    }
}

/// A stride of the second bitmap, and how many pages are before a word in it. For pages asked for
/// in ascending order, as guest memory mostly is, the counting goes on where it stopped.
#[derive(Debug)]
pub(in super::super) struct Rank {
    stride: Option<u64>,
    bits: [u8; STRIDE],
    /// Pages before `word`, from the begin of the dump.
    before: u64,
    word: usize,
}

impl Default for Rank {
    fn default() -> Self {
        Rank {
            stride: None,
            bits: [0; STRIDE],
            before: 0,
            word: 0,
        }
    }
}

impl Rank {
    fn word(&self, word: usize) -> u64 {
        u64_at(&self.bits, word * 8)
    }

    fn before_word(&mut self, word: usize) -> u64 {
        let ones = |bytes: &[u8]| words(bytes).map(|w| u64::from(w.count_ones())).sum::<u64>();
        if word >= self.word {
            self.before += ones(&self.bits[self.word * 8..word * 8]);
        } else {
            self.before -= ones(&self.bits[word * 8..self.word * 8]);
        }
        self.word = word;
        self.before
    }
}

/// How many bits of a stride are set from that of a page on, `most` at most.
fn set_from(bits: &[u8; STRIDE], pfn: u64, most: u64) -> u64 {
    let first = pfn % PFNS_PER_STRIDE;
    let most = most.min(PFNS_PER_STRIDE - first);
    let mut count = 0;
    while count < most {
        let at = first + count;
        let word = u64_at(bits, (at / 64) as usize * 8) >> (at % 64);
        let ones = u64::from(word.trailing_ones());
        count += ones;
        if ones < 64 - at % 64 {
            break;
        }
    }
    count.min(most)
}

fn read_error(addr: u64, offset: u64, error: ImageError) -> ReadError {
    match error {
        ImageError::Absent(_) => ReadError::Missing {
            addr,
            why: Missing::Truncated,
        },
        ImageError::Io(e) => ReadError::Io {
            addr,
            offset,
            source: e.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_from_any_on_over_words() {
        let mut bits = [0xff; STRIDE];
        bits[20] = 0b1110_1111;
        for (pfn, most, count) in [
            (0, 1, 1),
            (0, u64::MAX, 164),
            (3, 200, 161),
            (63, 2, 2),
            (164, 9, 0),
            (165, u64::MAX, PFNS_PER_STRIDE - 165),
            (PFNS_PER_STRIDE + 160, 100, 4),
        ] {
            assert_eq!(set_from(&bits, pfn, most), count, "{pfn} {most}");
        }
    }
}
