//! Objects of zsmalloc, in which zram and zswap keep compressed pages. Linux mm/zsmalloc.c.
//!
//! A handle is the address of a word that says where the object is: the number of a page frame and
//! the object's number in its *zspage*, a chain of up to 64 pages that holds objects of one size, one
//! behind the other. So an object may begin in one page and end in the next of the chain.

use super::Trouble;
use crate::kernel::{Kernel, KernelError, Object};

const PAGE: u64 = 4096;
/// OBJ_TAG_BITS: an object is allocated, or not.
const TAG_BITS: u32 = 1;
/// OBJ_INDEX_BITS: what 52 bits of a physical address leave (MAX_POSSIBLE_PHYSMEM_BITS of x86-64).
const INDEX_BITS: u32 = 64 - (52 - 12) - TAG_BITS;
/// ZSPAGE_MAGIC.
const MAGIC: u64 = 0x58;
/// ZS_HANDLE_SIZE: before each object its handle, but where an object has a page of its own.
const HANDLE: u64 = 8;
/// OBJ_ALLOCATED_TAG, in that handle.
const ALLOCATED: u64 = 1;

/// Physical addresses of `len` bytes of an object, from its byte `skip` on: of the first, and of
/// those that are in the next page of the chain (0: none are).
pub(super) fn place(
    kernel: &Kernel,
    handle: u64,
    skip: u64,
    len: u64,
) -> Result<(u64, u64), Trouble> {
    let damaged = |detail: String| {
        Trouble::Kernel(KernelError::Damaged {
            what: "handle of zsmalloc",
            addr: handle,
            detail,
        })
    };
    let object = kernel.read_u64(handle)? >> TAG_BITS;
    let (pfn, index) = (object >> INDEX_BITS, object & ((1 << INDEX_BITS) - 1));
    let page = Page::new(kernel, pfn)?;
    let zspage = page.zspage()?;
    let magic = zspage.u("magic")?;
    if magic != MAGIC {
        return Err(damaged(format!(
            "it leads to page frame {pfn:#x}, whose zspage has the magic {magic:#x}"
        )));
    }
    let class = zspage.u("class")?;
    let size = zspage
        .follow("pool")?
        .get(&format!("size_class[{class}]"))?
        .deref()?
        .u("size")?;
    let huge = zspage.u("huge")? != 0;
    let header = if huge { 0 } else { HANDLE };
    if size > PAGE || skip.saturating_add(len).saturating_add(header) > size {
        return Err(damaged(format!(
            "{len} bytes from {skip} on, in an object of {size}"
        )));
    }
    let offset = size.saturating_mul(index) % PAGE;
    let first = pfn.saturating_mul(PAGE);
    let says = match huge {
        true => page.handle()?,
        false => word(kernel, first.saturating_add(offset))?,
    };
    // The object must know its handle: so the bits above are right, and it is not one of before.
    if says != handle | ALLOCATED {
        return Err(damaged(format!(
            "the object at {:#x} belongs to {says:#x}",
            first.saturating_add(offset)
        )));
    }
    let start = offset + header + skip;
    if start + len <= PAGE {
        return Ok((first + start, 0));
    }
    let next = page.next()?.saturating_mul(PAGE);
    match start.checked_sub(PAGE) {
        Some(into) => Ok((next.saturating_add(into), 0)),
        None => Ok((first + start, next)),
    }
}

fn word(kernel: &Kernel, address: u64) -> Result<u64, KernelError> {
    // Sizes are multiples of 8: no word lies across two pages.
    kernel.read_u64(kernel.phys_to_virt(address))
}

/// A page of a zspage. `struct zpdesc` lies over `struct page` since v6.14.
struct Page<'k> {
    object: Object<'k>,
    is_zpdesc: bool,
}

impl<'k> Page<'k> {
    fn new(kernel: &'k Kernel, pfn: u64) -> Result<Self, KernelError> {
        let is_zpdesc = kernel.has_type("zpdesc");
        let ty = if is_zpdesc { "zpdesc" } else { "page" };
        Ok(Self {
            object: kernel.object(ty, kernel.pfn_to_page(pfn))?,
            is_zpdesc,
        })
    }

    fn zspage(&self) -> Result<Object<'k>, KernelError> {
        match self.is_zpdesc {
            true => self.object.follow("zspage"),
            false => {
                let at = self.object.u("private")?;
                self.object.kernel().object("zspage", at)
            }
        }
    }

    /// The next page's frame.
    fn next(&self) -> Result<u64, KernelError> {
        let at = match self.is_zpdesc {
            true => self.object.ptr("next")?,
            false => self.object.u("index")?,
        };
        self.object.kernel().page_to_pfn(at)
    }

    /// The handle of the object that has the page alone.
    fn handle(&self) -> Result<u64, KernelError> {
        self.object
            .u(if self.is_zpdesc { "handle" } else { "index" })
    }
}
