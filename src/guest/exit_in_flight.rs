//! The exit whose instruction KVM had still to finish, and what it holds of it.
//!
//! An MMIO access of more than 8 bytes, or over the end of a page, goes to the VMM in pieces
//! (`complete_emulated_mmio`, Linux arch/x86/kvm/x86.c). Those of a write that are yet to come are
//! in `kvm_vcpu.mmio_fragments`, those of a read that have been answered in the emulator's cache
//! of what it has read for the instruction (`x86_emulate_ctxt.mem_read`).

use super::GuestError;
use super::field::{flag, narrow};
use crate::dataset::{Blob, ExitInFlight, MmioPart};
use crate::dump::{Missing, PageState};
use crate::kernel::{Kernel, Object};

const PAGE: usize = 4096;
/// The longest piece.
const PIECE: usize = 8;
/// KVM_MAX_MMIO_FRAGMENTS.
const MOST_FRAGMENTS: u32 = 2;
/// What an instruction can write at once: a port's string input of 1024 bytes.
const MOST_BYTES: u64 = 1024;

/// The pages that the VMM maps from the vCPU's descriptor.
pub(super) fn run_pages(vm: &Object<'_>, vcpu: &Object<'_>) -> Result<Vec<Blob>, GuestError> {
    [
        ("kvm_vcpu.run", vcpu.ptr("run")?),
        ("kvm_vcpu_arch.pio_data", vcpu.ptr("arch.pio_data")?),
        (
            "kvm.coalesced_mmio_ring",
            if vm.has("coalesced_mmio_ring") {
                vm.ptr("coalesced_mmio_ring")?
            } else {
                0
            },
        ),
    ]
    .into_iter()
    .map(|(what, addr)| {
        let mut page = vec![0; PAGE];
        if addr != 0 && !is_left_out_as_zeros(vcpu.kernel(), addr)? {
            vcpu.kernel()
                .read(addr, &mut page)
                .map_err(GuestError::reading(what, addr))?;
        }
        Ok(Blob(page))
    })
    .collect()
}

/// A page of the kernel's own is of no kind that a dump's filter drops, but for one: pages of zeros. A
/// ring of coalesced MMIO that was never used is one.
fn is_left_out_as_zeros(kernel: &Kernel, addr: u64) -> Result<bool, GuestError> {
    let pfn = kernel.virt_to_phys(addr)? / PAGE as u64;
    let memory = kernel.memory();
    Ok(memory.filters_zero_pages()
        && memory.page_state(pfn) == PageState::Missing(Missing::Filtered))
}

/// The exit whose instruction KVM had still to finish.
pub(super) fn exit_in_flight(vcpu: &Object<'_>) -> Result<Option<ExitInFlight>, GuestError> {
    let completion = vcpu.ptr("arch.complete_userspace_io")?;
    if completion == 0 {
        return Ok(None);
    }
    let name = match vcpu.kernel().symbol_at(completion) {
        Some((name, 0)) => name,
        Some((name, offset)) => format!("{name}+{offset:#x}"),
        None => format!("{completion:#x}"),
    };
    let mut exit = ExitInFlight {
        reason: narrow(&vcpu.follow("run")?, "exit_reason")?,
        completion: name,
        mmio_write: Vec::new(),
        mmio_answered: Blob(Vec::new()),
        refused: None,
    };
    if vcpu.u("mmio_needed")? != 0 {
        if flag(vcpu, "mmio_is_write")? {
            mmio_write(vcpu, &mut exit)?;
        } else {
            mmio_read(vcpu, &mut exit)?;
        }
    }
    Ok(Some(exit))
}

/// The fragments from the current one on. KVM shortens the current one as its pieces are done.
fn mmio_write(vcpu: &Object<'_>, exit: &mut ExitInFlight) -> Result<(), GuestError> {
    let current: u32 = narrow(vcpu, "mmio_cur_fragment")?;
    let count: u32 = narrow(vcpu, "mmio_nr_fragments")?;
    if count > MOST_FRAGMENTS || current >= count {
        return Err(GuestError::Damaged {
            what: "kvm_vcpu.mmio_cur_fragment",
            addr: vcpu.addr(),
            detail: format!("fragment {current} of {count}, of which KVM has {MOST_FRAGMENTS}"),
        });
    }
    let mut parts = Vec::new();
    for number in current..count {
        let fragment = vcpu.get(&format!("mmio_fragments[{number}]"))?;
        let len = fragment.u("len")?;
        if len == 0 || len > MOST_BYTES {
            return Err(GuestError::Damaged {
                what: "kvm_mmio_fragment.len",
                addr: fragment.addr(),
                detail: format!("{len} bytes, where an instruction writes {MOST_BYTES} at most"),
            });
        }
        parts.push((fragment, len));
    }
    let total: u64 = parts.iter().map(|(_, len)| len).sum();
    if parts.len() == 1 && total <= PIECE as u64 {
        return Ok(());
    }
    for (fragment, len) in parts {
        let data = fragment.ptr("data")?;
        // Of a few instructions (ENTER) it was a variable on a stack that is long gone: what the
        // VMM would have got was not what the guest wrote.
        if !lies_within(vcpu, data, len) && !lies_in_emulator(vcpu, data, len)? {
            exit.refused = Some(
                "the rest of an MMIO write is where KVM keeps it no longer (kvm_mmio_fragment.data)"
                    .into(),
            );
            return Ok(());
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        vcpu.kernel()
            .read(data, &mut bytes)
            .map_err(GuestError::reading("kvm_mmio_fragment.data", data))?;
        exit.mmio_write.push(MmioPart {
            address: fragment.u("gpa")?,
            data: Blob(bytes),
        });
    }
    Ok(())
}

/// What the emulator has of the instruction's reads, up to where the current piece goes.
fn mmio_read(vcpu: &Object<'_>, exit: &mut ExitInFlight) -> Result<(), GuestError> {
    let current: u32 = narrow(vcpu, "mmio_cur_fragment")?;
    let Some(context) = emulator(vcpu)? else {
        return Ok(());
    };
    let cache = context.get("mem_read.data")?;
    let to = vcpu.ptr(&format!(
        "mmio_fragments[{}].data",
        current.min(MOST_FRAGMENTS - 1)
    ))?;
    match to.checked_sub(cache.addr()) {
        Some(done) if done <= cache.size() => {
            exit.mmio_answered = Blob(cache.read_bytes(done)?);
        }
        _ => {
            exit.refused = Some(
                "an MMIO read whose answer goes elsewhere than to the emulator's cache".into(),
            );
        }
    }
    Ok(())
}

/// `struct x86_emulate_ctxt`. Since c9b8b07cded5 ("KVM: x86: Dynamically allocate per-vCPU
/// emulation context") (in v5.7) behind a pointer, in the vCPU before.
fn emulator<'k>(vcpu: &Object<'k>) -> Result<Option<Object<'k>>, GuestError> {
    let context = vcpu.get("arch.emulate_ctxt")?;
    if context.has("mem_read") {
        return Ok(Some(context));
    }
    Ok(vcpu.follow_opt("arch.emulate_ctxt")?)
}

fn lies_in_emulator(vcpu: &Object<'_>, at: u64, len: u64) -> Result<bool, GuestError> {
    Ok(emulator(vcpu)?.is_some_and(|context| lies_within(&context, at, len)))
}

fn lies_within(object: &Object<'_>, at: u64, len: u64) -> bool {
    at.checked_sub(object.addr())
        .and_then(|offset| offset.checked_add(len))
        .is_some_and(|end| end <= object.size())
}
