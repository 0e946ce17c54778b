//! sendmmsg and recvmmsg under way: which of their messages they have come to.

use super::kernel_stack::Stack;
use super::moved::{CONTROL_LEN, Call, MSG_WAITALL, Moved, SENDMMSG, Target, part};
use super::vector::{IterLayout, come_to};
use crate::dataset::{CallMemory, LentWord};
use crate::kernel::KernelError;

/// Of `struct mmsghdr`, 64 bytes: what was moved by this message.
const MSG_LEN: u64 = 56;
const MMSGHDR: u64 = 64;
/// UIO_MAXIOV.
const MAX_MESSAGES: u64 = 1024;

impl Call<'_, '_> {
    /// sendmmsg and recvmmsg: which message it has come to, and how far in that.
    pub fn messages(&self) -> Result<Moved, KernelError> {
        let target = self.target(self.args[0])?;
        let [_, array, count, flags, ..] = self.args;
        // An unsigned int, which the kernel cuts down.
        let count = (count & 0xffff_ffff).min(MAX_MESSAGES);
        let sends = self.number == SENDMMSG;
        let mut all = Vec::new();
        for i in 0..count {
            all.push(self.buffers_of(array.wrapping_add(i * MMSGHDR))?);
        }
        let stack = Stack::of(self.task)?;
        let unknown = |why: &str| {
            let twice = match sends {
                true => "sent twice",
                false => "lost to it",
            };
            Ok(Moved::Unknown(format!(
                "of its {count} messages the first ones are {twice}, and {why}"
            )))
        };
        if stack.may_be_in_a_fault() {
            return unknown("it waited for a page of its memory, between two counts");
        }
        let layout = IterLayout::of(self.task.kernel())?;
        let mut at: Vec<(u64, u64)> = Vec::new();
        for (i, buffers) in (0u64..).zip(&all) {
            at.extend(come_to(&stack, layout, buffers).map(|done| (i, done)));
        }
        if at.len() > 1 {
            // Several have the same buffers. It has a pointer to the one that it is at, and may have
            // one to the first.
            let pointed = |i: u64| stack.words().contains(&array.wrapping_add(i * MMSGHDR));
            at.retain(|(i, _)| pointed(*i));
            if at.len() == 2 {
                at.retain(|(i, _)| *i != 0);
            }
        }
        let [(message, done)] = at[..] else {
            return unknown("how many these are is not to be found on its kernel stack");
        };
        let buffers = all.get(usize::try_from(message).unwrap_or(0));
        let whole = match target {
            // A datagram is on its way, or it is not.
            Target::Messages => true,
            Target::Stream { .. } => !sends && flags & MSG_WAITALL == 0,
            _ => return unknown("what they went to is not followed"),
        };
        let mut args = self.args;
        args[1] = args[1].wrapping_add(message * MMSGHDR);
        args[2] = count - message;
        if whole || done == 0 {
            return Ok(match message {
                0 => Moved::Nothing,
                _ => part(args, message, CallMemory::default(), None, None),
            });
        }
        let rest = buffers.map(|b| b.behind(done)).unwrap_or_default();
        if rest.total() == 0 {
            return unknown("all of one was taken in hand");
        }
        let begin = args[1];
        let mut memory = self.lend_buffers(begin, &rest)?;
        if sends {
            let address = begin.wrapping_add(CONTROL_LEN);
            memory.lent.push(LentWord {
                address,
                during: 0,
                points: false,
                after: Some(self.word(address)?),
            });
        }
        // What this message has moved counts with what it will move, and alone if that is nothing.
        let counted = u32::try_from(done).unwrap_or(u32::MAX);
        let address = begin.wrapping_add(MSG_LEN);
        let padding = self.word(address)? & !0xffff_ffff;
        memory.lent.push(LentWord {
            address,
            during: padding | u64::from(counted),
            points: false,
            after: None,
        });
        memory.grows = Some((address, counted));
        memory.failed = Some(message + 1);
        Ok(part(args, message, memory, None, None))
    }
}
