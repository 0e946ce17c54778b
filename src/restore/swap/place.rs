//! Where on this host a swap area is: the same device, under whatever name, and of a swap file the
//! same blocks of it.

use super::Refusal;
use super::header::Header;
use crate::dataset::{SwapArea, SwapFile};
use crate::restore::disks;
use crate::sys::file_facts;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const PAGE: u64 = 4096;
const CLASS: &str = "/sys/class/block";

/// A swap area on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The device's node.
    pub node: PathBuf,
    /// Its major and minor.
    pub number: (u32, u32),
    /// The swap file on it, with its inode's device and number.
    pub file: Option<(PathBuf, u64, u64)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some((path, ..)) => write!(f, "{} on {}", path.display(), self.node.display()),
            None => write!(f, "{}", self.node.display()),
        }
    }
}

impl Place {
    /// The device, read past the page cache: swapping goes past it too.
    pub fn open(&self) -> Result<File, Refusal> {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&self.node)
            .map_err(|e| Refusal::certain(format!("{}: {e}", self.node.display()), "run as root"))
    }
}

/// Finds the area.
pub(super) fn find(area: &SwapArea) -> Result<Place, Refusal> {
    const HINT: &str = "the disk that was swapped to must be attached to this host";
    let then = area
        .device
        .as_ref()
        .ok_or_else(|| Refusal::certain("the dump does not say on which device it is", ""))?;
    let found = disks::find_device(then).or_else(|why| {
        // A device without a name of its own may have a swap header with one.
        let uuid = area.header.as_ref().and_then(|h| Header::uuid_of(&h.0));
        match (uuid, &area.file) {
            (Some(uuid), None) if !then.has_identity() => by_uuid(&uuid, then.size).ok_or(why),
            _ => Err(why),
        }
    });
    let (node, number) = found.map_err(|why| Refusal::certain(why, HINT))?;
    let file = match &area.file {
        Some(file) => Some(same_file(area, file, number)?),
        None => None,
    };
    Ok(Place { node, number, file })
}

/// The one device of this size whose swap header has this UUID.
fn by_uuid(uuid: &[u8; 16], size: u64) -> Option<(PathBuf, (u32, u32))> {
    let mut found = Vec::new();
    for entry in fs::read_dir(CLASS).ok()?.flatten() {
        let sectors = fs::read_to_string(entry.path().join("size")).unwrap_or_default();
        if sectors.trim().parse() != Ok(size / 512) {
            continue;
        }
        let node = Path::new("/dev").join(entry.file_name());
        let mut page = vec![0; PAGE as usize];
        let read = File::open(&node).and_then(|file| file.read_exact_at(&mut page, 0));
        if read.is_ok() && Header::uuid_of(&page).as_ref() == Some(uuid) {
            found.push(node);
        }
    }
    match found.as_slice() {
        [one] => {
            let device = fs::metadata(one).ok()?.rdev();
            Some((one.clone(), (libc::major(device), libc::minor(device))))
        }
        _ => None,
    }
}

/// The file is there, is the same, and has the blocks that were swapped to: what another file has by
/// now is not read.
fn same_file(
    area: &SwapArea,
    then: &SwapFile,
    device: (u32, u32),
) -> Result<(PathBuf, u64, u64), Refusal> {
    const HINT: &str = "mount the file system with the swap file where it was";
    let path = PathBuf::from(&area.path);
    let refuse = |why: String| Refusal::certain(why, HINT);
    let file = File::open(&path).map_err(|e| refuse(format!("{}: {e}", path.display())))?;
    let meta = file
        .metadata()
        .map_err(|e| refuse(format!("{}: {e}", path.display())))?;
    if meta.ino() != then.inode || meta.size() != then.size {
        return Err(refuse(format!(
            "it is another file: its inode was {} with {} bytes, and is {} with {}",
            then.inode,
            then.size,
            meta.ino(),
            meta.size()
        )));
    }
    let generation = file_facts::generation(&file);
    if let (Some(was), Some(is)) = (then.generation, generation)
        && was != is
    {
        return Err(refuse(format!(
            "it is another file: its inode was of generation {was}, and is of {is}"
        )));
    }
    let on = (libc::major(meta.dev()), libc::minor(meta.dev()));
    // btrfs numbers its own.
    if on.0 != 0 && on != device {
        return Err(refuse(format!(
            "it is on device {}:{} now, and its blocks were on {}:{}",
            on.0, on.1, device.0, device.1
        )));
    }
    let extents = file_facts::extents(&file)
        .map_err(|e| refuse(format!("{} does not say its blocks: {e}", path.display())))?;
    let blocks: Vec<(u64, u64)> = extents
        .iter()
        .filter(|e| e.written || e.reserved)
        .map(|e| (e.place, e.place.saturating_add(e.len)))
        .collect();
    match area.extents.iter().find(|e| {
        !covers(
            &blocks,
            e.place.saturating_mul(PAGE),
            e.count.saturating_mul(PAGE),
        )
    }) {
        None => Ok((path, meta.dev(), meta.ino())),
        Some(gone) => Err(refuse(format!(
            "its slots {} to {} are no longer blocks of the file",
            gone.slot,
            gone.slot.saturating_add(gone.count).saturating_sub(1)
        ))),
    }
}

/// Whether ranges (begin, end), in any order, have all of `len` bytes at `start`.
fn covers(ranges: &[(u64, u64)], start: u64, len: u64) -> bool {
    let mut at = start;
    let end = start.saturating_add(len);
    // Each step takes a range that goes further.
    while at < end {
        let next = ranges.iter().find(|(from, to)| *from <= at && *to > at);
        match next {
            Some((_, to)) => at = *to,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_cover_what_lies_across() {
        let ranges = vec![(100, 200), (0, 50), (200, 260)];
        assert!(covers(&ranges, 150, 100));
        assert!(covers(&ranges, 0, 50));
        assert!(!covers(&ranges, 0, 51));
        assert!(!covers(&ranges, 250, 11));
        assert!(covers(&ranges, 70, 0));
    }
}
