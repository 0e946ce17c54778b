//! The kvm_run page: where its fields are, and an exit in words.

use kvm_bindings as kvm;
use std::mem::offset_of;

pub(super) const EXIT_REASON: usize = offset_of!(kvm::kvm_run, exit_reason);
/// Where the union of the exits' details starts.
pub(super) const DETAILS: usize = offset_of!(kvm::kvm_run, __bindgen_anon_1);

// Within the details of an MMIO exit: phys_addr u64, data [8], len u32, is_write u8.
pub(super) const MMIO_DATA: usize = 8;
pub(super) const MMIO_LEN: usize = 16;
pub(super) const MMIO_IS_WRITE: usize = 20;
/// The longest piece. Bytes.
pub(super) const MMIO_MOST: usize = 8;

/// An exit in words.
pub(super) fn describe(page: &[u8]) -> String {
    let at = |offset| DETAILS + offset;
    let byte = |at: usize| page.get(at).copied().unwrap_or_default();
    match u32_at(page, EXIT_REASON) {
        kvm::KVM_EXIT_IO => format!(
            "{} of {} × {} bytes at port {:#x}",
            if byte(at(0)) == 0 { "in" } else { "out" },
            u32_at(page, at(4)),
            byte(at(1)),
            u32_at(page, at(0)) >> 16,
        ),
        kvm::KVM_EXIT_MMIO => format!(
            "MMIO {} of {} bytes at {:#x}",
            if byte(at(MMIO_IS_WRITE)) == 0 {
                "read"
            } else {
                "write"
            },
            u32_at(page, at(MMIO_LEN)),
            u64_at(page, at(0)),
        ),
        kvm::KVM_EXIT_X86_RDMSR => format!("read of MSR {:#x}", u32_at(page, at(12))),
        kvm::KVM_EXIT_X86_WRMSR => format!("write of MSR {:#x}", u32_at(page, at(12))),
        kvm::KVM_EXIT_HYPERCALL => format!("hypercall {:#x}", u64_at(page, at(0))),
        kvm::KVM_EXIT_INTERNAL_ERROR => {
            format!("internal error of KVM, suberror {}", u32_at(page, at(0)))
        }
        kvm::KVM_EXIT_FAIL_ENTRY => {
            format!("the CPU refused to enter, {:#x}", u64_at(page, at(0)))
        }
        kvm::KVM_EXIT_SHUTDOWN => "triple fault".into(),
        reason => format!("exit of reason {reason}"),
    }
}

/// A field; 0 beyond the page's end.
pub(super) fn u32_at(page: &[u8], at: usize) -> u32 {
    page.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// A field; 0 beyond the page's end.
pub(super) fn u64_at(page: &[u8], at: usize) -> u64 {
    page.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
