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
mod aio;
mod area;
mod block_device;
mod cached_files;
mod cgroup;
mod clock;
mod confinement;
mod controls;
mod credentials;
mod entry;
mod epoll;
mod error;
mod extract;
mod file;
mod file_blocks;
mod file_data;
mod fpu;
mod holders;
mod inet;
mod inode;
mod inotify;
mod io_uring;
mod ip_options;
mod kernel_stack;
mod kin;
mod list;
mod live;
mod lock;
mod mapped;
mod mm;
mod moved;
mod moved_between;
mod moved_messages;
mod mqueue;
mod namespace;
mod net_device;
mod newborn;
mod outside;
mod page_cache;
mod page_frame;
mod path;
mod pipe;
mod process;
mod registers;
mod residency;
mod resume;
mod sched;
mod seccomp;
mod signal;
mod skb;
mod slab;
mod socket;
mod socket_options;
mod sole_owner;
mod splice;
mod swap;
mod syscall_names;
mod syscall_policy;
mod sysv;
mod tcp;
mod thread;
mod ties;
mod timer;
mod tty;
mod tty_queue;
mod tty_write;
mod tun;
mod udp_queue;
mod uncommitted;
mod unix_queue;
mod vector;
mod vhost;
mod vma;
mod zeros;

pub use access::{command_line, read_process_memory};
pub use cached_files::cached_pages;
pub use clock::host;
pub(crate) use clock::timekeeper;
pub use error::TaskError;
pub use extract::{Extracted, extract};
pub(crate) use fpu::{Found as FpuFound, find as find_fpu, fpu, need_load_bit};
pub use list::{ProcessSummary, processes};
pub(crate) use live::has_page_tables;
pub(crate) use registers::read as user_registers;
pub use residency::{Whereabouts, frames_at_most, residency};
pub use sole_owner::SoleOwner;
pub use ties::{TieKind, Together, together};
