//! One line of output: its text, then a checksum of the text, so that a torn
//! line cannot pass for a whole one.

use std::fmt::Write as _;

/// FNV-1a, 32 bits.
///
/// Source: <http://www.isthe.com/chongo/tech/comp/fnv/>.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// `text crc=XXXXXXXX\n`.
#[must_use]
pub fn sealed(text: &str) -> String {
    let mut line = String::with_capacity(text.len() + 16);
    line.push_str(text);
    // Writing to a String does not fail.
    let _ = writeln!(line, " crc={:08x}", fnv1a(text.as_bytes()));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"a"), 0xe40c_292c);
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
    }
}
