//! What bytes stand at physical address P of the dead machine?
//!
//! [`Dump::open`] recognises the file by its content, [`PhysicalMemory`] reads it, and a page that
//! is not in it is [`Missing`] with a reason, never zeros. Nothing here knows of kernels: the text
//! of the VMCOREINFO note and the registers in the CPU notes are handed on as they are.

mod error;
mod notes;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use error::{OpenError, ReadError};
pub use notes::{CpuNote, PrStatus, QemuCpuState, QemuSegment, UserRegs};

/// Bytes in a page. Dumps with another block size are refused.
pub const PAGE_SIZE: u64 = 4096;

/// Physical memory of a dead machine.
pub trait PhysicalMemory: Send + Sync {
    /// Reads `buf.len()` bytes at physical address `addr`; may cross pages. On an error the content
    /// of `buf` is unspecified.
    fn read_physical(&self, addr: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// Whether the page frame `pfn` (physical address ÷ 4096) is in the dump, whole.
    fn page_state(&self, pfn: u64) -> PageState;

    /// One past the last page frame that the dump speaks of.
    fn max_pfn(&self) -> u64;

    /// Reads many whole pages: page frame `pfns[i]` into `out[i * 4096..]`. Pages that cannot be
    /// read are filled with zeros and reported; an empty result says that all were read.
    ///
    /// # Panics
    /// If `out.len() != pfns.len() * 4096`.
    fn read_pages(&self, pfns: &[u64], out: &mut [u8]) -> Vec<PageFailure> {
        assert_eq!(out.len(), pfns.len() * PAGE_SIZE as usize);
        let mut failures = Vec::new();
        for (index, (pfn, page)) in pfns
            .iter()
            .zip(out.chunks_exact_mut(PAGE_SIZE as usize))
            .enumerate()
        {
            let read = match pfn.checked_mul(PAGE_SIZE) {
                Some(addr) => self.read_physical(addr, page),
                None => Err(ReadError::Missing {
                    addr: u64::MAX,
                    why: Missing::NotRam,
                }),
            };
            if let Err(error) = read {
                page.fill(0);
                failures.push(PageFailure { index, error });
            }
        }
        failures
    }
}

/// One page that [`PhysicalMemory::read_pages`] could not read.
#[derive(Clone, Debug)]
pub struct PageFailure {
    /// Its place in the list of page frames asked for.
    pub index: usize,
    /// Why.
    pub error: ReadError,
}

/// Whether the dump holds a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageState {
    /// The whole page is there (though it may prove corrupt when read).
    Present,
    /// It is not.
    Missing(Missing),
}

/// Why a page is not in the dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The dump's writer left it out on purpose (makedumpfile's `-d` level).
    Filtered,
    /// The machine had no memory there, or the writer did not regard it as memory.
    NotRam,
    /// It would stand beyond the end of the file, or was never written.
    Truncated,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Filtered => "left out by the dump's filter level",
            Missing::NotRam => "no memory there",
            Missing::Truncated => "beyond the end of the truncated dump",
        })
    }
}

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

/// How many pages of the dead machine are in which state. Counted in page frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// In the dump.
    pub present: u64,
    /// Left out by the filter.
    pub filtered: u64,
    /// Below [`PhysicalMemory::max_pfn`], but not memory.
    pub not_ram: u64,
    /// Beyond the end of a truncated file, or never written.
    pub truncated: u64,
}

/// A crash dump, open for reading. Cheap to share between threads by reference.
#[derive(Debug)]
pub struct Dump {
    format: Format,
    vmcoreinfo: Option<String>,
    cpu_notes: Vec<CpuNote>,
    dump_level: Option<u32>,
    incomplete: Option<String>,
    identity: DumpIdentity,
}

impl Dump {
    /// Opens a dump, whatever its format.
    pub fn open(path: &Path) -> Result<Dump, OpenError> {
        Err(OpenError::NotADump {
            path: path.to_path_buf(),
            what: "no format is read yet".into(),
            hint: "wait for the next commit",
        })
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

    /// Names the crash, for the journal that refuses a second restore.
    #[must_use]
    pub fn identity(&self) -> &DumpIdentity {
        &self.identity
    }

    /// How many pages are in which state.
    #[must_use]
    pub fn page_counts(&self) -> PageCounts {
        PageCounts::default()
    }
}

impl PhysicalMemory for Dump {
    fn read_physical(&self, addr: u64, _buf: &mut [u8]) -> Result<(), ReadError> {
        Err(ReadError::Missing {
            addr,
            why: Missing::NotRam,
        })
    }

    fn page_state(&self, _pfn: u64) -> PageState {
        PageState::Missing(Missing::NotRam)
    }

    fn max_pfn(&self) -> u64 {
        0
    }
}
