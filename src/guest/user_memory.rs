//! The VMM's memory, of which the guest's is a part, for the few bytes of it that say what state
//! the guest is in.

use crate::kernel::{AddressSpace, Kernel, KernelError, Object};

/// The address space of a VM's VMM.
pub(super) struct UserMemory<'k>(Option<AddressSpace<'k>>);

impl<'k> UserMemory<'k> {
    /// Of a `struct kvm`.
    pub fn of(kernel: &'k Kernel, vm: &Object<'k>) -> UserMemory<'k> {
        let space = vm
            .follow("mm")
            .and_then(|mm| AddressSpace::new(kernel, mm.ptr("pgd")?));
        UserMemory(space.ok())
    }

    /// One byte at the VMM's address `addr`.
    pub fn byte(&self, addr: u64) -> Result<u8, KernelError> {
        let mut byte = [0];
        self.read(addr, &mut byte)?;
        Ok(byte[0])
    }

    /// A little-endian u32 at the VMM's address `addr`.
    pub fn u32(&self, addr: u64) -> Result<u32, KernelError> {
        let mut raw = [0; 4];
        self.read(addr, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), KernelError> {
        match &self.0 {
            Some(space) => space.read(addr, buf),
            None => Err(KernelError::Unsupported {
                what: "the memory of a VMM that is gone".into(),
            }),
        }
    }
}
