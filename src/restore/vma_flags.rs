//! `vm_flags` of the dead kernel, told apart into what mmap, madvise and mlock
//! take. The bits are those of x86-64, Linux include/linux/mm.h.

/// Bits of `vm_flags`.
pub mod bit {
    pub const MAYWRITE: u64 = 0x20;
    pub const GROWSDOWN: u64 = 0x100;
    pub const UFFD_MISSING: u64 = 0x200;
    pub const UFFD_WP: u64 = 0x1000;
    pub const LOCKED: u64 = 0x2000;
    pub const SEQ_READ: u64 = 0x8000;
    pub const RAND_READ: u64 = 0x1_0000;
    pub const DONTCOPY: u64 = 0x2_0000;
    pub const LOCKONFAULT: u64 = 0x8_0000;
    pub const NORESERVE: u64 = 0x20_0000;
    pub const HUGETLB: u64 = 0x40_0000;
    pub const WIPEONFORK: u64 = 0x200_0000;
    pub const DONTDUMP: u64 = 0x400_0000;
    pub const HUGEPAGE: u64 = 0x2000_0000;
    pub const NOHUGEPAGE: u64 = 0x4000_0000;
    pub const MERGEABLE: u64 = 0x8000_0000;
}

/// MAP_* for a private mapping with these flags, less MAP_ANONYMOUS and MAP_FIXED.
pub fn map_flags(vm_flags: u64) -> i32 {
    let mut flags = libc::MAP_PRIVATE;
    for (bit, flag) in [
        (bit::GROWSDOWN, libc::MAP_GROWSDOWN),
        (bit::NORESERVE, libc::MAP_NORESERVE),
        (bit::HUGETLB, libc::MAP_HUGETLB),
    ] {
        if vm_flags & bit != 0 {
            flags |= flag;
        }
    }
    flags
}

/// MADV_* to give before the memory is filled: they decide what kind of
/// pages it gets.
pub fn advice_before(vm_flags: u64) -> impl Iterator<Item = i32> {
    chosen(
        vm_flags,
        &[
            (bit::HUGEPAGE, libc::MADV_HUGEPAGE),
            (bit::NOHUGEPAGE, libc::MADV_NOHUGEPAGE),
        ],
    )
}

/// MADV_* to give when the memory is filled.
pub fn advice_after(vm_flags: u64) -> impl Iterator<Item = i32> {
    chosen(
        vm_flags,
        &[
            (bit::SEQ_READ, libc::MADV_SEQUENTIAL),
            (bit::RAND_READ, libc::MADV_RANDOM),
            (bit::DONTCOPY, libc::MADV_DONTFORK),
            (bit::DONTDUMP, libc::MADV_DONTDUMP),
            (bit::WIPEONFORK, libc::MADV_WIPEONFORK),
            (bit::MERGEABLE, libc::MADV_MERGEABLE),
        ],
    )
}

fn chosen(vm_flags: u64, table: &'static [(u64, i32)]) -> impl Iterator<Item = i32> {
    table
        .iter()
        .filter(move |(bit, _)| vm_flags & bit != 0)
        .map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags of a QEMU's guest RAM, as `/proc/PID/smaps` showed them:
    /// `rd wr mr mw me ac dc dd hg mg`.
    #[test]
    fn guest_ram() {
        let flags = 0x7 | 0x70 | bit::DONTCOPY | bit::DONTDUMP | bit::HUGEPAGE | bit::MERGEABLE;
        assert_eq!(map_flags(flags), libc::MAP_PRIVATE);
        assert_eq!(advice_before(flags).collect::<Vec<_>>(), [14]);
        assert_eq!(advice_after(flags).collect::<Vec<_>>(), [10, 16, 12]);
    }
}
