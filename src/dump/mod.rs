//! What bytes stand at physical address P of the dead machine?
//!
//! [`Dump::open`] recognises the file by its content, [`PhysicalMemory`] reads it, and a page that
//! is not in it is [`Missing`] with a reason, never zeros. Nothing here knows of kernels: the text
//! of the VMCOREINFO note and the registers in the CPU notes are handed on as they are.
//!
//! ```no_run
//! use vmrestore::dump::{Dump, PAGE_SIZE, PageState, PhysicalMemory};
//!
//! let dump = Dump::open("/var/crash/vmcore".as_ref())?;
//! println!("{}: {:?}", dump.format(), dump.page_counts());
//! let mut word = [0; 8];
//! if dump.page_state(0x100_0000 / PAGE_SIZE) == PageState::Present {
//!     dump.read_physical(0x100_0000, &mut word)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The module stands on its own, fit to be a crate: it knows no other room of this one, and its face
//! is small. [`Dump::open`] (or [`Opening`], for the parts of a split dump and for streams), then
//! [`PhysicalMemory::read_physical`] and [`PhysicalMemory::read_pages`],
//! [`PhysicalMemory::page_state`], and the notes: [`Dump::vmcoreinfo`], [`Dump::cpu_notes`].
//!
//! How it is made: `image` is the file as one run of bytes (a flattened file is unfolded in place),
//! `recognise` tells the format, `elf` and `kdump` find a page in it, `codec` decodes it,
//! `page_cache` makes small reads cheap and `bulk` makes large ones fast. Memory does not grow with
//! the dump: bitmaps and page descriptors stay in the file. Reads are safe from any number of
//! threads.
//!
//! The file is hostile. Every offset, size and count from it is checked against the file's length
//! or a stated bound, and a page must decode to exactly 4096 bytes.

mod bulk;
mod codec;
mod elf;
mod elf_headers;
mod error;
mod extents;
mod flattened;
mod frame_set;
mod identity;
mod image;
mod kdump;
mod kdump_headers;
mod memory;
mod notes;
mod opening;
mod page_cache;
mod recognise;
mod refusal;
mod scan;
mod split;
mod spool;
mod words;

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use codec::{Codec, Decoder};
use elf::ElfMemory;
pub use error::{OpenError, ReadError};
pub use frame_set::FrameSet;
use image::{Image, ImageError, Source};
use kdump::{KdumpMemory, Rank, Stored};
use kdump_headers::Headers;
pub use memory::{
    Missing, PAGE_SIZE, PageCounts, PageFailure, PageKind, PageState, PhysicalMemory,
};
use notes::Notes;
pub use opening::Opening;
use page_cache::PageCache;
use recognise::Kind;
use refusal::Refusal;

pub use scan::{PageStates, Progress, Scan};

pub use notes::{CpuNote, PrStatus, QemuCpuState, QemuSegment, UserRegs};

/// What kind of file a dump is. `Display` gives a name for people, such as
/// "kdump-compressed (zlib), flattened".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(String);

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one crash: the same for every file made of it, whatever its name, format, filter level or
/// copy. 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DumpIdentity(String);

impl DumpIdentity {
    /// The hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DumpIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The page cache holds 32 MiB at most.
const CACHE_SETS_LOG2: u32 = 10;
/// A longer read is not worth a place in the cache: it would throw out what page walks need.
const LARGEST_CACHED_READ: usize = 16 * PAGE_SIZE as usize;
/// A longer read still is decoded on all CPUs: the kernel's BTF has 4 MB. So many pages at a time.
const SMALLEST_BULK_READ: usize = 64;
const LARGEST_BULK_READ: usize = 4096;

/// A crash dump, open for reading. Share it between threads by reference.
#[derive(Debug)]
pub struct Dump {
    image: Image,
    memory: Memory,
    cache: PageCache,
    bulk: bulk::Bulk,
    format: Format,
    vmcoreinfo: Option<String>,
    cpu_notes: Vec<CpuNote>,
    dump_level: Option<u32>,
    incomplete: Option<String>,
    identity: DumpIdentity,
    counts: OnceLock<PageCounts>,
}

/// How the format finds its pages.
#[derive(Debug)]
enum Memory {
    Elf(ElfMemory),
    Kdump(Box<KdumpMemory>),
}

thread_local! {
    /// Each thread that reads has its own decoder, so none waits for another.
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new());
}

impl Dump {
    /// Opens a dump, whatever its format: a file, or a directory with one dump in it. Reads headers,
    /// notes and bitmaps; no page. [`Opening`] can more.
    pub fn open(path: &Path) -> Result<Dump, OpenError> {
        Opening::of(path).open()
    }

    /// Opens the parts of a split dump, given in any order. See [`Opening::part`] for missing ones.
    pub fn open_parts(paths: &[PathBuf]) -> Result<Dump, OpenError> {
        let mut paths = paths.iter();
        let first = Opening::of(paths.next().cloned().unwrap_or_default());
        paths.fold(first, Opening::part).open()
    }

    fn from_sources(mut sources: Vec<Source>, paths: &[PathBuf]) -> Result<Dump, OpenError> {
        let count = sources.len();
        let image = match sources.pop() {
            Some(only) if sources.is_empty() => Image::One(only),
            Some(last) => {
                sources.push(last);
                Image::Parts(sources)
            }
            None => Image::Parts(sources),
        };
        let dump = Dump::from_image(image, count, paths);
        dump.map_err(|refusal| refusal.at(paths))
    }

    fn from_image(mut image: Image, sources: usize, paths: &[PathBuf]) -> Result<Dump, Refusal> {
        let mut kind = Kind::Elf;
        for source in 0..sources {
            kind = opening::recognise(&image, source).map_err(|e| e.in_part(source))?;
            if sources > 1 && kind == Kind::Elf {
                let what = "is an ELF file; only kdump-compressed dumps are split into parts";
                return Err(Refusal::part(source, None, what));
            }
        }
        let (memory, notes, headers) = match kind {
            Kind::Elf => {
                let (memory, notes) = ElfMemory::open(&image)?;
                if memory.is_live() {
                    image.believe_no_length();
                }
                (Memory::Elf(memory), notes, None)
            }
            Kind::Kdump => {
                let (memory, headers, notes) = KdumpMemory::open(&image, sources)?;
                (Memory::Kdump(Box::new(memory)), notes, Some(headers))
            }
        };
        let mut dump = Dump {
            format: Format::describe(&image, headers.as_ref(), &notes, sources),
            incomplete: why_incomplete(&image, &memory, headers.as_ref(), paths),
            dump_level: headers.and_then(|headers| headers.dump_level),
            vmcoreinfo: notes.vmcoreinfo,
            cpu_notes: notes.cpus,
            identity: DumpIdentity(String::new()),
            cache: PageCache::new(CACHE_SETS_LOG2),
            bulk: bulk::Bulk::default(),
            counts: OnceLock::new(),
            image,
            memory,
        };
        dump.identity = dump.identify();
        Ok(dump)
    }

    /// The page frames of a part of a split dump that was opened alone, and one past the last of the
    /// whole dump.
    fn lone_part(&self) -> Option<(Range<u64>, u64)> {
        match &self.memory {
            Memory::Kdump(memory) => memory.lone_part(),
            Memory::Elf(_) => None,
        }
    }

    fn identify(&self) -> DumpIdentity {
        let mut hash = identity::Hash::new();
        if !identity::hash_crash(&mut hash, self.vmcoreinfo(), &self.cpu_notes) {
            // Nothing but the memory: its first pages, which belong to the firmware and the kernel.
            let present = (0..self.max_pfn().min(4096))
                .filter(|&pfn| self.page_state(pfn) == PageState::Present);
            for pfn in present.take(64) {
                let mut page = [0; PAGE_SIZE as usize];
                if self.read_uncached(pfn, &mut page).is_ok() {
                    hash.add(&page);
                }
            }
        }
        DumpIdentity(hash.hex())
    }

    /// Reads from the begin of page frame `pfn` on, past the cache.
    fn read_uncached(&self, pfn: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let Some(addr) = pfn.checked_mul(PAGE_SIZE) else {
            return Err(ReadError::Missing {
                addr: u64::MAX,
                why: Missing::NotRam,
            });
        };
        match &self.memory {
            Memory::Elf(memory) => memory.read(&self.image, addr, buf),
            Memory::Kdump(memory) => {
                let mut rank = Rank::default();
                for (pfn, out) in (pfn..).zip(buf.chunks_mut(PAGE_SIZE as usize)) {
                    self.decode_page(memory, &mut rank, pfn, out)?;
                }
                Ok(())
            }
        }
    }

    fn decode_page(
        &self,
        memory: &KdumpMemory,
        rank: &mut Rank,
        pfn: u64,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let stored = memory.locate(&self.image, rank, pfn)?;
        let addr = pfn.saturating_mul(PAGE_SIZE);
        let read = |bytes: &mut [u8]| {
            let read = self.image.read_at(stored.offset, bytes);
            read.map_err(|e| match e {
                ImageError::Absent(_) => ReadError::Missing {
                    addr,
                    why: Missing::Truncated,
                },
                ImageError::Io(e) => ReadError::Io {
                    addr,
                    offset: stored.offset,
                    source: e.into(),
                },
            })
        };
        if stored.codec == Codec::Raw && stored.size == out.len() {
            return read(out);
        }
        let mut bytes = [0; PAGE_SIZE as usize];
        let bytes = &mut bytes[..stored.size];
        read(bytes)?;
        DECODER.with_borrow_mut(|decoder| bulk::decode(decoder, stored, addr, bytes, out))
    }

    /// Whether a stored page is zeros.
    fn is_zeros(&self, stored: Stored) -> bool {
        let (mut bytes, mut page) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
        let bytes = &mut bytes[..stored.size];
        self.image.read_at(stored.offset, bytes).is_ok()
            && DECODER
                .with_borrow_mut(|d| bulk::decode(d, stored, 0, bytes, &mut page))
                .is_ok()
            && page.iter().all(|&byte| byte == 0)
    }

    /// Part of one page, through the cache.
    fn read_in_page(&self, addr: u64, out: &mut [u8], keep: bool) -> Result<(), ReadError> {
        let (pfn, inside) = (addr / PAGE_SIZE, (addr % PAGE_SIZE) as usize);
        let live = self.is_live();
        if !live && self.cache.get(pfn, inside, out) {
            return Ok(());
        }
        if let (Ok(page), Memory::Kdump(_)) = (
            <&mut [u8; PAGE_SIZE as usize]>::try_from(&mut *out),
            &self.memory,
        ) {
            // All of a page: decoded to where it is wanted.
            self.read_uncached(pfn, page)?;
            if keep && !live {
                self.cache.put(pfn, page);
            }
            return Ok(());
        }
        let mut page = [0; PAGE_SIZE as usize];
        match (self.read_uncached(pfn, &mut page), &self.memory) {
            (Ok(()), _) => {}
            // A segment may hold these bytes and not the whole page.
            (Err(_), Memory::Elf(memory)) => return memory.read(&self.image, addr, out),
            (Err(e), Memory::Kdump(_)) => return Err(e.at(addr)),
        }
        if keep && !live {
            self.cache.put(pfn, &page);
        }
        out.copy_from_slice(&page[inside..inside + out.len()]);
        Ok(())
    }

    /// What kind of file it is.
    #[must_use]
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// The text of the VMCOREINFO note, lines of `KEY=value`; `None` for a dump that QEMU made of a
    /// machine without its vmcoreinfo device.
    #[must_use]
    pub fn vmcoreinfo(&self) -> Option<&str> {
        self.vmcoreinfo.as_deref()
    }

    /// Registers of the CPUs at the crash, in the order of the dump, which is *not* the CPU number
    /// when a CPU was offline or left no note.
    #[must_use]
    pub fn cpu_notes(&self) -> &[CpuNote] {
        &self.cpu_notes
    }

    /// makedumpfile's `-d` level, from the sub-header of a kdump-compressed dump; `None` when the
    /// format does not say.
    #[must_use]
    pub fn dump_level(&self) -> Option<u32> {
        self.dump_level
    }

    /// Why the dump is not whole, or `None` if it seems to be.
    #[must_use]
    pub fn incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }

    /// The memory of the kernel that runs (/proc/kcore): it changes while it is read, so structures
    /// may be torn, and what is in it is not dead.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(&self.memory, Memory::Elf(memory) if memory.is_live())
    }

    /// Names the crash, for the journal that refuses a second restore.
    #[must_use]
    pub fn identity(&self) -> &DumpIdentity {
        &self.identity
    }

    /// How many pages are in which state.
    #[must_use]
    pub fn page_counts(&self) -> PageCounts {
        *self.counts.get_or_init(|| match &self.memory {
            Memory::Elf(memory) => memory.page_counts(),
            Memory::Kdump(memory) => memory.page_counts(&self.image),
        })
    }
}

impl PhysicalMemory for Dump {
    fn read_physical(&self, mut addr: u64, mut buf: &mut [u8]) -> Result<(), ReadError> {
        if addr.checked_add(buf.len() as u64).is_none() {
            return Err(ReadError::Missing {
                addr,
                why: Missing::NotRam,
            });
        }
        let keep = buf.len() <= LARGEST_CACHED_READ;
        if let Memory::Elf(memory) = &self.memory
            && buf.len() >= PAGE_SIZE as usize
        {
            // Nothing to decode: the kernel's page cache is enough.
            return memory.read(&self.image, addr, buf);
        }
        while !buf.is_empty() {
            let pages = (buf.len() / PAGE_SIZE as usize).min(LARGEST_BULK_READ);
            if addr.is_multiple_of(PAGE_SIZE) && pages >= SMALLEST_BULK_READ {
                let (head, rest) = buf.split_at_mut(pages * PAGE_SIZE as usize);
                let first = addr / PAGE_SIZE;
                let pfns: Vec<u64> = (first..first + pages as u64).collect();
                if let Some(failure) = bulk::read_pages(self, &pfns, head).into_iter().next() {
                    return Err(failure.error);
                }
                addr += head.len() as u64;
                buf = rest;
                continue;
            }
            let n = buf.len().min((PAGE_SIZE - addr % PAGE_SIZE) as usize);
            let (head, rest) = buf.split_at_mut(n);
            self.read_in_page(addr, head, keep)?;
            addr += n as u64;
            buf = rest;
        }
        Ok(())
    }

    fn page_state(&self, pfn: u64) -> PageState {
        match &self.memory {
            Memory::Elf(memory) => memory.page_state(pfn),
            Memory::Kdump(memory) => memory.page_state(&self.image, pfn),
        }
    }

    fn page_kind(&self, pfn: u64) -> PageKind {
        match &self.memory {
            Memory::Elf(memory) => match memory.page_state(pfn) {
                PageState::Present => PageKind::Stored,
                PageState::Missing(why) => PageKind::Missing(why),
            },
            Memory::Kdump(memory) => {
                memory.page_kind(&self.image, pfn, |stored| self.is_zeros(stored))
            }
        }
    }

    fn max_pfn(&self) -> u64 {
        match &self.memory {
            Memory::Elf(memory) => memory.max_pfn(),
            Memory::Kdump(memory) => memory.max_pfn(),
        }
    }

    fn filters_zero_pages(&self) -> bool {
        matches!(self.memory, Memory::Elf(_))
    }

    /// Decodes on all CPUs, past the cache.
    fn read_pages(&self, pfns: &[u64], out: &mut [u8]) -> Vec<PageFailure> {
        assert_eq!(out.len(), pfns.len() * PAGE_SIZE as usize);
        bulk::read_pages(self, pfns, out)
    }
}

impl Format {
    fn describe(image: &Image, headers: Option<&Headers>, notes: &Notes, sources: usize) -> Format {
        let mut name = match headers {
            None if notes.kcore => "the live kernel's memory (/proc/kcore)".to_owned(),
            None => "ELF".to_owned(),
            Some(headers) => match headers.codec() {
                Some(codec) => format!("kdump-compressed ({})", codec.name()),
                None => "kdump-compressed".to_owned(),
            },
        };
        if image.is_flattened() {
            name += ", flattened";
        }
        if sources > 1 {
            name += &format!(", in {sources} parts");
        }
        if notes.cpus.iter().any(|cpu| cpu.qemu.is_some()) {
            name += ", by QEMU";
        }
        Format(name)
    }
}

fn why_incomplete(
    image: &Image,
    memory: &Memory,
    headers: Option<&Headers>,
    paths: &[PathBuf],
) -> Option<String> {
    if let Memory::Kdump(memory) = memory
        && let Some(missing) = missing_parts(memory, paths)
    {
        return Some(missing);
    }
    if headers.is_some_and(Headers::is_incomplete) {
        return Some("makedumpfile ran out of space while it wrote the dump".into());
    }
    if image.is_cut() {
        return Some("the flattened stream ends without its end mark: it was cut short".into());
    }
    let truncated = match memory {
        Memory::Elf(memory) => memory.is_truncated(),
        Memory::Kdump(memory) => memory.is_truncated(image),
    };
    truncated.then(|| {
        format!(
            "the file ends, at {} bytes, before its last pages: it was cut short",
            image.len()
        )
    })
}

/// Names the page frames whose part was not given.
fn missing_parts(memory: &KdumpMemory, paths: &[PathBuf]) -> Option<String> {
    let gaps: Vec<String> = memory
        .gaps()
        .iter()
        .map(|gap| {
            let name = |part: Option<usize>| Some(paths.get(part?)?.display().to_string());
            let (before, behind) = memory.around(gap);
            let place = match (name(before), name(behind)) {
                (Some(before), Some(behind)) => format!(", between {before} and {behind}"),
                (Some(before), None) => format!(", after {before}"),
                (None, Some(behind)) => format!(", before {behind}"),
                (None, None) => String::new(),
            };
            format!("page frames {:#x} to {:#x}{place}", gap.start, gap.end)
        })
        .collect();
    (!gaps.is_empty()).then(|| format!("a part of the split dump is missing: {}", gaps.join("; ")))
}
