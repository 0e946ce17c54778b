//! How much of a process's memory the dump holds.

use crate::dump::{Missing, PageState};
use crate::kernel::{AddressSpace, Entry, Kernel, KernelError};
use serde::Serialize;
use std::ops::ControlFlow;

/// Pages of an address space by what the dump has of them. 4 KiB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// In memory at the crash, and in the dump.
    pub present: u64,
    /// Left out by makedumpfile's level.
    pub filtered: u64,
    /// Beyond the end of a dump that was cut.
    pub truncated: u64,
    /// In swap.
    pub swapped: u64,
    /// Behind page tables that cannot be read.
    pub unknown: u64,
}

/// STATE of a guest or process: a closed vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of its memory is in the dump.
    Whole,
    /// Some of it is elsewhere (swap).
    Partial,
    /// The dump's level left pages of it out.
    Filtered,
    /// The dump ends before some of it.
    Truncated,
    /// Its structures cannot be read.
    Unreadable,
    /// It is of a kind that cannot be restored.
    Unsupported,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Whole => "whole",
            Self::Partial => "partial",
            Self::Filtered => "filtered",
            Self::Truncated => "truncated",
            Self::Unreadable => "unreadable",
            Self::Unsupported => "unsupported",
        })
    }
}

impl Coverage {
    /// The one word for it.
    pub fn state(&self) -> State {
        if self.unknown > 0 {
            State::Unreadable
        } else if self.truncated > 0 {
            State::Truncated
        } else if self.filtered > 0 {
            State::Filtered
        } else if self.swapped > 0 {
            State::Partial
        } else {
            State::Whole
        }
    }

    /// Pages in all.
    pub fn total(&self) -> u64 {
        self.present + self.filtered + self.truncated + self.swapped + self.unknown
    }
}

/// Walks the page tables of the process whose `task_struct` is at `task`.
/// Pages of device memory (not RAM) do not count.
///
/// # Errors
/// When its `mm_struct` or its page tables cannot be read; a process without
/// memory (a kernel thread, a zombie) has an empty coverage.
pub fn of_task(kernel: &Kernel, task: u64) -> Result<Coverage, KernelError> {
    let Some(mm) = kernel.object("task_struct", task)?.follow_opt("mm")? else {
        return Ok(Coverage::default());
    };
    let mut coverage = Coverage::default();
    let memory = kernel.memory();
    AddressSpace::new(kernel, mm.ptr("pgd")?)?.walk(0, 1 << 56, |mapping| {
        match mapping.entry {
            Entry::Present(present) => {
                for pfn in present.pfn..present.pfn.saturating_add(mapping.len / 4096) {
                    match memory.page_state(pfn) {
                        PageState::Present => coverage.present += 1,
                        PageState::Missing(Missing::Filtered) => coverage.filtered += 1,
                        PageState::Missing(Missing::Truncated) => coverage.truncated += 1,
                        PageState::Missing(Missing::NotRam) => {}
                    }
                }
            }
            Entry::NonPresent { .. } => coverage.swapped += mapping.len / 4096,
            Entry::Unreadable(_) => coverage.unknown += mapping.len / 4096,
        }
        ControlFlow::Continue(())
    })?;
    Ok(coverage)
}
