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
//! at once; dropping it instead leaves nothing behind. Memory that is to arrive
//! later is the pager's from the start (`lazy`).

mod address_space;
mod aio;
mod announce;
mod births;
mod calls;
mod cgroup;
mod confinement;
pub mod container;
mod credentials;
mod deleted_directory;
pub mod disks;
mod error;
mod files;
mod fill;
mod holdings;
mod huge_pages;
pub mod in_place;
pub mod inject;
pub mod journal;
pub mod kvm;
pub mod lazy;
mod lineage;
mod machines;
mod maps;
mod namespaces;
mod native;
mod objects;
pub mod outside;
mod pid_space;
mod preflight;
mod procfs;
mod promises;
mod registers;
mod rest_of_call;
mod restored;
mod resume;
mod same_file;
mod seccomp;
mod signals;
mod stub;
pub mod swap;
mod syscalls;
mod sysv;
mod taps;
mod terminals;
mod threads;
mod timers;
mod vdso;
mod vhost;
mod vma_flags;
mod volatile_files;
mod zombies;

pub use crate::dataset::{PageSource, PageSourceError};
pub use error::RestoreError;
pub use lazy::{Arrival, Figures, Memory, Pager};
pub use native::{Options, Prepared, Progress, TcpPolicy, prepare};
pub use restored::Restored;
pub use syscalls::{Doors, Errno, Syscalls};
pub(crate) use taps::messages as link_messages;
