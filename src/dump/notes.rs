//! The notes of a dump: VMCOREINFO, and the registers of each CPU.
//!
//! A note is three u32 (length of the name, length of the content, type), the name, the content;
//! both padded to 4 bytes, in dumps of 64-bit machines too.

/// Most bytes of notes that are read: 8192 CPUs with a kernel's and QEMU's note each need 7 MB.
pub(super) const MAX_NOTES_SIZE: u64 = 64 << 20;

// Types of `CORE` notes. Linux include/uapi/linux/elf.h
const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_TASKSTRUCT: u32 = 4;
const NT_AUXV: u32 = 6;

/// Everything that the notes say.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub vmcoreinfo: Option<String>,
    pub cpus: Vec<CpuNote>,
    /// The machine ran under Xen, or was a Xen guest.
    pub xen: bool,
    /// VirtualBox wrote the dump of one of its guests.
    pub virtualbox: bool,
    /// The dump is of a process: only those have an auxiliary vector.
    pub process: bool,
    /// Only /proc/kcore has a copy of a `task_struct`.
    pub kcore: bool,
}

impl Notes {
    /// Reads notes up to the first that is malformed; nothing behind it can be found.
    pub fn parse(mut bytes: &[u8]) -> Notes {
        let mut notes = Notes::default();
        let mut prpsinfo = false;
        let (mut prstatus, mut qemu) = (Vec::new(), Vec::new());
        while let Some((name, kind, content, rest)) = split_note(bytes) {
            match (name, kind) {
                (b"CORE", NT_PRSTATUS) => prstatus.extend(PrStatus::parse(content)),
                (b"CORE", NT_PRPSINFO) => prpsinfo = true,
                (b"CORE", NT_TASKSTRUCT) => notes.kcore = true,
                (b"CORE", NT_AUXV) => notes.process = true,
                (b"QEMU", 0) => qemu.extend(QemuCpuState::parse(content)),
                (b"VMCOREINFO", _) if notes.vmcoreinfo.is_none() => {
                    notes.vmcoreinfo = Some(vmcoreinfo_text(content));
                }
                (b"VBCORE" | b"VBCPU", _) => notes.virtualbox = true,
                (b"VMCOREINFO_XEN" | b"Xen" | b"XEN CORE", _) => notes.xen = true,
                _ => {}
            }
            bytes = rest;
        }
        notes.process |= prpsinfo && !notes.kcore;
        // QEMU writes first all of the one kind, then all of the other, in the same order.
        let (mut prstatus, mut qemu) = (prstatus.into_iter(), qemu.into_iter());
        loop {
            match (prstatus.next(), qemu.next()) {
                (None, None) => break notes,
                (prstatus, qemu) => notes.cpus.push(CpuNote { prstatus, qemu }),
            }
        }
    }
}

/// The text of a VMCOREINFO note; it may be padded with NULs.
pub(super) fn vmcoreinfo_text(content: &[u8]) -> String {
    let text = content.split(|&b| b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Name (without its NUL), type and content of a note, and what follows it.
type Note<'a> = (&'a [u8], u32, &'a [u8], &'a [u8]);

/// Takes the first note off.
fn split_note(bytes: &[u8]) -> Option<Note<'_>> {
    let mut words = Words(bytes);
    let (name_len, content_len, kind) = (words.u32()?, words.u32()?, words.u32()?);
    let name = words.take(usize::try_from(name_len).ok()?)?;
    let content = words.take(usize::try_from(content_len).ok()?)?;
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    if name.is_empty() && content.is_empty() {
        // Padding.
        return None;
    }
    Some((name, kind, content, words.0))
}

/// Takes little-endian words off the front.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// `len` bytes, and the padding to 4 behind them; the last may lack its padding.
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.0.get(..len)?;
        self.0 = self
            .0
            .get(len.checked_next_multiple_of(4)?..)
            .unwrap_or_default();
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

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

impl PrStatus {
    /// Offsets from Linux include/linux/elfcore.h on x86-64: `elf_prstatus_common` is 112 bytes,
    /// with `pr_pid` at 32. A 32-bit note (QEMU writes it for a CPU not yet in long mode) is
    /// shorter, and passed over.
    fn parse(content: &[u8]) -> Option<PrStatus> {
        let pid = i32::from_le_bytes(content.get(32..36)?.try_into().ok()?);
        let mut words = Words(content.get(112..112 + 27 * 8)?);
        let mut next = || words.u64();
        let regs = UserRegs {
            r15: next()?,
            r14: next()?,
            r13: next()?,
            r12: next()?,
            rbp: next()?,
            rbx: next()?,
            r11: next()?,
            r10: next()?,
            r9: next()?,
            r8: next()?,
            rax: next()?,
            rcx: next()?,
            rdx: next()?,
            rsi: next()?,
            rdi: next()?,
            orig_rax: next()?,
            rip: next()?,
            cs: next()?,
            rflags: next()?,
            rsp: next()?,
            ss: next()?,
            fs_base: next()?,
            gs_base: next()?,
            ds: next()?,
            es: next()?,
            fs: next()?,
            gs: next()?,
        };
        Some(PrStatus { pid, regs })
    }
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

impl QemuCpuState {
    fn parse(content: &[u8]) -> Option<QemuCpuState> {
        let mut words = Words(content);
        let version = words.u32()?;
        let _size = words.u32()?;
        let mut state = QemuCpuState {
            version,
            rax: words.u64()?,
            rbx: words.u64()?,
            rcx: words.u64()?,
            rdx: words.u64()?,
            rsi: words.u64()?,
            rdi: words.u64()?,
            rsp: words.u64()?,
            rbp: words.u64()?,
            ..QemuCpuState::default()
        };
        for register in &mut state.r8_to_r15 {
            *register = words.u64()?;
        }
        state.rip = words.u64()?;
        state.rflags = words.u64()?;
        for segment in [
            &mut state.cs,
            &mut state.ds,
            &mut state.es,
            &mut state.fs,
            &mut state.gs,
            &mut state.ss,
            &mut state.ldt,
            &mut state.tr,
            &mut state.gdt,
            &mut state.idt,
        ] {
            segment.selector = words.u32()?;
            segment.limit = words.u32()?;
            segment.flags = words.u32()?;
            let _pad = words.u32()?;
            segment.base = words.u64()?;
        }
        for register in &mut state.cr {
            *register = words.u64()?;
        }
        state.kernel_gs_base = words.u64();
        Some(state)
    }
}
