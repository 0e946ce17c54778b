//! The only `unsafe` there is: system calls for which no safe crate has a
//! word. Each function here is safe to call; it takes and gives plain values.
#![allow(unsafe_code)]

pub mod broken_pipe;
pub mod child;
pub mod clone;
pub mod file_facts;
pub mod fs_map;
pub mod interrupt;
pub mod io_uring;
pub mod kvm_args;
pub mod local_syscalls;
pub mod modules;
pub mod namespace;
pub mod netlink;
pub mod own_vm;
pub mod pidfd;
pub mod ptrace;
pub mod socket;
pub mod sysv;
pub mod task_control;
pub mod terminal;
pub mod tracepoint;
pub mod tty;
pub mod userfaultfd;
pub mod window;
