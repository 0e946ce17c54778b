//! What a reader of hostile input may not do, watched from outside: take more memory than a stated
//! bound, and read a file beyond its end.
//!
//! Both are watched for the whole process, all threads together.

#![allow(dead_code)]

pub mod file;
pub mod memory;
