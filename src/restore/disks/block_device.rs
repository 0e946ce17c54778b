//! Block devices: is it the one of then, by whatever name it has now, and has
//! nobody written to it?
//!
//! A device has no times. It has an identity, and a counter of the sectors that
//! were written to it since this host booted, of which only our own write-back
//! may be one.

use super::{DiskError, PAGE, key, partition_table};
use crate::dataset::{BlockDevice, Dataset, Inode, PageSource, place};
use crate::restore::journal::Journal;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where the kernel shows its block devices.
const CLASS: &str = "/sys/class/block";
/// Clean pages that are compared with the device before anything is written.
const COMPARED: u64 = 4096;

/// A device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Here {
    name: String,
    /// Major and minor.
    number: (u32, u32),
    node: PathBuf,
}

/// Gives each device its name on this host: in the files and in the inodes.
/// What cannot be found keeps the name of then, and is refused by the check.
pub(super) fn rename(dataset: &mut Dataset) {
    for inode in &mut dataset.inodes {
        let Some(Ok(here)) = inode
            .block
            .as_ref()
            .map(|then| find(Path::new(CLASS), then))
        else {
            continue;
        };
        if number_of(Path::new(&inode.path)) == Some(here.number) {
            continue;
        }
        let path = here.node.display().to_string();
        tracing::info!("{} is {path} now", inode.path);
        for file in &mut dataset.files {
            if file.inode == Some(inode.id) {
                file.path.clone_from(&path);
            }
        }
        inode.path = path;
    }
}

/// Everything that speaks against a device, before anything is changed.
pub(super) fn refuse(
    inode: &Inode,
    dataset: &Dataset,
    journal: Option<&Journal>,
    ours: &[i32],
) -> Result<Vec<DiskError>, DiskError> {
    let mut wrong = Vec::new();
    let unproven = |why: String| DiskError::BlockDevice {
        path: inode.path.clone(),
        why,
    };
    let here = inode
        .block
        .as_ref()
        .ok_or_else(|| "the dump does not say which device it was".to_owned())
        .and_then(|then| find(Path::new(CLASS), then));
    let here = match here {
        Ok(here) => here,
        Err(why) => return Ok(vec![unproven(why)]),
    };
    let uname = nix::sys::utsname::uname().ok();
    let name = uname.map(|u| u.nodename().to_string_lossy().into_owned());
    if !dataset.host.hostname.is_empty() && name.as_ref() != Some(&dataset.host.hostname) {
        wrong.push(unproven(format!(
            "a device takes no mark, so only the host that crashed, {}, knows whether its guest was restored already",
            dataset.host.hostname
        )));
    }
    let in_use = |how: String| DiskError::InUse {
        path: inode.path.clone(),
        how,
    };
    let holders = fs::read_dir(Path::new(CLASS).join(&here.name).join("holders"));
    if let Some(holder) = holders.into_iter().flatten().flatten().next() {
        let holder = holder.file_name().to_string_lossy().into_owned();
        wrong.push(in_use(format!("{holder} is built on it")));
    }
    let mut exclusive = OpenOptions::new();
    match exclusive
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(&here.node)
    {
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => wrong.push(in_use(
            "it is mounted, or the kernel or a process has claimed it".into(),
        )),
        Err(source) => {
            return Err(DiskError::Missing {
                path: inode.path.clone(),
                inode: inode.number,
                device: here.name,
                source,
            });
        }
        Ok(file) => wrong.extend(super::in_use::refuse_device(inode, &file, ours).err()),
    }
    let now = written_sectors(&here).unwrap_or(i64::MAX);
    let most = match journal {
        Some(journal) => journal.written_sectors(&key(inode), planned(inode, dataset))?,
        None => 0,
    };
    if now > most {
        wrong.push(DiskError::Changed {
            path: inode.path.clone(),
            what: "the number of sectors written to it since this host booted",
            then: format!("at most {most}"),
            now: now.to_string(),
        });
    }
    Ok(wrong)
}

/// Clean pages that were in the cache must be what the device holds: otherwise
/// it is not that device, or not in that state.
pub(super) fn holds(inode: &Inode, device: &File, pages: &dyn PageSource) -> Result<(), DiskError> {
    let (mut was, mut is) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
    let mut left = COMPARED;
    for run in inode.uncommitted.iter().filter(|r| !r.content.is_missing()) {
        for index in 0..run.count.min(left) {
            pages
                .read_pages(run, index, 1, &mut was)
                .map_err(|source| DiskError::Page {
                    path: inode.path.clone(),
                    source,
                })?;
            let at = run.start.saturating_add(index * PAGE);
            device
                .read_exact_at(&mut is, at)
                .map_err(|source| DiskError::Io {
                    what: "read",
                    path: inode.path.clone(),
                    source,
                })?;
            if was != is {
                return Err(DiskError::Changed {
                    path: inode.path.clone(),
                    what: "its content",
                    then: format!("what the dump has of byte {at}"),
                    now: "something else".into(),
                });
            }
        }
        left = left.saturating_sub(run.count);
    }
    Ok(())
}

/// What [`Journal::written_sectors`] is told: all that a write-back, and the
/// requests that are submitted again, may have written.
fn planned(inode: &Inode, dataset: &Dataset) -> i64 {
    /// Sectors of the largest request that a block device takes at once.
    const REQUEST: u64 = 1 << 16;
    let dirty = inode.dirty.iter().fold(0u64, |sum, run| {
        sum.saturating_add(run.count.saturating_mul(PAGE / 512))
    });
    let contexts = dataset.processes.iter().flat_map(|p| &p.mm.aio);
    let requests: usize = contexts.map(|c| c.under_way.len()).sum();
    let submitted = (requests as u64).saturating_mul(REQUEST);
    i64::try_from(dirty.saturating_add(submitted)).unwrap_or(i64::MAX)
}

/// Sectors written to, or discarded from, the device at a path since it
/// appeared.
pub(super) fn sectors_of(path: &Path) -> Option<i64> {
    let (major, minor) = number_of(path)?;
    let link = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    counted(&link)
}

fn written_sectors(here: &Here) -> Option<i64> {
    counted(&Path::new(CLASS).join(&here.name))
}

/// Fields 7 and 14 of `stat`. Linux Documentation/block/stat.rst.
fn counted(device: &Path) -> Option<i64> {
    let stat = fs::read_to_string(device.join("stat")).ok()?;
    let fields: Vec<i64> = stat
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let discarded = fields.get(13).copied().unwrap_or(0);
    Some(fields.get(6)?.saturating_add(discarded))
}

/// The node and the number of the device of this host that is `then`.
///
/// # Errors
/// In words: it is not here, or there are two of it.
pub fn find_device(then: &BlockDevice) -> Result<(PathBuf, (u32, u32)), String> {
    find(Path::new(CLASS), then).map(|here| (here.node, here.number))
}

/// The device of this host that is `then`. The strongest name that it had
/// decides: what it says must be true of exactly one.
fn find(class: &Path, then: &BlockDevice) -> Result<Here, String> {
    if !then.has_identity() {
        return Err(format!(
            "{} had nothing by which to know it again (no UUID, no identification page, no place on a bus)",
            then.name
        ));
    }
    let entries = fs::read_dir(class).map_err(|e| format!("{}: {e}", class.display()))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let at = entry.path();
        let now = describe(&at);
        if same(then, &now) {
            found.push((at, now));
        }
    }
    match found.as_slice() {
        [] => Err(format!(
            "no device of this host is {}",
            strongest(then).unwrap_or_default()
        )),
        [(at, now)] => {
            if now.size != then.size {
                return Err(format!(
                    "{} had {} bytes, and has {}",
                    now.name, then.size, now.size
                ));
            }
            let number = fs::read_to_string(at.join("dev")).ok();
            let number = number.and_then(|n| {
                let (major, minor) = n.trim().split_once(':')?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            });
            let node = field(&at.join("uevent"), "DEVNAME=");
            match (number, node) {
                (Some(number), Some(node)) => Ok(Here {
                    name: now.name.clone(),
                    number,
                    node: Path::new("/dev").join(node),
                }),
                _ => Err(format!("{} has no number or no node", now.name)),
            }
        }
        [(_, one), (_, two), ..] => Err(format!(
            "{} and {} both are {}",
            one.name,
            two.name,
            strongest(then).unwrap_or_default()
        )),
    }
}

fn same(then: &BlockDevice, now: &BlockDevice) -> bool {
    let scsi = |d: &BlockDevice| d.scsi_id.clone().or_else(|| d.scsi_serial.clone());
    if then.partition != now.partition {
        return false;
    }
    if then.dm_uuid.is_some() || now.dm_uuid.is_some() {
        return then.dm_uuid == now.dm_uuid;
    }
    if then.partition_uuid.is_some() || now.partition_uuid.is_some() {
        // Two disks may be copies of one another.
        let elsewhere = scsi(then).is_some() && scsi(now).is_some() && scsi(then) != scsi(now);
        return then.partition_uuid == now.partition_uuid && !elsewhere;
    }
    if scsi(then).is_some() || scsi(now).is_some() {
        return scsi(then) == scsi(now);
    }
    then.place.is_some() && then.place == now.place
}

/// What a device is known by, for people.
fn strongest(device: &BlockDevice) -> Option<String> {
    let named = |what: &str, value: &Option<String>| value.as_ref().map(|v| format!("{what} {v}"));
    named("dm device", &device.dm_uuid)
        .or_else(|| named("partition", &device.partition_uuid))
        .or_else(|| named("SCSI device", &device.scsi_id))
        .or_else(|| named("SCSI serial number", &device.scsi_serial))
        .or_else(|| named("the device at", &device.place))
}

/// A device of this host, by its directory in /sys.
fn describe(at: &Path) -> BlockDevice {
    let line = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let text = text.trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    let partition = line(at.join("partition")).and_then(|n| n.parse().ok());
    // Of a partition the disk is one directory up.
    let whole = fs::canonicalize(at).unwrap_or_else(|_| at.to_owned());
    let whole = match (partition, whole.parent()) {
        (Some(_), Some(disk)) => disk.to_owned(),
        _ => whole,
    };
    let page = |name: &str| {
        let bytes = fs::read(whole.join("device").join(name)).ok()?;
        let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        (!text.is_empty()).then_some(text)
    };
    let path = whole.to_string_lossy().into_owned();
    let above = path.strip_prefix("/sys/devices/").unwrap_or("");
    // …/block/vda
    let above = above.rsplit_once("/block/").map_or("", |(above, _)| above);
    let sectors: Option<u64> = line(at.join("size")).and_then(|n| n.parse().ok());
    BlockDevice {
        name: at
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        size: sectors.unwrap_or(0).saturating_mul(512),
        dm_uuid: line(at.join("dm/uuid")),
        partition_uuid: field(&at.join("uevent"), "PARTUUID=")
            .map(|uuid| uuid.to_lowercase())
            .or_else(|| {
                let number = partition?;
                let node = field(&whole.join("uevent"), "DEVNAME=")?;
                let disk = File::open(Path::new("/dev").join(node)).ok()?;
                let sector = line(whole.join("queue/logical_block_size"))?;
                partition_table::uuid(&disk, sector.parse().ok()?, number)
            }),
        scsi_id: page("vpd_pg83"),
        scsi_serial: page("vpd_pg80"),
        place: place(above.split('/')),
        partition: partition.unwrap_or(0),
    }
}

/// The value of a line of a `uevent`.
fn field(path: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::to_owned)
}

/// Major and minor of the device at a path.
fn number_of(path: &Path) -> Option<(u32, u32)> {
    let meta = fs::metadata(path).ok()?;
    let split = |dev| {
        let major = u32::try_from(nix::sys::stat::major(dev)).ok()?;
        let minor = u32::try_from(nix::sys::stat::minor(dev)).ok()?;
        Some((major, minor))
    };
    meta.file_type()
        .is_block_device()
        .then(|| split(meta.rdev()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> BlockDevice {
        BlockDevice {
            name: name.into(),
            size: 1 << 20,
            ..BlockDevice::default()
        }
    }

    /// A directory like /sys/class/block, with these devices.
    fn class(name: &str, devices: &[(&str, &str, &str)]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("vmrestore-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for (number, (name, uuid, sectors)) in devices.iter().enumerate() {
            let at = dir.join(name);
            fs::create_dir_all(at.join("dm")).expect("makes a directory");
            fs::write(at.join("size"), sectors).expect("writes");
            fs::write(at.join("dev"), format!("253:{number}\n")).expect("writes");
            fs::write(at.join("uevent"), format!("DEVNAME={name}\n")).expect("writes");
            if !uuid.is_empty() {
                fs::write(at.join("dm/uuid"), format!("{uuid}\n")).expect("writes");
            }
        }
        dir
    }

    #[test]
    fn a_device_is_found_by_its_uuid_under_another_name() {
        let devices = [("dm-0", "LVM-b", "2048"), ("dm-1", "LVM-a", "2048")];
        let dir = class("class", &devices);
        let mut then = device("dm-0");
        then.dm_uuid = Some("LVM-a".into());
        let here = find(&dir, &then).expect("found");
        assert_eq!((here.name.as_str(), here.number), ("dm-1", (253, 1)));
        assert_eq!(here.node, Path::new("/dev/dm-1"));
        // Another size, no such device, nothing to know it by.
        then.size += 512;
        assert!(find(&dir, &then).expect_err("refused").contains("bytes"));
        then.dm_uuid = Some("LVM-c".into());
        assert!(find(&dir, &then).expect_err("refused").contains("LVM-c"));
        then.dm_uuid = None;
        assert!(find(&dir, &then).expect_err("refused").contains("nothing"));
        fs::remove_dir_all(dir).expect("cleans up");
    }

    #[test]
    fn two_that_are_alike_are_refused() {
        let devices = [("dm-0", "LVM-a", "2048"), ("dm-1", "LVM-a", "2048")];
        let dir = class("twins", &devices);
        let mut then = device("dm-0");
        then.dm_uuid = Some("LVM-a".into());
        assert!(find(&dir, &then).expect_err("refused").contains("both"));
        fs::remove_dir_all(dir).expect("cleans up");
    }

    #[test]
    fn the_strongest_name_decides() {
        let mut then = device("sda");
        then.scsi_id = Some("0083".into());
        then.place = Some("pci0000:00/0000:00:05.0".into());
        let mut now = then.clone();
        now.place = Some("pci0000:00/0000:00:06.0".into());
        assert!(same(&then, &now), "it was plugged in elsewhere");
        now.scsi_id = Some("0084".into());
        now.place.clone_from(&then.place);
        assert!(!same(&then, &now), "another disk in its place");
        now.scsi_id = None;
        assert!(!same(&then, &now));
    }
}
