//! Asynchronous I/O contexts (`io_setup`).

use super::Blob;
use super::hex::u64_hex;
use serde::{Deserialize, Serialize};

/// One context (`struct kioctx`). Its identity is the address of its ring,
/// which the process has as its `aio_context_t`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AioContext {
    /// `kioctx.user_id`: the first address of the ring.
    #[serde(with = "u64_hex")]
    pub id: u64,
    /// Length of the ring's mapping. Bytes.
    pub len: u64,
    /// What io_setup was asked for (`max_reqs`).
    pub max_requests: u32,
    /// Events that the ring has room for.
    pub entries: u32,
    /// Index of the first event that the process has not taken.
    pub head: u32,
    /// Index of the next event to come.
    pub tail: u32,
    /// The events from head to tail, `struct io_event` of 32 bytes each.
    pub events: Blob,
    /// Addresses of the `struct iocb`s of requests that were under way, which
    /// are submitted again.
    pub under_way: Vec<u64>,
    /// Why it cannot be brought back.
    pub unknown: Option<String>,
}

/// `struct io_event`. Linux include/uapi/linux/aio_abi.h.
pub const IO_EVENT: u32 = 32;
