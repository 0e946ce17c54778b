//! Memslots: which guest-physical memory is which memory of the VMM.

use super::GuestError;
use super::field::narrow;
use super::user_memory::UserMemory;
use crate::dataset::Memslot;
use crate::kernel::{Object, containers};

const PAGE: u64 = 4096;
/// KVM keeps its own slots (TSS, identity map, APIC page) behind the user's: KVM_USER_MEM_SLOTS is
/// SHRT_MAX - 3. Linux include/linux/kvm_host.h.
const FIRST_INTERNAL: u64 = 32764;
/// What KVM_INTERNAL_MEM_SLOTS (KVM_PRIVATE_MEM_SLOTS before 5.17) has always been on x86.
const INTERNAL: u64 = 3;
/// More than KVM allows (SHRT_MAX); a longer list is a damaged one.
const MAX_SLOTS: usize = 32767;
/// KVM_MAX_NR_ADDRESS_SPACES: one, and one for SMM.
const MAX_SPACES: u64 = 8;

/// The user's memslots of every address space, in the order of slot numbers.
pub(super) fn memslots(vm: &Object<'_>) -> Result<Vec<Memslot>, GuestError> {
    let spaces = vm.get("memslots")?;
    let count = spaces
        .array_len()
        .filter(|spaces| *spaces <= MAX_SPACES)
        .ok_or_else(|| damaged(&spaces, "it is not an array of a few address spaces"))?;
    let mut found = Vec::new();
    for space in 0..count {
        let Some(set) = vm.follow_opt(&format!("memslots[{space}]"))? else {
            continue;
        };
        for slot in active_slots(&set)? {
            found.extend(memslot(&slot, &set, space)?);
        }
    }
    if found.len() > MAX_SLOTS {
        return Err(damaged(
            &spaces,
            &format!("it has {} slots, more than KVM allows", found.len()),
        ));
    }
    found.sort_by_key(|s: &Memslot| (s.address_space, s.slot));
    Ok(found)
}

/// Whether a call that deletes a slot, KVM_SET_USER_MEMORY_REGION with the argument at the VMM's
/// address `region`, has done it already: made again it would find no slot.
pub(super) fn is_deleted(vm: &Object<'_>, region: u64) -> Result<bool, GuestError> {
    // struct kvm_userspace_memory_region. Linux include/uapi/linux/kvm.h.
    let memory = UserMemory::of(vm.kernel(), vm);
    let number = memory.u32(region)?;
    let size = [16, 20].map(|at| memory.u32(region.wrapping_add(at)));
    if size.into_iter().collect::<Result<Vec<_>, _>>()? != [0, 0] {
        return Ok(false);
    }
    let is_it = |s: &Memslot| u32::from(s.address_space) << 16 | u32::from(s.slot) == number;
    Ok(!memslots(vm)?.iter().any(is_it))
}

/// Whether a slot's memory is in a guest_memfd. KVM_MEM_GUEST_MEMFD, since a7800aa80ea4 ("KVM: Add
/// KVM_CREATE_GUEST_MEMFD ioctl() for guest-specific backing memory") (in v6.8).
pub(super) fn uses_guest_memfd(vm: &Object<'_>) -> Result<bool, GuestError> {
    const GUEST_MEMFD: u32 = 4;
    Ok(memslots(vm)?.iter().any(|s| s.flags & GUEST_MEMFD != 0))
}

/// The slots of one `struct kvm_memslots`.
fn active_slots<'k>(set: &Object<'k>) -> Result<Vec<Object<'k>>, GuestError> {
    if set.has("gfn_tree") {
        // Since a54d806688fe ("KVM: Keep memslots in tree-based structures instead of array-based
        // ones") (in v5.17). Two sets of nodes, of which this one is in use.
        let node = set.u("node_idx")?;
        if node > 1 {
            return Err(damaged(set, &format!("node_idx is {node}")));
        }
        return Ok(containers::rbtree(
            &set.get("gfn_tree")?,
            "kvm_memory_slot",
            &format!("gfn_node[{node}]"),
        )?);
    }
    // A sorted array before that.
    let used: u64 = narrow(set, "used_slots")?;
    let slots = set.get("memslots")?;
    (0..used.min(MAX_SLOTS as u64))
        .map(|i| Ok(slots.element(i)?))
        .collect()
}

fn memslot(slot: &Object<'_>, set: &Object<'_>, space: u64) -> Result<Option<Memslot>, GuestError> {
    // Signed, and -1 in a slot of the old array that is not in use.
    let id = slot.u("id")? & 0xffff;
    let internal = match set.get("memslots").ok().and_then(|a| a.array_len()) {
        // A fixed array, whose last elements are KVM's, before v5.12.
        Some(slots) if slots > INTERNAL => slots - INTERNAL,
        _ => FIRST_INTERNAL,
    };
    let pages = slot.u("npages")?;
    if pages == 0 || id >= internal {
        return Ok(None);
    }
    let overflow = || damaged(slot, &format!("{pages} pages do not fit an address space"));
    let bytes = |n: u64| n.checked_mul(PAGE).ok_or_else(overflow);
    let size = bytes(pages)?;
    let guest_address = bytes(slot.u("base_gfn")?)?;
    let user_address = slot.u("userspace_addr")?;
    if guest_address.checked_add(size).is_none() || user_address.checked_add(size).is_none() {
        return Err(overflow());
    }
    Ok(Some(Memslot {
        slot: u16::try_from(id).map_err(|_| overflow())?,
        address_space: u16::try_from(space).map_err(|_| overflow())?,
        // The upper half is KVM's own: KVM_MEMSLOT_INVALID while a slot is being deleted.
        flags: narrow::<u32>(slot, "flags")? & 0xffff,
        guest_address,
        size,
        user_address,
    }))
}

/// Memory that the guest takes for RAM: what it can write. What shows twice counts once. Bytes.
pub(super) fn ram_bytes(slots: &[Memslot]) -> u64 {
    const READONLY: u32 = 2;
    user_ranges(slots.iter().filter(|s| s.flags & READONLY == 0))
        .into_iter()
        .map(|(start, end)| end - start)
        .fold(0, u64::saturating_add)
}

/// The VMM's addresses behind the slots, `start..end`, each once and in order: the address space
/// of SMM, and firmware at two places, show the same memory again.
pub(super) fn user_ranges<'a>(slots: impl IntoIterator<Item = &'a Memslot>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = slots
        .into_iter()
        .map(|s| (s.user_address, s.user_address.saturating_add(s.size)))
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

fn damaged(obj: &Object<'_>, detail: &str) -> GuestError {
    GuestError::Damaged {
        what: "kvm_memslots",
        addr: obj.addr(),
        detail: detail.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(address_space: u16, flags: u32, user_address: u64, size: u64) -> Memslot {
        Memslot {
            slot: 0,
            address_space,
            flags,
            guest_address: 0,
            size,
            user_address,
        }
    }

    #[test]
    fn memory_shown_twice_counts_once() {
        let slots = [
            slot(0, 0, 0x7000_0000, 0x4000),
            slot(0, 2, 0x5000_0000, 0x1000),
            slot(1, 0, 0x7000_1000, 0x1000),
            slot(0, 0, 0x7000_4000, 0x2000),
        ];
        assert_eq!(
            user_ranges(&slots),
            [(0x5000_0000, 0x5000_1000), (0x7000_0000, 0x7000_6000)]
        );
        assert_eq!(ram_bytes(&slots), 0x6000, "without the ROM");
    }
}
