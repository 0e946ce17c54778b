//! zram: a disk in compressed memory. Linux drivers/block/zram/zram_drv.c.

use super::{Trouble, filled, packed, packing, zsmalloc};
use crate::dataset::{Packing, PageContent};
use crate::kernel::{Kernel, KernelError, Object};

const PAGE: u64 = 4096;

/// Where a page of a zram device is.
pub(super) enum Place {
    Memory(PageContent),
    /// In this page of its backing device, as it was.
    Backing(u64),
}

/// Page `index` of the zram device whose `struct gendisk` is `disk`.
pub(super) fn page(disk: &Object<'_>, index: u64) -> Result<Place, Trouble> {
    let kernel = disk.kernel();
    let zram = device(disk)?;
    let pages = zram.u("disksize")? / PAGE;
    if index >= pages {
        return Err(Trouble::Kernel(KernelError::Damaged {
            what: "struct zram",
            addr: zram.addr(),
            detail: format!("page {index} of {pages} is asked for"),
        }));
    }
    let entry = zram.get("table")?.element(index)?;
    let flags = match entry.has("flags") {
        true => entry.u("flags")?,
        false => entry.u("attr.flags")?,
    };
    let bit = |name: &str| {
        let number = kernel.enum_value("zram_pageflags", name)?;
        u32::try_from(number).ok().filter(|n| *n < 64)
    };
    let is = |name: &str| bit(name).is_some_and(|n| flags >> n & 1 != 0);
    // ZRAM_FLAG_SHIFT, of which no symbol tells, is the first flag's number: that of the lock, while
    // the lock was a flag (before v6.15).
    let size_bits = [bit("ZRAM_LOCK"), bit("ZRAM_SAME")]
        .into_iter()
        .flatten()
        .min()
        .ok_or_else(|| KernelError::NoType {
            name: "zram_pageflags".into(),
            module: Some("zram".into()),
        })?;
    // The number of a page of the backing device lies over the handle.
    let handle = entry.u("handle")?;
    if is("ZRAM_WB") {
        return match zram.has("wb_batch_size") {
            // Perhaps, since v7.0: zram's `wb_compressed`.
            true => Err(Trouble::Unknown(
                "zram had written it to its backing device, compressed perhaps, which is not read"
                    .into(),
            )),
            false => Ok(Place::Backing(handle)),
        };
    }
    if handle == 0 || is("ZRAM_SAME") {
        return Ok(Place::Memory(filled(handle)));
    }
    let len = flags & ((1 << size_bits) - 1);
    let by = match len {
        PAGE => Packing::Raw,
        _ => packing(&compressor(&zram, priority(&bit, flags))?)?,
    };
    let (at, rest) = zsmalloc::place(kernel, handle, 0, len)?;
    packed(by, len, at, rest).map(Place::Memory)
}

/// The `struct zram` of a disk.
pub(super) fn device<'k>(disk: &Object<'k>) -> Result<Object<'k>, KernelError> {
    let kernel: &'k Kernel = disk.kernel();
    kernel.object("zram", disk.ptr("private_data")?)
}

/// Which of the device's compressors it was, where it may have several.
fn priority(bit: &impl Fn(&str) -> Option<u32>, flags: u64) -> u64 {
    bit("ZRAM_COMP_PRIORITY_BIT1").map_or(0, |first| flags >> first & 3)
}

/// Several since v6.2.
fn compressor(zram: &Object<'_>, priority: u64) -> Result<String, Trouble> {
    if zram.has("compressor") {
        return Ok(zram.get("compressor")?.string()?);
    }
    // With a dictionary perhaps, since v6.12.
    if zram.has("params") {
        let parameters = zram.get(&format!("params[{priority}]"))?;
        if parameters.ptr("dict").unwrap_or(0) != 0 {
            return Err(Trouble::Unknown(
                "zram compressed it with a dictionary, which is not known here".into(),
            ));
        }
    }
    Ok(zram.get(&format!("comp_algs[{priority}]"))?.string()?)
}
