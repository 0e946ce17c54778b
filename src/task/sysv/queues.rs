//! Messages of the dead kernel: of System V queues and of POSIX ones.

use super::{Finder, QUEUES, Tie, pid_of};
use crate::dataset::{Blob, SysvKind, SysvMessage};
use crate::kernel::{KernelError, Object, containers};

/// Bytes of a page: a message's text lies behind its `struct msg_msg` up to
/// there, and the rest in pages of its own (`struct msg_msgseg`).
const PAGE: u64 = 4096;
/// Most bytes of one queue: far more than `kernel.msgmnb` lets one have where
/// nobody raised it by orders of magnitude.
pub(in crate::task) const MOST: u64 = 256 << 20;

/// Tasks that wait to receive from a `struct msg_queue`, or to send to it.
pub(super) fn sleepers(queue: &Object<'_>) -> Result<Vec<u64>, KernelError> {
    let mut tasks = Vec::new();
    for one in containers::list(&queue.get("q_receivers")?, "msg_receiver", "r_list")? {
        tasks.push(one.ptr("r_tsk")?);
    }
    for one in containers::list(&queue.get("q_senders")?, "msg_sender", "list")? {
        tasks.push(one.ptr("tsk")?);
    }
    Ok(tasks)
}

/// The messages of a list, the oldest first. `left`: bytes that its queue may still have.
pub(in crate::task) fn messages(
    head: &Object<'_>,
    left: &mut u64,
) -> Result<Vec<SysvMessage>, KernelError> {
    let mut messages = Vec::new();
    for message in containers::list(head, "msg_msg", "m_list")? {
        let len = message.u("m_ts")?;
        *left = left.checked_sub(len).ok_or_else(|| KernelError::Damaged {
            what: "msg_msg",
            addr: message.addr(),
            detail: format!("m_ts is {len}: with those before it more than {MOST} bytes"),
        })?;
        messages.push(SysvMessage {
            kind: message.i("m_type")?,
            data: Blob(text(&message, len)?),
        });
    }
    Ok(messages)
}

/// The text of a `struct msg_msg`. Linux ipc/msgutil.c.
fn text(message: &Object<'_>, len: u64) -> Result<Vec<u8>, KernelError> {
    let mut text = behind(message, len)?;
    let mut next = message.follow_opt("next")?;
    while let Some(part) = next {
        let left = len - text.len() as u64;
        if left == 0 {
            return Err(KernelError::Damaged {
                what: "msg_msgseg",
                addr: part.addr(),
                detail: format!(
                    "the message of {len} bytes at {:#x} is at its end",
                    message.addr()
                ),
            });
        }
        let more = behind(&part, left)?;
        // Each has some bytes, so the list ends.
        if more.is_empty() {
            return Err(KernelError::Damaged {
                what: "msg_msgseg",
                addr: part.addr(),
                detail: format!(
                    "it is {} bytes long: no page has room behind it",
                    part.size()
                ),
            });
        }
        text.extend(more);
        next = part.follow_opt("next")?;
    }
    if (text.len() as u64) < len {
        return Err(KernelError::Damaged {
            what: "msg_msg",
            addr: message.addr(),
            detail: format!("it has {} of its {len} bytes", text.len()),
        });
    }
    Ok(text)
}

/// At most `left` bytes behind a structure, up to the end of its allocation.
fn behind(object: &Object<'_>, left: u64) -> Result<Vec<u8>, KernelError> {
    let size = object.size();
    let len = left.min(PAGE.saturating_sub(size));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    object
        .kernel()
        .read(object.addr().wrapping_add(size), &mut bytes)?;
    Ok(bytes)
}

impl<'k> Finder<'k> {
    pub(super) fn queue(&self, perm: &Object<'k>) -> Result<(Tie, Option<SysvKind>), KernelError> {
        let queue = perm.container_of("msg_queue", "q_perm")?;
        let (sender, receiver) = (pid_of(&queue, "q_lspid")?, pid_of(&queue, "q_lrpid")?);
        let waited_for = !sleepers(&queue)?.is_empty();
        let tie = self.tie(perm, QUEUES, &[sender, receiver], waited_for)?;
        if !matches!(tie, Tie::Used | Tie::Unused) {
            return Ok((tie, None));
        }
        let mut left = MOST;
        let kind = SysvKind::Queue {
            max_bytes: queue.u("q_qbytes")?,
            messages: messages(&queue.get("q_messages")?, &mut left)?,
            sender,
            receiver,
        };
        Ok((tie, Some(kind)))
    }
}
