//! Whether there is memory for what is not in place.

use crate::dataset::{Dataset, MappingKind, PageContent, PageRun};
use crate::restore::RestoreError;
use crate::restore::error::Context;
use crate::restore::volatile_files;

use super::PAGE;

/// Left to the kernel and to what runs here already. Bytes.
const RESERVE: u64 = 48 << 20;

/// Of a page in place: its entries in the VMM's page table and in KVM's, both of 4 KiB pages. Bytes.
const ENTRIES: u64 = 2 * 8;

/// Bytes of this kernel's memory that a dataset's processes take from the start: what is copied, and
/// page tables for what is not.
pub fn copied(dataset: &Dataset) -> u64 {
    let taken = |runs: &[PageRun]| -> u64 {
        let copied = runs
            .iter()
            .filter(|run| !matches!(run.content, PageContent::Zero | PageContent::InPlace(_)));
        copied.map(|run| run.count.saturating_mul(PAGE)).sum()
    };
    let private = dataset
        .processes
        .iter()
        .flat_map(|p| &p.mm.vmas)
        .filter(|vma| !vma.shared() && !matches!(vma.kind, MappingKind::Vdso))
        .map(|vma| taken(&vma.pages));
    let shared = dataset.shared_memory.iter().map(|m| taken(&m.pages));
    let files = volatile_files::of(dataset).map(|inode| taken(&inode.dirty));
    let page_tables = super::runs(dataset).map(|(run, _)| run.count.saturating_mul(ENTRIES));
    private
        .chain(shared)
        .chain(files)
        .chain(page_tables)
        .fold(0, u64::saturating_add)
}

/// Refuses what the memory of this kernel does not hold: before anything is started, rather than by
/// an OOM kill in the middle.
///
/// # Errors
/// It does not, or does not say how much it has.
pub fn check_room(dataset: &Dataset) -> Result<(), RestoreError> {
    let pid = dataset.processes.first().map_or(0, |p| p.pid);
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).during(pid, || path.into())?;
    let available = bytes_of(&text, "MemAvailable:").unwrap_or(u64::MAX);
    let needed = copied(dataset).saturating_add(RESERVE);
    if needed <= available {
        return Ok(());
    }
    let huge = huge_pages(&text);
    let reserved = match huge >> 20 {
        0 => String::new(),
        mib => format!(
            "; {mib} MiB more lie in huge pages that nobody uses, and guests in place need none of \
             them (echo 0 > /proc/sys/vm/nr_hugepages)"
        ),
    };
    Err(RestoreError::Refused {
        pid,
        what: "the memory that is not in place".into(),
        why: format!(
            "it takes {} MiB with some to spare, and this kernel has {} MiB left{reserved}",
            needed >> 20,
            available >> 20
        ),
        hint: "name the guests that matter most first (vmrestore guests /proc/vmcore --in-place G1 \
               G2): they get what there is; a larger crashkernel= holds more",
    })
}

/// A line of `/proc/meminfo` that is in kB, in bytes.
fn bytes_of(meminfo: &str, name: &str) -> Option<u64> {
    number(meminfo, name)?.checked_mul(1024)
}

/// What is reserved as huge pages of the usual size and not used. Bytes.
fn huge_pages(meminfo: &str) -> u64 {
    let free = number(meminfo, "HugePages_Free:").unwrap_or(0);
    free.saturating_mul(bytes_of(meminfo, "Hugepagesize:").unwrap_or(0))
}

fn number(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_left() {
        let text = "MemTotal:  413196 kB\nMemFree: 1 kB\nMemAvailable:     375532 kB\n";
        assert_eq!(bytes_of(text, "MemAvailable:"), Some(375_532 * 1024));
        assert_eq!(bytes_of("MemTotal: 1 kB", "MemAvailable:"), None);
        assert_eq!(huge_pages(text), 0);
        let text =
            "HugePages_Total:      90\nHugePages_Free:       84\nHugepagesize:       2048 kB\n";
        assert_eq!(huge_pages(text), 168 << 20);
    }
}
