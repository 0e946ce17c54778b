//! What of a dataset arrives later, and whether anything does.

use super::{choice, open};
use crate::dataset::{Dataset, ObjectId, Process, SharedMemory, Vcpu, Vma};
use crate::restore::RestoreError;
use crate::restore::stub::Family;
use std::collections::BTreeSet;

/// When memory is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// All of it before the process runs.
    #[default]
    Eager,
    /// Most of it arrives while the process runs.
    Lazy,
    /// Lazily if this host can and it is worth it, else eagerly.
    LazyIfPossible,
}

/// From so much on it is worth it. Bytes.
const WORTH_IT: u64 = 32 << 20;

/// What arrives later.
#[derive(Debug, Default)]
pub struct Plan {
    /// Private memory: PIDs, and where VMAs start.
    vmas: BTreeSet<(i32, u64)>,
    pub(super) memories: Vec<ObjectId>,
    /// Why all is eager, although it need not be.
    pub why_not: Option<String>,
}

/// A guest that cannot bear asynchronous page faults, which it has turned on: Linux with `nolapic`
/// handles their interrupt and never ends it. On a live host that happens when its memory is
/// swapped; while memory arrives, it would at once.
fn waits_for_ever(dataset: &Dataset) -> Option<&str> {
    /// MSR_KVM_ASYNC_PF_EN: enabled, and told by interrupt. Linux arch/x86/include/uapi/asm/kvm_para.h.
    const ASYNC_PF: u32 = 0x4b56_4d02;
    const BY_INTERRUPT: u64 = 1 | 1 << 3;
    /// The local APIC's entries for its timer and for errors, of which who drives it uses one.
    const ENTRIES: [usize; 2] = [0x320, 0x370];
    const MASKED: u8 = 1;
    let is_undriven = |vcpu: &Vcpu| {
        let mut msrs = vcpu.msrs.iter();
        let asked = msrs.any(|m| m.index == ASYNC_PF && m.value & BY_INTERRUPT == BY_INTERRUPT);
        let regs = vcpu.lapic.as_ref().map(|lapic| &lapic.regs.0);
        // Bit 16.
        let masked = |at: usize| regs.and_then(|regs| regs.get(at + 2)).map(|b| b & MASKED);
        asked && ENTRIES.iter().all(|at| masked(*at) == Some(MASKED))
    };
    let vm = dataset
        .vms
        .iter()
        .find(|vm| vm.vcpus.iter().any(is_undriven));
    vm.map(|vm| vm.name.as_deref().unwrap_or("the guest"))
}

impl Plan {
    /// Decides for a dataset.
    ///
    /// # Errors
    /// It was demanded, and this host cannot.
    pub fn make(
        dataset: &Dataset,
        wanted: Memory,
        family: &mut Family<'_>,
    ) -> Result<Self, RestoreError> {
        if wanted == Memory::Eager {
            return Ok(Self::default());
        }
        let mut plan = Self::default();
        let mut bytes: u64 = 0;
        for process in &dataset.processes {
            for vma in process.mm.vmas.iter().filter(|v| choice::is_lazy(v)) {
                plan.vmas.insert((process.pid, vma.start));
                bytes = bytes.saturating_add(choice::bytes(&vma.pages));
            }
        }
        let memories = dataset.shared_memory.iter();
        for memory in memories.filter(|m| choice::is_lazy_memory(dataset, m)) {
            plan.memories.push(memory.id);
            bytes = bytes.saturating_add(choice::bytes(&memory.pages));
        }
        let eager = |why: String| Self {
            why_not: Some(why),
            ..Self::default()
        };
        if bytes == 0 {
            return Ok(eager("it has no memory that could arrive later".into()));
        }
        if let Some(name) = waits_for_ever(dataset) {
            let why = format!(
                "{name} asks KVM to tell it when a page has arrived by an interrupt, and ends none \
                 of its local APIC's: it would wait for the second page for ever"
            );
            if wanted == Memory::LazyIfPossible {
                return Ok(eager(why));
            }
            return Err(RestoreError::Refused {
                pid: family.process(0)?.pid,
                what: "its memory, while it runs,".into(),
                why,
                hint: "--memory eager",
            });
        }
        if wanted == Memory::LazyIfPossible && bytes < WORTH_IT {
            return Ok(eager(format!("{} MiB are there at once", bytes >> 20)));
        }
        // Asked of the stub that will need it: rights may differ in a container.
        let pid = family.process(0)?.pid;
        match open(family.leader(0)?, pid) {
            Ok(_) => {}
            Err(error) if wanted == Memory::LazyIfPossible => {
                let cause = std::error::Error::source(&error);
                let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
                return Ok(eager(format!(
                    "this host has no userfaultfd for it: {cause}"
                )));
            }
            Err(error) => return Err(error),
        }
        Ok(plan)
    }

    /// A VMA's content is not to be filled in.
    pub fn has(&self, process: &Process, vma: &Vma) -> bool {
        self.vmas.contains(&(process.pid, vma.start))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.vmas.is_empty() && self.memories.is_empty()
    }

    /// The same of a shared memory.
    pub fn has_memory(&self, memory: &SharedMemory) -> bool {
        self.memories.contains(&memory.id)
    }
}
