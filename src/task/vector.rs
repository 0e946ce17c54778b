//! The buffers of a call that moves bytes, and how far the kernel had come in them.
//!
//! It keeps its place in a `struct iov_iter` on the stack of the thread: which buffers, how many bytes
//! of them are left. Where on the stack no table says, so it is looked for by what it must be: one of
//! just these buffers, whose count is what they hold less what stands before its place.

use super::kernel_stack::Stack;
use crate::kernel::{AddressSpace, Kernel, KernelError};

/// Most buffers of a call: UIO_MAXIOV.
const MAX_PARTS: u64 = 1024;
/// Bytes of a `struct iovec`.
const IOVEC: u64 = 16;
/// What the kernel cuts a call down to: MAX_RW_COUNT.
const MAX_BYTES: u64 = 0x7fff_f000;
/// The lowest address that may be the kernel's.
const KERNEL: u64 = 1 << 63;

/// Buffers of a process: address and length of each, as the kernel takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Vector(Vec<(u64, u64)>);

impl Vector {
    fn cut(parts: impl IntoIterator<Item = (u64, u64)>) -> Vector {
        let mut left = MAX_BYTES;
        let cut = |(at, len): (u64, u64)| {
            let len = len.min(left);
            left -= len;
            (at, len)
        };
        Vector(parts.into_iter().map(cut).collect())
    }

    /// One buffer.
    pub fn one(at: u64, len: u64) -> Vector {
        Vector::cut([(at, len)])
    }

    /// An array of `struct iovec` in a process's memory.
    pub fn read(space: &AddressSpace<'_>, at: u64, count: u64) -> Result<Vector, KernelError> {
        if count > MAX_PARTS {
            return Err(KernelError::Damaged {
                what: "iovec",
                addr: at,
                detail: format!("{count} of them"),
            });
        }
        let mut bytes = vec![0; usize::try_from(count * IOVEC).unwrap_or(0)];
        space.read(at, &mut bytes)?;
        Ok(Vector::cut(pairs(&bytes)))
    }

    /// Bytes that they hold.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, len)| len).sum()
    }

    /// What is behind so many bytes.
    pub fn behind(&self, mut done: u64) -> Vector {
        let mut rest = Vec::new();
        for (at, len) in &self.0 {
            let here = done.min(*len);
            done -= here;
            if here < *len {
                rest.push((at.wrapping_add(here), len - here));
            }
        }
        Vector(rest)
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// As an array of `struct iovec`.
    pub fn bytes(&self) -> Vec<u8> {
        let words = self.0.iter().flat_map(|(at, len)| [*at, *len]);
        words.flat_map(u64::to_le_bytes).collect()
    }
}

fn pairs(bytes: &[u8]) -> Vec<(u64, u64)> {
    let words: Vec<u64> = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .collect();
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().map(|[at, len]| (*at, *len)).collect()
}

/// Where the members of `struct iov_iter` are. Bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct IterLayout {
    offset: u64,
    count: u64,
    list: u64,
    segments: u64,
    /// ITER_UBUF has the buffer itself, since Linux commit fcb14cb1bdac ("new iov_iter flavour -
    /// ITER_UBUF") (in v6.0).
    buffer: Option<u64>,
}

impl IterLayout {
    pub fn of(kernel: &Kernel) -> Result<IterLayout, KernelError> {
        let at = |member: &str| kernel.offset_of("iov_iter", member);
        Ok(IterLayout {
            offset: at("iov_offset")?,
            count: at("count")?,
            // Renamed by Linux commit de4f5fed3f23 ("iov_iter: add iter_iovec() helper") (in v6.4).
            list: at("__iov").or_else(|_| at("iov"))?,
            segments: at("nr_segs")?,
            buffer: at("ubuf").ok(),
        })
    }
}

/// How many bytes of a vector an `iov_iter` at this address of the stack has behind it; `None`: it is
/// none of this vector.
fn progress(stack: &Stack<'_>, layout: IterLayout, at: u64, vector: &Vector) -> Option<u64> {
    let word = |offset: u64| stack.word(at.checked_add(offset)?);
    let (offset, count) = (word(layout.offset)?, word(layout.count)?);
    let total = vector.total();
    let done = total.checked_sub(count)?;
    if total == 0 || offset > done {
        return None;
    }
    if let ([(buffer, _)], Some(place)) = (vector.0.as_slice(), layout.buffer)
        && word(place)? == *buffer
        && offset == done
    {
        return Some(done);
    }
    // The others point to where they are in a list of buffers: the kernel's copy of the caller's.
    let (list, left) = (word(layout.list)?, word(layout.segments)?);
    let passed = vector.len().checked_sub(left)?;
    let begin = list.checked_sub(passed.checked_mul(IOVEC)?)?;
    if begin < KERNEL || !begin.is_multiple_of(8) {
        return None;
    }
    let before: u64 = vector
        .0
        .iter()
        .take(usize::try_from(passed).ok()?)
        .map(|(_, len)| len)
        .sum();
    if before.checked_add(offset)? != done {
        return None;
    }
    let mut copy = vec![0; usize::try_from(vector.len() * IOVEC).ok()?];
    stack.kernel().read(begin, &mut copy).ok()?;
    (pairs(&copy) == vector.0).then_some(done)
}

/// How far a thread had come in a vector. A call copies its `iov_iter` on the way down and goes on with
/// the copy: the deepest one counts, and those above it are as it is, or untouched. `None`: there is
/// none, or they contradict each other.
pub(super) fn come_to(stack: &Stack<'_>, layout: IterLayout, vector: &Vector) -> Option<u64> {
    let found = stack
        .addresses()
        .filter_map(|at| progress(stack, layout, at, vector));
    agreed(found)
}

/// From the deepest up.
fn agreed(mut found: impl Iterator<Item = u64>) -> Option<u64> {
    let deepest = found.next()?;
    found
        .all(|other| other == deepest || other == 0)
        .then_some(deepest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_some_buffers() {
        let all = Vector::cut([(100, 10), (0, 0), (200, 5), (300, 1)]);
        assert_eq!(all.total(), 16);
        assert_eq!(all.behind(0).0, [(100, 10), (200, 5), (300, 1)]);
        assert_eq!(all.behind(3).0, [(103, 7), (200, 5), (300, 1)]);
        assert_eq!(all.behind(10).0, [(200, 5), (300, 1)]);
        assert_eq!(all.behind(15).0, [(300, 1)]);
        assert_eq!(all.behind(16).len(), 0);
        assert_eq!(pairs(&all.bytes()), all.0);
        // More than the kernel moves at once.
        let much = Vector::cut([(0, MAX_BYTES - 1), (7, 10), (8, 10)]);
        assert_eq!(much.0[1..], [(7, 1), (8, 0)]);
        assert_eq!(Vector::one(1, u64::MAX).total(), MAX_BYTES);
    }

    #[test]
    fn the_deepest_counts_and_the_others_agree() {
        let of = |found: &[u64]| agreed(found.iter().copied());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7]), Some(7));
        assert_eq!(of(&[7, 0, 7]), Some(7));
        assert_eq!(of(&[0, 7]), None);
        assert_eq!(of(&[7, 9]), None);
    }
}
