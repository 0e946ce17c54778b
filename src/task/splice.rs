//! What goes from one descriptor to another without a process's memory: `splice` and `sendfile` into
//! sockets and files, half done.
//!
//! The kernel counts it in a `struct splice_desc` on the stack, found by the file that it leads to and
//! by its numbers: what is left and what has gone are what was asked for. A buffer of the pipe counts
//! when it has gone as a whole, so what a socket has taken of the one under way is looked for in the
//! socket itself.

use super::kernel_stack::Stack;
use crate::kernel::{KernelError, Object};

/// What the kernel cuts a call down to: MAX_RW_COUNT.
const MAX_BYTES: u64 = 0x7fff_f000;
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
/// Most buffers of a pipe, and most bytes of one.
const MAX_BUFFERS: u64 = 1 << 19;
const MAX_BUFFER: u64 = 2 << 20;
/// MAX_SKB_FRAGS, and up to 45 by CONFIG_MAX_SKB_FRAGS.
const MAX_FRAGMENTS: u64 = 45;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    /// Bytes.
    pub bytes: u64,
    /// Those of them that are in the pipe still.
    pub in_pipe: u64,
}

/// The `splice_desc`s on a stack that lead to a file, the deepest first.
fn descriptors<'k>(stack: &Stack<'k>, file: &Object<'k>) -> Result<Vec<Object<'k>>, KernelError> {
    let kernel = stack.kernel();
    let place = kernel.offset_of("splice_desc", "u.file")?;
    let leads = |at: &u64| stack.word(*at) == Some(file.addr());
    stack
        .addresses()
        .filter(leads)
        .filter_map(|at| at.checked_sub(place))
        .map(|at| kernel.object("splice_desc", at))
        .collect()
}

/// The one that empties a pipe of `asked` bytes into `file`: what has gone by whole buffers.
fn emptying<'k>(
    stack: &Stack<'k>,
    file: &Object<'k>,
    asked: u64,
) -> Result<Option<u64>, KernelError> {
    let mut found = None;
    for descriptor in descriptors(stack, file)? {
        let (left, gone) = (descriptor.u("total_len")?, descriptor.u("num_spliced")?);
        // That of sendfile around it knows where the file is.
        if descriptor.ptr("opos")? != 0 || left == 0 || left.checked_add(gone) != Some(asked) {
            continue;
        }
        if found.is_some_and(|other| other != gone) {
            return Ok(None);
        }
        found = Some(gone);
    }
    Ok(found)
}

/// splice(2) from a pipe, of at most `asked` bytes. `None`: it is not to be found.
pub(super) fn from_pipe(
    stack: &Stack<'_>,
    pipe: &Object<'_>,
    file: &Object<'_>,
    asked: u64,
) -> Result<Option<Gone>, KernelError> {
    // It waits for the first byte, and not for a second.
    if in_pipe(pipe)?.is_empty() {
        return Ok(Some(Gone {
            bytes: 0,
            in_pipe: 0,
        }));
    }
    let asked = asked.min(MAX_BYTES);
    let Some(gone) = emptying(stack, file, asked)? else {
        return Ok(None);
    };
    let part = part(stack, pipe, file, asked - gone)?;
    Ok(part.map(|part| Gone {
        bytes: gone + part,
        in_pipe: part,
    }))
}

/// sendfile(2) of at most `asked` bytes from a position on. `None`: it is not to be found.
pub(super) fn from_file(
    stack: &Stack<'_>,
    task: &Object<'_>,
    file: &Object<'_>,
    (from, asked): (u64, u64),
) -> Result<Option<u64>, KernelError> {
    let asked = asked.min(MAX_BYTES);
    let mut around = Vec::new();
    for descriptor in descriptors(stack, file)? {
        if descriptor.ptr("opos")? != 0 && descriptor.u("len")? == asked {
            around.push(descriptor);
        }
    }
    let ([around], Some(pipe)) = (around.as_slice(), task.follow_opt("splice_pipe")?) else {
        return Ok(None);
    };
    // What is read at once goes through a pipe of the thread's own.
    let before = around.u("pos")?.wrapping_sub(from);
    let at_once = around.u("total_len")?;
    let left: u64 = in_pipe(&pipe)?.iter().map(|(_, _, len)| len).sum();
    // What is read at once is a part of what is left.
    if before >= asked || at_once > asked - before {
        return Ok(None);
    }
    if left == 0 {
        // It reads the file, and nothing is on its way.
        return Ok(Some(before));
    }
    let Some(gone) = emptying(stack, file, at_once)? else {
        return Ok(None);
    };
    if gone.checked_add(left) != Some(at_once) {
        return Ok(None);
    }
    let part = part(stack, &pipe, file, left)?;
    Ok(part.map(|part| before + gone + part))
}

/// The buffers of a pipe, the oldest first: page, offset, length.
fn in_pipe(pipe: &Object<'_>) -> Result<Vec<(u64, u64, u64)>, KernelError> {
    let kernel = pipe.kernel();
    let damaged = |detail: String| KernelError::Damaged {
        what: "pipe_inode_info",
        addr: pipe.addr(),
        detail,
    };
    let (head, tail) = (pipe.u("head")?, pipe.u("tail")?);
    let ring = pipe.u("ring_size")?;
    let full = head.wrapping_sub(tail) & 0xffff_ffff;
    if !ring.is_power_of_two() || ring > MAX_BUFFERS || full > ring {
        return Err(damaged(format!("{full} buffers of a ring of {ring}")));
    }
    let (bufs, size) = (pipe.ptr("bufs")?, kernel.size_of("pipe_buffer")?);
    let mut found = Vec::new();
    for i in 0..full {
        let slot = tail.wrapping_add(i) & (ring - 1);
        let buffer = kernel.object("pipe_buffer", bufs.wrapping_add(slot * size))?;
        let (offset, len) = (buffer.u("offset")?, buffer.u("len")?);
        if offset > MAX_BUFFER || len > MAX_BUFFER {
            return Err(damaged(format!("buffer {slot}: {len} bytes at {offset}")));
        }
        if len > 0 {
            found.push((buffer.ptr("page")?, offset, len));
        }
    }
    Ok(found)
}

/// What a socket has taken of the first buffer of a pipe, of which `left` bytes are to go on the
/// whole. `None`: it cannot be told.
fn part(
    stack: &Stack<'_>,
    pipe: &Object<'_>,
    file: &Object<'_>,
    left: u64,
) -> Result<Option<u64>, KernelError> {
    const S_IFSOCK: u64 = 0o140_000;
    if file.follow("f_inode")?.u("i_mode")? & 0o170_000 != S_IFSOCK {
        // Into a file the same bytes go to the same place.
        return Ok(Some(0));
    }
    let kernel = stack.kernel();
    // Sockets take whole pages by sendpage until Linux commit 2dc334f1a63a ("splice, net: Use
    // sendmsg(MSG_SPLICE_PAGES) rather than ->sendpage()") (in v6.5).
    if kernel.symbol("splice_to_socket").is_ok() {
        return Ok(None);
    }
    let sk = kernel
        .object("socket", file.ptr("private_data")?)?
        .follow("sk")?;
    match sk.u("__sk_common.skc_family")? {
        // A buffer is in the queue, or it is not.
        AF_UNIX if stack.is_in("sock_alloc_send_pskb") => Ok(Some(0)),
        AF_INET | AF_INET6 if stack.is_in("sk_stream_wait_memory") => {
            let Some((page, offset, len)) = in_pipe(pipe)?.first().copied() else {
                return Ok(None);
            };
            let end = last_fragment(&sk)?;
            Ok(taken((page, offset, len.min(left)), end, stack.words()))
        }
        _ => Ok(None),
    }
}

/// The last fragment that a TCP connection is to send: page, offset, length.
fn last_fragment(sk: &Object<'_>) -> Result<Option<(u64, u64, u64)>, KernelError> {
    let head = sk.get("sk_write_queue")?;
    let at = head.ptr("prev")?;
    if at == head.addr() {
        return Ok(None);
    }
    let kernel = sk.kernel();
    let buffer = kernel.object("sk_buff", at)?;
    let shared = buffer.ptr("head")?.wrapping_add(buffer.u("end")?);
    let shared = kernel.object("skb_shared_info", shared)?;
    let count = shared.u("nr_frags")?;
    if count == 0 || count > MAX_FRAGMENTS {
        return Ok(None);
    }
    let last = shared.get("frags")?.element(count - 1)?;
    let (page, offset, size) = ("bv_page", "bv_offset", "bv_len");
    Ok(Some((last.ptr(page)?, last.u(offset)?, last.u(size)?)))
}

/// How much of a buffer has been taken, by the last fragment of what is to be sent, which is of the
/// same page where a part was. The function that waits keeps how much is left to take, and that
/// must be among the words of the stack.
fn taken(
    (page, offset, len): (u64, u64, u64),
    last: Option<(u64, u64, u64)>,
    words: &[u64],
) -> Option<u64> {
    let waits_for = |left: u64| {
        words
            .iter()
            .any(|word| *word == left || *word & 0xffff_ffff == left)
    };
    let part = match last {
        Some((of, begin, size)) if of == page => {
            let end = begin.checked_add(size)?;
            match end.checked_sub(offset) {
                Some(taken) if taken > 0 && taken < len => taken,
                // It went out with the page before, or is that of an earlier round.
                _ => 0,
            }
        }
        _ => 0,
    };
    waits_for(len - part).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_page_is_told_by_the_last_fragment_and_what_is_waited_for() {
        let buffer = (0x1000, 0, 4096);
        let words = [7, 0xdead_beef_0000_0bb8];
        // 1096 of 4096 went, 3000 (0xbb8) wait.
        assert_eq!(taken(buffer, Some((0x1000, 0, 1096)), &words), Some(1096));
        // Nobody waits for so many.
        assert_eq!(taken(buffer, Some((0x1000, 0, 1000)), &words), None);
        // Of another page, of the whole one: nothing has gone, and all of it is waited for.
        for last in [Some((0x2000, 0, 100)), Some((0x1000, 0, 4096)), None] {
            assert_eq!(taken(buffer, last, &words), None);
            assert_eq!(taken(buffer, last, &[4096]), Some(0));
        }
    }
}
