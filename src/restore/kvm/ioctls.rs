//! KVM's ioctl numbers (Linux include/uapi/linux/kvm.h), by name.

use kvm_bindings as kvm;

/// An ioctl with the name that errors call it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ioctl {
    pub name: &'static str,
    pub number: u64,
}

const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;
/// `KVMIO`.
const TYPE: u64 = 0xae;

/// `_IOC(direction, KVMIO, number, size)`, Linux include/uapi/asm-generic/ioctl.h.
const fn ioctl(name: &'static str, direction: u64, number: u64, size: usize) -> Ioctl {
    assert!(size < 1 << 14);
    Ioctl {
        name,
        number: direction << 30 | (size as u64) << 16 | TYPE << 8 | number,
    }
}

macro_rules! ioctls {
    ($($name:ident = $direction:expr, $number:literal, $size:expr;)*) => {
        $(pub(super) const $name: Ioctl =
            ioctl(concat!("KVM_", stringify!($name)), $direction, $number, $size);)*
    };
}

/// Size of the fixed part of a struct that ends in an array: `u32 n, u32 pad`.
const HEADER: usize = 8;

ioctls! {
    CREATE_VM = NONE, 0x01, 0;
    CHECK_EXTENSION = NONE, 0x03, 0;
    GET_VCPU_MMAP_SIZE = NONE, 0x04, 0;

    CREATE_VCPU = NONE, 0x41, 0;
    SET_USER_MEMORY_REGION = WRITE, 0x46, size_of::<kvm::kvm_userspace_memory_region>();
    SET_TSS_ADDR = NONE, 0x47, 0;
    SET_IDENTITY_MAP_ADDR = WRITE, 0x48, size_of::<u64>();
    CREATE_IRQCHIP = NONE, 0x60, 0;
    GET_IRQCHIP = READ | WRITE, 0x62, size_of::<kvm::kvm_irqchip>();
    SET_IRQCHIP = READ, 0x63, size_of::<kvm::kvm_irqchip>();
    REGISTER_COALESCED_MMIO = WRITE, 0x67, size_of::<kvm::kvm_coalesced_mmio_zone>();
    SET_GSI_ROUTING = WRITE, 0x6a, HEADER;
    REINJECT_CONTROL = NONE, 0x71, 0;
    IRQFD = WRITE, 0x76, size_of::<kvm::kvm_irqfd>();
    CREATE_PIT2 = WRITE, 0x77, size_of::<kvm::kvm_pit_config>();
    SET_BOOT_CPU_ID = NONE, 0x78, 0;
    IOEVENTFD = WRITE, 0x79, size_of::<kvm::kvm_ioeventfd>();
    SET_CLOCK = WRITE, 0x7b, size_of::<kvm::kvm_clock_data>();
    GET_CLOCK = READ, 0x7c, size_of::<kvm::kvm_clock_data>();

    RUN = NONE, 0x80, 0;
    GET_REGS = READ, 0x81, size_of::<kvm::kvm_regs>();
    SET_REGS = WRITE, 0x82, size_of::<kvm::kvm_regs>();
    GET_MSRS = READ | WRITE, 0x88, HEADER;
    SET_MSRS = WRITE, 0x89, HEADER;
    SET_SIGNAL_MASK = WRITE, 0x8b, 4;
    GET_LAPIC = READ, 0x8e, size_of::<kvm::kvm_lapic_state>();
    SET_LAPIC = WRITE, 0x8f, size_of::<kvm::kvm_lapic_state>();
    SET_CPUID2 = WRITE, 0x90, HEADER;
    TPR_ACCESS_REPORTING = READ | WRITE, 0x92, size_of::<kvm::kvm_tpr_access_ctl>();
    SET_VAPIC_ADDR = WRITE, 0x93, size_of::<kvm::kvm_vapic_addr>();
    GET_MP_STATE = READ, 0x98, size_of::<kvm::kvm_mp_state>();
    SET_MP_STATE = WRITE, 0x99, size_of::<kvm::kvm_mp_state>();
    SET_GUEST_DEBUG = WRITE, 0x9b, size_of::<kvm::kvm_guest_debug>();
    X86_SETUP_MCE = WRITE, 0x9c, size_of::<u64>();
    GET_PIT2 = READ, 0x9f, size_of::<kvm::kvm_pit_state2>();
    SET_PIT2 = WRITE, 0xa0, size_of::<kvm::kvm_pit_state2>();
    GET_VCPU_EVENTS = READ, 0x9f, size_of::<kvm::kvm_vcpu_events>();
    SET_VCPU_EVENTS = WRITE, 0xa0, size_of::<kvm::kvm_vcpu_events>();
    GET_DEBUGREGS = READ, 0xa1, size_of::<kvm::kvm_debugregs>();
    SET_DEBUGREGS = WRITE, 0xa2, size_of::<kvm::kvm_debugregs>();
    SET_TSC_KHZ = NONE, 0xa2, 0;
    GET_TSC_KHZ = NONE, 0xa3, 0;
    ENABLE_CAP = WRITE, 0xa3, size_of::<kvm::kvm_enable_cap>();
    GET_XSAVE = READ, 0xa4, size_of::<kvm::kvm_xsave>();
    SET_XSAVE = WRITE, 0xa5, size_of::<kvm::kvm_xsave>();
    GET_XCRS = READ, 0xa6, size_of::<kvm::kvm_xcrs>();
    SET_XCRS = WRITE, 0xa7, size_of::<kvm::kvm_xcrs>();
    KVMCLOCK_CTRL = NONE, 0xad, 0;
    SET_PMU_EVENT_FILTER = WRITE, 0xb2, 32;
    SET_NESTED_STATE = WRITE, 0xbf, 128;
    X86_SET_MSR_FILTER = WRITE, 0xc6, size_of::<kvm::kvm_msr_filter>();
    GET_SREGS2 = READ, 0xcc, size_of::<kvm::kvm_sregs2>();
    SET_SREGS2 = WRITE, 0xcd, size_of::<kvm::kvm_sregs2>();
    GET_XSAVE2 = READ, 0xcf, size_of::<kvm::kvm_xsave>();
    SET_DEVICE_ATTR = WRITE, 0xe1, size_of::<kvm::kvm_device_attr>();
    GET_DEVICE_ATTR = WRITE, 0xe2, size_of::<kvm::kvm_device_attr>();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers as strace 6.1 prints them for real VMMs.
    #[test]
    fn numbers_are_the_kernels() {
        for (ioctl, number) in [
            (RUN, 0xae80),
            (CREATE_VM, 0xae01),
            (SET_USER_MEMORY_REGION, 0x4020_ae46),
            (GET_REGS, 0x8090_ae81),
            (SET_REGS, 0x4090_ae82),
            (SET_IRQCHIP, 0x8208_ae63),
            (SET_GSI_ROUTING, 0x4008_ae6a),
            (IRQFD, 0x4020_ae76),
            (KVMCLOCK_CTRL, 0xaead),
            (SET_PMU_EVENT_FILTER, 0x4020_aeb2),
            (IOEVENTFD, 0x4040_ae79),
            (SET_CPUID2, 0x4008_ae90),
            (SET_MSRS, 0x4008_ae89),
            (GET_MSRS, 0xc008_ae88),
            (SET_LAPIC, 0x4400_ae8f),
            (SET_MP_STATE, 0x4004_ae99),
            (SET_VCPU_EVENTS, 0x4040_aea0),
            (SET_PIT2, 0x4070_aea0),
            (SET_XSAVE, 0x5000_aea5),
            (SET_XCRS, 0x4188_aea7),
            (SET_DEBUGREGS, 0x4080_aea2),
            (SET_CLOCK, 0x4030_ae7b),
            (SET_NESTED_STATE, 0x4080_aebf),
            (X86_SET_MSR_FILTER, 0x4188_aec6),
            (SET_SREGS2, 0x4140_aecd),
            (REGISTER_COALESCED_MMIO, 0x4010_ae67),
            (ENABLE_CAP, 0x4068_aea3),
            (REINJECT_CONTROL, 0xae71),
            (X86_SETUP_MCE, 0x4008_ae9c),
            (CREATE_PIT2, 0x4040_ae77),
            (SET_GUEST_DEBUG, 0x4048_ae9b),
            (TPR_ACCESS_REPORTING, 0xc028_ae92),
            (SET_SIGNAL_MASK, 0x4004_ae8b),
        ] {
            assert_eq!(ioctl.number, number, "{}", ioctl.name);
        }
    }
}
