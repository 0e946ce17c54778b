//! `struct sk_buff`: what sockets have under way.

use std::sync::Arc;

use crate::kernel::{KernelError, Object};

/// Most buffers and bytes of one queue: limits of socket buffers keep it far below, unless
/// somebody raised them very much.
const MAX_BUFFERS: usize = 1 << 16;
pub(super) const MAX_BYTES: u64 = 64 << 20;
/// MAX_SKB_FRAGS is 17, and up to 45 by CONFIG_MAX_SKB_FRAGS.
const MAX_FRAGMENTS: u64 = 45;
const PAGE: u64 = 4096;

fn damaged(buffer: &Object<'_>, detail: String) -> KernelError {
    KernelError::Damaged {
        what: "sk_buff",
        addr: buffer.addr(),
        detail,
    }
}

/// The buffers of a `struct sk_buff_head`, the oldest first.
pub(super) fn queue<'k>(head: &Object<'k>) -> Result<Vec<Object<'k>>, KernelError> {
    let damaged = |detail: String| KernelError::Damaged {
        what: "sk_buff_head",
        addr: head.addr(),
        detail,
    };
    let count = usize::try_from(head.u("qlen")?).unwrap_or(usize::MAX);
    if count > MAX_BUFFERS {
        return Err(damaged(format!("{count} buffers")));
    }
    let mut found = Vec::new();
    let mut at = head.ptr("next")?;
    while at != head.addr() {
        if found.len() >= count {
            return Err(damaged(format!("more than its {count} buffers")));
        }
        let buffer = head.kernel().object("sk_buff", at)?;
        at = buffer.ptr("next")?;
        found.push(buffer);
    }
    if found.len() != count {
        return Err(damaged(format!("{} buffers of {count}", found.len())));
    }
    Ok(found)
}

/// The bytes of a buffer: those at its data pointer, then its fragments, then the buffers behind
/// it. `left`: how many may still be read, over all buffers of a queue.
pub(super) fn content(buffer: &Object<'_>, left: &mut u64) -> Result<Vec<u8>, KernelError> {
    let len = buffer.u("len")?;
    if len > *left {
        return Err(damaged(
            buffer,
            format!("{len} bytes, of a queue that has {left} left"),
        ));
    }
    *left -= len;
    let mut bytes = Vec::new();
    append(buffer, len, &mut bytes, true)?;
    if bytes.len() as u64 != len {
        return Err(damaged(buffer, format!("{} bytes of {len}", bytes.len())));
    }
    Ok(bytes)
}

/// Appends a buffer of at most `most` bytes. One of a list has no list of its own.
fn append(
    buffer: &Object<'_>,
    most: u64,
    bytes: &mut Vec<u8>,
    may_have_list: bool,
) -> Result<(), KernelError> {
    let kernel = buffer.kernel();
    let (len, behind) = (buffer.u("len")?, buffer.u("data_len")?);
    if len > most || behind > len {
        return Err(damaged(
            buffer,
            format!("{len} bytes, {behind} not in its head"),
        ));
    }
    let mut head = vec![0; usize::try_from(len - behind).unwrap_or(0)];
    kernel.read(buffer.ptr("data")?, &mut head)?;
    bytes.append(&mut head);
    if behind == 0 {
        return Ok(());
    }
    // `end` is an offset on 64-bit machines (NET_SKBUFF_DATA_USES_OFFSET).
    let shared = buffer.ptr("head")?.wrapping_add(buffer.u("end")?);
    let shared = kernel.object("skb_shared_info", shared)?;
    let count = shared.u("nr_frags")?;
    if count > MAX_FRAGMENTS {
        return Err(damaged(buffer, format!("{count} fragments")));
    }
    let end = bytes.len() as u64 + behind;
    let fragments = shared.get("frags")?;
    for i in 0..count {
        let mut part = fragment(buffer, &fragments.element(i)?, behind)?;
        bytes.append(&mut part);
        if bytes.len() as u64 > end {
            return Err(damaged(
                buffer,
                format!("its fragments hold more than {behind} bytes"),
            ));
        }
    }
    let mut next = shared.follow_opt("frag_list")?;
    while let Some(part) = next {
        let left = end.saturating_sub(bytes.len() as u64);
        // Each has some bytes, so the list ends.
        if !may_have_list || part.u("len")? == 0 {
            return Err(damaged(&part, "it cannot be part of another one".into()));
        }
        append(&part, left, bytes, false)?;
        next = part.follow_opt("next")?;
    }
    Ok(())
}

/// A fragment: a part of a page, or of several in a row.
fn fragment(buffer: &Object<'_>, fragment: &Object<'_>, most: u64) -> Result<Vec<u8>, KernelError> {
    /// Memory of a device, which is not the host's: NET_IOV of `netmem_ref`.
    const OF_A_DEVICE: u64 = 1;
    let kernel = buffer.kernel();
    // A bio_vec since Linux commit 8842d285bafa ("net: Convert skb_frag_t
    // to bio_vec") (in v5.4); its own struct again since 21d2e6737c97
    // ("net: add netmem to skb_frag_t") (in v6.9).
    let (page, offset, size) = if fragment.has("bv_page") {
        let size = fragment.u("bv_len")?;
        (fragment.ptr("bv_page")?, fragment.u("bv_offset")?, size)
    } else {
        let page = fragment.get("netmem")?.unsigned()?;
        (page, fragment.u("offset")?, fragment.u("len")?)
    };
    if size > most || offset > MAX_BYTES || page & OF_A_DEVICE != 0 {
        let detail = format!("a fragment of {size} bytes at {offset} of page {page:#x}");
        return Err(damaged(buffer, detail));
    }
    let frame = kernel.page_to_pfn(page)?;
    let phys = frame.wrapping_mul(PAGE).wrapping_add(offset);
    let mut part = vec![0; usize::try_from(size).unwrap_or(0)];
    kernel
        .memory()
        .read_physical(phys, &mut part)
        .map_err(|source| KernelError::Memory {
            addr: buffer.addr(),
            phys,
            len: part.len(),
            source: Arc::new(source),
        })?;
    Ok(part)
}
