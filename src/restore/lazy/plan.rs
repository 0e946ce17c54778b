//! What of a dataset arrives later, and whether anything does.

use super::{advice, choice, open};
use crate::dataset::{Dataset, MsrEntry, ObjectId, Process, SharedMemory, Vcpu, Vma};
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
    /// Why all is eager, or all that is shared, although it need not be.
    pub why_not: Option<String>,
}

/// A guest that cannot bear asynchronous page faults, which it has turned on: Linux with `nolapic`
/// handles their interrupt and never ends it. On a live host that happens when its memory is
/// swapped; while memory arrives, it would at once.
fn waits_for_ever(dataset: &Dataset) -> Option<&str> {
    let bears_none = |vcpu: &Vcpu| {
        let lapic = vcpu.lapic.as_ref().map(|lapic| &lapic.regs.0[..]);
        asks_in_vain(&vcpu.msrs, lapic.unwrap_or_default())
    };
    let mut vms = dataset.vms.iter();
    let vm = vms.find(|vm| vm.vcpus.iter().any(bears_none));
    vm.map(|vm| vm.name.as_deref().unwrap_or("the guest"))
}

/// A vCPU is to be told of pages by an interrupt of a local APIC that its guest does not drive.
fn asks_in_vain(msrs: &[MsrEntry], lapic: &[u8]) -> bool {
    /// MSR_KVM_ASYNC_PF_EN: enabled, and told by interrupt. Linux arch/x86/include/uapi/asm/kvm_para.h.
    const ASYNC_PF: u32 = 0x4b56_4d02;
    const BY_INTERRUPT: u64 = 1 | 1 << 3;
    /// The local APIC's entries for its timer and for errors, of which who drives it uses one.
    const ENTRIES: [usize; 2] = [0x320, 0x370];
    const MASKED: u8 = 1;
    let mut msrs = msrs.iter();
    // Bit 16.
    let masked = |at: usize| lapic.get(at + 2).is_some_and(|b| b & MASKED != 0);
    msrs.any(|m| m.index == ASYNC_PF && m.value & BY_INTERRUPT == BY_INTERRUPT)
        && ENTRIES.into_iter().all(masked)
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
        let memories: Vec<_> = memories
            .filter(|m| choice::is_lazy_memory(dataset, m))
            .collect();
        let heard = match memories.is_empty() {
            true => Ok(()),
            false => advice::can_be_heard().map_err(|error| {
                format!(
                    "this host does not tell what gives shared memory back (the tracepoint of \
                     madvise): {error}"
                )
            }),
        };
        for memory in memories.iter().filter(|_| heard.is_ok()) {
            plan.memories.push(memory.id);
            bytes = bytes.saturating_add(choice::bytes(&memory.pages));
        }
        plan.why_not = heard.clone().err();
        let eager = |why: String| Self {
            why_not: Some(why),
            ..Self::default()
        };
        if bytes == 0 {
            let none = || "it has no memory that could arrive later".into();
            return Ok(eager(heard.err().unwrap_or_else(none)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ends_no_interrupt_cannot_be_told_by_one() {
        let asked = |value| {
            [MsrEntry {
                index: 0x4b56_4d02,
                value,
            }]
        };
        // As nolapic leaves it: all entries masked. As whoever drives it has it: that of errors is not.
        let mut lapic = [0; 0x400];
        (lapic[0x322], lapic[0x372]) = (1, 1);
        assert!(asks_in_vain(&asked(0x1000_0009), &lapic));
        // Told by an exception, or not at all.
        assert!(!asks_in_vain(&asked(0x1000_0001), &lapic));
        assert!(!asks_in_vain(&asked(8), &lapic));
        assert!(!asks_in_vain(&[], &lapic));
        for driven in [0x322, 0x372] {
            let mut lapic = lapic;
            lapic[driven] = 0;
            assert!(!asks_in_vain(&asked(0x1000_0009), &lapic));
        }
        // A guest without one has it in its VMM.
        assert!(!asks_in_vain(&asked(0x1000_0009), &[]));
    }
}
