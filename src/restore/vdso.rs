//! The vDSO: the kernel's code in the process. The process keeps pointers to
//! its functions, so they must be where they were.
//!
//! The kernel that booted after the crash maps its own vDSO. When that is the
//! same code it goes to the old address, and that is all. When it is another
//! (the host came back with a newer kernel) it goes elsewhere, and the old
//! image, as plain memory, keeps the old place: with a jump to the new function
//! at the entry of each old one.

use super::error::Context;
use super::maps::{self, Mapping};
use super::stub::Family;
use super::{RestoreError, Syscalls, calls};
use crate::dataset::{
    Dataset, Fidelity, Host, MappingKind, PageSource, Process, SyscallResume, Vma,
};
use goblin::elf::Elf;
use goblin::elf::sym::STT_FUNC;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

/// `ARCH_MAP_VDSO_64`. Linux arch/x86/include/uapi/asm/prctl.h.
const MAP_VDSO_64: u64 = 0x2003;

const PAGE: usize = 4096;

/// No vDSO is longer. Bytes.
const LONGEST: u64 = 64 << 10;

/// Where a vDSO is put that cannot have the old place, if there is room.
const ELSEWHERE: u64 = 1 << 36;

/// Bytes of `jmp [rip]` and the address behind it.
const JUMP_LEN: u64 = 14;

/// This kernel's.
struct Own {
    /// Bytes of data pages below the code. Their number differs between
    /// kernels, and does not matter to the process.
    below: u64,
    image: Vec<u8>,
}

/// Maps the vDSO of a process, before anything else is mapped.
///
/// # Errors
/// [`RestoreError::Vdso`] when the old functions cannot be had.
pub fn map(
    dataset: &Dataset,
    family: &mut Family<'_>,
    at: usize,
    pages: &dyn PageSource,
    notes: &mut Vec<Fidelity>,
) -> Result<(), RestoreError> {
    let process = family.process(at)?;
    let pid = process.pid;
    let vmas = &process.mm.vmas;
    let Some(old) = vmas.iter().find(|v| v.kind == MappingKind::Vdso) else {
        return Ok(());
    };
    let own = own().during(pid, || "look at this kernel's vDSO".into())?;
    let own = own.ok_or_else(|| differs(pid, "this one has none"))?;
    let image = old_image(pid, old, pages)?;
    let same = match &image {
        Some(image) => *image == own.image,
        None => old.len() == own.image.len() as u64 && same_kernel(&dataset.host),
    };
    let sys = family.leader(at)?;
    let live = sys.tid;
    let low = old.start.wrapping_sub(own.below);
    let room = !vmas.iter().any(|v| {
        v.start < old.start
            && v.end > low
            && !matches!(v.kind, MappingKind::Vvar | MappingKind::Vdso)
    });
    if same && room {
        let placed = place(pid, live, sys, low)?;
        return if placed == old.start {
            Ok(())
        } else {
            Err(differs(pid, "it cannot be where it was"))
        };
    }
    let image = image.ok_or_else(|| differs(pid, "and the old one is not in the dump"))?;
    let scratch = sys.scratch_mapping();
    let taken = vmas
        .iter()
        .map(|v| (v.start, v.end))
        .chain([(scratch.start, scratch.end())]);
    let len = own.below + own.image.len() as u64;
    let gap = maps::free_gap(taken, ELSEWHERE, len)
        .ok_or_else(|| differs(pid, "there is no room for it"))?;
    not_inside(process, old)?;
    let placed = place(pid, live, sys, gap)?;
    let image = led_on(image, &own.image, placed).map_err(|what| differs(pid, &what))?;
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_EXEC,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    calls::map(sys, old.start, old.len(), prot, flags, -1, 0)
        .and_then(|()| sys.write(old.start, &image))
        .during(pid, || "put the old vDSO back".into())?;
    notes.push(Fidelity::reconstructed(
        format!("pid {pid}"),
        "vDSO",
        "this kernel's is another: the old one's functions lead to those of the new one",
    ));
    Ok(())
}

fn differs(pid: i32, what: &str) -> RestoreError {
    RestoreError::Vdso {
        pid,
        what: what.into(),
    }
}

/// The running kernel's vDSO, as this very process has it.
fn own() -> std::io::Result<Option<Own>> {
    let mapped = maps::parse_maps(&fs::read_to_string("/proc/self/maps")?);
    let Some(code) = mapped.iter().find(|m| m.name == "[vdso]") else {
        return Ok(None);
    };
    let data = mapped
        .iter()
        .filter(|m| m.name.starts_with("[vvar") && m.start < code.start)
        .map(|m| m.start)
        .min()
        .unwrap_or(code.start);
    let mut image = vec![0; usize::try_from(code.end - code.start).unwrap_or(0)];
    fs::File::open("/proc/self/mem")?.read_exact_at(&mut image, code.start)?;
    Ok(Some(Own {
        below: code.start - data,
        image,
    }))
}

/// The dead kernel's image; `None` when the dump has not got all of it.
fn old_image(pid: i32, old: &Vma, pages: &dyn PageSource) -> Result<Option<Vec<u8>>, RestoreError> {
    if old.len() > LONGEST {
        return Err(differs(pid, "the old one is too long to be one"));
    }
    let covered: u64 = old.pages.iter().map(|run| run.count).sum();
    let missing = old.pages.iter().any(|run| run.content.is_missing());
    if missing || covered * PAGE as u64 != old.len() {
        return Ok(None);
    }
    let mut image = vec![0; usize::try_from(old.len()).unwrap_or(0)];
    for run in &old.pages {
        let from = usize::try_from(run.start - old.start).unwrap_or(usize::MAX);
        let len = usize::try_from(run.count).unwrap_or(0) * PAGE;
        if let Some(out) = image.get_mut(from..from.saturating_add(len)) {
            pages
                .read_pages(run, 0, run.count, out)
                .map_err(|source| RestoreError::Page { pid, source })?;
        }
    }
    Ok(Some(image))
}

/// The same build of the same release, by their names.
fn same_kernel(host: &Host) -> bool {
    let is = |file: &str, then: &str| {
        fs::read_to_string(file)
            .is_ok_and(|now| !now.trim().is_empty() && then.contains(now.trim()))
    };
    is("/proc/sys/kernel/osrelease", &host.release) && is("/proc/sys/kernel/version", &host.version)
}

/// Maps data and code pages from `address` on; gives the address of the code.
fn place(pid: i32, live: i32, sys: &mut dyn Syscalls, address: u64) -> Result<u64, RestoreError> {
    calls::plain(sys, libc::SYS_arch_prctl, [MAP_VDSO_64, address])
        .during(pid, || "arch_prctl(ARCH_MAP_VDSO_64)".into())?;
    let mapped: Vec<Mapping> = maps::mappings(live)?;
    let code = mapped.iter().find(|m| m.name == "[vdso]");
    code.map(|m| m.start)
        .ok_or_else(|| differs(pid, "it could not be mapped"))
}

/// A thread that was in the middle of an old function would go on in it, where
/// its data is no more.
fn not_inside(process: &Process, old: &Vma) -> Result<(), RestoreError> {
    for thread in &process.threads {
        let inside = (old.start..old.end).contains(&thread.regs.rip);
        if inside && thread.resume == SyscallResume::UserMode {
            return Err(differs(
                process.pid,
                &format!(
                    "thread {} was just in a function of the old one",
                    thread.tid
                ),
            ));
        }
    }
    Ok(())
}

/// Functions that an image exports: name and offset.
fn functions(image: &[u8]) -> Result<BTreeMap<String, u64>, String> {
    let elf = Elf::parse(image).map_err(|e| format!("one of them is no ELF file: {e}"))?;
    Ok(elf
        .dynsyms
        .iter()
        .filter(|sym| sym.st_type() == STT_FUNC && sym.st_value != 0)
        .filter_map(|sym| Some((elf.dynstrtab.get_at(sym.st_name)?.to_string(), sym.st_value)))
        .collect())
}

/// The old image, with jumps to the functions of the new one, whose code is at
/// `new_at`.
fn led_on(mut old: Vec<u8>, new: &[u8], new_at: u64) -> Result<Vec<u8>, String> {
    let (then, now) = (functions(&old)?, functions(new)?);
    if then.is_empty() {
        return Err("the old one has no functions".into());
    }
    let mut targets = BTreeMap::new();
    for (name, offset) in &then {
        let target = now
            .get(name)
            .ok_or_else(|| format!("it has no function {name}"))?;
        targets.insert(*offset, new_at.wrapping_add(*target));
    }
    let mut free = 0;
    for (offset, target) in targets {
        if offset < free {
            return Err(format!("the old function at {offset:#x} is too short"));
        }
        free = offset.saturating_add(JUMP_LEN);
        let mut jump = vec![0xff, 0x25, 0, 0, 0, 0];
        jump.extend(target.to_ne_bytes());
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        old.get_mut(from..from.saturating_add(jump.len()))
            .ok_or_else(|| format!("the old function at {offset:#x} lies outside of it"))?
            .copy_from_slice(&jump);
    }
    Ok(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_own_functions_are_found_and_led_on() {
        let own = own().ok().flatten().expect("a vDSO");
        let found = functions(&own.image).expect("functions");
        let offset = found["__vdso_clock_gettime"] as usize;
        let led = led_on(own.image.clone(), &own.image, 0x1234_5678_0000).expect("led on");
        assert_eq!(led[offset..offset + 6], [0xff, 0x25, 0, 0, 0, 0]);
        assert_eq!(
            led[offset + 6..offset + 14],
            (0x1234_5678_0000 + offset as u64).to_le_bytes()
        );
        assert!(led_on(vec![0; 8192], &own.image, 0).is_err());
    }
}
