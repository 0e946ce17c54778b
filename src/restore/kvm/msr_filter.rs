//! KVM_X86_SET_MSR_FILTER, whose argument points to its bitmaps.

use super::calls::Calls;
use super::error::KvmError;
use super::ioctls;
use crate::dataset::MsrFilter;
use crate::restore::Errno;

/// `struct kvm_msr_filter`: flags, padding, 16 ranges.
const SIZE: usize = 392;
/// `struct kvm_msr_filter_range`: flags, nmsrs, base, padding, bitmap.
const RANGE: usize = 24;
const MOST_RANGES: usize = 16;
const DEFAULT_DENY: u32 = 1;

/// Sets which MSRs the guest may touch without the VMM.
pub(super) fn set(calls: &mut Calls, fd: i32, filter: &MsrFilter) -> Result<(), KvmError> {
    let (scratch, room) = calls.sys.scratch();
    let argument = encode(filter, scratch).filter(|bytes| bytes.len() <= room);
    let Some(argument) = argument else {
        return Err(KvmError::Malformed {
            subject: calls.subject.clone(),
            what: "MSR filter".into(),
            why: format!("{} ranges, or bitmaps too long", filter.ranges.len()),
        });
    };
    let ioctl = ioctls::X86_SET_MSR_FILTER;
    let fd = u64::from(fd.cast_unsigned());
    calls
        .sys
        .write(scratch, &argument)
        .and_then(|()| {
            calls
                .sys
                .syscall(libc::SYS_ioctl, [fd, ioctl.number, scratch, 0, 0, 0])
        })
        .map(|_| ())
        .map_err(|errno: Errno| calls.failed(ioctl.name, errno))
}

/// The argument as it stands at address `at`, its bitmaps behind it.
fn encode(filter: &MsrFilter, at: u64) -> Option<Vec<u8>> {
    if filter.ranges.len() > MOST_RANGES {
        return None;
    }
    let mut bytes = vec![0; SIZE];
    let deny = if filter.default_allow {
        0
    } else {
        DEFAULT_DENY
    };
    bytes[..4].copy_from_slice(&deny.to_le_bytes());
    for (number, range) in filter.ranges.iter().enumerate() {
        // KVM reads the bitmap in words of 64 bits.
        if (range.bitmap.0.len() as u64) < u64::from(range.count).div_ceil(64) * 8 {
            return None;
        }
        let bitmap = at.checked_add(bytes.len() as u64)?;
        let place = &mut bytes[8 + number * RANGE..8 + (number + 1) * RANGE];
        place[..4].copy_from_slice(&range.flags.to_le_bytes());
        place[4..8].copy_from_slice(&range.count.to_le_bytes());
        place[8..12].copy_from_slice(&range.base.to_le_bytes());
        place[16..].copy_from_slice(&bitmap.to_le_bytes());
        bytes.extend(&range.bitmap.0);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Blob, MsrFilterRange};
    use kvm_bindings as kvm;
    use std::mem::offset_of;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_form_is_the_kernels() {
        let range = |base, count, byte, len| MsrFilterRange {
            flags: 1,
            base,
            count,
            bitmap: Blob(vec![byte; len]),
        };
        let filter = MsrFilter {
            default_allow: false,
            ranges: vec![range(0x35, 1, 0xaa, 8), range(0x800, 256, 0xbb, 32)],
        };
        let bytes = encode(&filter, 0x1000).unwrap();
        assert_eq!(size_of::<kvm::kvm_msr_filter>(), SIZE);
        assert_eq!(size_of::<kvm::kvm_msr_filter_range>(), RANGE);
        assert_eq!(u32_at(&bytes, 0), kvm::KVM_MSR_FILTER_DEFAULT_DENY);
        let second = offset_of!(kvm::kvm_msr_filter, ranges) + RANGE;
        let field = |at| u32_at(&bytes, second + at);
        assert_eq!(field(offset_of!(kvm::kvm_msr_filter_range, base)), 0x800);
        assert_eq!(field(offset_of!(kvm::kvm_msr_filter_range, nmsrs)), 256);
        let bitmap = field(offset_of!(kvm::kvm_msr_filter_range, bitmap)) as usize;
        assert_eq!(bytes[bitmap - 0x1000..], [0xbb; 32]);
    }

    #[test]
    fn short_bitmaps_are_refused() {
        let filter = MsrFilter {
            default_allow: true,
            ranges: vec![MsrFilterRange {
                flags: 1,
                base: 0,
                count: 65,
                bitmap: Blob(vec![0; 8]),
            }],
        };
        assert!(encode(&filter, 0).is_none());
    }
}
