//! A swap area: `struct swap_info_struct`. Linux include/linux/swap.h.

use super::super::page_cache::{self, CachePlace, Wanted};
use super::super::page_frame::Frames;
use super::super::path::{self, Place};
use super::super::{block_device, inode};
use super::zram;
use crate::dataset::{Blob, PageContent, PageRun, SwapArea, SwapExtent, SwapFile};
use crate::kernel::{Kernel, KernelError, Object, containers};

const PAGE: u64 = 4096;
/// Sectors of 512 bytes in a page.
const SECTORS: u64 = 8;
/// SWP_FS_OPS: the file system reads and writes it (NFS).
const FS_OPS: u64 = 1 << 8;
/// Pages of the largest area there may be, 16 TiB: `max` is an unsigned int, and
/// a long on newer kernels.
const MOST_SLOTS: u64 = 1 << 32;

/// An area, as far as a slot of it can be found.
pub(super) struct Area<'k> {
    pub info: Object<'k>,
    /// Pages, with its header.
    pub slots: u64,
    extents: Vec<SwapExtent>,
    /// The `struct gendisk` of the zram device that it is on, and where on it the area's device
    /// begins, in pages.
    zram: Option<(Object<'k>, u64)>,
}

impl<'k> Area<'k> {
    /// The area with this number.
    pub fn read(kernel: &'k Kernel, number: u32) -> Result<Self, KernelError> {
        let table = kernel.symbol("swap_info")?;
        let at = kernel.read_u64(table.wrapping_add(u64::from(number) * 8))?;
        let info = kernel.object("swap_info_struct", at)?;
        let slots = info.u("max")?;
        if slots > MOST_SLOTS {
            return Err(KernelError::Damaged {
                what: "swap_info_struct.max",
                addr: at,
                detail: format!("{slots} pages"),
            });
        }
        Ok(Self {
            slots,
            extents: extents(&info)?,
            zram: zram_disk(&info)?,
            info,
        })
    }

    /// The zram device and its page that hold a slot.
    pub fn zram_page(&self, slot: u64) -> Option<(&Object<'k>, u64)> {
        let (disk, start) = self.zram.as_ref()?;
        Some((disk, place(&self.extents, slot)?.saturating_add(*start)))
    }

    /// What a restore has to know of it. `witnesses`: slots, and the page frames that hold the same.
    pub fn describe(
        &self,
        number: u32,
        frames: &Frames<'k>,
        witnesses: Vec<(u64, u64)>,
    ) -> SwapArea {
        let mut area = SwapArea {
            number,
            slots: self.slots,
            extents: self.extents.clone(),
            witnesses: runs(witnesses),
            ..SwapArea::default()
        };
        if let Err(error) = self.where_it_is(frames, &mut area) {
            area.trouble.get_or_insert(error.to_string());
        }
        area
    }

    /// The same of the backing device of the zram that it is on.
    pub fn describe_backing(&self, number: u32, witnesses: Vec<(u64, u64)>) -> SwapArea {
        let mut area = SwapArea {
            number,
            witnesses: runs(witnesses),
            ..SwapArea::default()
        };
        if let Err(error) = self.backing_device(&mut area) {
            area.trouble.get_or_insert(error.to_string());
        }
        area
    }

    fn backing_device(&self, area: &mut SwapArea) -> Result<(), KernelError> {
        let Some((disk, _)) = &self.zram else {
            area.trouble = Some("it is on no zram".into());
            return Ok(());
        };
        let kernel = self.info.kernel();
        area.zram = Some(disk.get("disk_name")?.string()?);
        let zram = zram::device(disk)?;
        let file = zram.follow("backing_dev")?;
        area.path = path::name(kernel, Place::of(&file.get("f_path")?)?, None)?.path;
        area.slots = zram.u("nr_pages")?.min(MOST_SLOTS);
        area.extents = vec![SwapExtent {
            slot: 0,
            count: area.slots,
            place: 0,
        }];
        // Its file's, which is a block device's. `zram.bdev` is not there on every kernel.
        area.device = Some(block_device::read(&file.follow("f_mapping")?)?);
        Ok(())
    }

    fn where_it_is(&self, frames: &Frames<'k>, area: &mut SwapArea) -> Result<(), KernelError> {
        let kernel = self.info.kernel();
        let file = self.info.follow("swap_file")?;
        area.path = path::name(kernel, Place::of(&file.get("f_path")?)?, None)?.path;
        let mapping = file.follow("f_mapping")?;
        let node = mapping.follow("host")?;
        if inode::mode(&node)? & 0o170_000 == 0o100_000 {
            area.file = Some(SwapFile {
                inode: node.u("i_ino")?,
                size: node.u("i_size")?,
                generation: node
                    .u("i_generation")
                    .ok()
                    .and_then(|g| u32::try_from(g).ok()),
            });
        }
        // The cache may be damaged, or have dropped the page: then it is not known.
        area.header = header(frames, &mapping).unwrap_or(None);
        if self.info.u("flags")? & FS_OPS != 0 {
            area.trouble = Some("it is swapped to through a file system (NFS)".into());
        }
        if self.zram.is_some() {
            area.trouble = Some("it was on zram, and is no more".into());
        }
        area.device = Some(block_device::of(&self.info.follow("bdev")?)?);
        Ok(())
    }
}

/// Slots and the page frames that hold the same, as a restore takes them.
fn runs(mut witnesses: Vec<(u64, u64)>) -> Vec<PageRun> {
    witnesses.sort_unstable();
    witnesses
        .into_iter()
        .map(|(slot, pfn)| PageRun {
            start: slot.saturating_mul(PAGE),
            count: 1,
            content: PageContent::Frame(pfn),
        })
        .collect()
}

/// The page of the device that a slot is in.
fn place(extents: &[SwapExtent], slot: u64) -> Option<u64> {
    let behind = extents.partition_point(|e| e.slot <= slot);
    let extent = extents.get(behind.checked_sub(1)?)?;
    let into = slot - extent.slot;
    (into < extent.count).then(|| extent.place.saturating_add(into))
}

/// The tree of `swap_extent`s (a list before v5.3).
fn extents(info: &Object<'_>) -> Result<Vec<SwapExtent>, KernelError> {
    let root = info.get("swap_extent_root")?;
    let mut extents = containers::rbtree(&root, "swap_extent", "rb_node")?
        .iter()
        .map(|extent| {
            Ok(SwapExtent {
                slot: extent.u("start_page")?,
                count: extent.u("nr_pages")?,
                place: extent.u("start_block")?,
            })
        })
        .collect::<Result<Vec<_>, KernelError>>()?;
    extents.sort_by_key(|extent| extent.slot);
    Ok(extents)
}

/// The zram disk that an area's device is, or is a part of.
fn zram_disk<'k>(info: &Object<'k>) -> Result<Option<(Object<'k>, u64)>, KernelError> {
    let Some(device) = info.follow_opt("bdev")? else {
        return Ok(None);
    };
    let disk = device.follow("bd_disk")?;
    let operations = info.kernel().symbol_at(disk.ptr("fops")?);
    if !operations.is_some_and(|(name, _)| name.starts_with("zram_")) {
        return Ok(None);
    }
    let start = device.u("bd_start_sect").unwrap_or(0);
    Ok(Some((disk, start / SECTORS)))
}

/// The area's first page, if the page cache has it.
fn header(frames: &Frames<'_>, mapping: &Object<'_>) -> Result<Option<Blob>, KernelError> {
    let pages = page_cache::pages(frames, mapping, Wanted::Clean, 0)?;
    let Some(first) = pages.first().filter(|pages| pages.index == 0) else {
        return Ok(None);
    };
    let CachePlace::Frame(pfn) = first.place else {
        return Ok(None);
    };
    let mut page = vec![0; 4096];
    let memory = frames.kernel.memory();
    let read = memory.read_physical(pfn.saturating_mul(PAGE), &mut page);
    Ok(read.is_ok().then_some(Blob(page)))
}
