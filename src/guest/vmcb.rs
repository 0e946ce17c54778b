//! AMD's virtual machine control block: the half of a vCPU's state that the CPU itself keeps.
//!
//! AMD64 Architecture Programmer's Manual, volume 2, appendix B; the names are those of
//! `struct vmcb` in Linux arch/x86/include/asm/svm.h.

use super::GuestError;
use super::field::{flag_or_false, narrow, svm_object, svm_symbol};
use crate::dataset::{Segment, SystemRegs, TablePointer};
use crate::kernel::{Kernel, Object};

/// A vCPU's VMCBs and the `struct vcpu_svm` around it.
pub(super) struct Svm<'k> {
    /// `struct vcpu_svm`.
    pub vcpu: Object<'k>,
    /// The VMCB in use: that of the guest, or of its own guest while it runs one.
    pub current: Object<'k>,
    /// The guest's own. VMLOAD and VMSAVE always use this one.
    pub own: Object<'k>,
    /// Nested paging: guests change CR3 without an exit.
    pub nested_paging: bool,
    /// The CPU keeps the guest's global interrupt flag in the VMCB.
    pub virtual_gif: bool,
    /// The CPU reports the next RIP of an intercepted instruction.
    pub next_rip_saved: bool,
}

impl<'k> Svm<'k> {
    pub fn of(kernel: &'k Kernel, vcpu: u64) -> Result<Svm<'k>, GuestError> {
        let vcpu = svm_object(kernel, "vcpu_svm", vcpu)?;
        let current = vcpu
            .follow("vmcb")
            .map_err(GuestError::reading("vcpu_svm.vmcb", vcpu.addr()))?;
        // vmcb01 came with 4995a3685f1b ("KVM: SVM: Use a separate vmcb for the nested L2 guest")
        // (in v5.13); before, there was but one.
        let own = if vcpu.has("vmcb01.ptr") {
            vcpu.follow("vmcb01.ptr")
                .map_err(GuestError::reading("vcpu_svm.vmcb01", vcpu.addr()))?
        } else {
            current.clone()
        };
        let parameter = |name, default: bool| -> Result<bool, GuestError> {
            match svm_symbol(kernel, name) {
                Some(addr) => {
                    let mut byte = [0];
                    kernel.read(addr, &mut byte)?;
                    Ok(byte[0] != 0)
                }
                None => Ok(default),
            }
        };
        Ok(Svm {
            nested_paging: parameter("npt_enabled", true)?,
            virtual_gif: parameter("vgif", false)?,
            next_rip_saved: parameter("nrips", true)?,
            vcpu,
            current,
            own,
        })
    }

    /// Writes to this control register (0–15) exit. Bits 16–31 of the first intercept word.
    pub fn intercepts_cr_write(&self, cr: u32) -> Result<bool, GuestError> {
        let word = self.current.u("control.intercepts[0]")?;
        Ok(word >> (16 + cr) & 1 != 0)
    }

    /// RFLAGS as the guest set them: without what KVM adds to step over an IRET.
    pub fn rflags(&self, guest_debug: u32) -> Result<u64, GuestError> {
        const TF: u64 = 1 << 8;
        const RF: u64 = 1 << 16;
        const GUESTDBG_SINGLESTEP: u32 = 2;
        let mut rflags = self.current.u("save.rflags")?;
        if flag_or_false(&self.vcpu, "nmi_singlestep")? {
            let own = self.vcpu.u("nmi_singlestep_guest_rflags")?;
            rflags &= !((TF | RF) & !own);
        }
        if guest_debug & GUESTDBG_SINGLESTEP != 0 {
            rflags &= !TF;
        }
        Ok(rflags)
    }

    /// Segments and descriptor tables, in the form of KVM_GET_SREGS. The control registers are
    /// left for [`super::vcpu`], which knows which copy of each counts.
    pub fn segments(&self, regs: &mut SystemRegs) -> Result<(), GuestError> {
        let cpl: u8 = narrow(&self.current, "save.cpl")?;
        let segment = |from: &Object<'_>, name, kind| decode(&from.get("save")?.get(name)?, kind);
        regs.cs = segment(&self.current, "cs", Kind::Code)?;
        regs.ds = segment(&self.current, "ds", Kind::Data)?;
        regs.es = segment(&self.current, "es", Kind::Data)?;
        regs.ss = segment(&self.current, "ss", Kind::Stack { cpl })?;
        // These four are what VMLOAD and VMSAVE move.
        regs.fs = segment(&self.own, "fs", Kind::Data)?;
        regs.gs = segment(&self.own, "gs", Kind::Data)?;
        regs.tr = segment(&self.own, "tr", Kind::Task)?;
        regs.ldt = segment(&self.own, "ldtr", Kind::Table)?;
        regs.gdt = table(&self.current, "save.gdtr")?;
        regs.idt = table(&self.current, "save.idtr")?;
        Ok(())
    }
}

/// What a segment register is for.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Code,
    Data,
    Stack { cpl: u8 },
    Task,
    Table,
}

fn decode(seg: &Object<'_>, kind: Kind) -> Result<Segment, GuestError> {
    Ok(segment(
        seg.u("base")?,
        narrow(seg, "limit")?,
        narrow(seg, "selector")?,
        narrow(seg, "attrib")?,
        kind,
    ))
}

/// A segment from the VMCB's form: `attrib` is bits 40–47 and 52–55 of a descriptor, twelve bits.
pub(super) fn segment(base: u64, limit: u32, selector: u16, attrib: u16, kind: Kind) -> Segment {
    let bits = |from: u32, mask: u16| (attrib >> from & mask) as u8;
    let present = bits(7, 1);
    let mut seg = Segment {
        base,
        limit,
        selector,
        type_: bits(0, 15),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present,
        avl: bits(8, 1),
        l: bits(9, 1),
        db: bits(10, 1),
        // The CPU does not keep it for every segment; KVM derives it, and so must we.
        g: u8::from(limit > 0xf_ffff),
        // The VMCB has no such bit: what is not present cannot be used.
        unusable: 1 - present,
    };
    match kind {
        Kind::Code | Kind::Table => {}
        // A task register in use is busy, though the CPU may not show it.
        Kind::Task => seg.type_ |= 2,
        // In the descriptor cache the accessed bit is always set.
        Kind::Data if seg.unusable == 0 => seg.type_ |= 1,
        Kind::Data => {}
        Kind::Stack { cpl } => {
            if seg.unusable != 0 {
                seg.db = 0;
            }
            seg.dpl = cpl;
        }
    }
    seg
}

fn table(vmcb: &Object<'_>, path: &str) -> Result<TablePointer, GuestError> {
    Ok(TablePointer {
        base: vmcb.u(&format!("{path}.base"))?,
        // 16 bits in the CPU; the VMCB's field is wider, its upper half without meaning.
        limit: (vmcb.u(&format!("{path}.limit"))? & 0xffff) as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are those of a 64-bit Linux guest's VMCB, as `KVM_GET_SREGS` shows them.
    #[test]
    fn segments_of_a_64_bit_kernel() {
        let cs = segment(0, 0xffff_ffff, 0x10, 0x0a9b, Kind::Code);
        assert_eq!((cs.type_, cs.s, cs.dpl, cs.present), (11, 1, 0, 1));
        assert_eq!((cs.l, cs.db, cs.g, cs.avl, cs.unusable), (1, 0, 1, 0, 0));

        let ss = segment(0, 0, 0x18, 0x0493, Kind::Stack { cpl: 0 });
        assert_eq!((ss.type_, ss.db, ss.g), (3, 1, 0));

        let tr = segment(0xfe00_0000, 0x4087, 0x40, 0x0089, Kind::Task);
        assert_eq!((tr.type_, tr.s, tr.g), (11, 0, 0), "a busy TSS");
    }

    #[test]
    fn segments_of_user_mode() {
        let ss = segment(0, 0xffff_ffff, 0x2b, 0x0c93, Kind::Stack { cpl: 3 });
        assert_eq!(ss.dpl, 3, "the stack's DPL is the CPL");
        let null = segment(0, 0, 0, 0x0400, Kind::Stack { cpl: 3 });
        assert_eq!((null.unusable, null.db), (1, 0));
        let ds = segment(0, 0, 0, 0, Kind::Data);
        assert_eq!((ds.unusable, ds.type_), (1, 0), "null stays as it is");
        let es = segment(0, 0xffff_ffff, 0x2b, 0x0cf2, Kind::Data);
        assert_eq!(es.type_, 3, "accessed");
    }
}
