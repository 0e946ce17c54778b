//! Whether the memory of the dead kernel is left alone here.

use super::PAGE;
use crate::restore::RestoreError;
use crate::restore::error::Context;
use std::ops::Range;
use std::path::Path;

/// This is the capture kernel of a host that died: the kernel was told where the dead one's notes are,
/// and shows its memory.
pub fn is_capture_kernel() -> bool {
    let told = std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| {
        line.split_ascii_whitespace()
            .any(|w| w.starts_with("elfcorehdr="))
    });
    told && Path::new("/proc/vmcore").exists()
}

/// Page frames of which this kernel says what they are (`/proc/iomem`), in order and without overlap:
/// its own memory, a device's, or kept free behind its own ("RAM buffer": up to 64 MiB, which
/// `/dev/mem` does not show, as a kernel with IO_STRICT_DEVMEM takes them for a driver's). What is not
/// listed, this kernel gives to nobody.
///
/// # Errors
/// It does not tell.
pub fn listed(pid: i32) -> Result<Vec<Range<u64>>, RestoreError> {
    let text = iomem(pid)?;
    let mut listed: Vec<Range<u64>> = resources(pid, &text)?
        .iter()
        .map(|r| r.first / PAGE..(r.last / PAGE).saturating_add(1))
        .collect();
    listed.sort_unstable_by_key(|range| range.start);
    listed.dedup_by(|next, last| {
        let joined = next.start <= last.end;
        if joined {
            last.end = last.end.max(next.end);
        }
        joined
    });
    Ok(listed)
}

/// Whether page frames (in order) are nothing to this kernel: not [`listed`].
///
/// # Errors
/// One of them is; or `/proc/iomem` does not tell.
pub fn check_frames(pid: i32, frames: &[Range<u64>]) -> Result<(), RestoreError> {
    let text = iomem(pid)?;
    for resource in resources(pid, &text)? {
        let next = frames.partition_point(|f| f.end.saturating_mul(PAGE) <= resource.first);
        let taken = frames
            .get(next)
            .filter(|f| f.start.saturating_mul(PAGE) <= resource.last);
        if let Some(taken) = taken {
            let what = format!(
                "its memory at page frames {:#x}-{:#x}",
                taken.start, taken.end
            );
            let why = format!(
                "{:#x}-{:#x} is {} of this kernel",
                resource.first, resource.last, resource.name
            );
            return Err(refuse(pid, what, why));
        }
    }
    Ok(())
}

fn refuse(pid: i32, what: String, why: String) -> RestoreError {
    RestoreError::Refused {
        pid,
        what,
        why,
        hint: "without --in-place its memory is copied, where there is room for it",
    }
}

/// Refuses page frames (in order) that a process of this host has mapped: a guest that was resumed in
/// place runs in them, whatever a journal says.
///
/// # Errors
/// One of them is; or the processes cannot be looked at.
pub fn check_unmapped(pid: i32, frames: &[Range<u64>]) -> Result<(), RestoreError> {
    let mapped = mapped().during(pid, || "/proc".into())?;
    for (owner, taken) in mapped {
        let next = frames.partition_point(|f| f.end <= taken.start);
        if let Some(found) = frames.get(next).filter(|f| f.start < taken.end) {
            return Err(RestoreError::Refused {
                pid,
                what: format!(
                    "its memory at page frame {:#x}",
                    found.start.max(taken.start)
                ),
                why: format!("pid {owner} of this host was resumed in place, and runs in it"),
                hint: "that guest runs already: move it with its VMM's own migration",
            });
        }
    }
    Ok(())
}

/// Page frames that processes of this host have mapped from `/dev/mem`, and whose.
///
/// # Errors
/// The processes cannot be listed. One that ends meanwhile has none.
pub fn mapped() -> std::io::Result<Vec<(i32, Range<u64>)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let (Some(pid), Ok(maps)) = (pid, std::fs::read_to_string(path.join("maps"))) {
            found.extend(in_maps(&maps).map(|frames| (pid, frames)));
        }
    }
    Ok(found)
}

/// What of `/proc/PID/maps` is physical memory.
fn in_maps(maps: &str) -> impl Iterator<Item = Range<u64>> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let offset = words.nth(1)?;
        if words.nth(2)? != "/dev/mem" {
            return None;
        }
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let len = hex(end)?.checked_sub(hex(start)?)?;
        let first = hex(offset)? / PAGE;
        Some(first..first.checked_add(len / PAGE)?)
    })
}

/// A line of `/proc/iomem` that is not within another.
struct Resource<'t> {
    first: u64,
    last: u64,
    name: &'t str,
}

const IOMEM: &str = "/proc/iomem";

fn iomem(pid: i32) -> Result<String, RestoreError> {
    std::fs::read_to_string(IOMEM).during(pid, || IOMEM.into())
}

fn resources(pid: i32, text: &str) -> Result<Vec<Resource<'_>>, RestoreError> {
    let found: Vec<Resource<'_>> = text
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| {
            let (range, name) = line.split_once(" : ")?;
            let (first, last) = range.split_once('-')?;
            Some(Resource {
                first: u64::from_str_radix(first, 16).ok()?,
                last: u64::from_str_radix(last, 16).ok()?,
                name,
            })
        })
        .collect();
    // Who may not be told reads zeros.
    if !found.iter().any(|r| r.name == "System RAM" && r.last > 0) {
        let why = format!("{IOMEM} does not tell which memory is this kernel's");
        return Err(refuse(pid, "its memory in place".into(), why));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_kernel_has() {
        let text = "00001000-0009fbff : System RAM\n\
                    80000000-febfffff : PCI Bus 0000:00\n  \
                    febe4000-febe7fff : 0000:00:02.0\n";
        let found = resources(1, text).expect("it tells");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].first, found[0].last), (0x1000, 0x9fbff));
        assert_eq!(found[1].name, "PCI Bus 0000:00");
    }

    #[test]
    fn physical_memory_that_a_process_has_mapped() {
        let maps = "7f0000000000-7f0000200000 rw-s 40000000 00:05 5   /dev/mem\n\
                    7f0000200000-7f0000201000 rw-s 00001000 00:05 6   /dev/memory\n\
                    7f0000300000-7f0000301000 rw-p 00000000 00:00 0 \n\
                    7f0000400000-7f0000401000 rw-s 180000000 00:05 5  /dev/mem\n";
        let found: Vec<Range<u64>> = in_maps(maps).collect();
        assert_eq!(found, [0x40000..0x40200, 0x180_000..0x180_001]);
    }

    #[test]
    fn this_machines_own_memory_is_refused() {
        let text = std::fs::read_to_string("/proc/iomem").expect("procfs");
        let ram = resources(1, &text).ok().and_then(|resources| {
            let ram = |r: &&Resource<'_>| r.name == "System RAM" && r.last > 1 << 20;
            resources.iter().find(ram).map(|r| (r.last / PAGE) - 1)
        });
        // As an ordinary user: it is not told, and refused as well.
        let frame = ram.unwrap_or(0x1000);
        let refused = check_frames(1, std::slice::from_ref(&(frame..frame + 1)));
        assert!(matches!(refused, Err(RestoreError::Refused { .. })));
    }
}
