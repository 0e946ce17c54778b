//! The kernel's lists and trees.
//!
//! Each walker ends, whatever is in the dump: a list that runs in a circle, and a tree whose child
//! does not know its parent, is an error. What was being changed at the moment of the crash may so
//! be an error too; nothing is left out in silence.

pub use super::list::{hlist, hlist_nulls, list, llist};
pub use super::maple::maple_tree;
pub use super::rbtree::rbtree;
pub use super::xarray::{idr, xarray};
