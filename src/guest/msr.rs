//! The MSRs of a vCPU, each from the place where KVM keeps it.
//!
//! `kvm_get_msr_common` and `svm_get_msr` of Linux arch/x86/kvm, read backwards. An MSR is listed
//! where the guest has it (by its CPUID) or has changed it; what a new vCPU has anyway is left out
//! where an older or newer KVM might refuse to be told.

use super::GuestError;
use super::cpuid::{Cpuid, Reg};
use super::field::{flag_or_false, u_or_0, words};
use super::vmcb::Svm;
use crate::dataset::{Fidelity, MsrEntry};
use crate::kernel::{Kernel, KernelError, Object};

/// What has to be known to read a vCPU's MSRs.
pub(super) struct Source<'a, 'k> {
    /// `struct kvm`.
    pub vm: &'a Object<'k>,
    /// `struct kvm_vcpu_arch`.
    pub arch: &'a Object<'k>,
    pub svm: &'a Svm<'k>,
    pub cpuid: &'a Cpuid,
    /// Guest TSC at the crash.
    pub tsc: u64,
    /// From [`super::lapic`].
    pub tsc_deadline: Option<u64>,
    pub subject: &'a str,
}

/// The list that is being made.
#[derive(Default)]
struct List(Vec<MsrEntry>);

impl List {
    fn set(&mut self, index: u32, value: u64) {
        self.0.push(MsrEntry { index, value });
    }

    /// Only where it is not 0, which is what a new vCPU has.
    fn set_unless_0(&mut self, index: u32, value: u64) {
        if value != 0 {
            self.set(index, value);
        }
    }
}

/// The MSRs of a vCPU in the order in which they are to be set: the TSC before its deadline, what
/// only stands in KVM before what KVM looks up in guest memory.
pub(super) fn msrs(
    source: &Source<'_, '_>,
    fidelity: &mut Vec<Fidelity>,
) -> Result<Vec<MsrEntry>, GuestError> {
    let mut list = List::default();
    system_calls(source, &mut list)?;
    processor(source, &mut list)?;
    speculation(source, &mut list)?;
    virtualization(source, &mut list)?;
    memory_types(source, &mut list)?;
    machine_check(source, &mut list)?;
    performance(source, &mut list, fidelity)?;
    tsc(source, &mut list)?;
    paravirtual(source, &mut list)?;
    if let Some(deadline) = source.tsc_deadline {
        list.set(0x6e0, deadline); // IA32_TSC_DEADLINE
    }
    Ok(list.0)
}

fn system_calls(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    let save = source.svm.own.get("save")?;
    for (index, field) in [
        (0xc000_0081, "star"),
        (0xc000_0082, "lstar"),
        (0xc000_0083, "cstar"),
        (0xc000_0084, "sfmask"),
        (0xc000_0102, "kernel_gs_base"),
        (0x174, "sysenter_cs"),
    ] {
        list.set(index, save.u(field)?);
    }
    // AMD's SYSENTER uses 32 bits, and KVM gives and takes no more; the guest, which writes the
    // registers without an exit, may have left others in the VMCB. Of a guest that believes in
    // Intel, KVM keeps the other half.
    let vcpu = &source.svm.vcpu;
    for (index, field, upper) in [
        (0x175, "sysenter_esp", "sysenter_esp_hi"),
        (0x176, "sysenter_eip", "sysenter_eip_hi"),
    ] {
        let mut value = save.u(field)? & 0xffff_ffff;
        if source.cpuid.is_intel() && vcpu.has(upper) {
            value |= vcpu.u(upper)? << 32;
        }
        list.set(index, value);
    }
    Ok(())
}

fn processor(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    let (arch, cpuid, svm) = (source.arch, source.cpuid, &source.svm.vcpu);
    list.set(0x277, arch.u("pat")?);
    list.set(0x1a0, arch.u("ia32_misc_enable_msr")?);
    list.set(0x8b, u_or_0(arch, "microcode_version")?);
    list.set(0xce, u_or_0(arch, "msr_platform_info")?);
    list.set_unless_0(0x140, u_or_0(arch, "msr_misc_features_enables")?);
    list.set_unless_0(0x1fc, u_or_0(arch, "msr_ia32_power_ctl")?);
    list.set_unless_0(0x34, u_or_0(arch, "smi_count")?);
    // What a new vCPU has, and a KVM without SMM refuses.
    const DEFAULT_SMBASE: u64 = 0x3_0000;
    let smbase = u_or_0(arch, "smbase")?;
    if smbase != DEFAULT_SMBASE {
        list.set_unless_0(0x9e, smbase);
    }
    if cpuid.has(7, 0, Reg::Edx, 29) {
        list.set(0x10a, u_or_0(arch, "arch_capabilities")?);
    }
    if cpuid.has(1, 0, Reg::Ecx, 15) {
        list.set(0x345, u_or_0(arch, "perf_capabilities")?);
    }
    if cpuid.has(0xd, 1, Reg::Eax, 3) {
        list.set(0xda0, u_or_0(arch, "ia32_xss")?);
    }
    if cpuid.has(0xd, 1, Reg::Eax, 4) {
        if let Some(fpstate) = arch.follow_opt("guest_fpu.fpstate")? {
            list.set(0x1c4, u_or_0(&fpstate, "xfd")?);
        }
        list.set(0x1c5, u_or_0(arch, "guest_fpu.xfd_err")?);
    }
    // RDTSCP or RDPID
    if cpuid.has(0x8000_0001, 0, Reg::Edx, 27) || cpuid.has(7, 0, Reg::Ecx, 22) {
        list.set(0xc000_0103, u_or_0(svm, "tsc_aux")?);
    }
    list.set_unless_0(0x1d9, source.svm.current.u("save.dbgctl")?);
    list.set_unless_0(0xc001_0015, u_or_0(arch, "msr_hwcr")?);
    list.set_unless_0(0xc001_1029, u_or_0(svm, "msr_decfg")?);
    if cpuid.has(0x8000_0001, 0, Reg::Ecx, 9) {
        list.set(0xc001_0140, arch.u("osvw.length")?);
        list.set(0xc001_0141, arch.u("osvw.status")?);
    }
    Ok(())
}

fn speculation(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    let (cpuid, svm) = (source.cpuid, &source.svm.vcpu);
    // SPEC_CTRL: by Intel's bits or by AMD's (IBRS, STIBP, SSBD).
    let offered = [26, 27, 31].iter().any(|b| cpuid.has(7, 0, Reg::Edx, *b))
        || [14, 15, 24]
            .iter()
            .any(|b| cpuid.has(0x8000_0008, 0, Reg::Ebx, *b));
    let value = if cpu_virtualizes_spec_ctrl(svm.kernel()) {
        source.svm.current.u("save.spec_ctrl")?
    } else {
        u_or_0(svm, "spec_ctrl")?
    };
    if offered || value != 0 {
        list.set(0x48, value);
    }
    list.set_unless_0(0xc001_011f, u_or_0(svm, "virt_spec_ctrl")?);
    Ok(())
}

/// X86_FEATURE_V_SPEC_CTRL: the CPU keeps the guest's SPEC_CTRL in the VMCB. Word 15 of the
/// capabilities is CPUID 0x8000000a EDX.
fn cpu_virtualizes_spec_ctrl(kernel: &Kernel) -> bool {
    const V_SPEC_CTRL: u64 = 1 << 20;
    let word = || -> Result<u64, KernelError> {
        kernel
            .object("cpuinfo_x86", kernel.symbol("boot_cpu_data")?)?
            .u("x86_capability[15]")
    };
    word().is_ok_and(|word| word & V_SPEC_CTRL != 0)
}

/// For a guest that may itself run guests.
fn virtualization(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    const TSC_RATIO_1: u64 = 1 << 32;
    if !source.cpuid.has_svm() {
        return Ok(());
    }
    let svm = &source.svm.vcpu;
    list.set_unless_0(0xc001_0114, u_or_0(svm, "nested.vm_cr_msr")?);
    list.set_unless_0(0xc001_0117, u_or_0(svm, "nested.hsave_msr")?);
    let ratio = u_or_0(svm, "tsc_ratio_msr")?;
    if ratio != TSC_RATIO_1 {
        list.set_unless_0(0xc000_0104, ratio);
    }
    Ok(())
}

fn memory_types(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    const FIXED: [u32; 11] = [
        0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
    ];
    if !source.cpuid.has(1, 0, Reg::Edx, 12) {
        return Ok(());
    }
    let state = source.arch.get("mtrr_state")?;
    let fixed = if state.has("fixed_ranges") {
        words(&state.get("fixed_ranges")?.bytes()?)
    } else {
        // Since v6.11 each MSR is kept as it is.
        let mut all = vec![state.u("fixed_64k")?];
        all.extend(words(&state.get("fixed_16k")?.bytes()?));
        all.extend(words(&state.get("fixed_4k")?.bytes()?));
        all
    };
    for (index, value) in FIXED.iter().zip(fixed) {
        list.set_unless_0(*index, value);
    }
    for (range, index) in (0..8_u32).map(|n| (n, 0x200 + 2 * n)) {
        let (base, mask) = if state.has("var_ranges") {
            let range = state.get(&format!("var_ranges[{range}]"))?;
            // KVM sets the bits beyond the guest's physical address width for its own use.
            let beyond = u_or_0(source.arch, "reserved_gpa_bits")?;
            (range.u("base")?, range.u("mask")? & !beyond)
        } else {
            (
                state.u(&format!("var[{}]", 2 * range))?,
                state.u(&format!("var[{}]", 2 * range + 1))?,
            )
        };
        list.set_unless_0(index, base);
        list.set_unless_0(index + 1, mask);
    }
    list.set_unless_0(0x2ff, state.u("deftype")?);
    Ok(())
}

fn machine_check(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    const CTL_PRESENT: u64 = 1 << 8;
    /// KVM_MAX_MCE_BANKS.
    const MOST: u64 = 32;
    let arch = source.arch;
    let cap = arch.u("mcg_cap")?;
    let banks = (cap & 0xff).min(MOST);
    list.set_unless_0(0x17a, arch.u("mcg_status")?);
    if cap & CTL_PRESENT != 0 {
        list.set(0x17b, arch.u("mcg_ctl")?);
    }
    list.set_unless_0(0x4d0, u_or_0(arch, "mcg_ext_ctl")?);
    let read = |field: &str, count: u64| -> Result<Vec<u8>, GuestError> {
        let addr = arch.ptr(field)?;
        let mut bytes = vec![0; usize::try_from(count * 8).unwrap_or_default()];
        if addr != 0 {
            arch.kernel()
                .read(addr, &mut bytes)
                .map_err(GuestError::reading(field, addr))?;
        }
        Ok(bytes)
    };
    // CTL, STATUS, ADDR, MISC of each bank. A new vCPU's CTLs are all ones.
    let bytes = read("mce_banks", banks * 4)?;
    for (number, value) in (0_u32..).zip(words(&bytes)) {
        if number % 4 == 0 {
            list.set(0x400 + number, value);
        } else {
            list.set_unless_0(0x400 + number, value);
        }
    }
    if arch.has("mci_ctl2_banks") {
        let bytes = read("mci_ctl2_banks", banks)?;
        for (number, value) in (0_u32..).zip(words(&bytes)) {
            list.set_unless_0(0x280 + number, value);
        }
    }
    Ok(())
}

/// The virtual PMU, where the guest has programmed it.
fn performance(
    source: &Source<'_, '_>,
    list: &mut List,
    fidelity: &mut Vec<Fidelity>,
) -> Result<(), GuestError> {
    let pmu = source.arch.get("pmu")?;
    let counters = pmu.u("nr_arch_gp_counters")?.min(8);
    let mut counting = 0;
    for number in 0..counters {
        let counter = pmu.get(&format!("gp_counters[{number}]"))?;
        let (event, value) = (counter.u("eventsel")?, counter.u("counter")?);
        if event == 0 && value == 0 {
            continue;
        }
        let number = number as u32;
        // Six counters stand interleaved at the newer place, the first four also at the older.
        let (event_msr, counter_msr) = if counters > 4 {
            (0xc001_0200 + 2 * number, 0xc001_0201 + 2 * number)
        } else {
            (0xc001_0000 + number, 0xc001_0004 + number)
        };
        list.set(counter_msr, value);
        list.set(event_msr, event);
        counting += u32::from(counter.ptr("perf_event")? != 0);
    }
    // AMD's PerfMonV2.
    if source.cpuid.has(0x8000_0022, 0, Reg::Eax, 0) {
        list.set_unless_0(0xc000_0301, pmu.u("global_ctrl")?);
    }
    if counting > 0 {
        fidelity.push(Fidelity::lost(
            source.subject,
            format!("{counting} performance counters"),
            "what they counted since KVM last read them was in the host's counters",
        ));
    }
    Ok(())
}

fn tsc(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    list.set(0x10, source.tsc);
    if source.cpuid.has(7, 0, Reg::Ebx, 1) {
        list.set(0x3b, source.arch.u("ia32_tsc_adjust_msr")?);
    }
    Ok(())
}

/// KVM's own MSRs. Linux Documentation/virt/kvm/x86/msr.rst.
fn paravirtual(source: &Source<'_, '_>, list: &mut List) -> Result<(), GuestError> {
    const CLOCKSOURCE2: u32 = 3;
    const POLL_CONTROL: u32 = 12;
    let arch = source.arch;
    let features = source.cpuid.pv_features();
    // The clock's two MSRs have an old and a new number each; the guest used those that it was
    // offered, the new ones if both.
    let old = features >> CLOCKSOURCE2 & 1 == 0
        || flag_or_false(source.vm, "arch.boot_vcpu_runs_old_kvmclock")?;
    let (wall_clock, system_time) = if old {
        (0x11, 0x12)
    } else {
        (0x4b56_4d00, 0x4b56_4d01)
    };
    list.set_unless_0(wall_clock, u_or_0(source.vm, "arch.wall_clock")?);
    list.set_unless_0(system_time, arch.u("time")?);
    list.set_unless_0(0x4b56_4d03, arch.u("st.msr_val")?);
    list.set_unless_0(0x4b56_4d06, u_or_0(arch, "apf.msr_int_val")?);
    let async_pf = if arch.has("apf.msr_en_val") {
        "apf.msr_en_val"
    } else {
        "apf.msr_val"
    };
    list.set_unless_0(0x4b56_4d02, arch.u(async_pf)?);
    list.set_unless_0(0x4b56_4d04, arch.u("pv_eoi.msr_val")?);
    if features >> POLL_CONTROL & 1 != 0 {
        list.set(0x4b56_4d05, arch.u("msr_kvm_poll_control")?);
    }
    Ok(())
}
