//! Makes a [`crate::dataset::Dataset`] live again on this host.
//!
//! It knows no dump and no dead kernel: pages reach it through
//! [`PageSource`].
//!
//! [`prepare`] makes *stubs* (`stub`), empty processes that hold the old PIDs,
//! stopped by ptrace, and builds in each what the process had, by system calls
//! that the stub makes itself (`inject`, `calls`). Nothing runs yet: now the
//! caller writes back what never reached the disks ([`disks`]) and notes that
//! this was done ([`journal`]). [`Prepared::resume`] then lets all of them go
//! at once; dropping it instead leaves nothing behind.

mod address_space;
mod calls;
mod credentials;
pub mod disks;
mod error;
mod files;
mod fill;
pub mod inject;
pub mod journal;
pub mod kvm;
mod machines;
mod maps;
mod namespaces;
mod native;
mod objects;
mod preflight;
mod registers;
mod resume;
mod signals;
mod stub;
mod syscalls;
mod threads;
mod timers;
mod vdso;
mod vma_flags;

pub use crate::dataset::{PageSource, PageSourceError};
pub use error::RestoreError;
pub use native::{Options, Prepared, Progress, Restored, prepare};
pub use syscalls::{Errno, Syscalls};
