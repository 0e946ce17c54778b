//! A process's page tables. x86-64, 4- and 5-level paging, large pages.
//!
//! Linux arch/x86/include/asm/pgtable_types.h (bits), pgtable-invert.h (the inversion that keeps
//! entries which are not present from pointing at memory), pgtable_64.h (swap entries).

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::address::{LARGE, PRESENT, levels};
use super::{Kernel, KernelError};
use crate::dump::PAGE_SIZE;

const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Software: with PRESENT clear, the page is there but must not be touched (mprotect, NUMA hints).
const PROTNONE: u64 = 1 << 8;
/// Software: nothing stands behind it that `struct page` counts (`pte_special`).
const SPECIAL: u64 = 1 << 9;
/// Software: written since it was last asked (`CONFIG_MEM_SOFT_DIRTY`).
const SOFT_DIRTY: u64 = 1 << 11;
const NO_EXECUTE: u64 = 1 << 63;

/// Tables that may be met again in a walk: mappings of one hugetlbfs file share theirs
/// (`huge_pmd_share` of Linux mm/hugetlb.c), one for each GiB; nothing else does.
const MAX_AGAIN: u64 = 4096;
/// How often large pages may map all of memory in one walk: files of huge pages can be mapped many
/// times, and so can the huge page of zeros. And what a small machine may map.
const MAX_SHARED: u64 = 16;
const MIN_LARGE: u64 = 1 << 22;
/// So many tables of the lowest level that stand side by side are read at once, on all CPUs.
const MANY: usize = 16;
/// A look at one address passes at most five tables, and need not remember them.
const UNWATCHED: u64 = 16;

/// The page tables of a process: what its virtual addresses lead to.
#[derive(Clone, Copy)]
pub struct AddressSpace<'k> {
    kernel: &'k Kernel,
    /// Physical address of the top table.
    top: u64,
}

/// One entry of the page tables that is not empty.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Virtual address where it begins; of a large page this may lie before the range asked for.
    pub va: u64,
    /// Bytes that it covers: 4 KiB, 2 MiB or 1 GiB; more only if [`Entry::Unreadable`].
    pub len: u64,
    /// What it says.
    pub entry: Entry,
}

/// What an entry says.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A page in memory.
    Present(Present),
    /// A page elsewhere: swapped out, migrating, poisoned, or a marker. The raw entry, as
    /// [`SwapEntry::decode`] takes it.
    NonPresent {
        /// As it stands in the table.
        raw: u64,
    },
    /// The table that says what is here could not be read: all in `va..va + len` is unknown. (Boxed, for
    /// the sake of the millions of others.)
    Unreadable(Box<KernelError>),
}

/// A page, or large page, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its first page frame.
    pub pfn: u64,
    /// The process may write; false also for a page that is to be copied on the first write.
    pub writable: bool,
    /// The process may touch it in user mode.
    pub user: bool,
    /// The CPU has read it since the kernel last cleared this.
    pub accessed: bool,
    /// The CPU has written it since the kernel last cleared this.
    pub dirty: bool,
    /// Written since soft-dirty tracking was last reset.
    pub soft_dirty: bool,
    /// Must not be executed.
    pub no_execute: bool,
    /// In memory, but any access faults: `PROT_NONE`, or a NUMA hint.
    pub protnone: bool,
    /// Not an ordinary page: the zero page, or a device's memory.
    pub special: bool,
    /// As it stands in the table.
    pub raw: u64,
}

/// A swap entry: an entry that is not present, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapEntry {
    /// The swap area (index into `swap_info`) or, from the number of areas up, a special kind:
    /// migration, poison, device memory, marker.
    pub kind: u8,
    /// Place in the swap area, in pages; of a migration entry, the page frame, with flags above.
    pub offset: u64,
}

impl SwapEntry {
    /// Decodes an entry that is not present. `__pte_to_swp_entry` of arch/x86: the type in the
    /// highest 5 bits, then the offset, inverted, down to bit 9.
    #[must_use]
    pub fn decode(raw: u64) -> SwapEntry {
        SwapEntry {
            kind: (raw >> 59) as u8,
            offset: !raw << 5 >> 14,
        }
    }
}

impl<'k> AddressSpace<'k> {
    /// `pgd` is the kernel virtual address of the top table: `mm_struct.pgd`.
    pub fn new(kernel: &'k Kernel, pgd: u64) -> Result<AddressSpace<'k>, KernelError> {
        let top = kernel.virt_to_phys(pgd)?;
        if !top.is_multiple_of(PAGE_SIZE) {
            return Err(KernelError::Damaged {
                what: "mm_struct.pgd",
                addr: pgd,
                detail: "a page table begins at a page".into(),
            });
        }
        Ok(AddressSpace { kernel, top })
    }

    /// Visits, in order, each entry that is not empty and covers some of `start..end`.
    ///
    /// A table that cannot be read is told as [`Entry::Unreadable`], and the walk goes on behind it.
    pub fn walk(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), KernelError> {
        let levels: Vec<_> = levels(self.kernel.five_level_paging()).collect();
        // Beyond the lower half there is no user memory.
        let end = end.min(1 << (levels[0].1 + 8));
        let mut walk = Walk {
            space: self,
            levels,
            start,
            end,
            path: [None; 5],
            tables: 0,
            seen: HashSet::new(),
            again: 0,
            large_pages: 0,
            visit: &mut visit,
        };
        if start < end {
            // Broken off by the visitor is as good as done.
            let _ = walk.table(self.top, 0, 0, None)?;
        }
        Ok(())
    }

    /// The entry that covers `va`; `None` if it is empty.
    pub fn translate(&self, va: u64) -> Result<Option<Mapping>, KernelError> {
        let mut found = None;
        self.walk(va, va.saturating_add(1), |mapping| {
            found = Some(mapping);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Reads memory of the process that is resident, with pages that it may not touch itself. What
    /// is swapped out or was never touched is an error.
    pub fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), KernelError> {
        let memory = self.kernel.memory();
        let mut done = 0;
        let mut outcome = Ok(());
        let unmapped = |addr, entry| KernelError::Unmapped {
            addr,
            level: "pte",
            entry,
        };
        let end = va.saturating_add(buf.len() as u64);
        self.walk(va, end, |mapping| {
            let at = va + done as u64;
            outcome = match mapping.entry {
                _ if mapping.va > at => Err(unmapped(at, 0)),
                Entry::NonPresent { raw } => Err(unmapped(at, raw)),
                Entry::Unreadable(error) => Err(*error),
                Entry::Present(present) => {
                    let within = at - mapping.va;
                    let phys = present.pfn * PAGE_SIZE + within;
                    let left = usize::try_from(mapping.len - within).unwrap_or(usize::MAX);
                    let len = left.min(buf.len() - done);
                    let read = memory.read_physical(phys, &mut buf[done..done + len]);
                    done += len;
                    read.map_err(|source| KernelError::Memory {
                        addr: at,
                        phys,
                        len,
                        source: Arc::new(source),
                    })
                }
            };
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        outcome?;
        if done < buf.len() {
            return Err(unmapped(va.wrapping_add(done as u64), 0));
        }
        Ok(())
    }
}

/// Tables that were read at once, in the order in which they come.
#[derive(Default)]
struct Below {
    frames: Vec<u64>,
    content: Vec<u8>,
    next: usize,
}

impl Below {
    /// The bytes of the table at a physical address, if it is the next of them.
    fn next(&mut self, table: u64) -> Option<&[u8]> {
        let size = PAGE_SIZE as usize;
        while let Some(frame) = self.frames.get(self.next) {
            let at = self.next * size;
            self.next += 1;
            if *frame == table / PAGE_SIZE {
                return self.content.get(at..at + size);
            }
        }
        None
    }
}

/// The entries of a table, or of a part of it.
fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table
        .as_chunks()
        .0
        .iter()
        .map(|raw| u64::from_le_bytes(*raw))
}

struct Walk<'w, 'k, V> {
    space: &'w AddressSpace<'k>,
    levels: Vec<(&'static str, u32)>,
    start: u64,
    end: u64,
    /// The tables from the top to the one being visited.
    path: [Option<u64>; 5],
    tables: u64,
    /// Frames of the tables met, but for the first [`UNWATCHED`].
    seen: HashSet<u64>,
    again: u64,
    /// Page frames that large entries map.
    large_pages: u64,
    visit: &'w mut V,
}

impl<V: FnMut(Mapping) -> ControlFlow<()>> Walk<'_, '_, V> {
    /// Visits the table at physical address `table`, whose first entry is for `base`, and whose bytes
    /// are `content` if they have been read.
    fn table(
        &mut self,
        table: u64,
        base: u64,
        depth: usize,
        content: Option<&[u8]>,
    ) -> Result<ControlFlow<()>, KernelError> {
        let kernel = self.space.kernel;
        let shift = self.levels[depth].1;
        let last = depth + 1 == self.levels.len();
        self.watch(table, base)?;
        if let Some(here) = self.path.get_mut(depth) {
            *here = Some(table);
        }

        // Of the entries, those that cover some of the range.
        let span = 1u64 << shift;
        let first = self.start.saturating_sub(base) >> shift;
        let behind = (self.end - base).div_ceil(span).min(512);
        let mut raw = [0u8; PAGE_SIZE as usize];
        let wanted = &mut raw[..(behind - first) as usize * 8];
        let from = table + first * 8;
        let read = match content.and_then(|all| all.get(first as usize * 8..behind as usize * 8)) {
            Some(there) => {
                wanted.copy_from_slice(there);
                Ok(())
            }
            None => kernel.memory().read_physical(from, wanted),
        };
        if let Err(source) = read {
            return Ok((self.visit)(Mapping {
                va: base + first * span,
                len: (behind - first) * span,
                entry: Entry::Unreadable(Box::new(KernelError::Memory {
                    addr: kernel.phys_to_virt(from),
                    phys: from,
                    len: wanted.len(),
                    source: Arc::new(source),
                })),
            }));
        }
        let mut below = match depth + 2 == self.levels.len() {
            true => self.read_below(wanted),
            false => Below::default(),
        };
        for (index, raw) in (first..).zip(entries(wanted)) {
            let va = base + index * span;
            let large = shift == 21 || shift == 30;
            let flow = if raw & !(ACCESSED | DIRTY) == 0 {
                // Empty, but for what an erratum of Xeon Phi leaves: _PAGE_KNL_ERRATUM_MASK.
                continue;
            } else if last && raw & (PRESENT | PROTNONE) != 0 || large && raw & LARGE != 0 {
                // A large page that is being split has LARGE, and neither of the others.
                if !last {
                    self.watch_large(span, va)?;
                }
                let entry = Entry::Present(self.present(raw, span));
                (self.visit)(Mapping {
                    va,
                    len: span,
                    entry,
                })
            } else if raw & PRESENT != 0 && !self.leads_back(kernel.frame_of(raw), depth) {
                let table = kernel.frame_of(raw);
                self.table(table, va, depth + 1, below.next(table))?
            } else {
                let entry = if raw & PRESENT == 0 && (last || large) {
                    Entry::NonPresent { raw }
                } else {
                    let name = self.levels[depth].0;
                    let back = match raw & PRESENT {
                        0 => "",
                        _ => ", which leads back to a table above it",
                    };
                    Entry::Unreadable(Box::new(KernelError::Damaged {
                        what: "page table",
                        addr: kernel.phys_to_virt(table + index * 8),
                        detail: format!("{name} entry {raw:#x} for {va:#x}{back}"),
                    }))
                };
                (self.visit)(Mapping {
                    va,
                    len: span,
                    entry,
                })
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The tables that these entries lead to, if there are many of them.
    fn read_below(&self, table: &[u8]) -> Below {
        let kernel = self.space.kernel;
        let frames: Vec<u64> = entries(table)
            .filter(|raw| raw & PRESENT != 0 && raw & LARGE == 0)
            .map(|raw| kernel.frame_of(raw) / PAGE_SIZE)
            .collect();
        if frames.len() < MANY {
            return Below::default();
        }
        let mut content = vec![0; frames.len() * PAGE_SIZE as usize];
        match kernel.memory().read_pages(&frames, &mut content).is_empty() {
            true => Below {
                frames,
                content,
                next: 0,
            },
            // Read on its own, each says what is wrong with it.
            false => Below::default(),
        }
    }

    /// A table that stands above itself is none: its entries would be taken for those of all levels.
    fn leads_back(&self, table: u64, depth: usize) -> bool {
        self.path
            .iter()
            .take(depth + 1)
            .any(|above| *above == Some(table))
    }

    /// Ends a walk whose tables lead back to themselves, or all to the same ones: 512 entries of
    /// each of four levels would be 2³⁶ pages.
    fn watch(&mut self, table: u64, base: u64) -> Result<(), KernelError> {
        self.tables += 1;
        if self.tables > UNWATCHED && !self.seen.insert(table) {
            self.again += 1;
        }
        if self.again <= MAX_AGAIN {
            return Ok(());
        }
        let kernel = self.space.kernel;
        Err(KernelError::Damaged {
            what: "page table",
            addr: kernel.phys_to_virt(self.space.top),
            detail: format!(
                "{} of its {} tables were met before, the last at {:#x} for address {base:#x}: they lead in circles",
                self.again,
                self.tables,
                kernel.phys_to_virt(table)
            ),
        })
    }

    /// Ends a walk whose large entries, eight bytes each, map memory that is not there.
    fn watch_large(&mut self, span: u64, va: u64) -> Result<(), KernelError> {
        self.large_pages = self.large_pages.saturating_add(span / PAGE_SIZE);
        let kernel = self.space.kernel;
        let memory = kernel.memory().max_pfn();
        if self.large_pages <= (memory * MAX_SHARED).max(MIN_LARGE) {
            return Ok(());
        }
        Err(KernelError::Damaged {
            what: "page table",
            addr: kernel.phys_to_virt(self.space.top),
            detail: format!(
                "up to {va:#x}, large pages map {} page frames of the {memory} that there are",
                self.large_pages
            ),
        })
    }

    fn present(&self, raw: u64, span: u64) -> Present {
        // An entry with PRESENT clear has its frame number inverted.
        let frame = if raw & PRESENT == 0 { !raw } else { raw };
        let phys = self.space.kernel.frame_of(frame) & !(span - 1);
        Present {
            pfn: phys / PAGE_SIZE,
            writable: raw & WRITABLE != 0,
            user: raw & USER != 0,
            accessed: raw & ACCESSED != 0,
            dirty: raw & DIRTY != 0,
            soft_dirty: raw & SOFT_DIRTY != 0,
            no_execute: raw & NO_EXECUTE != 0,
            protnone: raw & PRESENT == 0 && raw & PROTNONE != 0,
            special: raw & SPECIAL != 0,
            raw,
        }
    }
}
