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
pub(crate) mod codec;
mod elf;
mod elf_headers;
mod error;
mod extents;
mod flattened;
mod format;
mod frame_set;
mod identity;
mod image;
mod in_use;
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
mod windows;
mod words;

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use codec::{Codec, Decoder};
use elf::ElfMemory;
pub use error::{OpenError, ReadError};
pub use format::Format;
use format::why_incomplete;
pub use frame_set::FrameSet;
pub use identity::DumpIdentity;
use image::{Image, ImageError, Source};
use kdump::{KdumpMemory, Rank, Stored};
pub use memory::{
    Missing, PAGE_SIZE, PageCounts, PageFailure, PageKind, PageState, PhysicalMemory,
};
pub use opening::Opening;
use page_cache::PageCache;
use recognise::Kind;
use refusal::Refusal;

pub use scan::{PageStates, Progress, Scan};

pub use notes::{CpuNote, PrStatus, QemuCpuState, QemuSegment, UserRegs};

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
    in_use: in_use::InUse,
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
            in_use: in_use::InUse::default(),
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

    /// Where the page frames from `pfn` on stand in a regular file just as they are, one behind the
    /// other: the file, the offset, and how many.
    #[must_use]
    pub fn plain(&self, pfn: u64) -> Option<(&std::fs::File, u64, u64)> {
        let Memory::Elf(memory) = &self.memory else {
            return None;
        };
        let (offset, count) = memory.plain(pfn.checked_mul(PAGE_SIZE)?)?;
        let behind = pfn.saturating_add(count);
        let free = match self.in_use.first_of(pfn..behind) {
            Some(taken) => taken.saturating_sub(pfn),
            None => count,
        };
        let (file, offset) = self.image.plain(offset)?;
        (free > 0).then_some((file, offset, free))
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

    /// It is the memory of the kernel that died before this one, as it lies: /proc/vmcore. Judged by
    /// the file system that the file is on, for its bytes are those of any copy of it.
    #[must_use]
    pub fn is_where_it_lay(&self) -> bool {
        matches!(&self.memory, Memory::Elf(memory) if !memory.is_live())
            && self.image.is_in_procfs()
    }

    /// The dump is what it was when it was opened.
    ///
    /// # Errors
    /// Somebody has written to it, or cut it.
    pub fn still_whole(&self) -> Result<(), String> {
        self.image.still_whole()
    }

    /// From now on these page frames are read no more, as a guest runs in them: they are
    /// [`Missing::InUse`].
    pub fn set_in_use(&self, frames: impl IntoIterator<Item = Range<u64>>) {
        self.in_use.add(frames);
    }

    /// How many page frames are in use.
    #[must_use]
    pub fn frames_in_use(&self) -> u64 {
        self.in_use.count()
    }

    fn refuse_in_use(&self, addr: u64, len: usize) -> Result<(), ReadError> {
        let end = addr.saturating_add(len as u64).div_ceil(PAGE_SIZE);
        match self.in_use.first_of(addr / PAGE_SIZE..end) {
            None => Ok(()),
            Some(pfn) => Err(ReadError::Missing {
                addr: addr.max(pfn.saturating_mul(PAGE_SIZE)),
                why: Missing::InUse,
            }),
        }
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
        self.refuse_in_use(addr, buf.len())?;
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
        if self.in_use.first_of(pfn..pfn.saturating_add(1)).is_some() {
            return PageState::Missing(Missing::InUse);
        }
        match &self.memory {
            Memory::Elf(memory) => memory.page_state(pfn),
            Memory::Kdump(memory) => memory.page_state(&self.image, pfn),
        }
    }

    fn page_states(&self, pfn: u64, most: u64) -> (PageState, u64) {
        let behind = pfn.saturating_add(most);
        let most = match self.in_use.first_of(pfn..behind) {
            None => most,
            Some(first) if first == pfn => return (PageState::Missing(Missing::InUse), 1),
            Some(first) => first - pfn,
        };
        let (state, count) = match &self.memory {
            Memory::Elf(memory) => memory.page_states(pfn),
            Memory::Kdump(memory) => memory.page_states(&self.image, pfn, most),
        };
        (state, count.min(most).max(1))
    }

    fn page_kind(&self, pfn: u64) -> PageKind {
        if self.in_use.first_of(pfn..pfn.saturating_add(1)).is_some() {
            return PageKind::Missing(Missing::InUse);
        }
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
        let in_use = |pfn: u64| self.in_use.first_of(pfn..pfn.saturating_add(1)).is_some();
        if !pfns.iter().any(|pfn| in_use(*pfn)) {
            return bulk::read_pages(self, pfns, out);
        }
        // Those beside them one by one: whoever asks for such a page is about to give up.
        let mut failures = Vec::new();
        let pages = out.chunks_exact_mut(PAGE_SIZE as usize);
        for (index, (pfn, page)) in pfns.iter().zip(pages).enumerate() {
            let addr = pfn.saturating_mul(PAGE_SIZE);
            if let Err(error) = self.read_physical(addr, page) {
                page.fill(0);
                failures.push(PageFailure { index, error });
            }
        }
        failures
    }
}
