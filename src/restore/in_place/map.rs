//! Memory in place, put over what a stub has mapped already.

use super::PAGE;
use crate::dataset::{Dataset, Fidelity, MappingKind, PageContent, Process, Vma};
use crate::restore::error::Context;
use crate::restore::stub::Family;
use crate::restore::vma_flags::bit;
use crate::restore::{RestoreError, Syscalls, calls};

/// One mapping of page frames that follow each other.
struct Piece {
    address: u64,
    len: u64,
    pfn: u64,
}

/// Maps every page in place of a stub, over the mappings that it has.
///
/// # Errors
/// `/dev/mem` cannot be opened or mapped.
pub(in crate::restore) fn map(
    dataset: &Dataset,
    family: &mut Family<'_>,
    at: usize,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    const DEVICE: &str = "/dev/mem";
    let process = family.process(at)?;
    let pid = process.pid;
    let mut fd = None;
    for vma in &process.mm.vmas {
        let pieces = pieces(dataset, vma);
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            continue;
        };
        let (from, to) = (first.address, last.address + last.len);
        let sys = family.leader(at)?;
        let device = match fd {
            Some(fd) => fd,
            None => {
                let flags = libc::O_RDWR | libc::O_CLOEXEC;
                let open = calls::open_of_host(sys, DEVICE, flags).during(pid, || {
                    format!("open {DEVICE} (is the kernel locked down? has it CONFIG_DEVMEM?)")
                })?;
                *fd.insert(open)
            }
        };
        for piece in &pieces {
            map_piece(sys, vma, piece, device).during(pid, || {
                format!(
                    "map page frames {:#x} (+{}) from {DEVICE} at {:#x}",
                    piece.pfn,
                    piece.len / PAGE,
                    piece.address
                )
            })?;
        }
        // Private memory would be shared with a child.
        if !vma.shared() && vma.flags & bit::DONTCOPY == 0 {
            calls::advise(sys, from, to - from, libc::MADV_DONTFORK)
                .during(pid, || format!("madvise of {from:#x}-{to:#x}"))?;
            notes.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                format!("memory at {from:#x}"),
                "in place: a child that it forks does not get it",
            ));
        }
    }
    if let Some(fd) = fd {
        calls::close(family.leader(at)?, fd).during(pid, || "close".into())?;
    }
    note_files(dataset, family.process(at)?, notes);
    Ok(())
}

fn map_piece(
    sys: &mut dyn Syscalls,
    vma: &Vma,
    piece: &Piece,
    device: i32,
) -> Result<(), crate::restore::Errno> {
    let offset = piece.pfn.saturating_mul(PAGE);
    calls::map_over(sys, piece.address, piece.len, vma.prot(), device, offset)
}

/// What of a VMA is in place, by address.
fn pieces(dataset: &Dataset, vma: &Vma) -> Vec<Piece> {
    // Runs by address are by offset from there.
    let (runs, offset) = match &vma.kind {
        MappingKind::Anonymous { .. } if !vma.shared() => (&vma.pages, vma.start),
        MappingKind::Shared { memory, offset } => {
            match dataset.shared_memory.iter().find(|m| m.id == *memory) {
                Some(memory) => (&memory.pages, *offset),
                None => return Vec::new(),
            }
        }
        _ => return Vec::new(),
    };
    let end = offset.saturating_add(vma.len());
    runs.iter()
        .filter_map(|run| {
            let PageContent::InPlace(pfn) = run.content else {
                return None;
            };
            let from = run.start.max(offset);
            let to = run
                .start
                .saturating_add(run.count.saturating_mul(PAGE))
                .min(end);
            (from < to).then(|| Piece {
                address: vma.start + (from - offset),
                len: to - from,
                pfn: pfn.saturating_add((from - run.start) / PAGE),
            })
        })
        .collect()
}

/// Says that the descriptor of a memory file does not lead to what is in place.
fn note_files(dataset: &Dataset, process: &Process, notes: &mut Vec<Fidelity>) {
    for memory in &dataset.shared_memory {
        let in_place =
            |run: &&crate::dataset::PageRun| matches!(run.content, PageContent::InPlace(_));
        let pages: u64 = memory.pages.iter().filter(in_place).map(|r| r.count).sum();
        if pages > 0 {
            notes.push(Fidelity::reconstructed(
                format!("pid {}", process.pid),
                format!("memory file {:?}", memory.name),
                format!(
                    "{} MiB of it are mapped in place: whoever maps or reads the file anew finds \
                     zeros there",
                    (pages * PAGE) >> 20
                ),
            ));
        }
    }
}
