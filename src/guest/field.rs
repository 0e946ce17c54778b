//! Fields of the dead kernel's structures, at the width that the dataset has for them.

use super::GuestError;
use crate::kernel::{Kernel, KernelError, Object};

/// Modules that KVM's generic half can live in; it can also be built into the kernel.
const KVM_MODULE: &str = "kvm";
/// The half that knows AMD's SVM.
const SVM_MODULE: &str = "kvm_amd";

/// An object of one of kvm.ko's types. They are in the module's own BTF, or in the kernel's where
/// KVM is built in.
pub(super) fn kvm_object<'k>(
    kernel: &'k Kernel,
    ty: &str,
    addr: u64,
) -> Result<Object<'k>, KernelError> {
    in_module_or_core(kernel, KVM_MODULE, ty, addr)
}

/// An object of one of kvm-amd.ko's types.
pub(super) fn svm_object<'k>(
    kernel: &'k Kernel,
    ty: &str,
    addr: u64,
) -> Result<Object<'k>, KernelError> {
    in_module_or_core(kernel, SVM_MODULE, ty, addr)
}

fn in_module_or_core<'k>(
    kernel: &'k Kernel,
    module: &str,
    ty: &str,
    addr: u64,
) -> Result<Object<'k>, KernelError> {
    kernel
        .object_in(module, ty, addr)
        .or_else(|error| kernel.object(ty, addr).map_err(|_| error))
}

/// Address of one of kvm.ko's symbols, static ones among them.
pub(super) fn kvm_symbol(kernel: &Kernel, name: &str) -> Option<u64> {
    symbol(kernel, KVM_MODULE, name)
}

/// Address of one of kvm-amd.ko's symbols.
pub(super) fn svm_symbol(kernel: &Kernel, name: &str) -> Option<u64> {
    symbol(kernel, SVM_MODULE, name)
}

fn symbol(kernel: &Kernel, module: &str, name: &str) -> Option<u64> {
    kernel
        .module_symbol(module, name)
        .or_else(|_| kernel.symbol(name))
        .ok()
}

/// An unsigned field of at most `T`'s width.
pub(super) fn narrow<T: TryFrom<u64>>(obj: &Object<'_>, path: &str) -> Result<T, GuestError> {
    let value = obj.u(path)?;
    T::try_from(value).map_err(|_| GuestError::Damaged {
        what: "a field of KVM's",
        addr: obj.addr(),
        detail: format!(
            "{}.{path} is {value:#x}, wider than it can be",
            obj.type_name()
        ),
    })
}

/// A `bool`.
pub(super) fn flag(obj: &Object<'_>, path: &str) -> Result<bool, GuestError> {
    Ok(obj.u(path)? != 0)
}

/// A field that only some kernels have; where it is missing, `default`.
pub(super) fn or<T>(
    obj: &Object<'_>,
    path: &str,
    default: T,
    read: impl FnOnce(&Object<'_>, &str) -> Result<T, GuestError>,
) -> Result<T, GuestError> {
    if obj.has(path) {
        read(obj, path)
    } else {
        Ok(default)
    }
}

/// `u` of a field that only some kernels have; 0 where it is missing.
pub(super) fn u_or_0(obj: &Object<'_>, path: &str) -> Result<u64, GuestError> {
    or(obj, path, 0, |o, p| Ok(o.u(p)?))
}

/// `flag` of a field that only some kernels have; false where it is missing.
pub(super) fn flag_or_false(obj: &Object<'_>, path: &str) -> Result<bool, GuestError> {
    or(obj, path, false, flag)
}

/// Little-endian words of a byte string; a remainder is left out.
pub(super) fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|c| u64::from_le_bytes(*c))
        .collect()
}

/// The `u32` at byte `at`; 0 behind the end.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at.saturating_add(4))
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}
