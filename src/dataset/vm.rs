//! A KVM virtual machine: what its vCPUs share.

use super::hex::u64_hex;
use super::{Blob, ObjectId, Vcpu};
use serde::{Deserialize, Serialize};

/// A VM (`struct kvm`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vm {
    /// Address of `struct kvm`.
    pub id: ObjectId,
    /// PID of the process that owns it (`kvm.userspace_pid`).
    pub pid: i32,
    /// Name, from the VMM's command line where it says one (`-name`).
    pub name: Option<String>,
    /// UUID, from the VMM's command line where it says one.
    pub uuid: Option<String>,
    /// `svm` or `vmx`.
    pub vendor: String,
    /// KVM_CREATE_VM's argument; 0 before Linux 6.8.
    pub vm_type: u64,
    pub memslots: Vec<Memslot>,
    pub irqchip: Irqchip,
    pub pit: Option<Pit>,
    /// KVM_SET_GSI_ROUTING's table.
    pub routes: Vec<IrqRoute>,
    pub irqfds: Vec<IrqFd>,
    pub ioeventfds: Vec<IoEventFd>,
    pub coalesced_zones: Vec<CoalescedZone>,
    pub clock: VmClock,
    /// `arch.default_tsc_khz`. kHz; 0 when unknown.
    pub default_tsc_khz: u32,
    pub caps: VmCaps,
    /// KVM_SET_TSS_ADDR / KVM_SET_IDENTITY_MAP_ADDR where they were made
    /// (Intel only).
    pub tss_addr: Option<u64>,
    pub identity_map_addr: Option<u64>,
    /// In the order of `vcpu_idx`.
    pub vcpus: Vec<Vcpu>,
}

/// One memslot of the user's (not KVM's internal ones).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memslot {
    /// Slot number; the address space is in `address_space`.
    pub slot: u16,
    /// 0, or 1 for SMM.
    pub address_space: u16,
    /// KVM_MEM_LOG_DIRTY_PAGES 1, KVM_MEM_READONLY 2.
    pub flags: u32,
    /// Guest physical address. Bytes.
    #[serde(with = "u64_hex")]
    pub guest_address: u64,
    /// Bytes; `npages` × 4096.
    #[serde(with = "u64_hex")]
    pub size: u64,
    /// Address in the VMM.
    #[serde(with = "u64_hex")]
    pub user_address: u64,
}

/// Interrupt controllers in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub enum Irqchip {
    /// All in user space.
    None,
    /// LAPICs in the kernel, IOAPIC and PIC in user space.
    Split { ioapic_pins: u32 },
    /// All in the kernel.
    Kernel {
        pics: Box<[Pic; 2]>,
        ioapic: Box<IoApic>,
    },
}

/// An i8259 (`struct kvm_pic_state`, 16 bytes, in its order).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic {
    pub bytes: [u8; 16],
}

/// An IOAPIC (`struct kvm_ioapic_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    #[serde(with = "u64_hex")]
    pub base_address: u64,
    pub ioregsel: u32,
    pub id: u32,
    pub irr: u32,
    pub redirection: [u64; 24],
}

/// An i8254 (`struct kvm_pit_state2`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pit {
    pub channels: [PitChannel; 3],
    pub flags: u32,
    /// KVM_REINJECT_CONTROL.
    pub reinject: bool,
    /// KVM_CREATE_PIT2's flags (KVM_PIT_SPEAKER_DUMMY 1).
    pub create_flags: u32,
}

/// `struct kvm_pit_channel_state`, less its load time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitChannel {
    pub count: u32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    /// Nanoseconds of CLOCK_MONOTONIC (the dead host's) when the count was loaded.
    pub count_load_time: i64,
}

/// One route of an interrupt line (GSI).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqRoute {
    pub gsi: u32,
    pub target: IrqRouteTarget,
}

/// Where a GSI leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IrqRouteTarget {
    /// Chip 0, 1: PICs; 2: IOAPIC.
    Irqchip {
        chip: u32,
        pin: u32,
    },
    Msi {
        address: u64,
        data: u32,
        devid: u32,
        flags: u32,
    },
    HypervSint {
        vcpu: u32,
        sint: u32,
    },
}

/// An eventfd that raises an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqFd {
    pub gsi: u32,
    /// `struct eventfd_ctx`'s identity (`FileKind::EventFd::context`).
    pub eventfd: ObjectId,
    /// The resample eventfd of a level-triggered line.
    pub resample: Option<ObjectId>,
}

/// An eventfd that a guest's write signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoEventFd {
    #[serde(with = "u64_hex")]
    pub address: u64,
    /// Bytes; 0 is any length.
    pub len: u32,
    /// Port I/O rather than MMIO.
    pub pio: bool,
    /// Value that must be written; `None` is any.
    pub datamatch: Option<u64>,
    pub eventfd: ObjectId,
}

/// A range whose writes are batched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoalescedZone {
    #[serde(with = "u64_hex")]
    pub address: u64,
    pub size: u32,
    pub pio: bool,
}

/// kvmclock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClock {
    /// What KVM_GET_CLOCK would have said at the crash. Nanoseconds.
    pub clock_ns: u64,
    /// CLOCK_REALTIME of the dead host at that instant, where the guest's
    /// clocks are to catch up with the time since. Nanoseconds since 1970.
    #[serde(default)]
    pub realtime_ns: Option<i64>,
}

/// What was turned on for the whole VM by KVM_ENABLE_CAP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmCaps {
    /// KVM_CAP_X2APIC_API: KVM_X2APIC_API_USE_32BIT_IDS 1, DISABLE_BROADCAST_QUIRK 2.
    pub x2apic_api: u64,
    /// KVM_CAP_X86_DISABLE_EXITS: MWAIT 1, HLT 2, PAUSE 4, CSTATE 8.
    pub disabled_exits: u64,
    /// KVM_CAP_DISABLE_QUIRKS2.
    pub disabled_quirks: u64,
    /// KVM_CAP_X86_USER_SPACE_MSR.
    pub user_space_msr_mask: u64,
    pub exception_payload: bool,
    pub triple_fault_event: bool,
    pub bus_lock_exit: bool,
    /// KVM_CAP_X86_NOTIFY_VMEXIT: window << 32 | flags.
    pub notify_vmexit: u64,
    /// KVM_CAP_EXIT_HYPERCALL.
    pub exit_hypercall: u64,
    pub exit_on_emulation_failure: bool,
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub manual_dirty_log_protect: u64,
    /// KVM_CAP_DIRTY_LOG_RING. Bytes.
    pub dirty_ring_size: u32,
    /// KVM_SET_BOOT_CPU_ID.
    pub bsp_vcpu_id: u32,
    /// KVM_CAP_MAX_VCPU_ID; 0 when it was not set.
    pub max_vcpu_ids: u32,
    /// KVM_CAP_HALT_POLL. Nanoseconds; `None`: the module's default.
    pub max_halt_poll_ns: Option<u32>,
    /// KVM_CAP_MSR_PLATFORM_INFO.
    pub guest_can_read_msr_platform_info: bool,
    /// KVM_CAP_PMU_CAPABILITY: KVM_PMU_CAP_DISABLE.
    #[serde(default)]
    pub disable_pmu: bool,
    /// KVM_CAP_VM_DISABLE_NX_HUGE_PAGES.
    #[serde(default)]
    pub disable_nx_huge_pages: bool,
    /// KVM_X86_SET_MSR_FILTER, after `user_space_msr_mask`. QEMU always sets one.
    #[serde(default)]
    pub msr_filter: Option<MsrFilter>,
    /// KVM_SET_PMU_EVENT_FILTER.
    #[serde(default)]
    pub pmu_event_filter: Option<PmuEventFilter>,
}

/// Which performance events the guest may count (`struct kvm_pmu_event_filter`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmuEventFilter {
    /// KVM_PMU_EVENT_ALLOW 0, KVM_PMU_EVENT_DENY 1.
    pub action: u32,
    pub fixed_counter_bitmap: u32,
    /// KVM_PMU_EVENT_FLAG_MASKED_EVENTS 1.
    pub flags: u32,
    /// At most 300.
    pub events: Vec<u64>,
}

/// Which MSRs the guest may touch without the VMM (`struct kvm_msr_filter`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrFilter {
    /// What holds for MSRs in no range: allowed (KVM_MSR_FILTER_DEFAULT_ALLOW), or denied.
    pub default_allow: bool,
    /// At most 16.
    pub ranges: Vec<MsrFilterRange>,
}

/// One range of MSRs (`struct kvm_msr_filter_range`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrFilterRange {
    /// KVM_MSR_FILTER_READ 1, KVM_MSR_FILTER_WRITE 2.
    pub flags: u32,
    /// First MSR.
    pub base: u32,
    /// MSRs in it.
    pub count: u32,
    /// One bit for each MSR, 1 = allowed; `count` bits, rounded up to whole 64-bit words.
    pub bitmap: Blob,
}
