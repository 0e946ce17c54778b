//! Objects of z3fold, in which zswap kept compressed pages until v6.14. Linux mm/z3fold.c.
//!
//! Up to three objects share a page, behind its header: one at each end, and one between them that may
//! be moved to make room. A handle is the address of a word that says which of them it is; an object
//! that needs the whole page has no header, and its page's address, plus one, as its handle.

use super::Trouble;
use crate::kernel::{Kernel, KernelError};

const PAGE: u64 = 4096;
/// CHUNK_SIZE: what objects are measured in.
const CHUNK: u64 = 64;
/// PAGE_HEADLESS, in a handle.
const HEADLESS: u64 = 1;
/// BUDDY_MASK.
const BUDDY: u64 = 3;
/// BUDDY_SHIFT: above it, in the word of an object at the page's end, is how long that is.
const BUDDY_SHIFT: u32 = 2;

/// The physical address of `len` bytes of an object, from its byte `skip` on. `pool` is its `struct
/// z3fold_pool`.
pub(super) fn place(
    kernel: &Kernel,
    pool: u64,
    handle: u64,
    skip: u64,
    len: u64,
) -> Result<u64, Trouble> {
    let damaged = |detail: String| {
        Trouble::Kernel(KernelError::Damaged {
            what: "handle of z3fold",
            addr: handle,
            detail,
        })
    };
    if handle & HEADLESS != 0 {
        let page = handle & !(PAGE - 1);
        return match skip.saturating_add(len) <= PAGE && handle - page == HEADLESS {
            true => Ok(kernel.virt_to_phys(page.wrapping_add(skip))?),
            false => Err(damaged(format!("{len} bytes from {skip} on"))),
        };
    }
    let word = kernel.read_u64(handle)?;
    let page = word & !(PAGE - 1);
    let header = kernel.object("z3fold_header", page)?;
    if header.ptr("pool")? != pool {
        return Err(damaged(format!(
            "it leads to {page:#x}, which is no page of the pool at {pool:#x}"
        )));
    }
    // Whoever holds it may be in the middle of moving an object.
    if kernel.read_u32(header.get("page_lock")?.addr())? != 0 {
        return Err(Trouble::Unknown(
            "its page of z3fold was being changed when the host died".into(),
        ));
    }
    let at_end = (word & (PAGE - 1)) >> BUDDY_SHIFT;
    let (start, chunks) = match word.wrapping_sub(header.u("first_num")?) & BUDDY {
        1 => {
            let size = kernel.size_of("z3fold_header")?;
            (size.next_multiple_of(CHUNK), header.u("first_chunks")?)
        }
        2 => (
            header.u("start_middle")?.saturating_mul(CHUNK),
            header.u("middle_chunks")?,
        ),
        3 => (PAGE.saturating_sub(at_end * CHUNK), at_end),
        _ => return Err(damaged(format!("it says {word:#x}, which is no object"))),
    };
    let size = chunks.saturating_mul(CHUNK);
    if skip.saturating_add(len) > size || start.saturating_add(size) > PAGE {
        return Err(damaged(format!(
            "{len} bytes from {skip} on, in an object of {size} at {start}"
        )));
    }
    let at = page.wrapping_add(start).wrapping_add(skip);
    Ok(kernel.virt_to_phys(at)?)
}
