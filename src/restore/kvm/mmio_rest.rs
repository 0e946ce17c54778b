//! The rest of an MMIO write that goes to the VMM in pieces.
//!
//! An MMIO write of more than 8 bytes, or over the end of a page, is several
//! exits. At the first of them its instruction is done: registers and RIP have
//! moved on, and the pieces that are to follow are in KVM alone
//! (`vcpu->mmio_fragments`), where no ioctl puts anything. Running the
//! instruction again is out of the question, since its registers are gone.
//!
//! So KVM is made to hold the same pieces by *another* instruction, which the
//! vCPU executes before it gets its own state: in a memslot of its own, with
//! page tables of its own, it writes the same bytes to the same addresses,
//! beginning at the piece in the dumped kvm_run page, and exits with that
//! piece. Then the memslot goes and the vCPU gets its registers. What is left
//! behind is what KVM holds: the pieces to come, and a completion that asks for
//! nothing of the instruction.
//!
//! | the rest | instruction |
//! |---|---|
//! | in one page, 9 to 1024 bytes | `rep insb`, whose input is put into the run area |
//! | over the end of a page, 2, 4 or 8 bytes | `mov [rdi], rax` |
//! | over the end of a page, 16 bytes | `movdqu [rdi], xmm0` |
//!
//! Any other length is refused.

use super::calls::{Calls, map_anonymous};
use super::error::KvmError;
use super::ioctls;
use super::rearm::enter;
use super::run_page::{
    DETAILS, EXIT_REASON, MMIO_DATA, MMIO_IS_WRITE, MMIO_LEN, MMIO_MOST, describe, u32_at, u64_at,
};
use super::vcpu_state::{PAGE, Revived, xsave_len};
use crate::dataset::{Fidelity, MmioPart, Vm};
use kvm_bindings as kvm;

/// What the emulator reads ahead from a port, and so writes at once. Bytes.
const MOST_INPUT: usize = 1024;
const PAGE_BYTES: u64 = PAGE as u64;

/// How a write of such parts can be brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    RepInsb,
    Mov,
    Movdqu,
}

impl By {
    fn of(parts: &[MmioPart]) -> Option<By> {
        let whole = |part: &MmioPart| part.address % PAGE_BYTES + part.data.0.len() as u64;
        match parts {
            [one] if whole(one) <= PAGE_BYTES && one.data.0.len() <= MOST_INPUT => {
                Some(By::RepInsb)
            }
            [first, second]
                if whole(first) == PAGE_BYTES && second.address.is_multiple_of(PAGE_BYTES) =>
            {
                match first.data.0.len() + second.data.0.len() {
                    2 | 4 | 8 => Some(By::Mov),
                    16 => Some(By::Movdqu),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    const fn code(self, len: usize) -> &'static [u8] {
        match (self, len) {
            (By::RepInsb, _) => &[0xf3, 0x6c],
            (By::Movdqu, _) => &[0xf3, 0x0f, 0x7f, 0x07],
            (By::Mov, 2) => &[0x66, 0x89, 0x07],
            (By::Mov, 4) => &[0x89, 0x07],
            (By::Mov, _) => &[0x48, 0x89, 0x07],
        }
    }
}

/// Whether `parts` can be brought about, and begin with what the kvm_run page
/// shows; why not.
pub(super) fn check(page: &[u8], parts: &[MmioPart]) -> Result<(), String> {
    let lengths = || {
        let lengths: Vec<String> = parts.iter().map(|p| p.data.0.len().to_string()).collect();
        lengths.join(" and ")
    };
    if By::of(parts).is_none() {
        return Err(format!(
            "the VMM has yet to get the rest of an MMIO write ({} bytes), and no instruction \
             known to vmrestore makes KVM hold such a rest",
            lengths()
        ));
    }
    if !begins(page, parts) {
        return Err(format!(
            "KVM held the rest of an MMIO write ({} bytes from {:#x}) that does not begin with \
             what the VMM was shown ({})",
            lengths(),
            parts.first().map_or(0, |part| part.address),
            describe(page),
        ));
    }
    Ok(())
}

/// The kvm_run page shows the first piece of `parts`.
fn begins(page: &[u8], parts: &[MmioPart]) -> bool {
    let Some(first) = parts.first() else {
        return false;
    };
    let len = first.data.0.len().min(MMIO_MOST);
    let at = DETAILS + MMIO_DATA;
    u32_at(page, EXIT_REASON) == kvm::KVM_EXIT_MMIO
        && page.get(DETAILS + MMIO_IS_WRITE) == Some(&1)
        && u64_at(page, DETAILS) == first.address
        && usize::try_from(u32_at(page, DETAILS + MMIO_LEN)).is_ok_and(|n| n == len)
        && page.get(at..at + len) == first.data.0.get(..len)
}

// The memslot's pages, and where the instruction sees what.
const PML4: u64 = 0;
const PDPT: u64 = 1;
const DIRECTORY: u64 = 2;
const TABLE: u64 = 3;
const CODE: u64 = 4;
const SLOT_PAGES: u64 = 5;
/// Virtual: the code, then the pages that are written to.
const TARGET: u64 = 2 * PAGE_BYTES;

/// Makes KVM hold `parts`. The vCPU's own state must not have been set yet, but
/// CPUID and mp_state.
pub(super) fn bring_about(
    calls: &mut Calls,
    revived: &Revived,
    parts: &[MmioPart],
) -> Result<Fidelity, KvmError> {
    let subject = calls.subject.clone();
    let unsupported = |why: &str| KvmError::Unsupported {
        subject: subject.clone(),
        why: why.into(),
    };
    let by = By::of(parts).ok_or_else(|| unsupported("no instruction makes such an MMIO write"))?;
    let first = parts.first().map_or(0, |part| part.address);
    let place = Place::find(revived.vm, parts)
        .ok_or_else(|| unsupported("there is no room in its address space for a memslot"))?;
    let data: Vec<u8> = parts.iter().flat_map(|part| part.data.0.clone()).collect();

    let len = SLOT_PAGES * PAGE_BYTES;
    let at = map_anonymous(calls.sys, len).map_err(|errno| calls.failed("mmap", errno))?;
    let memory = memory(place.address, by.code(data.len()), parts);
    calls
        .sys
        .write(at, &memory)
        .map_err(|errno| calls.failed("writing a memslot's memory", errno))?;
    place.set(calls, revived.vm_fd, at, len)?;

    set_registers(calls, revived, place.address, first, &data)?;
    let result = run(calls, revived, by, parts, &data);

    // Gone before the guest could see it, whatever came of it.
    place.set(calls, revived.vm_fd, at, 0)?;
    calls
        .sys
        .syscall(libc::SYS_munmap, [at, len, 0, 0, 0, 0])
        .map_err(|errno| calls.failed("munmap", errno))?;
    result?;
    Ok(Fidelity::reconstructed(
        subject,
        format!(
            "the rest of an MMIO write, {} bytes at {first:#x}",
            data.len()
        ),
        "KVM was made to hold the same pieces by another instruction; the VMM gets those that it \
         had not got",
    ))
}

/// A memslot for a moment.
struct Place {
    slot: u32,
    /// Guest physical.
    address: u64,
}

impl Place {
    /// Where `vm` has nothing: below 4 GiB, where every guest has room for
    /// devices.
    fn find(vm: &Vm, parts: &[MmioPart]) -> Option<Place> {
        const FROM: u64 = 0x1_0000;
        const TO: u64 = 0xfe00_0000;
        const STEP: usize = 0x1_0000;
        let taken = |address: u64| {
            let end = address + SLOT_PAGES * PAGE_BYTES;
            let meets = |start: u64, len: u64| start < end && address < start.saturating_add(len);
            vm.memslots
                .iter()
                .any(|s| meets(s.guest_address, s.size.max(1)))
                || vm
                    .coalesced_zones
                    .iter()
                    .any(|z| meets(z.address, z.size.into()))
                || vm.ioeventfds.iter().any(|io| meets(io.address, 8))
                || parts
                    .iter()
                    .any(|part| meets(part.address & !(PAGE_BYTES - 1), PAGE_BYTES))
        };
        let address = (FROM..TO).step_by(STEP).find(|&address| !taken(address))?;
        let slot = (0..=u16::MAX).find(|&slot| vm.memslots.iter().all(|s| s.slot != slot))?;
        Some(Place {
            slot: slot.into(),
            address,
        })
    }

    /// Puts `len` bytes at `user` there; none takes it away.
    fn set(&self, calls: &mut Calls, vm_fd: i32, user: u64, len: u64) -> Result<(), KvmError> {
        let region = kvm::kvm_userspace_memory_region {
            slot: self.slot,
            guest_phys_addr: self.address,
            memory_size: len,
            userspace_addr: user,
            ..Default::default()
        };
        calls
            .set(vm_fd, ioctls::SET_USER_MEMORY_REGION, &region)
            .map(|_| ())
    }
}

/// Page tables that lead to the code and to the pages of `parts`.
fn memory(base: u64, code: &[u8], parts: &[MmioPart]) -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    let mut pages = vec![0; usize::try_from(SLOT_PAGES).unwrap_or_default() * PAGE];
    let mut put = |page: u64, entry: u64, address: u64| {
        let at = usize::try_from(page * PAGE_BYTES + entry * 8).unwrap_or_default();
        let value = (address & !(PAGE_BYTES - 1)) | PRESENT_WRITABLE;
        pages[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    for page in [PML4, PDPT, DIRECTORY] {
        put(page, 0, base + (page + 1) * PAGE_BYTES);
    }
    put(TABLE, 1, base + CODE * PAGE_BYTES);
    for (entry, part) in (TARGET / PAGE_BYTES..).zip(parts) {
        put(TABLE, entry, part.address);
    }
    let at = usize::try_from(CODE * PAGE_BYTES).unwrap_or_default();
    pages[at..at + code.len()].copy_from_slice(code);
    pages
}

/// Long mode, on the page tables at `base`, at the instruction.
fn set_registers(
    calls: &mut Calls,
    revived: &Revived,
    base: u64,
    first: u64,
    data: &[u8],
) -> Result<(), KvmError> {
    const PE_MP_ET_NE_PG: u64 = 0x8000_0033;
    const PAE_OSFXSR: u64 = 0x220;
    const LME_LMA: u64 = 0x500;
    let fd = revived.fd;
    let mut sregs: kvm::kvm_sregs2 = calls.get(fd, ioctls::GET_SREGS2)?;
    let flat = |type_, l, selector| kvm::kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0xb, 1, 8);
    let data_segment = flat(3, 0, 16);
    (sregs.ds, sregs.es, sregs.ss) = (data_segment, data_segment, data_segment);
    sregs.cr0 = PE_MP_ET_NE_PG;
    sregs.cr3 = base + PML4 * PAGE_BYTES;
    sregs.cr4 = PAE_OSFXSR;
    sregs.efer = LME_LMA;
    sregs.flags = 0;
    calls.set(fd, ioctls::SET_SREGS2, &sregs)?;

    let mut rax = [0; 8];
    let kept = data.len().min(rax.len());
    rax[..kept].copy_from_slice(&data[..kept]);
    let regs = kvm::kvm_regs {
        rax: u64::from_le_bytes(rax),
        rcx: data.len() as u64,
        rdx: u64::from(PORT),
        rdi: TARGET + first % PAGE_BYTES,
        rip: PAGE_BYTES,
        rflags: 2,
        ..Default::default()
    };
    calls.set(fd, ioctls::SET_REGS, &regs)?;

    // XMM0, for movdqu.
    const MXCSR: usize = 24;
    const XMM0: usize = 160;
    const XSTATE_BV: usize = 512;
    let mut xsave = vec![0; xsave_len(calls, revived.vm_fd)];
    xsave[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    xsave[MXCSR..MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
    let kept = data.len().min(16);
    xsave[XMM0..XMM0 + kept].copy_from_slice(&data[..kept]);
    xsave[XSTATE_BV] = 3;
    calls.set_bytes(fd, ioctls::SET_XSAVE, &xsave)?;
    Ok(())
}

/// Where `rep insb` reads. No device of KVM's has it.
const PORT: u16 = 0x9ea0;

fn run(
    calls: &mut Calls,
    revived: &Revived,
    by: By,
    parts: &[MmioPart],
    data: &[u8],
) -> Result<(), KvmError> {
    let error = |calls: &Calls, got: String| KvmError::Rearm {
        subject: calls.subject.clone(),
        wanted: format!(
            "MMIO write at {:#x} with more to come",
            parts.first().map_or(0, |part| part.address)
        ),
        got,
    };
    // CR8 is 0, and nothing is asked of KVM.
    revived.run.write(calls, &[0; PAGE])?;
    enter(calls, revived.fd, &error)?;
    let mut page = vec![0; PAGE];
    revived.run.read(calls, &mut page)?;
    if by == By::RepInsb {
        let wanted = u64::from(kvm::KVM_EXIT_IO_IN)
            | 1 << 8
            | u64::from(PORT) << 16
            | (data.len() as u64) << 32;
        let offset = u64_at(&page, DETAILS + 8);
        let fits = offset
            .checked_add(data.len() as u64)
            .is_some_and(|end| end <= revived.run.len);
        if u32_at(&page, EXIT_REASON) != kvm::KVM_EXIT_IO
            || u64_at(&page, DETAILS) != wanted
            || !fits
        {
            return Err(error(calls, describe(&page)));
        }
        calls
            .sys
            .write(revived.run.address + offset, data)
            .map_err(|errno| calls.failed("writing port data", errno))?;
        enter(calls, revived.fd, &error)?;
        revived.run.read(calls, &mut page)?;
    }
    if !begins(&page, parts) {
        return Err(error(calls, describe(&page)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Blob;

    fn part(address: u64, len: usize) -> MmioPart {
        MmioPart {
            address,
            data: Blob(vec![7; len]),
        }
    }

    #[test]
    fn which_instruction_for_which_rest() {
        assert_eq!(By::of(&[part(0x1008, 504)]), Some(By::RepInsb));
        assert_eq!(By::of(&[part(0x1ff8, 9)]), None, "it would be two parts");
        assert_eq!(By::of(&[part(0x1ffd, 3), part(0x9000, 5)]), Some(By::Mov));
        assert_eq!(
            By::of(&[part(0x1ff4, 12), part(0x9000, 4)]),
            Some(By::Movdqu)
        );
        assert_eq!(
            By::of(&[part(0x1ff7, 9), part(0x9000, 1)]),
            None,
            "SGDT's 10"
        );
        assert_eq!(By::of(&[part(0x1ff0, 4), part(0x9000, 4)]), None, "a hole");
        assert_eq!(By::of(&[]), None);
    }
}
