//! Asks a kernel everything that depends on names, with names that the input itself has.

use vmrestore::kernel::Kernel;

/// Where the objects asked for stand: memory that is there, and filled with noise.
pub const PLACE: u64 = super::tiny_kernel::DIRECT + 0x30_0000;

/// Up to `most` identifiers in the input.
pub fn names(input: &[u8], most: usize) -> Vec<&str> {
    input
        .split(|byte| !(byte.is_ascii_alphanumeric() || b"_ *".contains(byte)))
        .filter(|word| (1..=64).contains(&word.len()))
        .filter_map(|word| std::str::from_utf8(word).ok())
        .take(most)
        .collect()
}

pub fn symbols(kernel: &Kernel, names: &[&str]) {
    let _ = kernel.symbol_count();
    for name in names {
        if let Ok(address) = kernel.symbol(name) {
            let _ = kernel.symbol_size(name);
            for near in [0, 1, u64::MAX] {
                let _ = kernel.symbol_at(address.wrapping_add(near));
            }
        }
    }
}

pub fn types(kernel: &Kernel, names: &[&str]) {
    for name in names {
        let _ = (kernel.has_type(name), kernel.size_of(name));
        let _ = kernel.enum_value("", name);
        let _ = kernel.enum_value(name, names[names.len() / 2]);
        for object in [
            kernel.object(name, PLACE),
            kernel.object_in("gadget", name, PLACE),
        ]
        .into_iter()
        .flatten()
        {
            let _ = (object.type_name(), object.size(), object.array_len());
            if object.size() <= 1 << 16 {
                let _ = object.bytes();
            }
            let _ = (object.element(3).map(|e| e.unsigned()), object.string());
            let _ = (object.unsigned(), object.signed());
            for path in names.iter().take(24) {
                let Ok(member) = object.get(path) else {
                    continue;
                };
                let _ = (member.unsigned(), member.signed(), member.type_name());
                if member.size() <= 1 << 16 {
                    let _ = member.string();
                }
                let _ = member
                    .deref()
                    .and_then(|pointee| pointee.container_of(name, path));
                let _ = member.element(1).and_then(|element| element.get(path));
                let _ = member.cast(name);
            }
        }
    }
}
