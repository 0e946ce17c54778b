//! zswap: compressed pages in memory before a swap device. Linux mm/zswap.c.
//!
//! A slot that it has is not on the device, or not as it is now.

use std::cell::RefCell;
use std::collections::HashMap;

use super::{SPACE_SHIFT, Trouble, filled, packed, packing, z3fold, zsmalloc};
use crate::dataset::{Packing, PageContent};
use crate::kernel::{Kernel, KernelError, Object, containers};

const PAGE: u64 = 4096;
/// Low bits of a `swp_entry_t` that are the slot.
const SLOT: u64 = (1 << super::TYPE_SHIFT) - 1;
/// Of v6.6 to v6.9: a pool has so many allocators, 2 ^ 5 (ZSWAP_NR_ZPOOLS), and an entry's is told by a hash
/// of its address. Linux include/linux/hash.h, `hash_64`.
const ZPOOLS_SHIFT: u32 = 5;
const GOLDEN_RATIO: u64 = 0x61c8_8646_80b5_83eb;

/// Addresses of entries by their slot.
type Entries = HashMap<u64, u64>;

/// zswap's trees. What cannot be read is an error at each page that may be in it.
pub(super) struct Zswap<'k> {
    kernel: &'k Kernel,
    /// `zswap_trees`; `None`: the kernel has no zswap.
    trees: Option<u64>,
    /// Entries that were looked at: by area and part of it, the address of each by its slot.
    entries: RefCell<HashMap<(u32, u64), Result<Entries, KernelError>>>,
}

impl<'k> Zswap<'k> {
    pub fn new(kernel: &'k Kernel) -> Self {
        Self {
            kernel,
            trees: kernel.symbol("zswap_trees").ok(),
            entries: RefCell::default(),
        }
    }

    /// The page of a slot, if zswap has it.
    pub fn slot(&self, area: u32, slot: u64) -> Result<Option<PageContent>, Trouble> {
        let Some(trees) = self.trees else {
            return Ok(None);
        };
        let mut entries = self.entries.borrow_mut();
        let found = entries
            .entry((area, slot >> SPACE_SHIFT))
            .or_insert_with(|| self.read(trees, area, slot >> SPACE_SHIFT))
            .as_ref()
            .map_err(Clone::clone)?;
        match found.get(&slot) {
            Some(at) => page(&self.kernel.object("zswap_entry", *at)?).map(Some),
            None => Ok(None),
        }
    }

    /// The entries of a part of an area, or of all of it: first zswap had one red-black tree for an
    /// area, then one for each part ("mm/zswap: split zswap rb-tree"), then an XArray for each
    /// ("zswap: replace RB tree with xarray").
    fn read(&self, trees: u64, area: u32, part: u64) -> Result<Entries, KernelError> {
        let kernel = self.kernel;
        let first = kernel.read_u64(trees.wrapping_add(u64::from(area) * 8))?;
        if first == 0 {
            return Ok(HashMap::new());
        }
        let ty = match kernel.has_type("zswap_tree") {
            true => "zswap_tree",
            false => "xarray",
        };
        let part = match kernel.symbol("nr_zswap_trees") {
            Ok(counts) => {
                let count = kernel.read_u32(counts.wrapping_add(u64::from(area) * 4))?;
                if part >= u64::from(count) {
                    return Ok(HashMap::new());
                }
                part
            }
            Err(_) => 0,
        };
        let at = first.wrapping_add(part.wrapping_mul(kernel.size_of(ty)?));
        let tree = kernel.object(ty, at)?;
        if ty == "xarray" {
            let entries = containers::xarray(&tree)?;
            return Ok(entries.into_iter().filter(|(_, e)| e & 3 == 0).collect());
        }
        containers::rbtree(&tree.get("rbroot")?, "zswap_entry", "rbnode")?
            .iter()
            .map(|entry| {
                // The whole entry since v6.6.
                let slot = match entry.has("swpentry") {
                    true => entry.u("swpentry.val")? & SLOT,
                    false => entry.u("offset")?,
                };
                Ok((slot, entry.addr()))
            })
            .collect()
    }
}

/// The page of an entry.
fn page(entry: &Object<'_>) -> Result<PageContent, Trouble> {
    let kernel = entry.kernel();
    let len = entry.u("length")?;
    if len == 0 {
        // `value` lies over `handle`. Such pages are in a map of zeros instead since v6.12.
        let word = match entry.has("value") {
            true => entry.u("value")?,
            false => entry.u("handle")?,
        };
        return Ok(filled(word));
    }
    let pool = entry.follow("pool")?;
    // Since zsmalloc alone is left, a page that does not compress is kept as it is; before, one that
    // became no smaller than a page was either compressed all the same, or not kept.
    let by = match len {
        PAGE if pool.has("zs_pool") => Packing::Raw,
        _ => packing(&pool.get("tfm_name")?.string()?)?,
    };
    let handle = entry.u("handle")?;
    let Allocator { name, skip, pool } = allocator(&pool, entry.addr())?;
    let (at, rest) = match name.as_str() {
        "zsmalloc" => zsmalloc::place(kernel, handle, skip, len)?,
        "z3fold" => (z3fold::place(kernel, pool, handle, skip, len)?, 0),
        // Its handle is the data's address, within a page.
        "zbud" => {
            let at = handle.wrapping_add(skip);
            if (at % PAGE).saturating_add(len) > PAGE {
                return Err(Trouble::Unknown(format!(
                    "zbud has {len} bytes at {at:#x}, beyond the page's end"
                )));
            }
            (kernel.virt_to_phys(at)?, 0)
        }
        other => {
            return Err(Trouble::Unknown(format!(
                "zswap kept it in {other}, which is not read"
            )));
        }
    };
    packed(by, len, at, rest)
}

/// What keeps zswap's objects.
struct Allocator {
    name: String,
    /// Bytes of zswap's own before the data: the entry, where the allocator may ask for a write-back
    /// (until v6.6).
    skip: u64,
    /// The allocator's own structure; 0 of one that is not a `struct zpool`.
    pool: u64,
}

/// What keeps the entry at that address in its pool.
fn allocator(pool: &Object<'_>, entry: u64) -> Result<Allocator, KernelError> {
    // zsmalloc alone is left since v6.18.
    if pool.has("zs_pool") {
        return Ok(Allocator {
            name: "zsmalloc".into(),
            skip: 0,
            pool: 0,
        });
    }
    let zpool = match pool.has("zpool") {
        true => pool.follow("zpool")?,
        false => {
            let index = entry.wrapping_mul(GOLDEN_RATIO) >> (64 - ZPOOLS_SHIFT);
            pool.get(&format!("zpools[{index}]"))?.deref()?
        }
    };
    let kernel = pool.kernel();
    let skip = match kernel.has_type("zswap_header") && zpool.u("evictable").unwrap_or(0) != 0 {
        true => kernel.size_of("zswap_header")?,
        false => 0,
    };
    Ok(Allocator {
        name: zpool.follow("driver")?.get("type")?.string()?,
        skip,
        pool: zpool.ptr("pool")?,
    })
}
