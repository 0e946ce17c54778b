//! All the `unsafe` there is.
#![allow(unsafe_code)]

pub mod kvm_args;
pub mod local_syscalls;
