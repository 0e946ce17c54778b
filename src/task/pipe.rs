//! Pipes and FIFOs: `struct pipe_inode_info`.

use super::extract::Extraction;
use super::path::Name;
use crate::dataset::{Blob, FileKind, ObjectId, Pipe, PipeEnd};
use crate::kernel::{Kernel, KernelError, Object};

/// Bytes in a page.
const PAGE: u64 = 4096;
/// `f_mode`: FMODE_READ, FMODE_WRITE.
const READ: u64 = 1;
const WRITE: u64 = 2;
/// `pipe_buffer.flags`: PIPE_BUF_FLAG_PACKET. Linux include/linux/pipe_fs_i.h.
const PACKET: u64 = 8;
/// Most buffers of a pipe. `fs.pipe-max-size` may be raised to 2^31 bytes.
const MAX_BUFFERS: u64 = 1 << 19;
/// Most bytes in one buffer, a folio's, and in a whole pipe: `fs.pipe-max-size` is 1 MiB unless
/// raised.
const MAX_BUFFER: u64 = 2 << 20;
const MAX_CONTENT: u64 = 64 << 20;

/// Which end of which pipe a file is; the pipe is added to the extraction.
pub(super) fn kind(
    x: &mut Extraction<'_, '_>,
    file: &Object<'_>,
    name: &Name,
) -> Result<FileKind, KernelError> {
    let id = ObjectId(file.ptr("private_data")?);
    let kernel = x.kernel;
    x.pipe(id, || read(kernel, id))?;
    Ok(FileKind::Pipe {
        pipe: id,
        end: match file.u("f_mode")? & (READ | WRITE) {
            READ => PipeEnd::Read,
            WRITE => PipeEnd::Write,
            _ => PipeEnd::Both,
        },
        named: !name.nameless,
    })
}

fn read(kernel: &Kernel, id: ObjectId) -> Result<Pipe, KernelError> {
    let pipe = kernel.object("pipe_inode_info", id.0)?;
    let damaged = |detail: String| KernelError::Damaged {
        what: "pipe_inode_info",
        addr: id.0,
        detail,
    };
    // A ring with head and tail since Linux commit 8cefc107ca54 ("pipe: Use
    // head and tail pointers for the ring, not cursor and length") (in v5.5).
    let (head, tail) = (pipe.u("head")?, pipe.u("tail")?);
    let ring = pipe.u("ring_size")?;
    let full = (head.wrapping_sub(tail)) & 0xffff_ffff;
    if !ring.is_power_of_two() || ring > MAX_BUFFERS || full > ring {
        return Err(damaged(format!(
            "{full} buffers are full of a ring of {ring}"
        )));
    }
    let bufs = pipe.ptr("bufs")?;
    let size = kernel.size_of("pipe_buffer")?;
    let (mut content, mut packets) = (Vec::new(), Vec::new());
    for i in 0..full {
        let slot = tail.wrapping_add(i) & (ring - 1);
        let buffer = kernel.object("pipe_buffer", bufs.wrapping_add(slot * size))?;
        let (offset, len) = (buffer.u("offset")?, buffer.u("len")?);
        if offset >= MAX_BUFFER || len > MAX_BUFFER {
            return Err(damaged(format!(
                "buffer {slot} holds {len} bytes at {offset}"
            )));
        }
        if content.len() as u64 + len > MAX_CONTENT {
            return Err(damaged(format!(
                "its first {i} of {full} buffers hold more than {MAX_CONTENT} bytes"
            )));
        }
        let pfn = kernel.page_to_pfn(buffer.ptr("page")?)?;
        let at = pfn.wrapping_mul(PAGE).wrapping_add(offset);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        kernel
            .memory()
            .read_physical(at, &mut bytes)
            .map_err(|source| KernelError::Memory {
                addr: buffer.addr(),
                phys: at,
                len: bytes.len(),
                source: std::sync::Arc::new(source),
            })?;
        if buffer.u("flags")? & PACKET != 0 {
            packets.push((content.len() as u64, len));
        }
        content.extend_from_slice(&bytes);
    }
    let buffers = if pipe.has("max_usage") {
        pipe.u("max_usage")?
    } else {
        ring
    };
    Ok(Pipe {
        id,
        capacity: buffers.saturating_mul(PAGE),
        content: Blob(content),
        packets,
        closed_set: false,
    })
}
