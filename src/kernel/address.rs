//! Where a kernel virtual address of the dead machine leads. x86-64, 4- and 5-level paging.
//!
//! Three regions cover nearly everything and need no page tables: the kernel's image, the direct map
//! of all memory, and the array of `struct page`. What is left (vmalloc, modules, kernel stacks,
//! per-CPU areas, vmemmap itself) goes through `init_top_pgt`.
//! Linux Documentation/arch/x86/x86_64/mm.rst.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use super::{KernelError, VmcoreInfo};
use crate::dump::{PAGE_SIZE, PhysicalMemory};

/// Where the kernel's image is mapped: `__START_KERNEL_map`.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;
/// Page translations remembered; the rest is walked again.
const TLB_ENTRIES: usize = 1 << 16;

/// Present.
pub(super) const PRESENT: u64 = 1;
/// In an entry above the last level: it maps a large page.
pub(super) const LARGE: u64 = 1 << 7;

/// The dead kernel's map of its own memory.
pub(super) struct AddressMap {
    memory: Arc<dyn PhysicalMemory>,
    /// Added to an image address (modulo 2⁶⁴) to get its physical one.
    image_to_phys: u64,
    image_size: u64,
    five_levels: bool,
    /// The bit by which AMD's memory encryption marks a page-table entry, or 0.
    encryption_bit: u64,
    /// Physical address of `init_top_pgt`.
    top: u64,
    direct_base: u64,
    direct_size: u64,
    tlb: RwLock<HashMap<u64, u64>>,
}

impl AddressMap {
    /// From VMCOREINFO alone. The direct map is where an unrandomised kernel has it until
    /// [`set_direct_base`](Self::set_direct_base).
    pub(super) fn new(
        memory: Arc<dyn PhysicalMemory>,
        info: &VmcoreInfo,
    ) -> Result<AddressMap, KernelError> {
        let need = |what: &str| KernelError::NoInfo { key: what.into() };
        let phys_base = info
            .number("phys_base")?
            .ok_or_else(|| need("NUMBER(phys_base)"))?;
        let image_size = match info.number("KERNEL_IMAGE_SIZE")? {
            Some(size) => u64::try_from(size)
                .ok()
                .filter(|size| *size <= 1 << 31)
                .ok_or_else(|| KernelError::BadInfo {
                    key: "NUMBER(KERNEL_IMAGE_SIZE)".into(),
                    value: size.to_string(),
                    wanted: "a size below 2 GiB",
                })?,
            None => 1 << 30,
        };
        let five_levels = info.number("pgtable_l5_enabled")?.unwrap_or(0) != 0;
        let encryption_bit = info.number("sme_mask")?.unwrap_or(0).cast_unsigned();
        let top = info
            .symbol("init_top_pgt")?
            // The name that the note used before Linux commit 65ade2f872b4 (in v4.12), and still has.
            .or(info.symbol("swapper_pg_dir")?)
            .ok_or_else(|| need("SYMBOL(init_top_pgt)"))?;
        let image_to_phys = phys_base.cast_unsigned().wrapping_sub(IMAGE_BASE);
        let direct_size = memory.max_pfn().saturating_mul(PAGE_SIZE);
        Ok(AddressMap {
            memory,
            image_to_phys,
            image_size,
            five_levels,
            encryption_bit,
            top: top.wrapping_add(image_to_phys),
            direct_base: if five_levels {
                0xff11_0000_0000_0000
            } else {
                0xffff_8880_0000_0000
            },
            direct_size,
            tlb: RwLock::default(),
        })
    }

    /// Where the direct map of all memory begins: the variable `page_offset_base`.
    pub(super) fn set_direct_base(&mut self, base: u64) {
        self.direct_base = base;
    }

    /// Has every address outside the image go through the page tables: a kernel that randomises its
    /// direct map says where it is in a variable, which takes kallsyms to find.
    pub(super) fn forget_direct_map(&mut self) {
        self.direct_size = 0;
    }

    /// Whether 57 bits of a virtual address count, and not 48.
    pub(super) fn five_levels(&self) -> bool {
        self.five_levels
    }

    /// The array of `struct page`, in a kernel that does not randomise it.
    pub(super) fn default_vmemmap(&self) -> u64 {
        if self.five_levels {
            0xffd4_0000_0000_0000
        } else {
            0xffff_ea00_0000_0000
        }
    }

    /// The physical address in a page-table entry.
    pub(super) fn frame(&self, entry: u64) -> u64 {
        entry & 0x000f_ffff_ffff_f000 & !self.encryption_bit
    }

    /// The direct map's address of a physical one.
    pub(super) fn phys_to_virt(&self, phys: u64) -> u64 {
        self.direct_base.wrapping_add(phys)
    }

    pub(super) fn memory(&self) -> &Arc<dyn PhysicalMemory> {
        &self.memory
    }

    /// The physical address, and how many bytes from there on are contiguous like the virtual ones.
    pub(super) fn translate(&self, addr: u64) -> Result<(u64, u64), KernelError> {
        let in_image = addr.wrapping_sub(IMAGE_BASE);
        if in_image < self.image_size {
            return Ok((
                addr.wrapping_add(self.image_to_phys),
                self.image_size - in_image,
            ));
        }
        let in_direct = addr.wrapping_sub(self.direct_base);
        if in_direct < self.direct_size {
            return Ok((in_direct, self.direct_size - in_direct));
        }
        let within = addr % PAGE_SIZE;
        if let Ok(tlb) = self.tlb.read()
            && let Some(frame) = tlb.get(&(addr - within))
        {
            return Ok((frame + within, PAGE_SIZE - within));
        }
        let phys = self.walk(addr)?;
        if let Ok(mut tlb) = self.tlb.write() {
            if tlb.len() >= TLB_ENTRIES {
                tlb.clear();
            }
            tlb.insert(addr - within, phys - within);
        }
        Ok((phys, PAGE_SIZE - within))
    }

    /// Walks the kernel's page tables.
    fn walk(&self, addr: u64) -> Result<u64, KernelError> {
        let mut table = self.top;
        for (level, shift) in levels(self.five_levels) {
            let entry_at = table + (addr >> shift & 511) * 8;
            let mut raw = [0; 8];
            self.memory
                .read_physical(entry_at, &mut raw)
                .map_err(|source| KernelError::Memory {
                    addr: self.phys_to_virt(entry_at),
                    phys: entry_at,
                    len: 8,
                    source: Arc::new(source),
                })?;
            let entry = u64::from_le_bytes(raw);
            if entry & PRESENT == 0 {
                return Err(KernelError::Unmapped { addr, level, entry });
            }
            if shift == 12 || (entry & LARGE != 0 && shift <= 30) {
                let within = (1u64 << shift) - 1;
                return Ok((self.frame(entry) & !within) | (addr & within));
            }
            table = self.frame(entry);
        }
        Err(KernelError::Unmapped {
            addr,
            level: "pte",
            entry: 0,
        })
    }

    /// Reads at a kernel virtual address.
    pub(super) fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), KernelError> {
        let mut done = 0;
        while done < buf.len() {
            let at = addr.checked_add(done as u64).ok_or(KernelError::Unmapped {
                addr: u64::MAX,
                level: "pgd",
                entry: 0,
            })?;
            let (phys, contiguous) = self.translate(at)?;
            let rest = &mut buf[done..];
            let len = rest
                .len()
                .min(usize::try_from(contiguous).unwrap_or(usize::MAX));
            self.memory
                .read_physical(phys, &mut rest[..len])
                .map_err(|source| KernelError::Memory {
                    addr: at,
                    phys,
                    len,
                    source: Arc::new(source),
                })?;
            done += len;
        }
        Ok(())
    }
}

/// Name of each level's entries, and the bit of the address where its index begins.
pub(super) fn levels(five: bool) -> impl Iterator<Item = (&'static str, u32)> {
    const LEVELS: [(&str, u32); 5] = [
        ("pgd", 48),
        ("p4d", 39),
        ("pud", 30),
        ("pmd", 21),
        ("pte", 12),
    ];
    LEVELS.into_iter().skip(usize::from(!five))
}
