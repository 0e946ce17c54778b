//! Makes a [`crate::dataset::Dataset`] live again on this host.
//!
//! It knows no dump and no dead kernel: pages reach it through [`PageSource`].

mod page_source;
mod syscalls;

pub use page_source::{PageSource, PageSourceError};
pub use syscalls::{Errno, Syscalls};
