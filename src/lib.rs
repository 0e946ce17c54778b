//! A crash dump goes in, running guests and processes come out.
#![deny(unsafe_code)]
#![allow(missing_docs)]
pub mod cli;
pub mod dataset;
pub mod dump;
pub mod guest;
pub mod kernel;
pub mod restore;
pub mod sys;
pub mod task;
