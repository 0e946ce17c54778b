//! kdump-compressed dumps: makedumpfile -c/-l/-p/-z and QEMU's kdump-zlib and kin.
//!
//! In blocks of 4096 bytes: header, sub-header, bitmap of the pages that are memory, bitmap of the
//! pages that are in the dump, then one descriptor for each of the latter in their order, then the
//! pages' data. The bitmaps and descriptors stay in the file: a rank (the number of pages before)
//! is kept for each 512 bytes of bitmap, so the index of a 1 TiB dump takes 512 KiB of memory.
//!
//! makedumpfile diskdump_mod.h and IMPLEMENTATION; QEMU include/sysemu/dump.h.

mod locate;

use std::ops::Range;
use std::sync::{Mutex, OnceLock};

use super::image::{Image, PART_SHIFT};
use super::kdump_headers::{Headers, read_area};
use super::notes::{Notes, vmcoreinfo_text};
use super::page_cache::PageCache;
use super::refusal::Refusal;
use super::split::{Part, arrange, gaps};
use super::words::{u64_at, words};
use super::{PAGE_SIZE, PageCounts, ReadError};
pub(super) use locate::{Locator, Rank, Stored};

/// Bytes of bitmap that share a rank.
const STRIDE: usize = 512;
/// Page frames that share a rank: 16 MiB of memory.
const PFNS_PER_STRIDE: u64 = STRIDE as u64 * 8;
/// `page_desc`: offset u64, size u32, flags u32, page_flags u64.
pub(super) const DESC_SIZE: u64 = 24;

/// A stride of the second bitmap, once it was read.
type Bits = OnceLock<Box<[u8; STRIDE]>>;

/// The memory of a kdump-compressed dump.
#[derive(Debug)]
pub(super) struct KdumpMemory {
    /// Where the first and the second bitmap stand.
    ram_bitmap: u64,
    dumped_bitmap: u64,
    bitmaps_end: u64,
    /// Where the descriptors stand, in the order of their page frames.
    parts: Vec<Part>,
    max_pfn: u64,
    /// For each stride of the second bitmap, the number of pages in the strides before it.
    ranks: Vec<u64>,
    /// Pages in the second bitmap, and pages in the first alone.
    dumped: u64,
    filtered: u64,
    /// Blocks of bitmaps and descriptors, by their number in the file: 8 MiB at most, which hold the
    /// descriptors of 1.4 GB of memory.
    blocks: PageCache,
    /// The second bitmap, by strides, so far as ranges of pages were asked about: a 32 768th of the
    /// memory at most.
    bits: OnceLock<Vec<Bits>>,
    /// Pages at the end are beyond the end of the file, once that was asked.
    truncated: OnceLock<bool>,
    /// Where the last question for a page's state was, for the next is mostly for its neighbour.
    last: Mutex<Rank>,
}

impl KdumpMemory {
    /// Opens a dump of `sources` files.
    pub fn open(image: &Image, sources: usize) -> Result<(KdumpMemory, Headers, Notes), Refusal> {
        let mut all = Vec::with_capacity(sources);
        let mut notes: Option<Notes> = None;
        for source in 0..sources {
            let begin = Image::part_begin(source);
            let (headers, its_notes) =
                open_one(image, begin).map_err(|refusal| refusal.in_part(source))?;
            if let Some(notes) = &notes
                && notes.vmcoreinfo != its_notes.vmcoreinfo
            {
                let what = "belongs to another crash than {}: its VMCOREINFO differs";
                return Err(Refusal::part(source, Some(0), what));
            }
            notes.get_or_insert(its_notes);
            all.push(headers);
        }
        let mut parts = arrange(&all)?;
        let headers = all.swap_remove(0);
        let mut memory = KdumpMemory::rank(image, 0, &headers)?;
        for source in 1..sources {
            let other = KdumpMemory::rank(image, source, &headers)
                .map_err(|refusal| refusal.in_part(source))?;
            if other.ranks != memory.ranks || other.dumped != memory.dumped {
                let what = "belongs to another dump than {}: its bitmap differs";
                return Err(Refusal::part(source, Some(0), what));
            }
        }
        for part in &mut parts {
            part.before = memory.pages_before(image, part.pfns.start)?;
            part.pages = memory.pages_before(image, part.pfns.end)? - part.before;
        }
        memory.parts = parts;
        Ok((memory, headers, notes.unwrap_or_default()))
    }

    /// Page frames of parts that were not given.
    pub fn gaps(&self) -> Vec<Range<u64>> {
        gaps(&self.parts, self.max_pfn)
    }

    /// The page frames of the only part of a split dump, and the number of all.
    pub fn lone_part(&self) -> Option<(Range<u64>, u64)> {
        match &self.parts[..] {
            [part] if part.pfns != (0..self.max_pfn) => Some((part.pfns.clone(), self.max_pfn)),
            _ => None,
        }
    }

    /// The file that the parts before and behind a gap are in.
    pub fn around(&self, gap: &Range<u64>) -> (Option<usize>, Option<usize>) {
        let before = self.parts.iter().rfind(|part| part.pfns.end <= gap.start);
        let behind = self.parts.iter().find(|part| part.pfns.start >= gap.end);
        (before.map(|p| p.source), behind.map(|p| p.source))
    }

    /// Goes over both bitmaps once.
    fn rank(image: &Image, source: usize, headers: &Headers) -> Result<KdumpMemory, Refusal> {
        const CHUNK: usize = 64 << 10;
        let half = headers.bitmap_blocks / 2 * PAGE_SIZE;
        let ram_bitmap = Image::part_begin(source) + headers.bitmap;
        let mut memory = KdumpMemory {
            ram_bitmap,
            dumped_bitmap: ram_bitmap + half,
            bitmaps_end: ram_bitmap + 2 * half,
            parts: Vec::new(),
            max_pfn: headers.max_pfn,
            ranks: Vec::new(),
            dumped: 0,
            filtered: 0,
            blocks: PageCache::new(8),
            bits: OnceLock::new(),
            truncated: OnceLock::new(),
            last: Mutex::default(),
        };
        let len = memory.max_pfn.div_ceil(8).next_multiple_of(PAGE_SIZE);
        // makedumpfile -F writes a bitmap only up to its last byte that is used, and leaves the rest
        // of the block out: 32 763 bytes for 262 104 pages (1.7.2, kernel 6.1, 1 GiB).
        let used = memory.max_pfn.div_ceil(8);
        for bitmap in [memory.ram_bitmap, memory.dumped_bitmap] {
            if !image.has(bitmap, used) {
                let problem = format!(
                    "has {used} bytes, not all of which are in the file of {} (cut short?)",
                    image.len()
                );
                return Err(Refusal::damaged("bitmap", "", bitmap, problem));
            }
        }
        memory
            .ranks
            .reserve_exact(memory.max_pfn.div_ceil(PFNS_PER_STRIDE) as usize);
        let (mut ram, mut dumped) = (vec![0u8; CHUNK], vec![0u8; CHUNK]);
        for start in (0..len).step_by(CHUNK) {
            let n = (len - start).min(CHUNK as u64) as usize;
            for (bitmap, bytes) in [
                (memory.ram_bitmap, &mut ram),
                (memory.dumped_bitmap, &mut dumped),
            ] {
                let at = bitmap + start;
                image
                    .read_padded(at, &mut bytes[..n])
                    .map_err(|e| Refusal::unreadable("bitmap", at, e))?;
            }
            let pfns = memory.max_pfn - start * 8;
            for (index, (ram, dumped)) in words(&ram).zip(words(&dumped)).enumerate() {
                if index % (STRIDE / 8) == 0 {
                    memory.ranks.push(memory.dumped);
                }
                let mask = match pfns.saturating_sub(index as u64 * 64) {
                    0 => break,
                    pfns @ 1..64 => (1 << pfns) - 1,
                    _ => u64::MAX,
                };
                memory.dumped += u64::from((dumped & mask).count_ones());
                memory.filtered += u64::from((ram & !dumped & mask).count_ones());
            }
        }
        Ok(memory)
    }

    pub fn max_pfn(&self) -> u64 {
        self.max_pfn
    }

    /// Whether pages at the end are beyond the end of the file.
    pub fn is_truncated(&self, image: &Image) -> bool {
        *self
            .truncated
            .get_or_init(|| self.count_truncated(image, 0) > 0)
    }

    pub fn page_counts(&self, image: &Image) -> PageCounts {
        let truncated = self.count_truncated(image, u64::MAX);
        PageCounts {
            present: self.dumped - truncated,
            filtered: self.filtered,
            not_ram: self.max_pfn - self.dumped - self.filtered,
            truncated,
        }
    }

    /// Counts pages beyond the end of their file and in parts that are missing, until there are more
    /// than `enough`.
    fn count_truncated(&self, image: &Image, enough: u64) -> u64 {
        let given: u64 = self.parts.iter().map(|part| part.pages).sum();
        let mut truncated = self.dumped - given;
        for part in &self.parts {
            if truncated > enough {
                break;
            }
            truncated += self.count_cut(image, part, enough - truncated);
        }
        truncated
    }

    /// Counts a part's pages beyond the end of its file, until there are more than `enough`.
    ///
    /// Data stand in the order of the pages (but for the one page that all zero pages share), so
    /// what a cut takes away is at the end: descriptors are gone over from the last backwards until
    /// a chunk of them is whole and has data of its own.
    fn count_cut(&self, image: &Image, part: &Part, enough: u64) -> u64 {
        const CHUNK: u64 = 4096;
        let mut bytes = vec![0; (CHUNK * DESC_SIZE) as usize];
        let table = image.readable(part.descriptors, part.pages * DESC_SIZE);
        let table_end = table.last().map_or(part.descriptors, |(at, len)| at + len);
        let mut end = (table_end - part.descriptors) / DESC_SIZE;
        let mut truncated = part.pages - end;
        while end > 0 && truncated <= enough {
            let start = end.saturating_sub(CHUNK);
            let at = part.descriptors + start * DESC_SIZE;
            let bytes = &mut bytes[..((end - start) * DESC_SIZE) as usize];
            // Descriptors that are gone stay zero, and count as truncated.
            bytes.fill(0);
            for (offset, len) in image.readable(at, bytes.len() as u64) {
                let inside = (offset - at) as usize;
                if image
                    .read_at(offset, &mut bytes[inside..inside + len as usize])
                    .is_err()
                {
                    bytes[inside..inside + len as usize].fill(0);
                }
            }
            let before = truncated;
            let mut offsets = (u64::MAX, 0);
            for desc in bytes.chunks_exact(DESC_SIZE as usize) {
                if let Err(ReadError::Missing { .. }) = self.check_in(part, image, 0, 0, desc) {
                    truncated += 1;
                }
                let offset = u64_at(desc, 0);
                offsets = (offsets.0.min(offset), offsets.1.max(offset));
            }
            if truncated == before && offsets.0 < offsets.1 {
                break;
            }
            end = start;
        }
        truncated
    }
}

/// Headers and notes of one file.
fn open_one(image: &Image, begin: u64) -> Result<(Headers, Notes), Refusal> {
    let headers = Headers::read(image, begin)?;
    let area = |(offset, size): (u64, u64), field| {
        let offset = offset.min((1 << PART_SHIFT) - 1);
        read_area(image, (begin + offset, size), field)
    };
    let mut notes = Notes::parse(&area(headers.notes, "offset_note")?);
    if notes.xen {
        return Err(Refusal::unsupported(
            "a dump of a machine under Xen",
            "dumps of Linux on real hardware or under KVM are read",
        ));
    }
    if headers.vmcoreinfo.1 > 0 {
        let text = area(headers.vmcoreinfo, "offset_vmcoreinfo")?;
        notes.vmcoreinfo = Some(vmcoreinfo_text(&text)).filter(|text| !text.is_empty());
    }
    Ok((headers, notes))
}
