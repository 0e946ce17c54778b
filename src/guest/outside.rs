//! The registers of a vCPU whose CPU was stopped from outside while the guest ran on it.
//!
//! Then nobody has saved them: `kvm_vcpu.arch` and the VMCB hold those of the last entry. But what
//! the hypervisor says of that CPU *are* the guest's registers. (QEMU's emulation of SVM keeps the
//! host's in the host save area meanwhile; a KVM that runs the host as its guest answers for the
//! guest's guest in the same way.)

use super::GuestError;
use super::thread::VcpuThread;
use super::vmcb::{Kind, segment};
use crate::dataset::{
    Fidelity, MsrEntry, REGISTERS, Segment, SystemRegs, TablePointer, VcpuEvents, VcpuRegs,
};
use crate::dump::{QemuCpuState, QemuSegment};
use crate::kernel::{CpuSource, Kernel};

/// Whose registers a hypervisor found in a CPU.
#[derive(Clone, Debug)]
pub(super) enum OnCpu {
    /// The host kernel's, or its user mode's.
    Host,
    /// The guest's.
    Guest(Box<GuestOnCpu>),
    /// It cannot be told: nobody said, or the CPU was in the few instructions between the two.
    Unknown(&'static str),
}

/// A guest's registers.
#[derive(Clone, Debug)]
pub(super) struct GuestOnCpu {
    pub registers: QemuCpuState,
    /// Who says so.
    pub source: CpuSource,
}

/// Whose registers `cpu` had, which ran `thread`. Two things must agree: the base of GS, which in the
/// host leads to the CPU's per-CPU area, and CR3, which in the host is that of the thread's memory.
pub(super) fn on_cpu(
    kernel: &Kernel,
    thread: &VcpuThread<'_>,
    cpu: u32,
) -> Result<OnCpu, GuestError> {
    let Some(state) = kernel.cpu_state(cpu)? else {
        return Ok(OnCpu::Unknown("nobody wrote down what it held"));
    };
    let Some(registers) = state.registers else {
        return Ok(OnCpu::Unknown("nobody wrote down its general registers"));
    };
    let host_gs = kernel.has_host_gs(cpu, &registers)?;
    let host_cr3 = thread.has_page_tables(registers.cr[3])?;
    Ok(match (host_gs, host_cr3) {
        (true, true) => OnCpu::Host,
        (false, false) => OnCpu::Guest(Box::new(GuestOnCpu {
            registers: *registers,
            source: state.source,
        })),
        _ => OnCpu::Unknown("it was on its way between host and guest"),
    })
}

impl GuestOnCpu {
    /// Says where the registers are from, and which are not among them.
    pub fn report(&self, subject: &str, fidelity: &mut Vec<Fidelity>) {
        fidelity.push(Fidelity::exact(
            subject,
            REGISTERS,
            format!("the guest was in the CPU; from {}", self.source),
        ));
        if self.registers.kernel_gs_base.is_none() {
            fidelity.push(Fidelity::lost(
                subject,
                REGISTERS,
                "a hypervisor's text does not say the base of the other GS, and the dump has no \
                 CPU notes",
            ));
        }
        fidelity.push(Fidelity::reconstructed(
            subject,
            "CR8, PKRU and the interrupt shadow",
            "no hypervisor tells them: CR8 and PKRU as of the guest's last entry, and no shadow",
        ));
    }

    /// General registers.
    pub fn general(&self) -> VcpuRegs {
        let q = &self.registers;
        let [r8, r9, r10, r11, r12, r13, r14, r15] = q.r8_to_r15;
        VcpuRegs {
            rax: q.rax,
            rbx: q.rbx,
            rcx: q.rcx,
            rdx: q.rdx,
            rsi: q.rsi,
            rdi: q.rdi,
            rsp: q.rsp,
            rbp: q.rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: q.rip,
            rflags: q.rflags,
        }
    }

    /// Segments, tables, and those control registers that a guest changes without an exit; the
    /// others (CR4, EFER) are KVM's, and it knows them.
    pub fn system(&self, nested_paging: bool, sregs: &mut SystemRegs) -> Result<(), GuestError> {
        let q = &self.registers;
        let cpl = privilege_level(q);
        sregs.cs = decode(&q.cs, Kind::Code)?;
        sregs.ds = decode(&q.ds, Kind::Data)?;
        sregs.es = decode(&q.es, Kind::Data)?;
        sregs.fs = decode(&q.fs, Kind::Data)?;
        sregs.gs = decode(&q.gs, Kind::Data)?;
        sregs.ss = decode(&q.ss, Kind::Stack { cpl })?;
        sregs.tr = decode(&q.tr, Kind::Task)?;
        sregs.ldt = decode(&q.ldt, Kind::Table)?;
        sregs.gdt = table(&q.gdt);
        sregs.idt = table(&q.idt);
        let [cr0, _, cr2, cr3, _] = q.cr;
        sregs.cr2 = cr2;
        if nested_paging {
            (sregs.cr0, sregs.cr3) = (cr0, cr3);
        }
        Ok(())
    }

    /// MSRs that a guest changes without an exit, as it does at every system call.
    pub fn msrs(&self, msrs: &mut [MsrEntry]) {
        const FS_BASE: u32 = 0xc000_0100;
        const GS_BASE: u32 = 0xc000_0101;
        const KERNEL_GS_BASE: u32 = 0xc000_0102;
        for msr in msrs {
            match msr.index {
                FS_BASE => msr.value = self.registers.fs.base,
                GS_BASE => msr.value = self.registers.gs.base,
                KERNEL_GS_BASE => msr.value = self.registers.kernel_gs_base.unwrap_or(msr.value),
                _ => {}
            }
        }
    }

    /// What KVM gave to the guest with the last entry, the guest has taken.
    pub fn events(events: &mut VcpuEvents) {
        events.exception_injected = false;
        events.interrupt_injected = false;
        events.nmi_injected = false;
        events.interrupt_shadow = 0;
    }
}

/// The privilege level, which in 64-bit mode is that of CS.
fn privilege_level(q: &QemuCpuState) -> u8 {
    const PROTECTED: u64 = 1;
    const VIRTUAL_8086: u64 = 1 << 17;
    if q.cr[0] & PROTECTED == 0 {
        0
    } else if q.rflags & VIRTUAL_8086 != 0 {
        3
    } else {
        (q.cs.selector & 3) as u8
    }
}

/// QEMU keeps the second word of the descriptor; the VMCB bits 8–15 and 20–23 of it.
fn decode(q: &QemuSegment, kind: Kind) -> Result<Segment, GuestError> {
    let selector = u16::try_from(q.selector).map_err(|_| GuestError::Damaged {
        what: "a segment in a CPU note",
        addr: q.base,
        detail: format!("selector {:#x}", q.selector),
    })?;
    let attributes = (q.flags >> 8 & 0xff) | (q.flags >> 12 & 0xf00);
    Ok(segment(q.base, q.limit, selector, attributes as u16, kind))
}

fn table(q: &QemuSegment) -> TablePointer {
    TablePointer {
        base: q.base,
        limit: (q.limit & 0xffff) as u16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_a_64_bit_user() {
        let q = |selector, limit, flags| QemuSegment {
            selector,
            limit,
            flags,
            base: 0,
        };
        let cs = decode(&q(0x33, u32::MAX, 0x00af_fb00), Kind::Code).unwrap();
        assert_eq!((cs.type_, cs.s, cs.dpl, cs.present), (11, 1, 3, 1));
        assert_eq!((cs.l, cs.db, cs.g), (1, 0, 1));
        let ss = decode(&q(0x2b, u32::MAX, 0x00cf_f300), Kind::Stack { cpl: 3 }).unwrap();
        assert_eq!((ss.type_, ss.dpl, ss.db, ss.unusable), (3, 3, 1, 0));
        let null = decode(&q(0, 0, 0), Kind::Data).unwrap();
        assert_eq!((null.unusable, null.present), (1, 0));
        let tr = decode(&q(0x40, 0x4087, 0x0000_8900), Kind::Task).unwrap();
        assert_eq!((tr.type_, tr.present), (11, 1), "busy");
        assert!(decode(&q(0x1_0000, 0, 0), Kind::Data).is_err());
    }

    #[test]
    fn the_privilege_level_follows_the_mode() {
        let mut q = QemuCpuState::default();
        q.cs.selector = 0x33;
        assert_eq!(privilege_level(&q), 0, "real mode");
        q.cr[0] = 1;
        assert_eq!(privilege_level(&q), 3);
        q.cs.selector = 0x10;
        assert_eq!(privilege_level(&q), 0);
        q.rflags = 1 << 17;
        assert_eq!(privilege_level(&q), 3, "virtual 8086 mode");
    }
}
