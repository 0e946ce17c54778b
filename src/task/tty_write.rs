//! A write to a terminal that waits for it to take more.
//!
//! The terminal layer copies a piece of the caller's bytes, and its line discipline passes that on bit
//! by bit: how far it is in the piece is a pointer into it, and a count of what is left, among the words
//! of the stack. Linux drivers/tty/tty_io.c, do_tty_write(); drivers/tty/n_tty.c, n_tty_write().

use super::kernel_stack::Stack;
use super::vector::{IterLayout, Vector, come_to};
use crate::kernel::{KernelError, Object};

/// Bytes of a piece, and of one of a driver that wants larger ones (TTY_NO_WRITE_SPLIT).
const PIECE: u64 = 2048;
const LARGE_PIECE: u64 = 65_536;
const NO_WRITE_SPLIT: u64 = 17;
const S_IFCHR: u64 = 0o020_000;

/// How many bytes have been passed on. `None`: it is not to be found, or it is no terminal.
pub(super) fn passed_on(
    stack: &Stack<'_>,
    file: &Object<'_>,
    buffers: &Vector,
) -> Result<Option<u64>, KernelError> {
    let kernel = stack.kernel();
    if file.follow("f_inode")?.u("i_mode")? & 0o170_000 != S_IFCHR || !stack.is_in("n_tty_write") {
        return Ok(None);
    }
    let tty = kernel
        .object("tty_file_private", file.ptr("private_data")?)?
        .follow("tty")?;
    let Some(copied) = come_to(stack, IterLayout::of(kernel)?, buffers) else {
        return Ok(None);
    };
    let piece = match tty.u("flags")? >> NO_WRITE_SPLIT & 1 {
        0 => PIECE,
        _ => LARGE_PIECE,
    };
    Ok(in_piece(
        copied,
        piece,
        tty.ptr("write_buf")?,
        stack.words(),
    ))
}

/// With `copied` bytes copied in pieces to `buffer`, of which the last is under way.
fn in_piece(copied: u64, piece: u64, buffer: u64, words: &[u64]) -> Option<u64> {
    let before = copied.checked_sub(1)? / piece * piece;
    let size = copied - before;
    let mut places: Vec<u64> = words
        .iter()
        .filter_map(|word| word.checked_sub(buffer))
        .filter(|place| *place < size && words.contains(&(size - place)))
        .collect();
    places.sort_unstable();
    places.dedup();
    // Where it began is there as well.
    match places[..] {
        [place] | [0, place] => Some(before + place),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pointer_into_a_piece_and_its_count_belong_together() {
        let at = 0xffff_8880_0000_1000;
        assert_eq!(in_piece(5000, 2048, at, &[at, at + 800, 104]), Some(4896));
        assert_eq!(in_piece(5000, 2048, at, &[at, 904]), Some(4096));
        assert_eq!(in_piece(2048, 2048, at, &[at + 48, at, 2000]), Some(48));
        // Two that fit, or none.
        let two = [at + 800, 104, at + 700, 204];
        assert_eq!(in_piece(5000, 2048, at, &two), None);
        assert_eq!(in_piece(5000, 2048, at, &[at + 800]), None);
        assert_eq!(in_piece(0, 2048, at, &[at]), None);
    }
}
