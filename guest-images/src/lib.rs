//! Programs of the lab.
