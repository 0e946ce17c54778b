//! A guest that was reset once before its host died.

use super::Verdict;
use super::guest::guest;
use super::line::beginning;

/// Judges a guest of which it is known that it was reset before the crash: up
/// to the reset its lines are whole, and from its second boot on (which may
/// have come before the crash or after the restore) they are again.
#[must_use]
pub fn reset_guest(before: &[u8], after: &[u8], new_lines: usize) -> Verdict {
    let Some(second) = second_boot(after) else {
        let mut verdict = guest(before, after, None, 0);
        verdict.fault(0, "it was reset and has not booted again", "");
        return verdict;
    };
    let first = &after[..end_of_first(&after[..second])];
    let seen = &before[..before.len().min(first.len())];
    let mut verdict = guest(seen, first, None, 0);
    let seen = before.get(second..).unwrap_or_default();
    let again = guest(seen, &after[second..], None, new_lines);
    verdict.faults.extend(again.faults);
    verdict.losses.extend(again.losses);
    Verdict {
        last_before: again.last_before,
        last_after: again.last_after,
        lines_before: again.lines_before,
        lines_after: again.lines_after,
        ..verdict
    }
}

fn second_boot(after: &[u8]) -> Option<usize> {
    let first = beginning(after)?;
    beginning(&after[first + 1..]).map(|at| first + 1 + at)
}

/// The end of the last whole line before the reset: it may have cut one in two,
/// and the firmware and the kernel may have said something since.
fn end_of_first(bytes: &[u8]) -> usize {
    let mark = b"\nL nonce=";
    let last = bytes
        .windows(mark.len())
        .rposition(|window| window == mark)
        .map_or(0, |at| at + 1);
    match bytes[last..].iter().position(|byte| *byte == b'\n') {
        Some(end) => last + end + 1,
        // The last one was cut: what stands before it is whole.
        None => last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_life_ends_with_a_whole_line() {
        let bytes = b"BOOT nonce=1\nL nonce=1 n=1\nL nonce=1 n=2\nL nonc";
        assert_eq!(&bytes[end_of_first(bytes)..], b"L nonc");
        let cut = b"BOOT nonce=1\nL nonce=1 n=1\nL nonce=1 n=";
        assert_eq!(&cut[end_of_first(cut)..], b"L nonce=1 n=");
        let noise = b"BOOT nonce=1\nL nonce=1 n=1\nfirmware says\nno";
        assert_eq!(&noise[end_of_first(noise)..], b"firmware says\nno");
    }

    #[test]
    fn no_second_boot_is_a_fault() {
        assert!(!reset_guest(b"", b"BOOT nonce=1\n", 0).is_good());
    }
}
