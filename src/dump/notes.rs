//! The notes of a dump: VMCOREINFO, and the registers of each CPU.

/// What the dump says of one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuNote {
    /// From the `CORE` note `NT_PRSTATUS`, left by the panicking kernel or by QEMU.
    pub prstatus: Option<PrStatus>,
    /// From the `QEMU` note, in dumps that QEMU made.
    pub qemu: Option<QemuCpuState>,
}

/// The parts of `struct elf_prstatus` that mean something in a kernel's dump.
/// Linux include/linux/elfcore.h, 336 bytes on x86-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrStatus {
    /// PID of the task on the CPU when a kernel wrote the note; CPU number + 1 when QEMU did.
    pub pid: i32,
    /// Registers at the crash.
    pub regs: UserRegs,
}

/// `struct user_regs_struct` of x86-64, 27 words of 8 bytes. Linux arch/x86/include/asm/user_64.h.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    pub ds: u64,
    pub es: u64,
    pub fs: u64,
    pub gs: u64,
}

/// One segment register as QEMU writes it. QEMU target/i386/arch_dump.c, `QEMUCPUSegment`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QemuSegment {
    /// Selector.
    pub selector: u32,
    /// Limit in bytes.
    pub limit: u32,
    /// Attributes, as in the second word of a descriptor.
    pub flags: u32,
    /// Linear base address.
    pub base: u64,
}

/// A CPU's state in a `QEMU` note. QEMU target/i386/arch_dump.c, `QEMUCPUState`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QemuCpuState {
    pub version: u32,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8_to_r15: [u64; 8],
    pub rip: u64,
    pub rflags: u64,
    pub cs: QemuSegment,
    pub ds: QemuSegment,
    pub es: QemuSegment,
    pub fs: QemuSegment,
    pub gs: QemuSegment,
    pub ss: QemuSegment,
    pub ldt: QemuSegment,
    pub tr: QemuSegment,
    pub gdt: QemuSegment,
    pub idt: QemuSegment,
    /// CR0 to CR4; CR1 is always 0.
    pub cr: [u64; 5],
    /// `MSR_KERNEL_GS_BASE`, only in notes from QEMU 2.7 on.
    pub kernel_gs_base: Option<u64>,
}
