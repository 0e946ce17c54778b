//! The areas of an address space: `vm_area_struct`s, and what names they have.

use crate::kernel::{KernelError, Object, containers};

/// Most VMAs of a process; `vm.max_map_count` is 65530 unless raised.
const MAX_VMAS: usize = 1 << 20;

/// All `vm_area_struct`s of an address space.
pub(super) fn areas<'k>(mm: &Object<'k>) -> Result<Vec<Object<'k>>, KernelError> {
    let kernel = mm.kernel();
    // A maple tree since Linux commit d4af56c5c7c6 ("mm: start tracking VMAs
    // with maple tree") (in v6.1); a list before.
    if mm.has("mm_mt") {
        return containers::maple_tree(&mm.get("mm_mt")?)?
            .into_iter()
            .map(|(first, last, entry)| {
                let area = kernel.object("vm_area_struct", entry)?;
                // Else one area could stand at many places of the tree, and be walked each time.
                let (start, end) = (area.u("vm_start")?, area.u("vm_end")?);
                if start == first && end.wrapping_sub(1) == last {
                    return Ok(area);
                }
                Err(KernelError::Damaged {
                    what: "vm_area_struct",
                    addr: entry,
                    detail: format!(
                        "it spans {start:#x} to {end:#x}, and stands in mm_mt for {first:#x} to {last:#x}"
                    ),
                })
            })
            .collect();
    }
    let mut out = Vec::new();
    let mut next = mm.follow_opt("mmap")?;
    let mut end = 0;
    while let Some(area) = next {
        let start = area.u("vm_start")?;
        if out.len() >= MAX_VMAS || start < end {
            return Err(KernelError::Damaged {
                what: "mm_struct.mmap",
                addr: area.addr(),
                detail: format!(
                    "its {} areas before this one end at {end:#x}, and it begins at {start:#x}",
                    out.len()
                ),
            });
        }
        // Not empty, so that the list gets on.
        end = area.u("vm_end")?.max(start.saturating_add(1));
        next = area.follow_opt("vm_next")?;
        out.push(area);
    }
    Ok(out)
}

/// The name of a mapping that the kernel made: `vm_private_data` is its
/// `vm_special_mapping` then.
pub(super) fn special_name(area: &Object<'_>) -> Option<String> {
    let kernel = area.kernel();
    let ops = area.ptr("vm_ops").ok().filter(|ops| *ops != 0)?;
    let (symbol, _) = kernel.symbol_at(ops)?;
    if !symbol.starts_with("special_mapping_vmops") {
        return None;
    }
    let special = area.ptr("vm_private_data").ok()?;
    let name = kernel
        .object("vm_special_mapping", special)
        .and_then(|s| s.ptr("name"))
        .ok()?;
    kernel.read_cstr(name, 64).ok()
}

/// `prctl(PR_SET_VMA_ANON_NAME)`'s name.
pub(super) fn anonymous_name(area: &Object<'_>) -> Option<String> {
    if !area.has("anon_name") {
        return None;
    }
    let name = area.ptr("anon_name").ok().filter(|n| *n != 0)?;
    let kernel = area.kernel();
    let at = name.wrapping_add(kernel.offset_of("anon_vma_name", "name").ok()?);
    kernel.read_cstr(at, 80).ok().filter(|n| !n.is_empty())
}
