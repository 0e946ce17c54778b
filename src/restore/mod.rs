//! Makes a [`crate::dataset::Dataset`] live again on this host.
//!
//! It knows no dump and no dead kernel: pages reach it through
//! [`PageSource`].

pub mod disks;
pub mod journal;
pub mod kvm;
mod syscalls;

pub use crate::dataset::{PageSource, PageSourceError};
pub use syscalls::{Errno, Syscalls};
