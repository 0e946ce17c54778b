//! Keys, out of the bytes that a terminal sends for them.

/// What was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Back,
    Up,
    Down,
    PageUp,
    PageDown,
    Mark,
    Tree,
    Enter,
    End,
}

/// Takes whole keys from what a terminal sent; the beginning of one stays.
pub fn keys(held: &mut Vec<u8>) -> Vec<Key> {
    const SEQUENCES: [(&[u8], Key); 8] = [
        (b"\x1b[A", Key::Up),
        (b"\x1bOA", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1bOB", Key::Down),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
        (b"\x1b[Z", Key::Up),
        (b"\x1b\x1b", Key::End),
    ];
    let mut found = Vec::new();
    while let Some(&first) = held.first() {
        let (key, len) = match first {
            0x1b if held.len() == 1 => (Some(Key::End), 1),
            0x1b => match SEQUENCES.iter().find(|(bytes, _)| held.starts_with(bytes)) {
                Some((bytes, key)) => (Some(*key), bytes.len()),
                // Some other key of many bytes: it ends with a letter or a tilde.
                None => {
                    let end = held
                        .iter()
                        .skip(2)
                        .position(|b| b.is_ascii_alphabetic() || *b == b'~');
                    (None, end.map_or(held.len(), |at| at + 3))
                }
            },
            b'\r' | b'\n' => (Some(Key::Enter), 1),
            b'\t' => (Some(Key::Mark), 1),
            0x7f | 0x08 => (Some(Key::Back), 1),
            0x14 => (Some(Key::Tree), 1),
            0x03 | 0x04 => (Some(Key::End), 1),
            0x10 => (Some(Key::Up), 1),
            0x0e => (Some(Key::Down), 1),
            0..=0x1f => (None, 1),
            _ => {
                let len = match first {
                    0..=0x7f => 1,
                    0xc0..=0xdf => 2,
                    0xe0..=0xef => 3,
                    _ => 4,
                };
                let Some(bytes) = held.get(..len) else {
                    return found;
                };
                let char = std::str::from_utf8(bytes)
                    .ok()
                    .and_then(|s| s.chars().next());
                (char.map(Key::Char), len)
            }
        };
        held.drain(..len.min(held.len()));
        found.extend(key);
    }
    found
}
