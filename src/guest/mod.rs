//! What was this virtual machine?
//!
//! KVM's guests of a dead kernel: [`guests`] finds them, [`extract`] reads one whole into a
//! [`Vm`](crate::dataset::Vm), [`memory_coverage`] says how much of its memory the dump has.
//! Everything is found by name in the BTF of kvm.ko and kvm-amd.ko, which lies in the dump.

mod coverage;
mod error;
mod field;
mod find;

pub use coverage::{MemoryCoverage, memory_coverage};
pub use error::GuestError;
pub use find::{FoundBy, GuestSummary, guests};

use crate::dataset::{Fidelity, Host, Vm};
use crate::kernel::Kernel;
