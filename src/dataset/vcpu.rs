//! One virtual CPU: everything that KVM lets one set.

use super::hex::u64_hex;
use super::{Blob, ObjectId};
use serde::{Deserialize, Serialize};

/// A vCPU (`struct kvm_vcpu`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vcpu {
    /// Address of `struct kvm_vcpu`.
    pub id: ObjectId,
    /// KVM_CREATE_VCPU's argument (the APIC id).
    pub vcpu_id: u32,
    /// TID of the thread that last ran it (initial PID namespace); 0: none.
    pub tid: i32,
    /// Where it was at the panic.
    pub activity: VcpuActivity,
    pub regs: VcpuRegs,
    pub sregs: SystemRegs,
    pub debug: DebugRegs,
    #[serde(with = "u64_hex")]
    pub xcr0: u64,
    /// XSAVE area in the *standard* format (KVM_SET_XSAVE/XSAVE2 take this).
    pub xsave: Blob,
    /// The guest's FPU registers were in the CPU; `xsave` is what was last saved.
    pub fpu_stale: bool,
    /// KVM_SET_CPUID2's table.
    pub cpuid: Vec<CpuidEntry>,
    pub lapic: Option<Lapic>,
    /// MSRs in the order in which they are set. TSC (0x10), TSC_ADJUST
    /// (0x3b) and TSC_DEADLINE (0x6e0) are in it where the guest has them.
    pub msrs: Vec<MsrEntry>,
    /// kHz; `virtual_tsc_khz`.
    pub tsc_khz: u32,
    /// `arch.mcg_cap` for KVM_X86_SETUP_MCE; 0: it was not set up.
    #[serde(with = "u64_hex")]
    pub mcg_cap: u64,
    pub events: VcpuEvents,
    /// KVM_MP_STATE_*.
    pub mp_state: u32,
    /// KVM_SET_NESTED_STATE's buffer, when the guest runs guests.
    pub nested: Option<Blob>,
    /// KVM_SET_SIGNAL_MASK, when it was used.
    pub signal_mask: Option<u64>,
    /// KVM_SET_VAPIC_ADDR.
    pub vapic_addr: u64,
    pub tpr_access_reporting: bool,
    /// KVM_SET_GUEST_DEBUG's control word; 0: off.
    pub guest_debug: u32,
    /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
    pub enforce_pv_cpuid: bool,
    /// The kvm_run area: page 0 kvm_run, 1 PIO data, 2 coalesced MMIO ring.
    /// 4096 bytes each.
    pub run_pages: Vec<Blob>,
    /// An exit whose instruction KVM had still to finish.
    pub exit_in_flight: Option<ExitInFlight>,
    /// Its thread was on the way out of KVM_RUN with the exit in the kvm_run
    /// page: that call returns 0 (instead of being made again), or the VMM
    /// would never hear of the exit.
    #[serde(default)]
    pub exit_unreported: bool,
}

/// Where a vCPU was at the panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "at")]
pub enum VcpuActivity {
    /// Its thread was on this CPU, in guest mode (its registers came by the
    /// exit that the stopping interrupt forced).
    GuestMode { cpu: u32 },
    /// Its thread was on this CPU, in the host's kernel.
    HostKernel { cpu: u32 },
    /// Its thread was on this CPU, in user mode: the VMM handled an exit.
    HostUser { cpu: u32 },
    /// Halted: it waited for an interrupt in KVM_RUN.
    Halted,
    /// In KVM_RUN, but preempted or blocked.
    Preempted,
    /// Its thread was outside KVM_RUN.
    InVmm,
}

/// `struct kvm_regs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct VcpuRegs {
    #[serde(with = "u64_hex")]
    pub rax: u64,
    #[serde(with = "u64_hex")]
    pub rbx: u64,
    #[serde(with = "u64_hex")]
    pub rcx: u64,
    #[serde(with = "u64_hex")]
    pub rdx: u64,
    #[serde(with = "u64_hex")]
    pub rsi: u64,
    #[serde(with = "u64_hex")]
    pub rdi: u64,
    #[serde(with = "u64_hex")]
    pub rsp: u64,
    #[serde(with = "u64_hex")]
    pub rbp: u64,
    #[serde(with = "u64_hex")]
    pub r8: u64,
    #[serde(with = "u64_hex")]
    pub r9: u64,
    #[serde(with = "u64_hex")]
    pub r10: u64,
    #[serde(with = "u64_hex")]
    pub r11: u64,
    #[serde(with = "u64_hex")]
    pub r12: u64,
    #[serde(with = "u64_hex")]
    pub r13: u64,
    #[serde(with = "u64_hex")]
    pub r14: u64,
    #[serde(with = "u64_hex")]
    pub r15: u64,
    #[serde(with = "u64_hex")]
    pub rip: u64,
    #[serde(with = "u64_hex")]
    pub rflags: u64,
}

/// `struct kvm_sregs2`'s content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SystemRegs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: TablePointer,
    pub idt: TablePointer,
    #[serde(with = "u64_hex")]
    pub cr0: u64,
    #[serde(with = "u64_hex")]
    pub cr2: u64,
    #[serde(with = "u64_hex")]
    pub cr3: u64,
    #[serde(with = "u64_hex")]
    pub cr4: u64,
    #[serde(with = "u64_hex")]
    pub cr8: u64,
    #[serde(with = "u64_hex")]
    pub efer: u64,
    #[serde(with = "u64_hex")]
    pub apic_base: u64,
    /// PAE page directory pointers, when KVM had them (KVM_SREGS2_FLAGS_PDPTRS_VALID).
    pub pdptrs: Option<[u64; 4]>,
}

/// A segment register with its hidden part (`struct kvm_segment`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Segment {
    #[serde(with = "u64_hex")]
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub type_: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TablePointer {
    #[serde(with = "u64_hex")]
    pub base: u64,
    pub limit: u16,
}

/// `struct kvm_debugregs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DebugRegs {
    pub db: [u64; 4],
    #[serde(with = "u64_hex")]
    pub dr6: u64,
    #[serde(with = "u64_hex")]
    pub dr7: u64,
}

/// `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// A local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lapic {
    /// The first 1024 bytes of its register page (`struct kvm_lapic_state`),
    /// TMCCT computed for the instant of the crash.
    pub regs: Blob,
}

/// One MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrEntry {
    pub index: u32,
    #[serde(with = "u64_hex")]
    pub value: u64,
}

/// `struct kvm_vcpu_events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct VcpuEvents {
    pub exception_injected: bool,
    pub exception_pending: bool,
    pub exception_nr: u8,
    pub exception_has_error_code: bool,
    pub exception_error_code: u32,
    /// Needs KVM_CAP_EXCEPTION_PAYLOAD.
    pub exception_payload: Option<u64>,
    pub interrupt_injected: bool,
    pub interrupt_nr: u8,
    pub interrupt_soft: bool,
    /// KVM_X86_SHADOW_INT_*: MOV_SS 1, STI 2.
    pub interrupt_shadow: u8,
    pub nmi_injected: bool,
    pub nmi_pending: u8,
    pub nmi_masked: bool,
    pub sipi_vector: u32,
    pub smm: bool,
    pub smi_pending: bool,
    pub smm_inside_nmi: bool,
    pub smi_latched_init: bool,
    pub triple_fault_pending: bool,
}

/// An exit that KVM had handed to the VMM, or the VMM had handled, and whose
/// instruction would have been finished by the next KVM_RUN
/// (`arch.complete_userspace_io` was set). It is re-armed before the vCPU runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInFlight {
    /// KVM_EXIT_*: IO 2, MMIO 6, …
    pub reason: u32,
    /// Name of the completion function, e.g. `complete_fast_pio_out`.
    pub completion: String,
    /// An MMIO write: what of it was to follow the piece in the kvm_run page,
    /// with that piece in front. Empty where nothing follows it.
    #[serde(default)]
    pub mmio_write: Vec<MmioPart>,
    /// An MMIO read: what the VMM had answered within the same instruction
    /// before the piece in the kvm_run page, in order.
    #[serde(default)]
    pub mmio_answered: Blob,
    /// Why it cannot be brought about again, where that is known.
    #[serde(default)]
    pub refused: Option<String>,
}

/// Part of an MMIO access that lies in one page; the VMM gets it in pieces of
/// at most 8 bytes (`struct kvm_mmio_fragment`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioPart {
    /// Guest physical.
    #[serde(with = "u64_hex")]
    pub address: u64,
    pub data: Blob,
}
