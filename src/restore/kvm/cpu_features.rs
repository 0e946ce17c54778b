//! CPUID's feature bits: which of them a guest cannot do without.

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
    /// Bits that a running guest cannot do without: instructions and modes.
    pub vital: &'static [(u32, &'static str)],
    /// Bits that say nothing of the host's CPU: KVM emulates them, or they
    /// follow the guest's own state or topology.
    pub made_up: u32,
}

impl Leaf {
    pub const fn plain(function: u32, index: u32, register: Register) -> Self {
        Self {
            function,
            index,
            register,
            vital: &[],
            made_up: 0,
        }
    }
}

pub(super) const KVM_SIGNATURE: u32 = 0x4000_0000;
pub(super) const KVM_FEATURES: u32 = 0x4000_0001;

/// Intel SDM 2A, CPUID; AMD APM 3, appendix E.
pub(super) const FEATURES: &[Leaf] = &[
    Leaf {
        vital: &[
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
            (26, "XSAVE"),
            (28, "AVX"),
            (29, "F16C"),
            (30, "RDRAND"),
        ],
        // MONITOR, x2APIC, TSC deadline, OSXSAVE, hypervisor.
        made_up: 1 << 3 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31,
        ..Leaf::plain(1, 0, Register::Ecx)
    },
    Leaf {
        vital: &[
            (8, "CMPXCHG8B"),
            (23, "MMX"),
            (24, "FXSR"),
            (25, "SSE"),
            (26, "SSE2"),
        ],
        // MCE, APIC, MTRR, MCA, self-snoop, HTT.
        made_up: 1 << 7 | 1 << 9 | 1 << 12 | 1 << 14 | 1 << 27 | 1 << 28,
        ..Leaf::plain(1, 0, Register::Edx)
    },
    Leaf {
        vital: &[
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
        ..Leaf::plain(7, 0, Register::Ebx)
    },
    Leaf {
        vital: &[
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
        vital: &[
            (23, "AVX512_FP16"),
            (22, "AMX-BF16"),
            (24, "AMX"),
            (25, "AMX-INT8"),
        ],
        ..Leaf::plain(7, 0, Register::Edx)
    },
    Leaf::plain(7, 1, Register::Eax),
    Leaf {
        vital: &[(0, "XSAVEOPT"), (1, "XSAVEC"), (3, "XSAVES")],
        ..Leaf::plain(0xd, 1, Register::Eax)
    },
    Leaf {
        vital: &[(0, "LAHF in long mode"), (5, "LZCNT"), (6, "SSE4A")],
        // CMP_LEGACY, EXTAPIC, topology extensions.
        made_up: 1 << 1 | 1 << 3 | 1 << 22,
        ..Leaf::plain(0x8000_0001, 0, Register::Ecx)
    },
    Leaf {
        vital: &[
            (11, "SYSCALL"),
            (20, "NX"),
            (26, "pages of 1 GiB"),
            (27, "RDTSCP"),
            (29, "long mode"),
        ],
        made_up: 1 << 7 | 1 << 9 | 1 << 12 | 1 << 14,
        ..Leaf::plain(0x8000_0001, 0, Register::Edx)
    },
    Leaf::plain(0x8000_0008, 0, Register::Ebx),
    // KVM's paravirtual features. KVM_FEATURE_MSI_EXT_DEST_ID (bit 15) is the VMM's own promise:
    // QEMU sets it where the IOAPIC is in user space, KVM never offers it.
    Leaf {
        made_up: 1 << 15,
        ..Leaf::plain(KVM_FEATURES, 0, Register::Eax)
    },
];
