//! Direct I/O cannot reach memory in place: the kernel has no `struct page` for it that it could pin,
//! and says EFAULT. What was opened so is opened without, and goes through the page cache.

use crate::dataset::{Dataset, Fidelity, FileKind};

/// `O_DIRECT` of x86-64. Linux include/uapi/asm-generic/fcntl.h.
const O_DIRECT: u32 = 0o40000;

/// Takes O_DIRECT off all files of a dataset, and says so in its report. O_DSYNC and O_SYNC stay, so
/// what was durable when a write returned still is; what was not, is in the page cache rather than in
/// the disk's own.
pub fn without_direct_io(dataset: &mut Dataset) {
    let pid = dataset.processes.first().map_or(0, |p| p.pid);
    for file in &mut dataset.files {
        let on_disk = matches!(file.kind, FileKind::Regular | FileKind::BlockDevice { .. });
        if on_disk && file.flags & O_DIRECT != 0 {
            file.flags &= !O_DIRECT;
            dataset.fidelity.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                format!("O_DIRECT of {}", file.path),
                "opened without: direct I/O cannot reach memory in place; it goes through the page \
                 cache, and is as durable after a flush as it was",
            ));
        }
    }
}
