//! KVM's argument structs as bytes.
//!
//! Arguments travel into another address space, so they are needed as bytes.
//! The layouts are kvm-bindings', generated from the kernel's headers.

use kvm_bindings as kvm;

/// A struct of integers alone, without padding and with any bit pattern valid.
///
/// # Safety
/// Implement it only for such structs: every byte of them is read and written.
pub unsafe trait Plain: Copy + Default {}

macro_rules! plain {
    ($($name:ident = $size:literal),* $(,)?) => {
        $(
            // SAFETY: `repr(C)` of integers and arrays of integers. The sizes
            // below are the sums of the fields' sizes, so there is no padding.
            unsafe impl Plain for kvm::$name {}
            const _: () = assert!(size_of::<kvm::$name>() == $size);
        )*
    };
}

plain! {
    kvm_regs = 144,
    kvm_sregs2 = 320,
    kvm_debugregs = 128,
    kvm_vcpu_events = 64,
    kvm_mp_state = 4,
    kvm_xcrs = 392,
    kvm_clock_data = 48,
    kvm_pit_config = 64,
    kvm_pit_state2 = 112,
    kvm_reinject_control = 32,
    kvm_userspace_memory_region = 32,
    kvm_enable_cap = 104,
    kvm_irqfd = 32,
    kvm_ioeventfd = 64,
    kvm_guest_debug = 72,
    kvm_tpr_access_ctl = 40,
    kvm_vapic_addr = 8,
    kvm_device_attr = 24,
}

/// Its bytes.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` has no padding, so all `size_of::<T>()` bytes behind the
    // reference are initialised; the slice borrows `value`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Its bytes, to be written.
pub fn bytes_of_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: as above; and any bytes that are written make a valid `T`.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(value).cast(), size_of::<T>()) }
}
