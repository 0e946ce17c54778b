//! How much of a process's memory the dump holds, and where the rest was.

use crate::dump::{FrameSet, Missing, PageKind, PhysicalMemory};
use crate::kernel::{AddressSpace, Entry, Kernel, KernelError};
use crate::task::{Whereabouts, frames_at_most, residency};
use serde::Serialize;
use std::ops::ControlFlow;

/// Pages of an address space by where they were and what the dump has of them. 4 KiB pages. Those
/// that are `not_ram`, `on_file` or `untouched` are none that the dump should hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// In memory at the crash, and in the dump.
    pub present: u64,
    /// Of these, pages of zeros that are not in the dump on their own.
    pub zero: u64,
    /// Left out by makedumpfile's level.
    pub filtered: u64,
    /// Beyond the end of a dump that was cut.
    pub truncated: u64,
    /// In the dump, and damaged there. Known only of pages that were read.
    pub corrupt: u64,
    /// In swap.
    pub swapped: u64,
    /// Behind page tables that cannot be read.
    pub unknown: u64,
    /// At addresses that the dump does not take for memory, and no device's; or a guest runs there.
    pub elsewhere: u64,
    /// Memory of a device.
    pub not_ram: u64,
    /// In a file on a disk, unchanged.
    pub on_file: u64,
    /// Never touched.
    pub untouched: u64,
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
    /// Its structures, or pages of it, cannot be read.
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
        if self.unknown > 0 || self.corrupt > 0 {
            State::Unreadable
        } else if self.truncated > 0 {
            State::Truncated
        } else if self.filtered > 0 {
            State::Filtered
        } else if self.swapped > 0 || self.elsewhere > 0 {
            State::Partial
        } else {
            State::Whole
        }
    }

    /// Pages that were in memory or swap: those that a restore needs.
    pub fn total(&self) -> u64 {
        let states = [
            self.present,
            self.filtered,
            self.truncated,
            self.corrupt,
            self.swapped,
            self.unknown,
            self.elsewhere,
        ];
        states.into_iter().fold(0, u64::saturating_add)
    }

    /// Both together.
    pub fn and(&self, other: &Coverage) -> Coverage {
        Coverage {
            present: self.present.saturating_add(other.present),
            zero: self.zero.saturating_add(other.zero),
            filtered: self.filtered.saturating_add(other.filtered),
            truncated: self.truncated.saturating_add(other.truncated),
            corrupt: self.corrupt.saturating_add(other.corrupt),
            swapped: self.swapped.saturating_add(other.swapped),
            unknown: self.unknown.saturating_add(other.unknown),
            elsewhere: self.elsewhere.saturating_add(other.elsewhere),
            not_ram: self.not_ram.saturating_add(other.not_ram),
            on_file: self.on_file.saturating_add(other.on_file),
            untouched: self.untouched.saturating_add(other.untouched),
        }
    }

    /// In a dump that leaves out pages of zeros like those that it filters, and filters no others,
    /// these were zeros.
    pub(super) fn left_out_were_zeros(&mut self) {
        self.present = self.present.saturating_add(self.filtered);
        self.zero = self.zero.saturating_add(self.filtered);
        self.filtered = 0;
    }

    /// Counts `count` page frames from `first` on.
    fn add_frames(
        &mut self,
        memory: &dyn PhysicalMemory,
        corrupt: &FrameSet,
        first: u64,
        count: u64,
    ) {
        for pfn in first..first.saturating_add(count) {
            match memory.page_kind(pfn) {
                PageKind::Stored if corrupt.contains(pfn) => self.corrupt += 1,
                PageKind::Stored => self.present += 1,
                PageKind::Zero => {
                    self.present += 1;
                    self.zero += 1;
                }
                PageKind::Damaged => self.corrupt += 1,
                PageKind::Missing(Missing::Filtered) => self.filtered += 1,
                PageKind::Missing(Missing::Truncated) => self.truncated += 1,
                PageKind::Missing(Missing::NotRam | Missing::InUse) => self.elsewhere += 1,
            }
        }
    }

    fn add(
        &mut self,
        memory: &dyn PhysicalMemory,
        corrupt: &FrameSet,
        pages: u64,
        at: Whereabouts,
    ) {
        match at {
            Whereabouts::Frames(first) => self.add_frames(memory, corrupt, first, pages),
            Whereabouts::Packed => self.present = self.present.saturating_add(pages),
            Whereabouts::Zero => {
                self.present = self.present.saturating_add(pages);
                self.zero = self.zero.saturating_add(pages);
            }
            Whereabouts::Swapped => self.swapped = self.swapped.saturating_add(pages),
            Whereabouts::OnFile => self.on_file = self.on_file.saturating_add(pages),
            Whereabouts::Untouched => self.untouched = self.untouched.saturating_add(pages),
            Whereabouts::Device => self.not_ram = self.not_ram.saturating_add(pages),
            Whereabouts::Unknown(Some(Missing::Truncated)) => {
                self.truncated = self.truncated.saturating_add(pages)
            }
            Whereabouts::Unknown(Some(Missing::Filtered)) => {
                self.filtered = self.filtered.saturating_add(pages)
            }
            Whereabouts::Unknown(_) => self.unknown = self.unknown.saturating_add(pages),
        }
    }
}

/// At a glance: what the page tables of the process whose `task_struct` is at `task` lead to. Pages
/// that are in a file as well count like others; memory that is not RAM does not count.
///
/// # Errors
/// When its `mm_struct` or its page tables cannot be read; a process without
/// memory (a kernel thread, a zombie) has an empty coverage.
pub(super) fn at_a_glance(
    kernel: &Kernel,
    corrupt: &FrameSet,
    task: u64,
) -> Result<Coverage, KernelError> {
    let Some(mm) = kernel.object("task_struct", task)?.follow_opt("mm")? else {
        return Ok(Coverage::default());
    };
    let mut coverage = Coverage::default();
    let memory = kernel.memory();
    let mut left = frames_at_most(kernel);
    AddressSpace::new(kernel, mm.ptr("pgd")?)?.walk(0, 1 << 56, |mapping| {
        let pages = mapping.len / 4096;
        match mapping.entry {
            Entry::Present(_) if pages > left => {
                // Page tables in circles.
                coverage.unknown += pages;
                return ControlFlow::Break(());
            }
            Entry::Present(present) => {
                left -= pages;
                coverage.add_frames(&**memory, corrupt, present.pfn, pages);
            }
            Entry::NonPresent { .. } => coverage.swapped += pages,
            Entry::Unreadable(_) => coverage.unknown += pages,
        }
        ControlFlow::Continue(())
    })?;
    coverage.elsewhere = 0;
    Ok(coverage)
}

/// With care, area by area: of the memory within `inside` (ranges of addresses, in order), and of
/// the rest.
///
/// # Errors
/// When its `mm_struct`, its areas or its page tables cannot be read.
pub(super) fn with_care(
    kernel: &Kernel,
    corrupt: &FrameSet,
    task: u64,
    inside: &[(u64, u64)],
) -> Result<(Coverage, Coverage), KernelError> {
    let (mut within, mut rest) = (Coverage::default(), Coverage::default());
    let memory = kernel.memory();
    residency(kernel, task, inside, |pages, is_within, at| {
        let counted = if is_within { &mut within } else { &mut rest };
        counted.add(&**memory, corrupt, pages, at);
    })?;
    Ok((within, rest))
}
