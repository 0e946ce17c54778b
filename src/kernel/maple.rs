//! Maple trees: a process's memory areas, and since v6.5 the IRQ descriptors.
//! Linux lib/maple_tree.c, include/linux/maple_tree.h.

use super::{KernelError, Object};

/// A node's address is a multiple of this; the bits below say its type.
const NODE_ALIGN: u64 = 256;
/// A tree of 2⁶⁴ entries is not higher: a node has at least 2 children.
const MAX_HEIGHT: usize = 64;

/// The entries of a `struct maple_tree`, as first index, last index (inclusive) and raw entry, in
/// order. Empty ranges are not told. In `mm_struct.mm_mt` an entry is a `vm_area_struct *`.
pub fn maple_tree(tree: &Object<'_>) -> Result<Vec<(u64, u64, u64)>, KernelError> {
    let mut entries = Vec::new();
    let root = tree.ptr("ma_root")?;
    if is_node(root) {
        let walk = Walk {
            tree,
            types: Types::of(tree)?,
        };
        walk.node(
            root,
            Range {
                first: 0,
                last: u64::MAX,
            },
            None,
            0,
            &mut entries,
        )?;
    } else if root != 0 {
        // One entry at index 0 needs no node.
        entries.push((0, 0, root));
    }
    Ok(entries)
}

fn is_node(entry: u64) -> bool {
    entry & 3 == 2 && entry > 4096
}

/// The values of `enum maple_type` on the dead kernel.
struct Types {
    dense: Option<i64>,
    leaf_64: Option<i64>,
    range_64: Option<i64>,
    arange_64: Option<i64>,
}

impl Types {
    fn of(tree: &Object<'_>) -> Result<Types, KernelError> {
        let value = |name| tree.kernel().enum_value("maple_type", name);
        Ok(Types {
            dense: value("maple_dense"),
            leaf_64: value("maple_leaf_64"),
            range_64: value("maple_range_64"),
            arange_64: value("maple_arange_64"),
        })
    }
}

#[derive(Clone, Copy)]
struct Range {
    first: u64,
    last: u64,
}

struct Walk<'a, 'k> {
    tree: &'a Object<'k>,
    types: Types,
}

impl Walk<'_, '_> {
    /// Visits the node that `encoded` refers to, which covers `range`.
    fn node(
        &self,
        encoded: u64,
        range: Range,
        parent: Option<u64>,
        height: usize,
        entries: &mut Vec<(u64, u64, u64)>,
    ) -> Result<(), KernelError> {
        let addr = encoded & !(NODE_ALIGN - 1);
        // The type stands in bits 3 to 6; bits 0 to 2 are marks.
        let kind = Some((encoded >> 3 & 15).cast_signed());
        let node = self.tree.kernel().object("maple_node", addr)?;
        let damaged = |detail: String| KernelError::Damaged {
            what: "struct maple_node",
            addr,
            detail,
        };
        // Each node must know its parent: so that none is met twice, and every walk ends. A root's
        // parent is the tree itself, marked by bit 0.
        let says = node.u("parent")?;
        let knows = match parent {
            Some(parent) => says & 1 == 0 && says & !(NODE_ALIGN - 1) == parent,
            None => says & 1 != 0,
        };
        if !knows || height > MAX_HEIGHT {
            return Err(damaged(format!(
                "its parent is {says:#x}, reached from {:#x} at height {height}",
                parent.unwrap_or(self.tree.addr())
            )));
        }
        let (layout, leaf) = if kind == self.types.leaf_64 {
            ("mr64", true)
        } else if kind == self.types.range_64 {
            ("mr64", false)
        } else if kind == self.types.arange_64 {
            ("ma64", false)
        } else if kind == self.types.dense {
            return self.dense(&node, range, entries);
        } else {
            return Err(damaged(format!("its type is {}", encoded >> 3 & 15)));
        };
        let pivots = words(&node.get(layout)?.get("pivot")?)?;
        let slots = words(&node.get(layout)?.get("slot")?)?;

        let mut first = range.first;
        for (slot, &entry) in slots.iter().enumerate() {
            // A slot ends at its pivot. The last slot has none, and a pivot of 0 behind the first
            // ends the node: there the range of the node itself is the end.
            let last = match pivots.get(slot) {
                Some(0) if slot > 0 => range.last,
                Some(&pivot) => pivot,
                None => range.last,
            };
            if last < first || last > range.last {
                return Err(damaged(format!(
                    "slot {slot} goes from {first:#x} to {last:#x}, in a node of {:#x} to {:#x}",
                    range.first, range.last
                )));
            }
            if leaf {
                self.leaf(entry, Range { first, last }, addr, entries)?;
            } else if entry >= NODE_ALIGN {
                // Unlike the root, it is not marked as a node.
                let within = Range { first, last };
                self.node(entry, within, Some(addr), height + 1, entries)?;
            } else {
                return Err(damaged(format!(
                    "slot {slot} of an inner node holds {entry:#x}"
                )));
            }
            if last == range.last {
                return Ok(());
            }
            first = last + 1;
        }
        Err(damaged(format!(
            "its slots end at {first:#x}, and the node at {:#x}",
            range.last
        )))
    }

    /// A node of one slot for each index.
    fn dense(
        &self,
        node: &Object<'_>,
        range: Range,
        entries: &mut Vec<(u64, u64, u64)>,
    ) -> Result<(), KernelError> {
        for (index, entry) in (range.first..=range.last).zip(words(&node.get("slot")?)?) {
            self.leaf(
                entry,
                Range {
                    first: index,
                    last: index,
                },
                node.addr(),
                entries,
            )?;
        }
        Ok(())
    }

    fn leaf(
        &self,
        entry: u64,
        range: Range,
        node: u64,
        entries: &mut Vec<(u64, u64, u64)>,
    ) -> Result<(), KernelError> {
        if is_node(entry) {
            return Err(KernelError::Damaged {
                what: "struct maple_node",
                addr: node,
                detail: format!("a leaf holds the node {entry:#x}"),
            });
        }
        // Internal entries below the first node are reservations (XA_ZERO_ENTRY): empty.
        if entry != 0 && entry & 3 != 2 {
            entries.push((range.first, range.last, entry));
        }
        Ok(())
    }
}

/// The values of an array of pointers or longs.
fn words(array: &Object<'_>) -> Result<Vec<u64>, KernelError> {
    Ok(array
        .bytes()?
        .chunks_exact(8)
        .map(|raw| {
            raw.iter()
                .rev()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
        })
        .collect())
}
