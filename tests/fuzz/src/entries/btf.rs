//! The first byte says whose BTF the rest is: even vmlinux's, odd a module's that goes on where a
//! sound vmlinux's ends.

use std::sync::Arc;

use super::ask;
use super::tiny_kernel::btf::Types;
use super::tiny_kernel::{DIRECT, Encoding, TinyKernel, VMALLOC, words, world};
use vmrestore::kernel::Kernel;

/// What the tiny kernel's memory has room for.
const MOST: usize = 512 << 10;

pub fn run(input: &[u8]) {
    let Some((&whose, blob)) = input.split_first() else {
        return;
    };
    if blob.len() > MOST {
        return;
    }
    let mut tiny = TinyKernel::new(false);
    let info = if whose & 1 == 0 {
        tiny.finish_with(blob, Encoding::AbsolutePercpu)
    } else {
        let (types, _) = world::types();
        with_module(&mut tiny, blob);
        tiny.finish_with(&types.blob(), Encoding::AbsolutePercpu)
    };
    for at in (ask::PLACE..ask::PLACE + 0x2000).step_by(8) {
        tiny.poke(at, at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at / 8 % 40));
    }
    if let Ok(kernel) = Kernel::open(Arc::new(tiny.memory), &info) {
        ask::types(&kernel, &ask::names(blob, 48));
    }
}

/// A module "gadget" with this BTF, laid out as `world::types` says.
fn with_module(tiny: &mut TinyKernel, blob: &[u8]) {
    let data = tiny.object(blob, 8);
    let btf = tiny.object(&words(&[blob.len() as u64, data]), 8);
    let (module, entry) = (DIRECT + 0x3f_0000, DIRECT + 0x3f_0100);
    let head = tiny.variable("btf_modules", &words(&[entry + 8, entry + 8]));
    tiny.put(
        module - DIRECT,
        &words(&[0, 0x1000, VMALLOC, 0x7465_6764_6167]),
    );
    tiny.put(entry - DIRECT, &words(&[btf, head, head, module]));
}

/// A sound input: vmlinux's types of the tiny world, and a module's.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let (mut types, numbers) = world::types();
    let mut own = Types::split(&types);
    own.structure("gadget", 16, &[("links", numbers.list_head, 0, 0)]);
    own.structure(
        "bits",
        8,
        &[("low", numbers.u64, 0, 3), ("high", numbers.u64, 3, 61)],
    );
    types.forward("gadget");
    vec![
        ("world".into(), [&[0], types.blob().as_slice()].concat()),
        ("module".into(), [&[1], own.blob().as_slice()].concat()),
    ]
}
