//! The text of a VMCOREINFO note, a NUL, and the kernel's image from its first byte on.

use std::sync::Arc;

use super::ask;
use super::tiny_kernel::{Encoding, IMAGE_PHYS, Memory, TinyKernel, world};
use vmrestore::kernel::Kernel;

const MOST: usize = 1 << 20;

pub fn run(input: &[u8]) {
    let Some(end) = input.iter().position(|&byte| byte == 0) else {
        return;
    };
    let (note, image) = (&input[..end], &input[end + 1..]);
    if image.len() > MOST {
        return;
    }
    let note = String::from_utf8_lossy(note);
    let mut bytes = vec![0; IMAGE_PHYS as usize + image.len().next_multiple_of(4096)];
    bytes[IMAGE_PHYS as usize..][..image.len()].copy_from_slice(image);
    let memory = Memory {
        bytes,
        missing: Vec::new(),
    };
    if let Ok(kernel) = Kernel::open(Arc::new(memory), &note) {
        ask::symbols(
            &kernel,
            &["_stext", "_end", "__start_BTF", "vmemmap_base", "none"],
        );
        ask::symbols(&kernel, &ask::names(&input[end..], 32));
    }
}

/// The tiny kernel's image in each encoding.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let encodings = [
        ("absolute_percpu", Encoding::AbsolutePercpu),
        ("relative", Encoding::Relative),
        ("own_place", Encoding::OwnPlace),
        ("unannounced", Encoding::Unannounced),
    ];
    encodings
        .into_iter()
        .map(|(name, encoding)| {
            let mut tiny = TinyKernel::new(false);
            let info = tiny.finish(&world::types().0, encoding);
            let start = IMAGE_PHYS as usize;
            let image = &tiny.memory.bytes[start..tiny.image_end as usize];
            (name.to_owned(), [info.as_bytes(), &[0], image].concat())
        })
        .collect()
}
