//! A typed place in the dead kernel's memory. (Stub; being filled.)
#![allow(unused_variables, dead_code, missing_docs)]
use super::{Kernel, KernelError, no};
#[derive(Clone)]
pub struct Object<'k> {
    kernel: &'k Kernel,
    addr: u64,
}
impl std::fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.addr)
    }
}
impl<'k> Object<'k> {
    pub fn kernel(&self) -> &'k Kernel {
        self.kernel
    }
    pub fn addr(&self) -> u64 {
        self.addr
    }
    pub fn size(&self) -> u64 {
        0
    }
    pub fn type_name(&self) -> String {
        String::new()
    }
    pub fn has(&self, path: &str) -> bool {
        false
    }
    pub fn array_len(&self) -> Option<u64> {
        None
    }
    pub fn get(&self, path: &str) -> Result<Object<'k>, KernelError> {
        no()
    }
    pub fn unsigned(&self) -> Result<u64, KernelError> {
        no()
    }
    pub fn signed(&self) -> Result<i64, KernelError> {
        no()
    }
    pub fn u(&self, path: &str) -> Result<u64, KernelError> {
        no()
    }
    pub fn i(&self, path: &str) -> Result<i64, KernelError> {
        no()
    }
    pub fn ptr(&self, path: &str) -> Result<u64, KernelError> {
        no()
    }
    pub fn deref(&self) -> Result<Object<'k>, KernelError> {
        no()
    }
    pub fn follow(&self, path: &str) -> Result<Object<'k>, KernelError> {
        no()
    }
    pub fn follow_opt(&self, path: &str) -> Result<Option<Object<'k>>, KernelError> {
        no()
    }
    pub fn bytes(&self) -> Result<Vec<u8>, KernelError> {
        no()
    }
    pub fn read_bytes(&self, len: usize) -> Result<Vec<u8>, KernelError> {
        no()
    }
    pub fn string(&self) -> Result<String, KernelError> {
        no()
    }
    pub fn cast(&self, ty: &str) -> Result<Object<'k>, KernelError> {
        no()
    }
    pub fn container_of(&self, ty: &str, member: &str) -> Result<Object<'k>, KernelError> {
        no()
    }
    pub fn element(&self, i: u64) -> Result<Object<'k>, KernelError> {
        no()
    }
}
