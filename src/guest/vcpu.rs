//! One vCPU, put together from KVM's structures and the VMCB.

use super::clock::CrashClock;
use super::cpuid::Cpuid;
use super::events::{self, HFlags};
use super::exit_window::{Window, window};
use super::field::{flag, flag_or_false, narrow, or, u_or_0, words};
use super::lapic::{self, LapicState};
use super::msr;
use super::thread::VcpuThread;
use super::user_memory::UserMemory;
use super::vmcb::Svm;
use super::{GuestError, exit_report, hyperv, nested};
use crate::dataset::{
    Blob, DebugRegs, ExitInFlight, Fidelity, ObjectId, SystemRegs, Vcpu, VcpuActivity, VcpuRegs,
};
use crate::kernel::{Kernel, Object, XsaveLayout};

const PAGE: usize = 4096;

// KVM_MP_STATE_*. Linux include/uapi/linux/kvm.h.
const MP_RUNNABLE: u32 = 0;
const MP_INIT_RECEIVED: u32 = 2;
const MP_HALTED: u32 = 3;
const MP_SIPI_RECEIVED: u32 = 4;
const MP_AP_RESET_HOLD: u32 = 9;

/// A vCPU whose thread is known.
pub(super) struct Found<'k> {
    /// `struct kvm_vcpu`.
    pub vcpu: Object<'k>,
    pub thread: Option<VcpuThread<'k>>,
    pub window: Window,
    pub activity: VcpuActivity,
}

impl<'k> Found<'k> {
    pub fn new(kernel: &'k Kernel, vcpu: Object<'k>) -> Result<Found<'k>, GuestError> {
        let thread = VcpuThread::of(&vcpu)?;
        let window = window(kernel, &vcpu, thread.as_ref())?;
        let activity = activity(&vcpu, thread.as_ref(), window)?;
        Ok(Found {
            vcpu,
            thread,
            window,
            activity,
        })
    }
}

fn activity(
    vcpu: &Object<'_>,
    thread: Option<&VcpuThread<'_>>,
    window: Window,
) -> Result<VcpuActivity, GuestError> {
    let Some(thread) = thread else {
        return Ok(VcpuActivity::InVmm);
    };
    let in_kvm_run = thread.works_on(vcpu.ptr("arch.guest_fpu.fpstate")?)?;
    Ok(match thread.on_cpu {
        Some(cpu) if window != Window::Closed => VcpuActivity::GuestMode { cpu },
        Some(cpu) if in_kvm_run => VcpuActivity::HostKernel { cpu },
        Some(cpu) if thread.came_by_interrupt() => VcpuActivity::HostUser { cpu },
        Some(cpu) => VcpuActivity::HostKernel { cpu },
        None if in_kvm_run && thread.sleeps()? && vcpu.u("arch.mp_state")? != 0 => {
            VcpuActivity::Halted
        }
        None if in_kvm_run => VcpuActivity::Preempted,
        None => VcpuActivity::InVmm,
    })
}

/// What all vCPUs of a VM are read with.
pub(super) struct Reader<'a, 'k> {
    pub kernel: &'k Kernel,
    /// `struct kvm`.
    pub vm: &'a Object<'k>,
    pub clock: &'a CrashClock,
    pub memory: &'a UserMemory<'k>,
    pub layout: Option<&'a XsaveLayout>,
}

impl Reader<'_, '_> {
    /// Reads one vCPU whole.
    pub fn read(
        &self,
        found: &Found<'_>,
        fidelity: &mut Vec<Fidelity>,
    ) -> Result<Vcpu, GuestError> {
        let vcpu = &self.kernel_object(found.vcpu.addr())?;
        let arch = &vcpu.get("arch")?;
        let svm = &Svm::of(self.kernel, vcpu.addr())?;
        let vcpu_id: u32 = narrow(vcpu, "vcpu_id")?;
        let subject = format!("vm {:#x} vcpu {vcpu_id}", self.vm.addr());
        let subject = subject.as_str();
        if flag_or_false(arch, "guest_state_protected")? {
            return Err(GuestError::Unsupported {
                vm: self.vm.addr(),
                why: "its registers are encrypted, and the keys died with the machine".into(),
            });
        }
        if vcpu.u("async_pf.queued")? != 0 {
            fidelity.push(Fidelity::reconstructed(
                subject,
                "pages that the guest was told to wait for",
                "it is woken for all of them, and asks again for what is not there",
            ));
        }
        if found.window == Window::Inside {
            fidelity.push(Fidelity::lost(
                subject,
                "registers",
                "the CPU was in the guest and was stopped from outside, so what is here is what \
                 it last entered the guest with",
            ));
        }
        let hflags = HFlags::of(arch, &svm.vcpu)?;
        let cpuid = Cpuid::of(arch)?;
        let guest_debug: u32 = narrow(vcpu, "guest_debug")?;

        let mut regs = general(arch)?;
        regs.rflags = svm.rflags(guest_debug)?;
        let mut sregs = self.system(arch, svm, found.window)?;
        let mut debug = debug_registers(arch, svm, found.window, subject, fidelity)?;
        let lapic = lapic::lapic(
            &lapic::Around {
                vm: self.vm,
                arch,
                svm,
                window: found.window,
                runs_own_guest: hflags.nested_guest,
                clock: self.clock,
                memory: self.memory,
                subject,
            },
            fidelity,
        )?;
        sregs.cr8 = lapic.as_ref().map_or(arch.u("cr8")?, |l| l.cr8);
        let events = events::events(
            &events::Source {
                vm: self.vm,
                vcpu,
                svm,
                window: found.window,
                hflags,
                lapic: lapic.as_ref(),
            },
            &mut events::Registers {
                regs: &mut regs,
                sregs: &mut sregs,
                debug: &mut debug,
            },
        )?;
        let mut msrs = msr::msrs(
            &msr::Source {
                vm: self.vm,
                arch,
                svm,
                cpuid: &cpuid,
                tsc: self.clock.guest_tsc(arch)?,
                tsc_deadline: lapic.as_ref().and_then(|l| l.tsc_deadline),
                subject,
            },
            fidelity,
        )?;
        // After the TSC, from which the guest's clocks there count.
        let first = vcpu.u("vcpu_idx")? == 0;
        msrs.extend(hyperv::msrs(self.vm, arch, first)?);
        let (xsave, fpu_stale) = self.fpu(arch, found, subject, fidelity)?;
        Ok(Vcpu {
            id: ObjectId(vcpu.addr()),
            vcpu_id,
            tid: found.thread.as_ref().map_or(0, |t| t.tid),
            activity: found.activity,
            regs,
            sregs,
            debug,
            xcr0: arch.u("xcr0")?,
            xsave,
            fpu_stale,
            msrs,
            tsc_khz: narrow(arch, "virtual_tsc_khz")?,
            mcg_cap: arch.u("mcg_cap")?,
            events,
            mp_state: mp_state(arch, lapic.as_ref(), subject, fidelity)?,
            nested: nested::state(svm, &cpuid, hflags)?,
            signal_mask: flag(vcpu, "sigset_active")?
                .then(|| vcpu.u("sigset.sig[0]"))
                .transpose()?,
            vapic_addr: vapic_addr(arch)?,
            tpr_access_reporting: flag_or_false(arch, "tpr_access_reporting")?,
            guest_debug,
            enforce_pv_cpuid: flag_or_false(arch, "pv_cpuid.enforce")?,
            run_pages: self.run_pages(vcpu, arch)?,
            exit_in_flight: self.exit_in_flight(vcpu, arch)?,
            exit_unreported: exit_report::unreported(
                self.kernel,
                vcpu,
                found.thread.as_ref(),
                self.clock,
            )?,
            lapic: lapic.map(|l| l.lapic),
            cpuid: cpuid.0,
        })
    }

    fn kernel_object(&self, vcpu: u64) -> Result<Object<'_>, GuestError> {
        super::field::kvm_object(self.kernel, "kvm_vcpu", vcpu)
            .map_err(GuestError::reading("struct kvm_vcpu", vcpu))
    }

    /// Segments and control registers, each from the copy that counts.
    fn system(
        &self,
        arch: &Object<'_>,
        svm: &Svm<'_>,
        window: Window,
    ) -> Result<SystemRegs, GuestError> {
        let save = svm.current.get("save")?;
        let mut sregs = SystemRegs {
            cr0: arch.u("cr0")?,
            // svm_vcpu_run copies it before the window closes; before that, VMCB and arch agree.
            cr2: arch.u("cr2")?,
            cr3: arch.u("cr3")?,
            cr4: arch.u("cr4")?,
            efer: arch.u("efer")?,
            apic_base: arch.u("apic_base")?,
            ..SystemRegs::default()
        };
        // svm_handle_exit copies these two, later than any other: the VMCB's are right, unless KVM
        // itself has changed CR3 and not entered the guest since.
        const CR0: u32 = 0;
        if !svm.intercepts_cr_write(CR0)? {
            sregs.cr0 = save.u("cr0")?;
        }
        if svm.nested_paging && !self.cr3_is_newer(arch)? {
            sregs.cr3 = save.u("cr3")?;
        }
        if window == Window::Inside {
            sregs.cr2 = save.u("cr2")?;
        }
        svm.segments(&mut sregs)?;
        if !svm.nested_paging && in_pae_mode(&sregs) {
            // With shadow paging KVM's copy is what the CPU uses. With nested paging the CPU reads
            // them from the guest's memory, and will again.
            let mut pdptrs = [0; 4];
            let mmu = arch.follow("walk_mmu")?;
            for (number, value) in pdptrs.iter_mut().enumerate() {
                *value = mmu.u(&format!("pdptrs[{number}]"))?;
            }
            sregs.pdptrs = Some(pdptrs);
        }
        Ok(sregs)
    }

    /// `arch.cr3` was written by KVM and has not reached the VMCB.
    fn cr3_is_newer(&self, arch: &Object<'_>) -> Result<bool, GuestError> {
        let Some(bit) = self.kernel.enum_value("kvm_reg", "VCPU_EXREG_CR3") else {
            return Ok(false);
        };
        Ok(arch.u("regs_dirty")? >> (bit & 63) & 1 != 0)
    }

    /// The FPU, and whether its registers were in the CPU and are lost.
    fn fpu(
        &self,
        arch: &Object<'_>,
        found: &Found<'_>,
        subject: &str,
        fidelity: &mut Vec<Fidelity>,
    ) -> Result<(Blob, bool), GuestError> {
        /// KVM_GET_XSAVE's area is never shorter.
        const LEAST: usize = 4096;
        /// AMX's has 11 KiB.
        const MOST: u64 = 1 << 16;
        let fpstate = arch.follow("guest_fpu.fpstate")?;
        let size = fpstate.u("size")?;
        if size > MOST {
            return Err(GuestError::Damaged {
                what: "fpstate.size",
                addr: fpstate.addr(),
                detail: format!("{size} bytes"),
            });
        }
        let area = fpstate.get("regs")?.read_bytes(size)?;
        let default = XsaveLayout::default();
        let layout = self.layout.unwrap_or(&default);
        // Components that the guest cannot turn on hold the host's initial
        // state, and KVM_SET_XSAVE refuses them. Seen with MPX, which SVM never
        // gives to a guest, and whose BNDCSR bit TCG sets in every area.
        const LEGACY: u64 = 3;
        let mut features = fpstate.u("user_xfeatures")?;
        if arch.has("guest_supported_xcr0") {
            features &= arch.u("guest_supported_xcr0")? | LEGACY;
        }
        let mut standard = layout.to_standard(&area, features);
        let pkru = u32::try_from(u_or_0(arch, "pkru")?).unwrap_or_default();
        if pkru != 0 {
            layout.set_pkru(&mut standard, pkru);
        }
        let wanted = LEAST.max(narrow(arch, "guest_fpu.uabi_size").unwrap_or(LEAST));
        if standard.len() < wanted && wanted as u64 <= MOST {
            standard.resize(wanted, 0);
        }

        let stale = match &found.thread {
            Some(thread) => thread.works_on(fpstate.addr())? && thread.fpu_is_live()?,
            None => false,
        };
        if stale {
            fidelity.push(Fidelity::lost(
                subject,
                "FPU, SSE and AVX registers",
                "they were in the CPU, and a dying kernel does not save them; these are the last \
                 that were saved",
            ));
        }
        Ok((Blob(standard), stale))
    }

    /// The pages that the VMM maps from the vCPU's descriptor.
    fn run_pages(&self, vcpu: &Object<'_>, arch: &Object<'_>) -> Result<Vec<Blob>, GuestError> {
        [
            ("kvm_vcpu.run", vcpu.ptr("run")?),
            ("kvm_vcpu_arch.pio_data", arch.ptr("pio_data")?),
            (
                "kvm.coalesced_mmio_ring",
                if self.vm.has("coalesced_mmio_ring") {
                    self.vm.ptr("coalesced_mmio_ring")?
                } else {
                    0
                },
            ),
        ]
        .into_iter()
        .map(|(what, addr)| {
            let mut page = vec![0; PAGE];
            if addr != 0 {
                self.kernel
                    .read(addr, &mut page)
                    .map_err(GuestError::reading(what, addr))?;
            }
            Ok(Blob(page))
        })
        .collect()
    }

    /// The exit whose instruction KVM had still to finish.
    fn exit_in_flight(
        &self,
        vcpu: &Object<'_>,
        arch: &Object<'_>,
    ) -> Result<Option<ExitInFlight>, GuestError> {
        let completion = arch.ptr("complete_userspace_io")?;
        if completion == 0 {
            return Ok(None);
        }
        let name = match self.kernel.symbol_at(completion) {
            Some((name, 0)) => name,
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => format!("{completion:#x}"),
        };
        let (mmio_pieces_done, mmio_pieces_left) = mmio_pieces(vcpu)?;
        Ok(Some(ExitInFlight {
            reason: narrow(&vcpu.follow("run")?, "exit_reason")?,
            completion: name,
            mmio_pieces_left,
            mmio_pieces_done,
        }))
    }
}

/// Of an MMIO access that goes to the VMM in pieces of 8 bytes: how many were done, and how many
/// follow the one in the kvm_run page. `complete_emulated_mmio`.
fn mmio_pieces(vcpu: &Object<'_>) -> Result<(u32, u32), GuestError> {
    const PIECE: u64 = 8;
    if vcpu.u("mmio_needed")? == 0 {
        return Ok((0, 0));
    }
    let (current, count): (u32, u32) = (
        narrow(vcpu, "mmio_cur_fragment")?,
        narrow(vcpu, "mmio_nr_fragments")?,
    );
    let mut left = 0;
    for number in current..count {
        // KVM shortens the fragment as its pieces are done.
        let len = vcpu.u(&format!("mmio_fragments[{number}].len"))?;
        left += u32::try_from(len.div_ceil(PIECE)).unwrap_or_default();
    }
    Ok((current, left.saturating_sub(1)))
}

/// `arch.regs`, in the order of `enum kvm_reg`, which is that of x86's encoding.
fn general(arch: &Object<'_>) -> Result<VcpuRegs, GuestError> {
    let field = arch.get("regs")?;
    let words = words(&field.bytes()?);
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        ..,
    ] = words[..]
    else {
        return Err(GuestError::Damaged {
            what: "kvm_vcpu_arch.regs",
            addr: field.addr(),
            detail: format!("{} registers where there are 17", words.len()),
        });
    };
    Ok(VcpuRegs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags: 0,
    })
}

fn debug_registers(
    arch: &Object<'_>,
    svm: &Svm<'_>,
    window: Window,
    subject: &str,
    fidelity: &mut Vec<Fidelity>,
) -> Result<DebugRegs, GuestError> {
    /// KVM_DEBUGREG_WONT_EXIT: the guest writes the registers themselves.
    const WONT_EXIT: u64 = 2;
    let mut regs = DebugRegs {
        db: [0; 4],
        dr6: arch.u("dr6")?,
        dr7: arch.u("dr7")?,
    };
    for (value, word) in regs.db.iter_mut().zip(words(&arch.get("db")?.bytes()?)) {
        *value = word;
    }
    if window != Window::Closed && arch.u("switch_db_regs")? & WONT_EXIT != 0 {
        regs.dr6 = svm.current.u("save.dr6")?;
        regs.dr7 = svm.current.u("save.dr7")?;
        fidelity.push(Fidelity::lost(
            subject,
            "DR0–DR3",
            "the guest was using them, and they were in the CPU; these are the last that were \
             saved",
        ));
    }
    Ok(regs)
}

/// CR0.PG, CR4.PAE, and no long mode.
fn in_pae_mode(sregs: &SystemRegs) -> bool {
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const LMA: u64 = 1 << 10;
    sregs.cr0 & PG != 0 && sregs.cr4 & PAE != 0 && sregs.efer & LMA == 0
}

/// `kvm_arch_vcpu_ioctl_get_mpstate`.
fn mp_state(
    arch: &Object<'_>,
    lapic: Option<&LapicState>,
    subject: &str,
    fidelity: &mut Vec<Fidelity>,
) -> Result<u32, GuestError> {
    const INIT: u64 = 1;
    const SIPI: u64 = 2;
    let state: u32 = narrow(arch, "mp_state")?;
    let pending = lapic.map_or(0, |l| l.pending_events);
    if pending & INIT != 0 {
        fidelity.push(Fidelity::lost(
            subject,
            "an INIT interrupt",
            "it had been sent and not taken, and KVM cannot be told of it",
        ));
    }
    if pending & SIPI != 0 && state == MP_INIT_RECEIVED {
        return Ok(MP_SIPI_RECEIVED);
    }
    let woken = flag_or_false(arch, "pv.pv_unhalted")?;
    if woken && matches!(state, MP_HALTED | MP_AP_RESET_HOLD) {
        return Ok(MP_RUNNABLE);
    }
    Ok(state)
}

fn vapic_addr(arch: &Object<'_>) -> Result<u64, GuestError> {
    match arch.follow_opt("apic")? {
        Some(apic) => or(&apic, "vapic_addr", 0, |o, p| Ok(o.u(p)?)),
        None => Ok(0),
    }
}
