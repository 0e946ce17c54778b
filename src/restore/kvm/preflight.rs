//! Whether this host's KVM can run a guest of the dataset: asked before
//! anything is touched.

use super::error::{KvmError, Problem};
use crate::dataset::Vm;

/// What this host lacks for `vms`.
///
/// # Errors
/// /dev/kvm cannot be opened or asked.
pub fn preflight(_vms: &[Vm]) -> Result<Vec<Problem>, KvmError> {
    Ok(Vec::new())
}
