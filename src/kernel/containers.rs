//! The kernel's containers. (Stub; being filled.)
#![allow(unused_variables, missing_docs)]
use super::{KernelError, Object, no};
pub fn list<'k>(head: &Object<'k>, ty: &str, member: &str) -> Result<Vec<Object<'k>>, KernelError> {
    no()
}
pub fn hlist<'k>(
    head: &Object<'k>,
    ty: &str,
    member: &str,
) -> Result<Vec<Object<'k>>, KernelError> {
    no()
}
pub fn llist<'k>(
    head: &Object<'k>,
    ty: &str,
    member: &str,
) -> Result<Vec<Object<'k>>, KernelError> {
    no()
}
pub fn rbtree<'k>(
    root: &Object<'k>,
    ty: &str,
    member: &str,
) -> Result<Vec<Object<'k>>, KernelError> {
    no()
}
pub fn xarray(xa: &Object<'_>) -> Result<Vec<(u64, u64)>, KernelError> {
    no()
}
pub fn idr(idr: &Object<'_>) -> Result<Vec<(u64, u64)>, KernelError> {
    no()
}
pub fn maple_tree(mt: &Object<'_>) -> Result<Vec<(u64, u64, u64)>, KernelError> {
    no()
}
