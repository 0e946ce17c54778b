//! The CPUID table that a guest sees, and what it says the guest has.

use super::GuestError;
use super::field::{narrow, u32_at};
use crate::dataset::CpuidEntry;
use crate::kernel::Object;

/// Bytes in a `struct kvm_cpuid_entry2`, which is the same to user space and in the kernel.
const ENTRY: usize = 40;
/// KVM_MAX_CPUID_ENTRIES.
const MOST: usize = 256;

/// A vCPU's CPUID table, as KVM_GET_CPUID2 gives it.
pub(super) struct Cpuid(pub Vec<CpuidEntry>);

/// A register of CPUID's result.
#[derive(Clone, Copy)]
pub(super) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Cpuid {
    /// Of a `struct kvm_vcpu_arch`.
    pub fn of(arch: &Object<'_>) -> Result<Cpuid, GuestError> {
        let count: usize = narrow(arch, "cpuid_nent")?;
        if count > MOST {
            return Err(GuestError::Damaged {
                what: "kvm_vcpu_arch.cpuid_nent",
                addr: arch.addr(),
                detail: format!("{count} entries, of which KVM allows {MOST}"),
            });
        }
        // Since 255cbecfe0c9 ("KVM: x86: allocate vcpu->arch.cpuid_entries dynamically") (in
        // v5.11) a pointer, an array before.
        let entries = arch.get("cpuid_entries")?;
        let addr = match entries.array_len() {
            Some(_) => entries.addr(),
            None => entries.unsigned()?,
        };
        let mut bytes = vec![0; count * ENTRY];
        arch.kernel()
            .read(addr, &mut bytes)
            .map_err(GuestError::reading("kvm_vcpu_arch.cpuid_entries", addr))?;
        Ok(Cpuid(
            bytes
                .chunks_exact(ENTRY)
                .map(|e| CpuidEntry {
                    function: u32_at(e, 0),
                    index: u32_at(e, 4),
                    flags: u32_at(e, 8),
                    eax: u32_at(e, 12),
                    ebx: u32_at(e, 16),
                    ecx: u32_at(e, 20),
                    edx: u32_at(e, 24),
                })
                .collect(),
        ))
    }

    /// Whether a feature bit is set.
    pub fn has(&self, function: u32, index: u32, reg: Reg, bit: u32) -> bool {
        self.value(function, index, reg) >> bit & 1 != 0
    }

    fn value(&self, function: u32, index: u32, reg: Reg) -> u32 {
        const SIGNIFICANT_INDEX: u32 = 1;
        self.0
            .iter()
            .find(|e| {
                e.function == function && (e.flags & SIGNIFICANT_INDEX == 0 || e.index == index)
            })
            .map_or(0, |e| match reg {
                Reg::Eax => e.eax,
                Reg::Ebx => e.ebx,
                Reg::Ecx => e.ecx,
                Reg::Edx => e.edx,
            })
    }

    /// KVM's paravirtual features (KVM_FEATURE_* of leaf 0x40000001, or of the same leaf behind
    /// another hypervisor's).
    pub fn pv_features(&self) -> u32 {
        const SIGNATURE: [u32; 3] = [
            u32::from_le_bytes(*b"KVMK"),
            u32::from_le_bytes(*b"VMKV"),
            u32::from_le_bytes(*b"M\0\0\0"),
        ];
        self.0
            .iter()
            .find(|e| e.function & 0xffff_00ff == 0x4000_0000 && [e.ebx, e.ecx, e.edx] == SIGNATURE)
            .map_or(0, |e| self.value(e.function | 1, 0, Reg::Eax))
    }

    /// The vendor is Intel, whatever the host is.
    pub fn is_intel(&self) -> bool {
        self.value(0, 0, Reg::Ebx) == u32::from_le_bytes(*b"Genu")
    }

    /// SVM is offered to the guest: it may run guests of its own.
    pub fn has_svm(&self) -> bool {
        self.has(0x8000_0001, 0, Reg::Ecx, 2)
    }
}
