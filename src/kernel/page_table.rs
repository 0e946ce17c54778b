//! User page tables. (Stub; being filled.)
#![allow(unused_variables, dead_code, missing_docs)]
use super::{Kernel, KernelError, no};
use std::ops::ControlFlow;
pub struct AddressSpace<'k> {
    kernel: &'k Kernel,
    pgd: u64,
}
/// One entry of the page tables that is not empty.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub va: u64,
    /** Bytes: 4 KiB, 2 MiB or 1 GiB. */
    pub len: u64,
    pub entry: Entry,
}
#[derive(Clone, Debug)]
pub enum Entry {
    Present(Present),
    /// A swap, migration or marker entry; the raw page-table entry. See [`SwapEntry::decode`].
    NonPresent {
        raw: u64,
    },
    /// The page table that says what is here could not be read; `len` is all that it covers.
    Unreadable(KernelError),
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    pub pfn: u64,
    pub writable: bool,
    pub user: bool,
    pub accessed: bool,
    pub dirty: bool,
    pub protnone: bool,
    pub no_execute: bool,
    pub soft_dirty: bool,
    pub raw: u64,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapEntry {
    /** Index into swap_info, or a special type. */
    pub kind: u8,
    /** In pages. */
    pub offset: u64,
}
impl SwapEntry {
    pub fn decode(raw: u64) -> SwapEntry {
        SwapEntry { kind: 0, offset: 0 }
    }
}
impl<'k> AddressSpace<'k> {
    pub fn new(kernel: &'k Kernel, pgd_virt: u64) -> Result<AddressSpace<'k>, KernelError> {
        no()
    }
    /// Visits `start..end` in order.
    pub fn walk(
        &self,
        start: u64,
        end: u64,
        visit: impl FnMut(Mapping) -> ControlFlow<()>,
    ) -> Result<(), KernelError> {
        no()
    }
    /// The entry at `va`; none when it is empty.
    pub fn translate(&self, va: u64) -> Result<Option<Mapping>, KernelError> {
        no()
    }
    /// Reads resident memory; a page that is not present is an error.
    pub fn read(&self, va: u64, buf: &mut [u8]) -> Result<(), KernelError> {
        no()
    }
}
