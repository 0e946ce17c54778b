//! What waits in a terminal: in its line discipline (`struct n_tty_data`), and
//! in the queue of bytes before that (`struct tty_bufhead`).

use crate::dataset::{Blob, ObjectId, TerminalEnd};
use crate::kernel::{Kernel, KernelError, Object};

/// Bytes of a line discipline's buffer: `N_TTY_BUF_SIZE`.
const LINE: u64 = 4096;
/// `struct ktermios`'s `c_lflag`: line mode.
const ICANON: u64 = 2;
/// Bits of `tty_struct.flags`. Linux include/linux/tty.h.
const TTY_OTHER_CLOSED: u64 = 2;
const TTY_EXCLUSIVE: u64 = 3;
const TTY_PTY_LOCK: u64 = 16;
/// Pieces of a queue, and bytes: the kernel keeps no more than 64 KiB for a
/// terminal, of a pseudo-terminal 8.
const MOST_PIECES: usize = 4096;
const MOST_BYTES: usize = 1 << 20;

/// How many bytes wait in a terminal that is no pseudo-terminal; `None`: none.
pub(super) fn of_device(kernel: &Kernel, addr: u64) -> Result<Option<u64>, KernelError> {
    if addr == 0 {
        return Ok(None);
    }
    let tty = kernel.object("tty_file_private", addr)?.follow("tty")?;
    if super::tty::numbers(&tty, (0, 0))?.2.is_some() {
        return Ok(None);
    }
    let Some(data) = discipline(&tty)? else {
        return Ok(None);
    };
    let unread = data.u("read_head")?.wrapping_sub(data.u("read_tail")?);
    Ok((unread > 0).then_some(unread))
}

/// The data of its line discipline, if that is that of terminals (N_TTY).
fn discipline<'k>(tty: &Object<'k>) -> Result<Option<Object<'k>>, KernelError> {
    const N_TTY: i64 = 0;
    let Some(discipline) = tty.follow_opt("ldisc")? else {
        return Ok(None);
    };
    let data = tty.ptr("disc_data")?;
    if data == 0 || discipline.follow("ops")?.i("num")? != N_TTY {
        return Ok(None);
    }
    Ok(Some(tty.kernel().object("n_tty_data", data)?))
}

/// Everything in one end of a pseudo-terminal.
pub(super) fn read(tty: &Object<'_>) -> Result<TerminalEnd, KernelError> {
    let flags = tty.u("flags")?;
    let line_mode = tty.u("termios.c_lflag")? & ICANON != 0;
    let (line, ends, echo) = match discipline(tty)? {
        Some(data) => line(&data, line_mode)?,
        None => (Vec::new(), Vec::new(), 0),
    };
    // In structs of their own since Linux commits 64d608db38ff ("tty: cumulate
    // and document tty_struct::ctrl* members") and 6e94dbc7a4e4 (its flow
    // members) (in v5.14).
    let either = |new: &str, old: &str| match tty.has(new) {
        true => tty.u(new),
        false => tty.u(old),
    };
    // A master counts as one who has its slave open. Linux drivers/tty/pty.c, pty_common_install().
    let other_open = match tty.follow_opt("link")? {
        Some(other) => other.i("count")? > 1,
        None => false,
    };
    Ok(TerminalEnd {
        was_open: other_open || flags >> TTY_OTHER_CLOSED & 1 != 0,
        terminal: ObjectId(tty.addr()),
        line: Blob(line),
        ends,
        behind: Blob(queue(tty)?),
        packets: either("ctrl.packet", "packet")? != 0,
        locked: flags >> TTY_PTY_LOCK & 1 != 0,
        exclusive: flags >> TTY_EXCLUSIVE & 1 != 0,
        flow_off: either("flow.tco_stopped", "flow_stopped")? != 0,
        stopped: either("flow.stopped", "stopped")? != 0,
        echo,
    })
}

/// Bytes, which of them end a line, and how many bytes of echo wait.
fn line(data: &Object<'_>, line_mode: bool) -> Result<(Vec<u8>, Vec<u32>, u32), KernelError> {
    let (head, tail) = (data.u("read_head")?, data.u("read_tail")?);
    let count = head.wrapping_sub(tail);
    if count > LINE {
        return Err(KernelError::Damaged {
            what: "n_tty_data",
            addr: data.addr(),
            detail: format!("{count} bytes in a buffer of {LINE}"),
        });
    }
    let buffer = data.get("read_buf")?.read_bytes(LINE)?;
    let marks = data.get("read_flags")?.read_bytes(LINE / 8)?;
    let at = |n: u64| usize::try_from(tail.wrapping_add(n) % LINE).unwrap_or(0);
    let bytes = (0..count)
        .map(|n| buffer.get(at(n)).copied().unwrap_or(0))
        .collect();
    // What lies behind the last whole line has marks of earlier turns.
    let whole = data.u("canon_head")?.wrapping_sub(tail).min(count);
    let ends = match line_mode {
        true => (0..whole)
            .filter(|n| {
                marks
                    .get(at(*n) / 8)
                    .is_some_and(|m| m >> (at(*n) % 8) & 1 != 0)
            })
            .filter_map(|n| u32::try_from(n).ok())
            .collect(),
        false => Vec::new(),
    };
    let echo = data
        .u("echo_head")?
        .wrapping_sub(data.u("echo_tail")?)
        .min(LINE);
    Ok((bytes, ends, u32::try_from(echo).unwrap_or(0)))
}

/// What the line discipline has not been given yet.
fn queue(tty: &Object<'_>) -> Result<Vec<u8>, KernelError> {
    let Some(port) = tty.follow_opt("port")? else {
        return Ok(Vec::new());
    };
    let damaged = |addr, detail: String| KernelError::Damaged {
        what: "tty_buffer",
        addr,
        detail,
    };
    let mut out = Vec::new();
    let mut next = port.follow_opt("buf.head")?;
    for _ in 0..MOST_PIECES {
        let Some(piece) = next else {
            return Ok(out);
        };
        // A pseudo-terminal hands on at once what was written to it, so all of it counts.
        let (from, to) = (piece.u("read")?, piece.u("used")?);
        if from < to {
            let room = (MOST_BYTES - out.len()) as u64;
            // Where no byte has a flag, there is room for bytes in that of the flags as well.
            if to > piece.u("size")?.saturating_mul(2) || to - from > room {
                return Err(damaged(
                    piece.addr(),
                    format!("it holds bytes {from} to {to}"),
                ));
            }
            let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
            let data = piece.get("data")?.addr().wrapping_add(from);
            tty.kernel().read(data, &mut bytes)?;
            out.append(&mut bytes);
        }
        next = piece.follow_opt("next")?;
    }
    Err(damaged(
        port.addr(),
        format!("more than {MOST_PIECES} pieces"),
    ))
}
