//! What UNIX sockets had received and nobody had read: `struct sk_buff`s, with
//! the open files under way in them.

use super::list::int;
use super::skb;
use crate::dataset::{Blob, ObjectId, UnixMessage, UnixWaiting};
use crate::kernel::{KernelError, Object};

/// SCM_MAX_FD.
const MAX_FILES: u64 = 253;

/// The messages in the receive queue of a `struct sock`, the oldest first.
pub(super) fn unread(sk: &Object<'_>) -> Result<Vec<UnixMessage>, KernelError> {
    let mut left = skb::MAX_BYTES;
    let buffers = skb::queue(&sk.get("sk_receive_queue")?)?;
    buffers.iter().map(|b| message(b, &mut left)).collect()
}

/// The connections in a listener's queue: each is an empty buffer that belongs
/// to the socket that accept(2) would give.
pub(super) fn waiting(sk: &Object<'_>) -> Result<Vec<UnixWaiting>, KernelError> {
    let mut found = Vec::new();
    for buffer in skb::queue(&sk.get("sk_receive_queue")?)? {
        let child = buffer.follow("sk")?;
        let unix = sk.kernel().object("unix_sock", child.addr());
        let unix = unix.or_else(|_| sk.kernel().object_in("unix", "unix_sock", child.addr()))?;
        found.push(UnixWaiting {
            socket: ObjectId(child.addr()),
            peer: ObjectId(unix.ptr("peer")?),
            unread: unread(&child)?,
        });
    }
    Ok(found)
}

fn message(buffer: &Object<'_>, left: &mut u64) -> Result<UnixMessage, KernelError> {
    let control = buffer.get("cb")?.cast("unix_skb_parms")?;
    let data = skb::content(buffer, left)?;
    // How much of it a reader of the stream has had.
    let consumed = usize::try_from(control.u("consumed")?).unwrap_or(usize::MAX);
    let rest = data.get(consumed..).unwrap_or_default().to_vec();
    let mut files = Vec::new();
    if let Some(list) = control.follow_opt("fp")? {
        let count = int(&list, "count")?;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if count > MAX_FILES {
            return Err(KernelError::Damaged {
                what: "scm_fp_list",
                addr: list.addr(),
                detail: format!("{count} files"),
            });
        }
        let slots = list.get("fp")?;
        for i in 0..count {
            let file = slots.element(i)?.deref()?;
            files.push(ObjectId(file.addr()));
        }
    }
    Ok(UnixMessage {
        data: Blob(rest),
        files,
    })
}
