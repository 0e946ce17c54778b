//! A vCPU's exit, taken from its `kvm_run` area.

use kvm_bindings as kvm;
use std::mem::offset_of;

const EXIT_REASON: usize = offset_of!(kvm::kvm_run, exit_reason);
/// Where the union of the exits' details starts.
const DETAILS: usize = offset_of!(kvm::kvm_run, __bindgen_anon_1);
/// `KVM_SYSTEM_EVENT_*`.
const SYSTEM_SHUTDOWN: u32 = 1;
const SYSTEM_RESET: u32 = 2;

/// Why a vCPU came out of KVM_RUN.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Items of `size` bytes go to a port, one after the other.
    Out {
        port: u16,
        size: usize,
        data: &'a [u8],
    },
    /// Items of `size` bytes are read from a port.
    In {
        port: u16,
        size: usize,
        data: &'a mut [u8],
    },
    /// A device's memory is read.
    MmioRead { address: u64, data: &'a mut [u8] },
    /// A device's memory is written.
    MmioWrite { address: u64 },
    /// HLT, of a VM without interrupt controller in KVM.
    Halt,
    /// A triple fault.
    TripleFault,
    /// The guest asked for it by a hypercall.
    PowerOff,
    /// The guest asked for it by a hypercall.
    Reset,
    /// It was answered that there is no such thing, or needs no answer.
    Nothing,
    /// It cannot go on.
    Broken(String),
}

impl<'a> Exit<'a> {
    /// Takes the area of a vCPU apart. What only needs a refusal gets it here.
    pub fn of(area: &'a mut [u8]) -> Self {
        let reason = u32_at(area, EXIT_REASON);
        let word = |n: usize| u32_at(area, DETAILS + n * 4);
        match reason {
            kvm::KVM_EXIT_IO => port_io(area),
            kvm::KVM_EXIT_MMIO => mmio(area),
            kvm::KVM_EXIT_HLT => Self::Halt,
            kvm::KVM_EXIT_SHUTDOWN => Self::TripleFault,
            kvm::KVM_EXIT_SYSTEM_EVENT => match word(0) {
                SYSTEM_SHUTDOWN => Self::PowerOff,
                SYSTEM_RESET => Self::Reset,
                other => Self::Broken(format!("the guest said that it crashed (event {other})")),
            },
            kvm::KVM_EXIT_X86_RDMSR | kvm::KVM_EXIT_X86_WRMSR => {
                // `error`: the guest gets a general protection fault, as from
                // an MSR that does not exist.
                put(area, DETAILS, &[1]);
                Self::Nothing
            }
            kvm::KVM_EXIT_HYPERCALL => {
                // nr, args[6], ret: -KVM_ENOSYS.
                put(area, DETAILS + 56, &(-1000_i64).to_le_bytes());
                Self::Nothing
            }
            kvm::KVM_EXIT_FAIL_ENTRY => Self::Broken(format!(
                "the CPU refused to enter the guest, {:#x}",
                word(0)
            )),
            kvm::KVM_EXIT_INTERNAL_ERROR => {
                Self::Broken(format!("an internal error of KVM, suberror {}", word(0)))
            }
            kvm::KVM_EXIT_INTR
            | kvm::KVM_EXIT_IRQ_WINDOW_OPEN
            | kvm::KVM_EXIT_IOAPIC_EOI
            | kvm::KVM_EXIT_TPR_ACCESS
            | kvm::KVM_EXIT_SET_TPR
            | kvm::KVM_EXIT_X86_BUS_LOCK
            | kvm::KVM_EXIT_NOTIFY
            | kvm::KVM_EXIT_HYPERV => Self::Nothing,
            other => Self::Broken(format!(
                "an exit of reason {other}, which has no answer here"
            )),
        }
    }
}

/// direction u8, size u8, port u16, count u32, data_offset u64.
fn port_io(area: &mut [u8]) -> Exit<'_> {
    let byte = |at: usize| area.get(DETAILS + at).copied().unwrap_or_default();
    let input = u32::from(byte(0)) == kvm::KVM_EXIT_IO_IN;
    let size = usize::from(byte(1));
    let port = u16::from_le_bytes([byte(2), byte(3)]);
    let count = u32_at(area, DETAILS + 4) as usize;
    let data = usize::try_from(u64_at(area, DETAILS + 8))
        .ok()
        .and_then(|at| Some(at..at.checked_add(size.checked_mul(count)?)?))
        .and_then(|range| area.get_mut(range));
    match data {
        Some(data) if input => Exit::In { port, size, data },
        Some(data) => Exit::Out { port, size, data },
        None => Exit::Broken(format!(
            "port {port:#x}: {count} × {size} bytes are more than the vCPU's area holds"
        )),
    }
}

/// phys_addr u64, data [8], len u32, is_write u8.
fn mmio(area: &mut [u8]) -> Exit<'_> {
    let address = u64_at(area, DETAILS);
    let len = u32_at(area, DETAILS + 16).min(8) as usize;
    let write = area.get(DETAILS + 20).copied().unwrap_or_default() != 0;
    match area.get_mut(DETAILS + 8..DETAILS + 8 + len) {
        Some(_) if write => Exit::MmioWrite { address },
        Some(data) => Exit::MmioRead { address, data },
        None => Exit::Broken("the vCPU's area is too small".into()),
    }
}

/// Makes the `kvm_run` page of the dead VMM one that does not end KVM_RUN at
/// once: what asked for that was the VMM's business.
pub fn forget_requests(page: &mut [u8]) {
    for at in [
        offset_of!(kvm::kvm_run, request_interrupt_window),
        offset_of!(kvm::kvm_run, immediate_exit),
    ] {
        put(page, at, &[0]);
    }
    put(page, offset_of!(kvm::kvm_run, kvm_dirty_regs), &[0; 8]);
}

fn put(area: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = area.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn u32_at(area: &[u8], at: usize) -> u32 {
    area.get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    area.get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_outside_of_the_area_is_refused() {
        let mut area = vec![0; 8192];
        put(&mut area, EXIT_REASON, &kvm::KVM_EXIT_IO.to_le_bytes());
        put(&mut area, DETAILS, &[0, 4, 0xf8, 3]);
        put(&mut area, DETAILS + 4, &u32::MAX.to_le_bytes());
        put(&mut area, DETAILS + 8, &4096_u64.to_le_bytes());
        assert!(matches!(Exit::of(&mut area), Exit::Broken(_)));
        put(&mut area, DETAILS + 4, &2_u32.to_le_bytes());
        let Exit::In { port, size, data } = Exit::of(&mut area) else {
            panic!("not an IN");
        };
        assert_eq!((port, size, data.len()), (0x3f8, 4, 8));
    }
}
