//! What a CPU itself held when it stopped, where somebody wrote it down.
//!
//! A dying kernel saves each CPU's general registers (`crash_notes`) and nothing else. The rest comes
//! from the keeper, if it was loaded ([`super::keeper`]), or from a hypervisor that the machine ran
//! under: the notes of a dump that QEMU made, or the text of its `info registers -a`
//! ([`super::cpu_state_text`]).

use super::cpu_state_text::CpuText;
use super::{Kernel, KernelError, XsaveLayout, keeper};
use crate::dump::{CpuNote, QemuCpuState};

/// What one CPU held.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuState {
    /// Linux's number of it.
    pub cpu: u32,
    /// Who wrote it down.
    pub source: CpuSource,
    /// The thread that ran on it, where the source says.
    pub thread: Option<CpuThread>,
    /// The XSAVE area, in the standard format.
    pub fpu: Option<Vec<u8>>,
    /// XCR0 as it was loaded: a guest's, where KVM had not put back the host's.
    pub xcr0: Option<u64>,
    /// The protection-key rights that were in force.
    pub pkru: Option<u32>,
    /// DR0 to DR3.
    pub debug: Option<[u64; 4]>,
    /// User mode's FS and GS bases.
    pub user_bases: Option<(u64, u64)>,
    /// What the TSC and CLOCK_MONOTONIC (nanoseconds) said when it was written down.
    pub time: Option<(u64, u64)>,
    /// General, segment and control registers: the CPU's own at that instant, whoever ran on it.
    pub registers: Option<Box<QemuCpuState>>,
}

/// The thread that a CPU ran when its state was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuThread {
    /// Its `task_struct`.
    pub task: u64,
    /// Its number in the initial PID namespace.
    pub pid: i32,
    /// `TIF_NEED_FPU_LOAD`: the registers in the CPU were not its own.
    pub fpu_in_memory: bool,
}

/// Who wrote down what a CPU held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuSource {
    /// The keeper, as the kernel died.
    Keeper,
    /// The notes of a dump that a hypervisor made.
    Note,
    /// `info registers -a` of a hypervisor.
    Text,
}

impl std::fmt::Display for CpuSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CpuSource::Keeper => "the keeper",
            CpuSource::Note => "the dump's CPU notes",
            CpuSource::Text => "the hypervisor's registers (--cpu-state)",
        })
    }
}

impl CpuState {
    /// Nothing known yet of that CPU.
    #[must_use]
    pub fn empty(cpu: u32, source: CpuSource) -> CpuState {
        CpuState {
            cpu,
            source,
            thread: None,
            fpu: None,
            xcr0: None,
            pkru: None,
            debug: None,
            user_bases: None,
            time: None,
            registers: None,
        }
    }
}

/// The CPUs of a dump that QEMU made, in its order; those without QEMU's own note are left out.
#[must_use]
pub fn from_notes(notes: &[CpuNote]) -> Vec<CpuState> {
    (0_u32..)
        .zip(notes)
        .filter_map(|(cpu, note)| {
            Some(CpuState {
                registers: Some(Box::new(note.qemu?)),
                ..CpuState::empty(cpu, CpuSource::Note)
            })
        })
        .collect()
}

/// The CPUs of a text that QEMU printed. `layout` is that of their XSAVE areas.
#[must_use]
pub fn from_text(cpus: Vec<CpuText>, layout: &XsaveLayout) -> Vec<CpuState> {
    let state = |text: CpuText| CpuState {
        fpu: text.fpu.map(|fpu| layout.assemble(&fpu)),
        debug: Some(text.debug),
        registers: Some(Box::new(text.registers)),
        ..CpuState::empty(text.cpu, CpuSource::Text)
    };
    cpus.into_iter().map(state).collect()
}

/// Where a CPU was when the crash stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoppedAt {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// In user mode.
    pub user: bool,
}

/// Words of `struct pt_regs`.
const RIP: usize = 16;
const CS: usize = 17;
const RSP: usize = 19;

/// `cs` of user mode: its lowest two bits are the privilege level.
const PRIVILEGE: u64 = 3;

impl Kernel {
    /// What is known of a CPU beside what the kernel saved. `None`: nobody wrote anything down, or
    /// the CPU did not take part.
    ///
    /// # Errors
    /// When the keeper's record of it cannot be read, or contradicts itself.
    pub fn cpu_state(&self, cpu: u32) -> Result<Option<CpuState>, KernelError> {
        if let Some(keeper) = self.keeper()?
            && let Some(state) = keeper.state(self, cpu)?
        {
            return Ok(Some(state));
        }
        Ok(self.outside.iter().find(|state| state.cpu == cpu).cloned())
    }

    /// What TSC and CLOCK_MONOTONIC (nanoseconds) said when the last CPU was stopped, if the keeper
    /// was loaded.
    #[must_use]
    pub fn kept_time(&self) -> Option<(u64, u64)> {
        let cpus = self.cpus().unwrap_or_default();
        let states = cpus.into_iter().filter_map(|cpu| self.cpu_state(cpu).ok()?);
        states.filter_map(|state| state.time).max()
    }

    /// Whether the keeper was loaded.
    #[must_use]
    pub fn has_keeper(&self) -> bool {
        matches!(self.keeper(), Ok(Some(_)))
    }

    fn keeper(&self) -> Result<Option<&keeper::Keeper>, KernelError> {
        self.keeper
            .get_or_init(|| keeper::Keeper::find(self))
            .as_ref()
            .map(Option::as_ref)
            .map_err(Clone::clone)
    }

    /// Takes what a hypervisor said of the CPUs. Where two say something of one CPU, the later fills
    /// in and replaces.
    ///
    /// # Errors
    /// When its numbers of the CPUs are not Linux's: then nothing is taken.
    pub fn take_outside(&mut self, states: Vec<CpuState>) -> Result<(), KernelError> {
        for state in &states {
            self.check_number(state)?;
        }
        for state in states {
            match self.outside.iter_mut().find(|known| known.cpu == state.cpu) {
                None => self.outside.push(state),
                Some(known) => {
                    known.source = state.source;
                    known.fpu = state.fpu.or(known.fpu.take());
                    known.debug = state.debug.or(known.debug.take());
                    known.registers = known.registers.take().or(state.registers);
                }
            }
        }
        Ok(())
    }

    /// In the kernel, GS begins at the CPU's own per-CPU area; in user mode, the other GS does.
    fn check_number(&self, state: &CpuState) -> Result<(), KernelError> {
        let Some(registers) = &state.registers else {
            return Ok(());
        };
        let own = self.per_cpu(0, state.cpu)?;
        let bases = [
            Some(registers.gs.base),
            registers.kernel_gs_base.filter(|base| *base != 0),
        ];
        if bases.contains(&Some(own)) {
            return Ok(());
        }
        for other in self.cpus()?.into_iter().filter(|cpu| *cpu != state.cpu) {
            if bases.contains(&Some(self.per_cpu(0, other)?)) {
                return Err(KernelError::Damaged {
                    what: "a hypervisor's CPU registers",
                    addr: registers.gs.base,
                    detail: format!(
                        "CPU {} has the per-CPU area of Linux's CPU {other}",
                        state.cpu
                    ),
                });
            }
        }
        // Neither: a guest was running on it, or it was on its way into the kernel.
        Ok(())
    }

    /// Whether these registers of a CPU are the kernel's own, or its user mode's, by the per-CPU
    /// area; if not, a guest's (or those of the few instructions where GS is swapped).
    ///
    /// # Errors
    /// When there was no such CPU.
    pub fn has_host_gs(&self, cpu: u32, registers: &QemuCpuState) -> Result<bool, KernelError> {
        let own = self.per_cpu(0, cpu)?;
        let in_user_mode = u64::from(registers.cs.selector) & PRIVILEGE != 0;
        Ok(if in_user_mode {
            registers.kernel_gs_base == Some(own)
        } else {
            registers.gs.base == own
        })
    }

    /// What `cpu` had in its registers when the crash stopped it, from its note in `crash_notes`, which
    /// the kernel fills as it dies: in the order of `struct pt_regs`. `None` when there is no such note:
    /// this CPU did not answer, or the dump was taken from outside a kernel that never crashed.
    #[must_use]
    pub fn stopped_registers(&self, cpu: u32) -> Option<[u64; 21]> {
        // struct elf_note header, "CORE" padded to eight bytes, struct elf_prstatus.
        const DESCRIPTION: u64 = 20;
        const NT_PRSTATUS: u32 = 1;
        let notes = self.read_u64(self.symbol("crash_notes").ok()?).ok()?;
        let note = self.per_cpu(notes, cpu).ok()?;
        if self.read_u32(note.wrapping_add(8)).ok()? != NT_PRSTATUS {
            return None;
        }
        // A user_regs_struct, which begins as pt_regs does.
        let regs = self
            .offset_of("elf_prstatus", "pr_reg")
            .ok()?
            .wrapping_add(note)
            .wrapping_add(DESCRIPTION);
        let mut words = [0; 21];
        for (word, at) in words.iter_mut().zip((regs..).step_by(8)) {
            *word = self.read_u64(at).ok()?;
        }
        (words[RIP] != 0).then_some(words)
    }

    /// Where `cpu` was then.
    #[must_use]
    pub fn stopped_at(&self, cpu: u32) -> Option<StoppedAt> {
        let words = self.stopped_registers(cpu)?;
        Some(StoppedAt {
            rip: words[RIP],
            rsp: words[RSP],
            user: words[CS] & PRIVILEGE != 0,
        })
    }

    /// The same, or by what a hypervisor said of a machine that did not crash.
    #[must_use]
    pub fn stopped_anyhow(&self, cpu: u32) -> Option<StoppedAt> {
        self.stopped_at(cpu).or_else(|| {
            let state = self.outside.iter().find(|state| state.cpu == cpu)?;
            let registers = state.registers.as_deref()?;
            Some(StoppedAt {
                rip: registers.rip,
                rsp: registers.rsp,
                user: u64::from(registers.cs.selector) & PRIVILEGE != 0,
            })
        })
    }
}
