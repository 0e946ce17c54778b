//! Objects of a slab cache (SLUB): where they may lie.
//!
//! A cache knows its partly filled slabs. Full ones are on no list; only the
//! pages themselves say to which cache they belong.

use crate::kernel::{Kernel, KernelError, Object, containers};

/// Slabs of a list that is followed by hand.
const MAX_CHAIN: usize = 1 << 16;
/// Pages up to which all of memory is asked: 64 GiB.
const MAX_PAGES: u64 = 16 << 20;
/// `struct page`s that are read at once.
const CHUNK: u64 = 1 << 15;
/// Objects of a slab: `slab.objects` has 15 bits.
const MAX_OBJECTS: u64 = 1 << 15;

/// A cache, by the address of its `struct kmem_cache`.
pub(super) struct Cache<'k> {
    kernel: &'k Kernel,
    cache: Object<'k>,
    /// `slab` since Linux commit d122019bf061 ("mm: Split slab into its own
    /// type") (in v5.17), `page` before.
    descriptor: &'static str,
    size: u64,
}

impl<'k> Cache<'k> {
    /// The cache that the variable `symbol` points to.
    pub fn of(kernel: &'k Kernel, symbol: &str) -> Result<Self, KernelError> {
        let cache = kernel.read_u64(kernel.symbol(symbol)?)?;
        let cache = kernel.object("kmem_cache", cache)?;
        let size = cache.u("size")?;
        if !(8..=1 << 20).contains(&size) {
            return Err(KernelError::Damaged {
                what: "kmem_cache",
                addr: cache.addr(),
                detail: format!("its objects have {size} bytes"),
            });
        }
        Ok(Self {
            kernel,
            descriptor: if kernel.has_type("slab") {
                "slab"
            } else {
                "page"
            },
            cache,
            size,
        })
    }

    /// Addresses of the places for objects, used and free, of the slabs that
    /// the cache knows.
    pub fn listed(&self) -> Result<Vec<u64>, KernelError> {
        let mut slabs = Vec::new();
        for cpu in self.kernel.cpus()? {
            let at = self.kernel.per_cpu(self.cache.ptr("cpu_slab")?, cpu)?;
            let local = self.kernel.object("kmem_cache_cpu", at)?;
            slabs.push(local.ptr(self.descriptor)?);
            if !local.has("partial") {
                continue;
            }
            let mut next = local.ptr("partial")?;
            for _ in 0..MAX_CHAIN {
                if next == 0 {
                    break;
                }
                slabs.push(next);
                next = self.kernel.object(self.descriptor, next)?.ptr("next")?;
            }
        }
        let nodes = self.cache.get("node")?;
        let count = nodes.array_len().unwrap_or(1).min(1024);
        for index in 0..count {
            // Nodes are numbered from 0, and mostly without gaps.
            let at = self.cache.ptr(&format!("node[{index}]"))?;
            if at == 0 {
                break;
            }
            let node = self.kernel.object("kmem_cache_node", at)?;
            let partial = containers::list(&node.get("partial")?, self.descriptor, "slab_list")?;
            slabs.extend(partial.iter().map(Object::addr));
        }
        slabs.retain(|slab| *slab != 0);
        slabs.sort_unstable();
        slabs.dedup();
        self.objects(&slabs)
    }

    /// The same of all slabs, by asking every page; `None` on a machine so large
    /// that this is not done.
    pub fn everywhere(&self) -> Result<Option<Vec<u64>>, KernelError> {
        let pages = self.kernel.memory().max_pfn();
        if pages > MAX_PAGES {
            return Ok(None);
        }
        let page = self.kernel.size_of("page")?;
        let owner = self.kernel.offset_of(self.descriptor, "slab_cache")?;
        let mut slabs = Vec::new();
        let mut chunk = vec![0; usize::try_from(CHUNK * page).unwrap_or(0)];
        for first in (0..pages).step_by(CHUNK as usize) {
            let at = self.kernel.pfn_to_page(first);
            // The array of pages has holes where memory has: then in steps of a
            // page of it.
            if self.kernel.read(at, &mut chunk).is_err() {
                for (i, part) in chunk.chunks_mut(4096).enumerate() {
                    if self
                        .kernel
                        .read(at.wrapping_add(i as u64 * 4096), part)
                        .is_err()
                    {
                        part.fill(0);
                    }
                }
            }
            for index in 0..CHUNK {
                let from = usize::try_from(index * page + owner).unwrap_or(usize::MAX);
                let word = chunk.get(from..).and_then(|b| b.first_chunk::<8>());
                if word.is_some_and(|w| u64::from_le_bytes(*w) == self.cache.addr()) {
                    slabs.push(at.wrapping_add(index * page));
                }
            }
        }
        self.objects(&slabs).map(Some)
    }

    fn objects(&self, slabs: &[u64]) -> Result<Vec<u64>, KernelError> {
        let mut out = Vec::new();
        for slab in slabs {
            let objects = self.kernel.object(self.descriptor, *slab)?.u("objects")?;
            let pfn = self.kernel.page_to_pfn(*slab)?;
            let first = self.kernel.phys_to_virt(pfn.wrapping_mul(4096));
            for index in 0..objects.min(MAX_OBJECTS) {
                out.push(first.wrapping_add(index.wrapping_mul(self.size)));
            }
        }
        Ok(out)
    }
}
