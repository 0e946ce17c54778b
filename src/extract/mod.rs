//! Reads a dead host into datasets, and datasets from and to directories.
//!
//! This is where the reading side comes together: [`DeadHost`] opens a dump and
//! the kernel in it, [`DeadHost::dataset`] puts what [`crate::task`] and
//! [`crate::guest`] know of some processes into one [`Dataset`], and
//! [`DumpPages`] hands out their pages. [`directory`] does the same from files.

pub mod core;
pub mod coverage;
mod crash;
pub mod directory;
mod dump_pages;
pub mod in_place;
mod panic_lines;
mod zeros;

pub use crash::{Crash, LogLine};
pub use dump_pages::DumpPages;

use crate::dataset::{
    Dataset, FileKind, Host, ObjectId, Process, SCHEMA_VERSION, SyscallResume, Vm,
};
use crate::dump::{Dump, OpenError, Scan};
use crate::guest::{self, GuestError, GuestSummary};
use crate::kernel::{self, CpuTextError, Kernel, KernelError, XsaveLayout};
use crate::phases;
use crate::task::{self, ProcessSummary, TaskError, Together};
use coverage::{Coverage, State};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Why a dead host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The file is no dump that can be read.
    #[error(transparent)]
    Dump(#[from] OpenError),
    /// The dump does not say where its kernel is.
    #[error("the dump has no VMCOREINFO note, and its kernel is not to be found in its memory")]
    NoVmcoreinfo(#[source] KernelError),
    /// The kernel in it cannot be understood.
    #[error("the dead kernel cannot be read")]
    Kernel(#[from] KernelError),
    /// The dump ends before the kernel's own tables.
    #[error("the dump was cut short, and the dead kernel is in the part that is missing")]
    Cut(#[source] KernelError),
    /// A process cannot be read.
    #[error("a process cannot be read")]
    Task(#[from] TaskError),
    /// A guest cannot be read.
    #[error("a guest cannot be read")]
    Guest(#[from] GuestError),
}

impl ExtractError {
    /// What the reader of the message can do.
    pub fn hint(&self) -> &str {
        match self {
            Self::Dump(e) => e.hint(),
            Self::NoVmcoreinfo(_) => {
                "dumps made by kdump have one; QEMU adds it with -device vmcoreinfo and the guest's qemu_fw_cfg module"
            }
            Self::Cut(_) => {
                "copy the dump again, or see why the capture kernel could not finish it (disk full?)"
            }
            Self::Kernel(_) => {
                "if the dump is whole, this kernel is not one that vmrestore knows how to read; `vmrestore check DUMP` says what was found"
            }
            Self::Guest(GuestError::Unsupported { .. }) => {
                "no guest of this kind comes back from a dump; the others of this host do"
            }
            Self::Task(_) | Self::Guest(_) => {
                "`vmrestore check DUMP` says which pages of the dump are missing or damaged"
            }
        }
    }
}

/// Why a text of CPU registers is not used.
#[derive(Debug, thiserror::Error)]
pub enum CpuTextUse {
    /// It is no such text.
    #[error(transparent)]
    Text(#[from] CpuTextError),
    /// It does not fit this dump.
    #[error("it does not fit this dump")]
    Kernel(#[from] KernelError),
}

/// A dead host: its dump and the kernel in it.
pub struct DeadHost {
    dump: Arc<Dump>,
    kernel: Kernel,
    left_out_is_zero: OnceLock<bool>,
    scan: Scan,
}

/// How much of a guest the dump holds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct GuestCoverage {
    /// What the guest takes for its memory.
    pub ram: Coverage,
    /// The rest of its VMM.
    pub vmm: Coverage,
}

impl GuestCoverage {
    /// Both together: what a restore needs.
    pub fn all(&self) -> Coverage {
        self.ram.and(&self.vmm)
    }
}

impl DeadHost {
    /// Opens a dump and finds the kernel in it.
    ///
    /// # Errors
    /// See [`ExtractError`].
    pub fn open(path: &Path) -> Result<Self, ExtractError> {
        Self::of(Arc::new(Dump::open(path)?))
    }

    /// Finds the kernel in a dump.
    ///
    /// # Errors
    /// See [`ExtractError`].
    pub fn of(dump: Arc<Dump>) -> Result<Self, ExtractError> {
        let kernel = match dump.vmcoreinfo() {
            Some(note) => Kernel::open(dump.clone(), note).map_err(|error| {
                if dump.page_counts().truncated > 0 {
                    ExtractError::Cut(error)
                } else {
                    ExtractError::Kernel(error)
                }
            })?,
            // A dump taken from outside may lack the note; the kernel's own copy is in its memory.
            None => Kernel::discover(dump.clone()).map_err(ExtractError::NoVmcoreinfo)?,
        };
        Ok(Self::with_kernel(dump, kernel))
    }

    /// A dead host whose kernel was found in other memory than the dump's as it stands, such as one
    /// that lies over it.
    pub fn with_kernel(dump: Arc<Dump>, mut kernel: Kernel) -> Self {
        // Of a kernel that panicked they are its own notes, or a hypervisor's of CPUs that had long
        // been stopped.
        if crash::stopped_from_outside(&kernel).unwrap_or(false)
            && let Err(error) = kernel.take_outside(kernel::from_notes(dump.cpu_notes()))
        {
            tracing::warn!("the dump's CPU notes are not used: {error}");
        }
        Self {
            dump,
            kernel,
            left_out_is_zero: OnceLock::new(),
            scan: Scan::default(),
        }
    }

    /// Takes what QEMU's `info registers -a` said of the host's CPUs when the dump was made; returns
    /// what of it is used.
    ///
    /// # Errors
    /// When the text is not that, or is of another machine.
    pub fn take_cpu_text(&mut self, text: &str) -> Result<String, CpuTextUse> {
        let cpus = kernel::parse_cpu_text(text)?;
        let layout = XsaveLayout::of(&self.kernel)?;
        let states = kernel::from_text(cpus, &layout);
        let with_fpu = states.iter().filter(|state| state.fpu.is_some()).count();
        let used = format!("{} CPUs, {with_fpu} with FPU registers", states.len());
        self.kernel.take_outside(states)?;
        Ok(used)
    }

    /// The dump.
    pub fn dump(&self) -> &Arc<Dump> {
        &self.dump
    }

    /// The dead kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Every process.
    ///
    /// # Errors
    /// When the kernel's task list cannot be read.
    pub fn processes(&self) -> Result<Vec<ProcessSummary>, ExtractError> {
        Ok(task::processes(&self.kernel)?)
    }

    /// What processes share with each other.
    ///
    /// # Errors
    /// When the kernel's task list cannot be read.
    pub fn together(&self) -> Result<Vec<Together>, ExtractError> {
        Ok(task::together(&self.kernel)?)
    }

    /// Every guest.
    ///
    /// # Errors
    /// When KVM's list cannot be read.
    pub fn guests(&self) -> Result<Vec<GuestSummary>, ExtractError> {
        Ok(guest::guests(&self.kernel)?)
    }

    /// The host, so far as a restored process can tell.
    ///
    /// # Errors
    /// When the dead kernel's clocks cannot be read.
    pub fn host(&self) -> Result<Host, ExtractError> {
        Ok(task::host(&self.kernel)?)
    }

    /// What reading every page showed: pages that proved corrupt count as such from now on.
    pub fn learn(&mut self, scan: Scan) {
        self.scan = scan;
    }

    /// How much of the memory of the process with this `task_struct` is in the
    /// dump; `None` when its structures cannot be read.
    pub fn coverage(&self, task: u64) -> Option<Coverage> {
        let mut found = coverage::at_a_glance(&self.kernel, &self.scan.corrupt, task).ok()?;
        self.settle_zeros(&mut found);
        if found.state() == State::Whole {
            return Some(found);
        }
        // What is missing may be a file's, which needs not be in the dump.
        let (_, rest) = coverage::with_care(&self.kernel, &self.scan.corrupt, task, &[]).ok()?;
        found = rest;
        self.settle_zeros(&mut found);
        Some(found)
    }

    /// The same of a guest: its own memory, and the rest of its VMM, whose `task_struct` is at
    /// `task`.
    pub fn guest_coverage(&self, vm: u64, task: u64) -> Option<GuestCoverage> {
        let ranges = guest::memory_ranges(&self.kernel, vm).ok()?;
        let corrupt = &self.scan.corrupt;
        let (mut ram, mut vmm) = coverage::with_care(&self.kernel, corrupt, task, &ranges).ok()?;
        self.settle_zeros(&mut ram);
        self.settle_zeros(&mut vmm);
        Some(GuestCoverage { ram, vmm })
    }

    fn settle_zeros(&self, found: &mut Coverage) {
        if found.filtered > 0 && self.left_out_is_zero() {
            found.left_out_were_zeros();
        }
    }

    /// This dump leaves pages of zeros out, and nothing else of user memory.
    fn left_out_is_zero(&self) -> bool {
        *self.left_out_is_zero.get_or_init(|| {
            self.kernel.memory().filters_zero_pages()
                && self
                    .processes()
                    .is_ok_and(|p| zeros::anonymous_pages_kept(&self.kernel, &p))
        })
    }

    /// Everything needed to bring these processes, and the guests in them, back.
    ///
    /// # Errors
    /// When one of them cannot be read as a whole.
    pub fn dataset(&self, pids: &[i32]) -> Result<Dataset, ExtractError> {
        let host = self.host()?;
        let mut parts = task::extract(&self.kernel, pids)?;
        phases::done("processes read");
        let mut vms = Vec::new();
        for vm in virtual_machines(&parts.files) {
            let (vm, fidelity) = guest::extract(&self.kernel, vm.0, &host)?;
            report_exits(&vm, &mut parts.processes);
            finish_deletions(&self.kernel, &vm, &mut parts.processes);
            vms.push(vm);
            parts.fidelity.extend(fidelity);
        }
        phases::done("VM state read");
        Ok(Dataset {
            schema_version: SCHEMA_VERSION,
            crash_id: self.dump.identity().to_string(),
            host,
            processes: parts.processes,
            zombies: parts.zombies,
            files: parts.files,
            pipes: parts.pipes,
            inodes: parts.inodes,
            shared_memory: parts.shared_memory,
            sysv: parts.sysv,
            message_queues: parts.message_queues,
            vms,
            outside: parts.outside,
            swap: parts.swap,
            fidelity: parts.fidelity,
        })
    }

    /// What the page cache had of the files that a dataset's processes have mapped.
    pub fn cached_files(&self, dataset: &Dataset) -> core::CachedFiles {
        let mapped = dataset.processes.iter().flat_map(|p| &p.mm.vmas);
        let inodes: BTreeSet<ObjectId> = mapped
            .filter_map(|vma| match vma.kind {
                crate::dataset::MappingKind::File { inode, .. } => Some(inode),
                _ => None,
            })
            .collect();
        let read = |id: ObjectId| match task::cached_pages(&self.kernel, id) {
            Ok(pages) => Some((id, pages)),
            Err(error) => {
                tracing::info!("the page cache of inode {id}: {error}");
                None
            }
        };
        inodes.into_iter().filter_map(read).collect()
    }

    /// The host did not panic: it was stopped, as by a hypervisor, and no CPU
    /// was told to put its registers down. Unknown is taken for a panic.
    pub fn stopped_from_outside(&self) -> bool {
        crash::stopped_from_outside(&self.kernel).unwrap_or(false)
    }

    /// The pages of this host's datasets.
    pub fn pages(&self) -> DumpPages {
        DumpPages::new(self.dump.clone())
    }
}

/// Lets KVM_RUN return to the VMM where it was about to: the exit is in the
/// kvm_run page, and made again the call would take it for handled.
fn report_exits(vm: &Vm, processes: &mut [Process]) {
    const IOCTL: u64 = 16;
    const KVM_RUN: u64 = 0xae80;
    for vcpu in vm.vcpus.iter().filter(|v| v.exit_unreported) {
        let thread = processes
            .iter_mut()
            .flat_map(|p| &mut p.threads)
            .find(|t| t.tid == vcpu.tid);
        if let Some(thread) = thread
            && thread.resume == SyscallResume::Reissue
            && thread
                .syscall
                .as_ref()
                .is_some_and(|s| s.number == IOCTL && s.args[1] == KVM_RUN)
        {
            thread.resume = SyscallResume::Return { value: 0 };
        }
    }
}

/// Lets a call that deletes a memslot return where it had done so and only waited for readers.
fn finish_deletions(kernel: &Kernel, vm: &Vm, processes: &mut [Process]) {
    const IOCTL: u64 = 16;
    /// KVM_SET_USER_MEMORY_REGION, and its second form, which begins alike.
    const SET_REGION: [u64; 2] = [0x4020_ae46, 0x40a0_ae49];
    let owner = processes.iter_mut().filter(|p| p.pid == vm.pid);
    for thread in owner.flat_map(|p| &mut p.threads) {
        if thread.resume != SyscallResume::Reissue {
            continue;
        }
        let Some(call) = &thread.syscall else {
            continue;
        };
        if call.number == IOCTL
            && SET_REGION.contains(&call.args[1])
            && guest::slot_is_deleted(kernel, vm.id.0, call.args[2])
        {
            thread.resume = SyscallResume::Return { value: 0 };
        }
    }
}

/// The VMs that a file table refers to, each once.
fn virtual_machines(files: &[crate::dataset::OpenFile]) -> BTreeSet<ObjectId> {
    files
        .iter()
        .filter_map(|f| match f.kind {
            FileKind::KvmVm { vm } | FileKind::KvmVcpu { vm, .. } => Some(vm),
            _ => None,
        })
        .collect()
}
