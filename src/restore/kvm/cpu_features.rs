//! CPUID's feature bits: which of them a guest cannot do without.
//!
//! A guest has asked once, at its start, and relies on the answer for as long
//! as it lives. So a bit that this host lacks is one that it cannot do without,
//! whether or not its name is known here, but for those that are known to be
//! harmless: what KVM makes up by itself, and what tells of the CPU's manner
//! rather than of an instruction, a mode or a register.

use crate::dataset::CpuidEntry;
use kvm_bindings as kvm;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    pub fn of_guest(self, e: &CpuidEntry) -> u32 {
        match self {
            Self::Eax => e.eax,
            Self::Ebx => e.ebx,
            Self::Ecx => e.ecx,
            Self::Edx => e.edx,
        }
    }

    pub fn of_host(self, e: &kvm::kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => e.eax,
            Self::Ebx => e.ebx,
            Self::Ecx => e.ecx,
            Self::Edx => e.edx,
        }
    }
}

/// One register of CPUID that lists features.
pub(super) struct Leaf {
    pub function: u32,
    pub index: u32,
    pub register: Register,
    /// Names of bits, for people.
    pub names: &'static [(u32, &'static str)],
    /// Bits that say nothing of the host's CPU: KVM emulates them, or they
    /// follow the guest's own state or topology.
    pub made_up: u32,
    /// Bits that tell how the CPU does something; what the guest can do with
    /// it does not hang on them.
    pub describes: u32,
}

impl Leaf {
    pub const fn plain(function: u32, index: u32, register: Register) -> Self {
        Self {
            function,
            index,
            register,
            names: &[],
            made_up: 0,
            describes: 0,
        }
    }
}

impl Leaf {
    /// A bit without a name.
    pub fn bit(&self, bit: u32) -> String {
        let Self {
            function,
            index,
            register,
            ..
        } = self;
        format!("CPUID {function:#x}.{index} {register:?} bit {bit}")
    }
}

pub(super) const KVM_FEATURES: u32 = 0x4000_0001;

/// Intel SDM 2A, CPUID; AMD APM 3, appendix E.
pub(super) const FEATURES: &[Leaf] = &[
    Leaf {
        names: &[
            (0, "SSE3"),
            (1, "PCLMULQDQ"),
            (9, "SSSE3"),
            (12, "FMA"),
            (13, "CMPXCHG16B"),
            (17, "PCID"),
            (19, "SSE4.1"),
            (20, "SSE4.2"),
            (22, "MOVBE"),
            (23, "POPCNT"),
            (25, "AES"),
            (5, "VMX"),
            (26, "XSAVE"),
            (28, "AVX"),
            (29, "F16C"),
            (30, "RDRAND"),
        ],
        // MONITOR, x2APIC, TSC deadline, OSXSAVE, hypervisor.
        made_up: 1 << 3 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
        // Debug store, thermal monitor, its silicon's and its bus's ways.
        describes: 1 << 2 | 1 << 4 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 14 | 1 << 18,
        ..Leaf::plain(1, 0, Register::Ecx)
    },
    Leaf {
        names: &[
            (8, "CMPXCHG8B"),
            (23, "MMX"),
            (24, "FXSR"),
            (25, "SSE"),
            (26, "SSE2"),
        ],
        // MCE, APIC, MTRR, MCA, self-snoop, HTT.
        made_up: 1 << 7 | 1 << 9 | 1 << 12 | 1 << 14 | 1 << 27 | 1 << 28,
        // Serial number, debug store, ACPI's clock, thermal monitor, pending break.
        describes: 1 << 18 | 1 << 21 | 1 << 22 | 1 << 29 | 1 << 31,
        ..Leaf::plain(1, 0, Register::Edx)
    },
    Leaf {
        names: &[
            (0, "FSGSBASE"),
            (3, "BMI1"),
            (5, "AVX2"),
            (7, "SMEP"),
            (8, "BMI2"),
            (9, "ERMS"),
            (10, "INVPCID"),
            (16, "AVX512F"),
            (17, "AVX512DQ"),
            (18, "RDSEED"),
            (19, "ADX"),
            (20, "SMAP"),
            (23, "CLFLUSHOPT"),
            (24, "CLWB"),
            (28, "AVX512CD"),
            (29, "SHA"),
            (30, "AVX512BW"),
            (31, "AVX512VL"),
        ],
        made_up: 1 << 1, // TSC_ADJUST
        // FDP_EXCPTN_ONLY, no FPU segments; monitoring and allocation of caches.
        describes: 1 << 6 | 1 << 13 | 1 << 12 | 1 << 15,
        ..Leaf::plain(7, 0, Register::Ebx)
    },
    Leaf {
        names: &[
            (1, "AVX512_VBMI"),
            (3, "PKU"),
            (6, "AVX512_VBMI2"),
            (8, "GFNI"),
            (9, "VAES"),
            (10, "VPCLMULQDQ"),
            (11, "AVX512_VNNI"),
            (12, "AVX512_BITALG"),
            (14, "AVX512_VPOPCNTDQ"),
            (16, "5-level paging"),
            (22, "RDPID"),
        ],
        made_up: 1 << 4 | 1 << 2, // OSPKE; UMIP is emulated
        ..Leaf::plain(7, 0, Register::Ecx)
    },
    Leaf {
        names: &[
            (23, "AVX512_FP16"),
            (22, "AMX-BF16"),
            (24, "AMX"),
            (25, "AMX-INT8"),
            (14, "SERIALIZE"),
            (26, "SPEC_CTRL"),
            (27, "STIBP"),
            (28, "FLUSH_L1D"),
            (29, "ARCH_CAPABILITIES"),
            (31, "SSBD"),
        ],
        // Fast short moves, SRBDS_CTRL, MD_CLEAR, hybrid.
        describes: 1 << 4 | 1 << 9 | 1 << 10 | 1 << 15,
        ..Leaf::plain(7, 0, Register::Edx)
    },
    Leaf {
        names: &[
            (4, "AVX-VNNI"),
            (5, "AVX512_BF16"),
            (7, "CMPccXADD"),
            (21, "AMX-FP16"),
            (23, "AVX-IFMA"),
            (26, "LAM"),
        ],
        // Fast moves of no length, stores and compares.
        describes: 1 << 10 | 1 << 11 | 1 << 12,
        ..Leaf::plain(7, 1, Register::Eax)
    },
    Leaf {
        names: &[
            (4, "AVX-VNNI-INT8"),
            (5, "AVX-NE-CONVERT"),
            (14, "PREFETCHI"),
            (19, "AVX10"),
        ],
        ..Leaf::plain(7, 1, Register::Edx)
    },
    Leaf {
        // MCDT_NO, MONITOR_MITG_NO.
        describes: 1 << 5 | 1 << 7,
        ..Leaf::plain(7, 2, Register::Edx)
    },
    Leaf {
        names: &[
            (0, "XSAVEOPT"),
            (1, "XSAVEC"),
            (2, "XGETBV with ECX 1"),
            (3, "XSAVES"),
            (4, "XFD"),
        ],
        ..Leaf::plain(0xd, 1, Register::Eax)
    },
    Leaf {
        names: &[
            (0, "LAHF in long mode"),
            (2, "SVM"),
            (5, "LZCNT"),
            (6, "SSE4A"),
            (11, "XOP"),
            (16, "FMA4"),
            (23, "PERFCTR_CORE"),
        ],
        // Misaligned SSE, OS-visible workaround.
        describes: 1 << 7 | 1 << 9,
        // CMP_LEGACY, EXTAPIC, topology extensions.
        made_up: 1 << 1 | 1 << 3 | 1 << 22,
        ..Leaf::plain(0x8000_0001, 0, Register::Ecx)
    },
    Leaf {
        names: &[
            (11, "SYSCALL"),
            (20, "NX"),
            (26, "pages of 1 GiB"),
            (27, "RDTSCP"),
            (29, "long mode"),
            (30, "extended 3DNow!"),
            (31, "3DNow!"),
        ],
        made_up: 1 << 7 | 1 << 9 | 1 << 12 | 1 << 14,
        ..Leaf::plain(0x8000_0001, 0, Register::Edx)
    },
    Leaf {
        // Invariant TSC, and what follows from a core's state.
        describes: u32::MAX,
        ..Leaf::plain(0x8000_0007, 0, Register::Edx)
    },
    Leaf {
        names: &[
            (0, "CLZERO"),
            (4, "RDPRU"),
            (9, "WBNOINVD"),
            (12, "IBPB"),
            (14, "IBRS"),
            (15, "STIBP"),
            (24, "SSBD"),
            (25, "VIRT_SSBD"),
        ],
        // Error pointers, modes that are always on or preferred, flaws that it has not.
        describes: 1 << 2 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 26 | 1 << 29,
        ..Leaf::plain(0x8000_0008, 0, Register::Ebx)
    },
    Leaf {
        // Serialising LFENCE, null selectors, automatic IBRS and the like.
        describes: u32::MAX,
        ..Leaf::plain(0x8000_0021, 0, Register::Eax)
    },
    // KVM's paravirtual features. KVM_FEATURE_MSI_EXT_DEST_ID (bit 15) is the VMM's own promise:
    // QEMU sets it where the IOAPIC is in user space, KVM never offers it.
    Leaf {
        names: &[
            (0, "KVM's clock"),
            (3, "KVM's clock"),
            (4, "KVM's async page faults"),
            (5, "KVM's steal time"),
            (6, "KVM's EOI by memory"),
            (7, "KVM's halt wake-up"),
            (9, "KVM's TLB flush"),
            (11, "KVM's IPIs"),
            (12, "KVM's poll control"),
            (13, "KVM's yield"),
            (14, "KVM's async page faults by interrupt"),
        ],
        made_up: 1 << 15,
        // KVM_FEATURE_NOP_IO_DELAY, MMU_OP (gone), STEAL by preemption flag, stable clock.
        describes: 1 << 1 | 1 << 2 | 1 << 24,
        ..Leaf::plain(KVM_FEATURES, 0, Register::Eax)
    },
    // What a guest's own guests have. KVM fills it in only where it can.
    Leaf::plain(SVM_FEATURES, 0, Register::Edx),
];

/// Of a guest without SVM it says nothing.
pub(super) const SVM_FEATURES: u32 = 0x8000_000a;
