//! See the crate's docs.
