//! One vCPU, put together from KVM's structures and the VMCB.

use super::clock::CrashClock;
use super::cpuid::Cpuid;
use super::events::{self, HFlags};
use super::exit_window::{Window, window};
use super::field::{flag, flag_or_false, narrow, or};
use super::lapic::{self, LapicState};
use super::msr;
use super::outside::{GuestOnCpu, OnCpu};
use super::thread::VcpuThread;
use super::user_memory::UserMemory;
use super::vmcb::Svm;
use super::{GuestError, exit_in_flight, exit_report, hyperv, nested, registers};
use crate::dataset::{Fidelity, ObjectId, REGISTERS, SystemRegs, Vcpu, VcpuActivity};
use crate::kernel::{Kernel, Object, XsaveLayout};

// KVM_MP_STATE_*. Linux include/uapi/linux/kvm.h.
const MP_RUNNABLE: u32 = 0;
const MP_INIT_RECEIVED: u32 = 2;
const MP_HALTED: u32 = 3;
const MP_SIPI_RECEIVED: u32 = 4;
const MP_AP_RESET_HOLD: u32 = 9;

/// CR4.CET.
const CR4_CET: u64 = 1 << 23;

/// A vCPU whose thread is known.
pub(super) struct Found<'k> {
    /// `struct kvm_vcpu`.
    pub vcpu: Object<'k>,
    pub thread: Option<VcpuThread<'k>>,
    pub window: Window,
    pub activity: VcpuActivity,
    /// Whose registers a hypervisor found in its CPU.
    pub on_cpu: Option<OnCpu>,
}

impl<'k> Found<'k> {
    pub fn new(kernel: &'k Kernel, vcpu: Object<'k>) -> Result<Found<'k>, GuestError> {
        let thread = VcpuThread::of(&vcpu)?;
        let (window, on_cpu) = window(kernel, &vcpu, thread.as_ref())?;
        let activity = activity(&vcpu, thread.as_ref(), window)?;
        Ok(Found {
            vcpu,
            thread,
            window,
            activity,
            on_cpu,
        })
    }

    /// The guest's registers where they were in the CPU alone; that they are from there, or that
    /// nobody has them, is said.
    fn in_cpu(
        &self,
        runs_own_guest: bool,
        subject: &str,
        fidelity: &mut Vec<Fidelity>,
    ) -> Option<&GuestOnCpu> {
        if self.window != Window::Inside {
            return None;
        }
        let why = match &self.on_cpu {
            Some(OnCpu::Guest(_)) if runs_own_guest => "it may have been in the guest's own guest",
            Some(OnCpu::Guest(guest)) => {
                guest.report(subject, fidelity);
                return Some(guest);
            }
            Some(OnCpu::Unknown(why)) => why,
            _ => "it was on its way between guest and host",
        };
        fidelity.push(Fidelity::lost(
            subject,
            REGISTERS,
            format!(
                "the CPU was in the guest and was stopped from outside, and {why}: what is here is \
                 what it last entered the guest with"
            ),
        ));
        None
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
        let hflags = HFlags::of(arch, &svm.vcpu)?;
        let in_cpu = found.in_cpu(hflags.nested_guest, subject, fidelity);
        if hflags.nested_guest {
            return Err(GuestError::Unsupported {
                vm: self.vm.addr(),
                why: format!(
                    "vCPU {vcpu_id} was running a guest of its own at that instant, and no such \
                     guest has been seen to come back right"
                ),
            });
        }
        let cpuid = Cpuid::of(arch)?;
        let guest_debug: u32 = narrow(vcpu, "guest_debug")?;

        let mut regs = registers::general(arch)?;
        regs.rflags = svm.rflags(guest_debug)?;
        let mut sregs = self.system(arch, svm, found.window)?;
        if let Some(guest) = in_cpu {
            regs = guest.general();
            guest.system(svm.nested_paging, &mut sregs)?;
        }
        if sregs.cr4 & CR4_CET != 0 {
            return Err(GuestError::Unsupported {
                vm: self.vm.addr(),
                why: "it uses shadow stacks or branch tracking (CET), whose registers are not read"
                    .into(),
            });
        }
        let mut debug = registers::debug(arch, svm, found, subject, fidelity)?;
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
        let mut events = events::events(
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
        // Hyper-V's assist page, where it is off, turns KVM's EOI by memory off with it.
        const PV_EOI: u32 = 0x4b56_4d04;
        msrs.sort_by_key(|msr| msr.index == PV_EOI);
        if let Some(guest) = in_cpu {
            guest.msrs(&mut msrs);
            GuestOnCpu::events(&mut events);
        }
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
            run_pages: exit_in_flight::run_pages(self.vm, vcpu)?,
            exit_in_flight: exit_in_flight::exit_in_flight(vcpu)?,
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
        if !svm.nested_paging && registers::in_pae_mode(&sregs) {
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
