//! Where the fields of a sound file stand, by its own headers: what a mutation is to aim at.

/// A number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    pub at: usize,
    /// Bytes.
    pub width: usize,
    pub big_endian: bool,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Fields of a file, whichever of the formats it has.
pub fn fields(bytes: &[u8]) -> Vec<Field> {
    let mut found = Vec::new();
    if bytes.starts_with(b"makedumpfile") {
        flattened(bytes, &mut found);
    } else {
        for (at, width) in inner(bytes) {
            found.push(Field {
                at,
                width,
                big_endian: false,
            });
        }
    }
    found
}

fn inner(bytes: &[u8]) -> Vec<(usize, usize)> {
    if bytes.starts_with(b"\x7fELF") {
        elf(bytes)
    } else {
        kdump(bytes)
    }
}

/// System V ABI: Elf64_Ehdr, Elf64_Phdr, and notes.
fn elf(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut found = vec![
        (4, 1),
        (5, 1),
        (16, 2),
        (18, 2),
        (20, 4),
        (32, 8),
        (40, 8),
        (52, 2),
        (54, 2),
        (56, 2),
        (58, 2),
        (60, 2),
    ];
    let table = word(bytes, 32) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    for i in 0..count {
        let at = table + i * 56;
        found.extend([(at, 4), (at + 4, 4)]);
        found.extend((8..56).step_by(8).map(|field| (at + field, 8)));
        if half(bytes, at) == 4 {
            let start = word(bytes, at + 8) as usize;
            notes(
                bytes,
                start,
                start + word(bytes, at + 32) as usize,
                &mut found,
            );
        }
    }
    found
}

fn notes(bytes: &[u8], mut at: usize, end: usize, found: &mut Vec<(usize, usize)>) {
    while at + 12 <= end {
        let (name, content) = (half(bytes, at), half(bytes, at + 4));
        found.extend([(at, 4), (at + 4, 4), (at + 8, 4), (at + 12, 4)]);
        at += 12 + name.next_multiple_of(4) + content.next_multiple_of(4);
        found.push((at.saturating_sub(4), 4));
    }
}

/// makedumpfile diskdump_mod.h: disk_dump_header, kdump_sub_header, bitmaps, page_desc.
fn kdump(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut found = vec![(0, 8), (8, 4)];
    found.extend((420..464).step_by(4).map(|at| (at, 4)));
    let version = half(bytes, 8);
    let sub = 4096;
    found.extend([(sub, 8), (sub + 8, 4), (sub + 12, 4)]);
    found.extend((16..104).step_by(8).map(|field| (sub + field, 8)));
    if version >= 4 {
        let start = word(bytes, sub + 48) as usize;
        notes(
            bytes,
            start,
            start + word(bytes, sub + 56) as usize,
            &mut found,
        );
    }
    let bitmap = (1 + half(bytes, 432)) * 4096;
    let blocks = half(bytes, 436);
    let mut stored = 0;
    for block in 0..blocks {
        let at = bitmap + block * 4096;
        found.extend([(at, 1), (at + 1, 1), (at, 4), (at + 4092, 4)]);
        if block >= blocks / 2 {
            stored += bytes[at..at + 4096]
                .iter()
                .map(|b| b.count_ones() as usize)
                .sum::<usize>();
        }
    }
    let table = bitmap + blocks * 4096;
    for i in 0..stored {
        let at = table + i * 24;
        // A part of a split dump has bitmaps of the whole, and descriptors of its own pages alone.
        let Some(desc) = bytes.get(at..at + 24) else {
            break;
        };
        if word(desc, 0) + half(desc, 8) as u64 > bytes.len() as u64 || half(desc, 8) < 4 {
            break;
        }
        found.extend([(at, 8), (at + 8, 4), (at + 12, 4), (at + 16, 8)]);
        let data = word(bytes, at) as usize;
        // The page's own first and last bytes: a stream's header and its check sum.
        found.extend([
            (data, 1),
            (data + 1, 4),
            (data + half(bytes, at + 8) - 4, 4),
        ]);
    }
    found
}

/// makedumpfile.h: makedumpfile_header and makedumpfile_data_header, in big-endian; and the fields
/// of the file that it unfolds to.
fn flattened(bytes: &[u8], found: &mut Vec<Field>) {
    let big = |at| i64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut add = |at| {
        found.push(Field {
            at,
            width: 8,
            big_endian: true,
        });
    };
    add(16);
    add(24);
    let (mut blocks, mut image) = (Vec::new(), Vec::new());
    let mut at = 4096;
    loop {
        let (offset, size) = (big(at), big(at + 8));
        add(at);
        add(at + 8);
        if offset < 0 {
            break;
        }
        let (offset, size) = (offset as usize, size as usize);
        if image.len() < offset + size {
            image.resize(offset + size, 0);
        }
        image[offset..offset + size].copy_from_slice(&bytes[at + 16..at + 16 + size]);
        blocks.push((offset, size, at + 16));
        at += 16 + size;
    }
    for (inside, width) in inner(&image) {
        // Later blocks win over earlier ones.
        let block = blocks
            .iter()
            .rev()
            .find(|(offset, size, _)| *offset <= inside && inside + width <= offset + size);
        if let Some((offset, _, data)) = block {
            found.push(Field {
                at: data + inside - offset,
                width,
                big_endian: false,
            });
        }
    }
}
