//! sendfile, splice and copy_file_range under way: what goes from one descriptor to another.

use super::kernel_stack::Stack;
use super::moved::{Beside, Call, Moved, SENDFILE, SPLICE, Target, part};
use super::{process, splice};
use crate::dataset::{CallMemory, LentWord};
use crate::kernel::{KernelError, Object};

impl Call<'_, '_> {
    /// From one descriptor to another.
    pub fn passes_on(&self) -> Result<Moved, KernelError> {
        let [first, second, third, ..] = self.args;
        let (from, to) = match self.number {
            SENDFILE => (second, first),
            _ => (first, third),
        };
        let file = process::descriptor(self.task, to)?;
        match (self.number, self.target(from)?, Target::of(&file)?) {
            (_, Target::Place | Target::End, Target::Place) => Ok(Moved::Harmless),
            // Into a pipe it waits for the first byte, and not for a second.
            (_, _, Target::Pipe) => Ok(Moved::Nothing),
            (SENDFILE, ..) => self.sends_file(from, &file),
            (SPLICE, Target::Pipe, _) => self.empties_pipe(from, &file),
            _ => Ok(Moved::default()),
        }
    }

    fn sends_file(&self, from: u64, to: &Object<'_>) -> Result<Moved, KernelError> {
        let [_, _, offset, count, ..] = self.args;
        let source = process::descriptor(self.task, from)?;
        let begin = match offset {
            0 => source.u("f_pos")?,
            at => self.word(at)?,
        };
        let stack = Stack::of(self.task)?;
        let done = match splice::from_file(&stack, self.task, to, (begin, count))? {
            None => return Ok(Moved::default()),
            Some(0) => return Ok(Moved::Nothing),
            Some(done) => done,
        };
        let mut args = self.args;
        args[3] -= done;
        let mut memory = CallMemory::default();
        let beside = match offset {
            0 => Some(Beside::Position(source.addr(), done)),
            address => {
                memory.lent.push(LentWord {
                    address,
                    during: begin.wrapping_add(done),
                    points: false,
                    after: None,
                });
                None
            }
        };
        Ok(part(args, done, memory, None, beside))
    }

    fn empties_pipe(&self, from: u64, to: &Object<'_>) -> Result<Moved, KernelError> {
        let [_, _, _, offset, count, _] = self.args;
        let kernel = self.task.kernel();
        let pipe = process::descriptor(self.task, from)?.ptr("private_data")?;
        let pipe = kernel.object("pipe_inode_info", pipe)?;
        let stack = Stack::of(self.task)?;
        let gone = match splice::from_pipe(&stack, &pipe, to, count)? {
            None => return Ok(Moved::default()),
            Some(gone) if gone.bytes == 0 => return Ok(Moved::Nothing),
            Some(gone) => gone,
        };
        let mut args = self.args;
        args[4] -= gone.bytes;
        let mut memory = CallMemory::default();
        let mut beside = match gone.in_pipe {
            0 => None,
            some => Some(Beside::Pipe(pipe.addr(), some)),
        };
        // A socket has no position.
        if !matches!(Target::of(to)?, Target::Stream { .. } | Target::Messages) {
            match offset {
                0 => beside = Some(Beside::Position(to.addr(), gone.bytes)),
                address => memory.lent.push(LentWord {
                    address,
                    during: self.word(address)?.wrapping_add(gone.bytes),
                    points: false,
                    after: None,
                }),
            }
        }
        Ok(part(args, gone.bytes, memory, None, beside))
    }
}
