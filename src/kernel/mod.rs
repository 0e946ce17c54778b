//! The dead kernel: its symbols, its types, and where its addresses lead. (Stub; being filled.)
#![allow(unused_variables, dead_code, missing_docs)]
pub mod containers;
mod error;
mod object;
mod page_table;
mod vmcoreinfo;
use crate::dump::PhysicalMemory;
pub use error::KernelError;
pub use object::Object;
pub use page_table::{AddressSpace, Entry, Mapping, Present, SwapEntry};
use std::sync::Arc;
pub use vmcoreinfo::VmcoreInfo;
pub struct Kernel {
    memory: Arc<dyn PhysicalMemory>,
    info: VmcoreInfo,
}
/// A module that was loaded.
#[derive(Clone, Debug)]
pub struct Module {
    pub name: String,
    pub base: u64,
    pub size: u64,
}
fn no<T>() -> Result<T, KernelError> {
    Err(KernelError::Unsupported {
        what: "not yet".into(),
    })
}
impl Kernel {
    pub fn open(memory: Arc<dyn PhysicalMemory>, vmcoreinfo: &str) -> Result<Kernel, KernelError> {
        no()
    }
    pub fn symbol(&self, name: &str) -> Result<u64, KernelError> {
        no()
    }
    pub fn module_symbol(&self, module: &str, name: &str) -> Result<u64, KernelError> {
        no()
    }
    pub fn modules(&self) -> Result<Vec<Module>, KernelError> {
        no()
    }
    pub fn per_cpu(&self, addr: u64, cpu: u32) -> Result<u64, KernelError> {
        no()
    }
    pub fn cpus(&self) -> Result<Vec<u32>, KernelError> {
        no()
    }
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), KernelError> {
        no()
    }
    pub fn read_u64(&self, addr: u64) -> Result<u64, KernelError> {
        no()
    }
    pub fn read_u32(&self, addr: u64) -> Result<u32, KernelError> {
        no()
    }
    pub fn read_cstr(&self, addr: u64, max: usize) -> Result<String, KernelError> {
        no()
    }
    pub fn virt_to_phys(&self, addr: u64) -> Result<u64, KernelError> {
        no()
    }
    pub fn page_to_pfn(&self, page: u64) -> Result<u64, KernelError> {
        no()
    }
    pub fn pfn_to_page(&self, pfn: u64) -> Result<u64, KernelError> {
        no()
    }
    pub fn object<'k>(&'k self, ty: &str, addr: u64) -> Result<Object<'k>, KernelError> {
        no()
    }
    pub fn object_in<'k>(
        &'k self,
        module: &str,
        ty: &str,
        addr: u64,
    ) -> Result<Object<'k>, KernelError> {
        no()
    }
    pub fn size_of(&self, ty: &str) -> Result<u64, KernelError> {
        no()
    }
    pub fn offset_of(&self, ty: &str, path: &str) -> Result<u64, KernelError> {
        no()
    }

    pub fn release(&self) -> &str {
        ""
    }
    pub fn memory(&self) -> &Arc<dyn PhysicalMemory> {
        &self.memory
    }
    pub fn vmcoreinfo(&self) -> &VmcoreInfo {
        &self.info
    }
    pub fn symbol_at(&self, addr: u64) -> Option<(String, u64)> {
        None
    }
    pub fn phys_to_virt(&self, addr: u64) -> u64 {
        0
    }
    pub fn has_type(&self, ty: &str) -> bool {
        false
    }
    pub fn enum_value(&self, enum_or_empty: &str, name: &str) -> Option<i64> {
        None
    }
}
