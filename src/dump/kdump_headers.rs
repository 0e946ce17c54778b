//! The two headers of a kdump-compressed dump, and the areas of notes that the second points to.

use std::ops::Range;

use super::PAGE_SIZE;
use super::codec::Codec;
use super::image::Image;
use super::notes::MAX_NOTES_SIZE;
use super::refusal::Refusal;
use super::words::{u32_at, u64_at};

/// 128 TiB of memory, twice what a 4-level kernel can have; bounds the index at 64 MiB.
const MAX_PFNS: u64 = 1 << 35;
/// `DUMP_DH_COMPRESSED_INCOMPLETE` in `disk_dump_header.status`: makedumpfile ran out of space.
const STATUS_INCOMPLETE: u32 = 0x8;
/// The newest version that is known: the one with 64-bit page frame numbers.
const NEWEST_VERSION: i32 = 6;

const HEADER: &str = "disk_dump_header";
const SUB_HEADER: &str = "kdump_sub_header";

/// What the two headers say, as far as it is used.
#[derive(Debug)]
pub(super) struct Headers {
    pub status: u32,
    pub dump_level: Option<u32>,
    pub bitmap: u64,
    pub bitmap_blocks: u64,
    pub max_pfn: u64,
    /// The page frames that are in this file, when it is one part of a split dump.
    pub split: Option<Range<u64>>,
    /// `utsname`: six strings of 65 bytes.
    utsname: Vec<u8>,
    pub vmcoreinfo: (u64, u64),
    pub notes: (u64, u64),
}

impl Headers {
    /// Reads the headers of the file that begins at `begin` of the image; offsets in what is
    /// returned count from there.
    pub fn read(image: &Image, begin: u64) -> Result<Headers, Refusal> {
        // `disk_dump_header` up to `nr_cpus`, 464 bytes of the first block.
        let mut header = [0u8; 464];
        image
            .read_padded(begin, &mut header)
            .map_err(|e| Refusal::unreadable(HEADER, 0, e))?;
        // utsname.machine, the fifth of six strings of 65 bytes.
        let machine = header[272..337]
            .split(|&b| b == 0)
            .next()
            .unwrap_or_default();
        if machine != b"x86_64" && !machine.is_empty() {
            return Err(Refusal::unsupported(
                format!(
                    "a kdump of another architecture ({})",
                    String::from_utf8_lossy(machine).escape_debug()
                ),
                "dumps of 64-bit x86 Linux are read (docs/dump-formats.md)",
            ));
        }
        let version = u32_at(&header, 8).cast_signed();
        if version > NEWEST_VERSION && version < 0x100 {
            return Err(Refusal::unsupported(
                format!("a kdump-compressed dump with header version {version}"),
                "versions 1 to 6 are known; `makedumpfile` of the crashed host's distribution can convert it",
            ));
        }
        if !(1..=NEWEST_VERSION).contains(&version) {
            return Err(Refusal::damaged(
                HEADER,
                "header_version",
                8,
                format!("is {version}, not 1 to 6"),
            ));
        }
        let block_size = u32_at(&header, 428);
        if u64::from(block_size) != PAGE_SIZE {
            let problem = format!("is {block_size}; x86-64 has pages of {PAGE_SIZE} bytes");
            return Err(Refusal::damaged(HEADER, "block_size", 428, problem));
        }
        let sub_blocks = u64::from(u32_at(&header, 432));
        if sub_blocks == 0 {
            return Err(Refusal::damaged(
                HEADER,
                "sub_hdr_size",
                432,
                "is 0, so there is no sub-header",
            ));
        }
        let bitmap = (1 + sub_blocks) * PAGE_SIZE;
        let bitmap_blocks = u64::from(u32_at(&header, 436));

        let mut sub = [0u8; 104];
        image
            .read_padded(begin + PAGE_SIZE, &mut sub)
            .map_err(|e| Refusal::unreadable(SUB_HEADER, PAGE_SIZE, e))?;
        let since = |since: i32, at: usize| {
            if version >= since {
                u64_at(&sub, at)
            } else {
                0
            }
        };
        let max_pfn = match version {
            6.. => u64_at(&sub, 96),
            _ => u64::from(u32_at(&header, 440)),
        };
        if max_pfn == 0 || max_pfn > MAX_PFNS {
            let problem = format!("is {max_pfn} pages, not 1 to {MAX_PFNS}");
            return Err(Refusal::damaged(
                SUB_HEADER,
                "max_mapnr",
                PAGE_SIZE,
                problem,
            ));
        }
        if bitmap_blocks % 2 != 0 || bitmap_blocks / 2 * PAGE_SIZE * 8 < max_pfn {
            let problem =
                format!("is {bitmap_blocks}, too few or odd for two bitmaps of {max_pfn} pages");
            return Err(Refusal::damaged(HEADER, "bitmap_blocks", 436, problem));
        }
        let split = match (version >= 2 && u32_at(&sub, 12) != 0, version) {
            (false, _) => None,
            (true, 6..) => Some(u64_at(&sub, 80)..u64_at(&sub, 88)),
            (true, _) => Some(u64_at(&sub, 16)..u64_at(&sub, 24)),
        };
        if let Some(pfns) = &split
            && (pfns.start > pfns.end || pfns.end > max_pfn)
        {
            let problem = format!(
                "is {:#x} and end_pfn {:#x}, with {max_pfn:#x} page frames in all",
                pfns.start, pfns.end
            );
            return Err(Refusal::damaged(
                SUB_HEADER,
                "start_pfn",
                PAGE_SIZE,
                problem,
            ));
        }
        Ok(Headers {
            status: u32_at(&header, 424),
            dump_level: Some(u32_at(&sub, 8)),
            bitmap,
            bitmap_blocks,
            max_pfn,
            split,
            utsname: header[12..12 + 6 * 65].to_vec(),
            vmcoreinfo: (since(3, 32), since(3, 40)),
            notes: (since(4, 48), since(4, 56)),
        })
    }

    /// Offset of the page descriptors.
    pub fn descriptors(&self) -> u64 {
        self.bitmap + self.bitmap_blocks * PAGE_SIZE
    }

    /// What tells that two files are not parts of one dump.
    pub fn difference(&self, other: &Headers) -> Option<&'static str> {
        if self.utsname != other.utsname {
            Some("the kernel (utsname)")
        } else if self.max_pfn != other.max_pfn || self.bitmap_blocks != other.bitmap_blocks {
            Some("the size of memory (max_mapnr)")
        } else if self.dump_level != other.dump_level {
            Some("the dump level")
        } else {
            None
        }
    }

    /// What the header says of the compression; single pages may differ.
    pub fn codec(&self) -> Option<Codec> {
        Codec::from_flags(self.status & !STATUS_INCOMPLETE)
    }

    pub fn is_incomplete(&self) -> bool {
        self.status & STATUS_INCOMPLETE != 0
    }
}

/// An area that the sub-header points to; what is beyond the end of the file is not there.
pub(super) fn read_area(
    image: &Image,
    (offset, size): (u64, u64),
    field: &'static str,
) -> Result<Vec<u8>, Refusal> {
    if size > MAX_NOTES_SIZE {
        let problem = format!("names {size} bytes, more than any machine leaves");
        return Err(Refusal::damaged(SUB_HEADER, field, PAGE_SIZE, problem));
    }
    match image.readable(offset, size).first() {
        Some(&(at, len)) if at == offset => {
            let mut bytes = vec![0; len as usize];
            image
                .read_at(offset, &mut bytes)
                .map_err(|e| Refusal::unreadable("notes", offset, e))?;
            Ok(bytes)
        }
        _ => Ok(Vec::new()),
    }
}
