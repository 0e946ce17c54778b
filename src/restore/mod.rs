//! Makes a [`crate::dataset::Dataset`] live again on this host.
//!
//! It knows no dump and no dead kernel: pages reach it through
//! [`PageSource`].

pub mod disks;
pub mod journal;
pub mod kvm;
mod syscalls;

// FACE THAT cli/ CALLS (note to the author of the orchestration; replace this comment by it):
//   pub struct Options { pub paused: bool, pub dry_run: bool, .. }           (Default)
//   pub struct Restored { pub pid: i32, pub old_pid: i32 }
//   /// Builds everything, stopped; nothing outside of the stubs is changed. Dropping it kills all of it.
//   pub fn prepare(&Dataset, &dyn PageSource, &Options) -> Result<Prepared, RestoreError>
//   impl Prepared { pub fn processes(&self) -> &[Restored]; pub fn fidelity(&self) -> &[Fidelity];
//                   /// Lets all of it run (or leaves it stopped by SIGSTOP when `paused`).
//                   pub fn resume(self) -> Result<Vec<Restored>, RestoreError> }
//   impl RestoreError { pub fn hint(&self) -> &str }
// Between prepare and resume the CLI writes dirty file pages back and makes the journal durable.

pub use crate::dataset::{PageSource, PageSourceError};
pub use syscalls::{Errno, Syscalls};
