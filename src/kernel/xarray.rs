//! XArrays (page cache, IRQ descriptors, …) and IDRs. Linux lib/xarray.c, include/linux/xarray.h.

use super::{KernelError, Object};

/// Bits of the index that one node decides, on every kernel but the smallest.
const CHUNK_BITS: u64 = 6;
/// The smallest internal entry that is a pointer to a node: those below are siblings and marks.
const FIRST_NODE: u64 = 4096;

/// The entries of a `struct xarray` (or `radix_tree_root`), as index and raw entry, in order of
/// index.
///
/// An entry is a pointer or, with its lowest bit set, a value (`entry >> 1`): what it is, the caller
/// knows. An entry of several indices, such as a large folio of the page cache, is told once, at its
/// first index. Reserved entries (`XA_ZERO_ENTRY`) are empty and not told.
pub fn xarray(array: &Object<'_>) -> Result<Vec<(u64, u64)>, KernelError> {
    let mut entries = Vec::new();
    let head = array.get("xa_head")?;
    let entry = head.unsigned()?;
    if is_node(entry) {
        walk(array, entry, None, 0, &mut entries)?;
    } else if entry != 0 && entry & 3 != 2 {
        entries.push((0, entry));
    }
    Ok(entries)
}

/// The entries of a `struct idr`, as ID and pointer.
pub fn idr(idr: &Object<'_>) -> Result<Vec<(u64, u64)>, KernelError> {
    // IDs may start at another number than 0: Linux commit 6ce711f27500 ("idr: Make 1-based IDRs
    // more efficient") (in v4.16).
    let base = if idr.has("idr_base") {
        idr.u("idr_base")?
    } else {
        0
    };
    let mut entries = xarray(&idr.get("idr_rt")?)?;
    for entry in &mut entries {
        entry.0 = entry.0.wrapping_add(base);
    }
    Ok(entries)
}

fn is_node(entry: u64) -> bool {
    entry & 3 == 2 && entry > FIRST_NODE
}

/// A node's parent and place there.
struct Above {
    node: u64,
    shift: u64,
    slot: u64,
}

fn walk(
    array: &Object<'_>,
    entry: u64,
    above: Option<&Above>,
    index: u64,
    entries: &mut Vec<(u64, u64)>,
) -> Result<(), KernelError> {
    let node = array.kernel().object("xa_node", entry - 2)?;
    let shift = node.u("shift")?;
    let damaged = |detail: String| KernelError::Damaged {
        what: "struct xa_node",
        addr: node.addr(),
        detail,
    };
    // Each node must know its place: so that none is met twice, and every walk ends.
    match above {
        Some(above) => {
            let (parent, offset) = (node.ptr("parent")?, node.u("offset")?);
            if parent != above.node || offset != above.slot || shift + CHUNK_BITS != above.shift {
                return Err(damaged(format!(
                    "parent {parent:#x} slot {offset} shift {shift}, reached from {:#x} slot {} shift {}",
                    above.node, above.slot, above.shift
                )));
            }
        }
        None if node.ptr("parent")? != 0 => {
            let parent = node.ptr("parent")?;
            return Err(damaged(format!(
                "it is the first, and its parent is {parent:#x}"
            )));
        }
        None if shift >= 64 || !shift.is_multiple_of(CHUNK_BITS) => {
            return Err(damaged(format!("its shift is {shift}")));
        }
        None => {}
    }
    let slots = node.get("slots")?;
    let count = slots.array_len().unwrap_or(0);
    if count != 1 << CHUNK_BITS {
        return Err(KernelError::Unsupported {
            what: format!("a struct xa_node of {count} slots (CONFIG_BASE_SMALL)"),
        });
    }
    for (slot, raw) in (0u64..).zip(slots.bytes()?.chunks_exact(8)) {
        let entry = raw
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let place = index.wrapping_add(slot << shift);
        if is_node(entry) {
            if shift == 0 {
                return Err(damaged(format!(
                    "it has a node in slot {slot}, below the last level"
                )));
            }
            let here = Above {
                node: node.addr(),
                shift,
                slot,
            };
            walk(array, entry, Some(&here), place, entries)?;
        } else if entry != 0 && entry & 3 != 2 {
            // What is left out: siblings of an entry with several indices, and marks.
            entries.push((place, entry));
        }
    }
    Ok(())
}
