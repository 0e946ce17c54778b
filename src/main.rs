//! The `vmrestore` command.
fn main() {}
