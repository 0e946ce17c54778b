//! # vmrestore: a crash dump goes in, running guests and processes come out
//!
//! ```text
//!  hostdump ──▶ dump ──▶ kernel ──▶ task ─┬─▶ dataset ──▶ restore ──▶ running process
//!  (file)       bytes    the dead   what  │   plain       live        (a VMM and its guest,
//!               at a     kernel's   each  │   data        kernel       or any application)
//!               physical memory,    was   │               objects
//!               address  symbols,   guest ┘
//!                        types      (KVM)
//! ```
//!
//! Data flows one way. A room knows the rooms to its left, never those to its
//! right; all of them know [`dataset`], which knows nobody.
//!
//! * [`dump`] answers *what bytes stand at physical address P?*, whatever the
//!   file's format, and tells a page that was left out from a page of zeros.
//! * [`kernel`] makes a dead kernel of those bytes: symbols from kallsyms, types
//!   from BTF, addresses by page tables, and the walkers of its containers.
//!   Nothing but the dump is needed, no debuginfo.
//! * [`task`] says what a process was: memory, threads, registers, files.
//! * [`guest`] says what a KVM virtual machine was: memslots, vCPUs,
//!   interrupt controllers, clocks.
//! * [`dataset`] is that knowledge as plain data.
//! * [`extract`] puts what those two know into a dataset and hands out its pages,
//!   from the dump or from a directory.
//! * [`restore`] makes it live again on this host.
//! * [`bare`] runs a guest alone, under a VMM of its own with nothing but a serial
//!   port: for a look inside.
//! * [`cli`] is what the person asked and what they see.
//! * [`phases`] says where the time goes.
//! * [`sys`] holds all the `unsafe` there is.
#![deny(unsafe_code)]
#![allow(missing_docs)]

pub mod bare;
pub mod cli;
pub mod dataset;
pub mod dump;
pub mod extract;
pub mod guest;
pub mod kernel;
pub mod phases;
pub mod restore;
pub mod sys;
pub mod task;
