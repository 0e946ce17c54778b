//! The only `unsafe` there is: system calls for which no safe crate has a
//! word. Each function here is safe to call; it takes and gives plain values.
#![allow(unsafe_code)]

pub mod broken_pipe;
pub mod clone;
pub mod file_facts;
pub mod interrupt;
pub mod kvm_args;
pub mod local_syscalls;
pub mod ptrace;
pub mod task_control;
