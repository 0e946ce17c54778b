//! What was this process?
//!
//! Reads processes out of a dead kernel into the words of [`crate::dataset`]:
//! [`processes`] says what ran, [`extract`] says everything about some of
//! them, [`host`] says which machine it was and what time it was there.
//!
//! Nothing here knows what a virtual machine is: a descriptor that belongs to
//! KVM is named with the addresses of its kernel objects, and that is all.
//!
//! One damaged object costs that object, not the process: what could not be
//! read becomes a line in [`Extracted::fidelity`]. Only what no process can do
//! without (its task, its address space, its threads' registers) is an error.

mod access;
mod clock;
mod credentials;
mod epoll;
mod error;
mod extract;
mod file;
mod fpu;
mod holders;
mod inode;
mod list;
mod lock;
mod mm;
mod page_cache;
mod page_frame;
mod path;
mod pipe;
mod process;
mod registers;
mod residency;
mod resume;
mod sched;
mod signal;
mod socket;
mod swap;
mod syscall_names;
mod thread;
mod timer;
mod tty;
mod tun;
mod uncommitted;
mod vma;
mod zeros;

pub use access::{command_line, read_process_memory};
pub use clock::host;
pub(crate) use clock::timekeeper;
pub use error::TaskError;
pub use extract::{Extracted, extract};
pub(crate) use fpu::{fpu, need_load_bit};
pub use list::{ProcessSummary, processes};
pub(crate) use registers::read as user_registers;
pub use residency::{Whereabouts, frames_at_most, residency};
