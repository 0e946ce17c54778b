//! The kernel's memory by virtual address, and page frames by their `struct page`.

use super::{Kernel, KernelError};

impl Kernel {
    /// Reads at a kernel virtual address.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), KernelError> {
        self.addresses.read(addr, buf)
    }

    /// Reads a little-endian u64.
    pub fn read_u64(&self, addr: u64) -> Result<u64, KernelError> {
        let mut raw = [0; 8];
        self.read(addr, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// Reads a little-endian u32.
    pub fn read_u32(&self, addr: u64) -> Result<u32, KernelError> {
        let mut raw = [0; 4];
        self.read(addr, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    /// Reads a C string of up to `max` bytes; a longer one is cut. Bytes that are no UTF-8 are
    /// replaced.
    pub fn read_cstr(&self, addr: u64, max: usize) -> Result<String, KernelError> {
        let bytes = self.read_cstr_bytes(addr, max)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same, as bytes.
    pub fn read_cstr_bytes(&self, addr: u64, max: usize) -> Result<Vec<u8>, KernelError> {
        let mut bytes = Vec::new();
        while bytes.len() < max {
            let at = addr.wrapping_add(bytes.len() as u64);
            // Not beyond the page: the string may end before it, and the next may be missing.
            let len = (64 - at as usize % 64).min(max - bytes.len());
            let mut piece = [0; 64];
            self.read(at, &mut piece[..len])?;
            match piece[..len].iter().position(|&byte| byte == 0) {
                Some(end) => {
                    bytes.extend_from_slice(&piece[..end]);
                    break;
                }
                None => bytes.extend_from_slice(&piece[..len]),
            }
        }
        Ok(bytes)
    }

    /// The physical address that a kernel virtual one leads to.
    pub fn virt_to_phys(&self, addr: u64) -> Result<u64, KernelError> {
        Ok(self.addresses.translate(addr)?.0)
    }

    /// The direct map's address of a physical one.
    #[must_use]
    pub fn phys_to_virt(&self, addr: u64) -> u64 {
        self.addresses.phys_to_virt(addr)
    }

    /// The page frame that a `struct page *` (or `struct folio *`) stands for.
    pub fn page_to_pfn(&self, page: u64) -> Result<u64, KernelError> {
        let offset = page.wrapping_sub(self.vmemmap);
        let pfn = offset / self.page_size.max(1);
        // 52 bits of physical address make 2⁴⁰ page frames.
        if !offset.is_multiple_of(self.page_size.max(1)) || pfn >= 1 << 40 {
            return Err(KernelError::Damaged {
                what: "pointer to struct page",
                addr: page,
                detail: format!("the array of them begins at {:#x}", self.vmemmap),
            });
        }
        Ok(pfn)
    }

    /// The address of the `struct page` of a page frame. It may lie in a hole.
    #[must_use]
    pub fn pfn_to_page(&self, pfn: u64) -> u64 {
        self.vmemmap.wrapping_add(pfn.wrapping_mul(self.page_size))
    }

    /// The physical address in a page-table entry.
    pub(super) fn frame_of(&self, entry: u64) -> u64 {
        self.addresses.frame(entry)
    }

    /// Whether the kernel used 5-level page tables: 57 bits of a virtual address count, and not 48.
    #[must_use]
    pub fn five_level_paging(&self) -> bool {
        self.addresses.five_levels()
    }
}
