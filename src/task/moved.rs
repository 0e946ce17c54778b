//! What a call that may move a part of its bytes had moved when its thread fell asleep in it, and how
//! the rest of it is made.

use super::kernel_stack::Stack;
use super::vector::{IterLayout, Vector, come_to};
use super::{process, tty_write};
use crate::dataset::{Blob, CallMemory, LentWord, SyscallResume, UserRegs};
use crate::kernel::{AddressSpace, KernelError, Object};

const READ: u64 = 0;
const WRITE: u64 = 1;
const READV: u64 = 19;
const WRITEV: u64 = 20;
pub(super) const SENDFILE: u64 = 40;
const SENDTO: u64 = 44;
const RECVFROM: u64 = 45;
const SENDMSG: u64 = 46;
const RECVMSG: u64 = 47;
pub(super) const SPLICE: u64 = 275;
const RECVMMSG: u64 = 299;
pub(super) const SENDMMSG: u64 = 307;
const COPY_FILE_RANGE: u64 = 326;
const PREADV2: u64 = 327;
const PWRITEV2: u64 = 328;

const MSG_PEEK: u64 = 2;
const MSG_TRUNC: u64 = 0x20;
const MSG_DONTWAIT: u64 = 0x40;
pub(super) const MSG_WAITALL: u64 = 0x100;
/// Of `struct user_msghdr`, 56 bytes: the members' places.
const NAME: u64 = 0;
const NAME_LEN: u64 = 8;
const IOV: u64 = 16;
const IOV_LEN: u64 = 24;
const CONTROL: u64 = 32;
pub(super) const CONTROL_LEN: u64 = 40;
const FLAGS: u64 = 48;

/// What a call had moved of what it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// It is not known: what may happen twice, or is lost.
    Unknown(String),
    Nothing,
    /// It does not matter: moved again, it is where it is already.
    Harmless,
    Part(Box<Part>),
}

/// A call that has moved a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// How it goes on.
    pub resume: SyscallResume,
    /// What is to be said of it.
    pub said: Option<String>,
    /// What else is another by what it has moved.
    pub beside: Option<Beside>,
}

/// What a call that has moved a part would have changed at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// The position of this `struct file` is so many bytes further.
    Position(u64, u64),
    /// So many bytes are in this `struct pipe_inode_info` no more.
    Pipe(u64, u64),
}

impl Default for Moved {
    fn default() -> Self {
        Moved::Unknown("what was moved before is moved twice".into())
    }
}

/// What a descriptor is of.
pub(super) enum Target {
    /// A file at a position, which moves at the end of the call.
    Place,
    /// A file at its end.
    End,
    Pipe,
    /// A socket whose bytes have no borders; it gives less than is asked for, but not less than this.
    Stream {
        low_water: u64,
    },
    /// A socket whose messages come and go as a whole.
    Messages,
    Other,
}

impl Target {
    pub fn of(file: &Object<'_>) -> Result<Target, KernelError> {
        const O_APPEND: u64 = 0o2000;
        const STREAM: u64 = 1;
        Ok(match file.follow("f_inode")?.u("i_mode")? & 0o170_000 {
            0o100_000 if file.u("f_flags")? & O_APPEND != 0 => Target::End,
            0o100_000 => Target::Place,
            0o010_000 => Target::Pipe,
            0o140_000 => {
                let socket = file.kernel().object("socket", file.ptr("private_data")?)?;
                match socket.u("type")? {
                    STREAM => Target::Stream {
                        low_water: socket.follow("sk")?.u("sk_rcvlowat")?,
                    },
                    _ => Target::Messages,
                }
            }
            _ => Target::Other,
        })
    }
}

/// A call under way, and where to look for what it has done.
pub(super) struct Call<'a, 'k> {
    pub task: &'a Object<'k>,
    pub space: &'a AddressSpace<'k>,
    pub number: u64,
    pub args: [u64; 6],
}

/// What the call of a sleeping thread had moved.
pub(super) fn moved(
    task: &Object<'_>,
    space: &AddressSpace<'_>,
    regs: &UserRegs,
) -> Result<Moved, KernelError> {
    let call = Call {
        task,
        space,
        number: regs.orig_rax,
        args: [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9],
    };
    match call.number {
        READ | READV | PREADV2 | RECVFROM | RECVMSG => call.receives(),
        WRITE | WRITEV | PWRITEV2 | SENDTO | SENDMSG => call.sends(),
        SENDMMSG | RECVMMSG => call.messages(),
        SENDFILE | COPY_FILE_RANGE | SPLICE => call.passes_on(),
        _ => Ok(Moved::default()),
    }
}

impl Call<'_, '_> {
    pub fn target(&self, fd: u64) -> Result<Target, KernelError> {
        Target::of(&process::descriptor(self.task, fd)?)
    }

    pub fn word(&self, at: u64) -> Result<u64, KernelError> {
        let mut word = [0; 8];
        self.space.read(at, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// The buffers of a `struct user_msghdr`.
    pub fn buffers_of(&self, message: u64) -> Result<Vector, KernelError> {
        let list = self.word(message.wrapping_add(IOV))?;
        let count = self.word(message.wrapping_add(IOV_LEN))?;
        Vector::read(self.space, list, count)
    }

    /// The buffers that it was given.
    fn buffers(&self) -> Result<Vector, KernelError> {
        let [_, buffer, len, ..] = self.args;
        match self.number {
            READV | WRITEV | PREADV2 | PWRITEV2 => Vector::read(self.space, buffer, len),
            SENDMSG | RECVMSG => self.buffers_of(buffer),
            _ => Ok(Vector::one(buffer, len)),
        }
    }

    fn sends(&self) -> Result<Moved, KernelError> {
        /// Of pwritev2: -1 for the file's own position.
        const OWN_POSITION: u64 = u64::MAX;
        match self.target(self.args[0])? {
            Target::Place => return Ok(Moved::Harmless),
            Target::Messages => return Ok(Moved::Nothing),
            Target::Other => return self.to_terminal(),
            _ if self.number == PWRITEV2 && self.args[3] != OWN_POSITION => {
                return Ok(Moved::Harmless);
            }
            Target::End | Target::Pipe | Target::Stream { .. } => {}
        }
        self.in_part(&self.buffers()?, false)
    }

    fn receives(&self) -> Result<Moved, KernelError> {
        let low_water = match self.target(self.args[0])? {
            Target::Stream { low_water } => low_water,
            Target::Other if self.takes_many_keys() => {
                return Ok(Moved::Unknown(
                    "what was typed and taken before is lost to it".into(),
                ));
            }
            _ => return Ok(Moved::Nothing),
        };
        let flags = self.flags();
        match (flags & MSG_WAITALL != 0, low_water > 1) {
            // They wait for the first byte, and not for a second.
            (false, false) => Ok(Moved::Nothing),
            // What was looked at is there still.
            _ if flags & MSG_PEEK != 0 => Ok(Moved::Harmless),
            _ if flags & MSG_TRUNC != 0 => Ok(Moved::Unknown(
                "what it has thrown away before is not counted".into(),
            )),
            (all, _) => self.in_part(&self.buffers()?, !all),
        }
    }

    /// The flags of a call that receives.
    fn flags(&self) -> u64 {
        match self.number {
            RECVFROM => self.args[3],
            RECVMSG => self.args[2],
            _ => 0,
        }
    }

    /// It reads from a terminal that hands on so many bytes at once (VMIN).
    fn takes_many_keys(&self) -> bool {
        const VMIN: u64 = 6;
        const ICANON: u64 = 2;
        let many = || -> Result<bool, KernelError> {
            let file = process::descriptor(self.task, self.args[0])?;
            let kernel = self.task.kernel();
            if file.follow("f_inode")?.u("i_mode")? & 0o170_000 != 0o020_000 {
                return Ok(false);
            }
            let tty = kernel.object("tty_file_private", file.ptr("private_data")?)?;
            let settings = tty.follow("tty")?.get("termios")?;
            let at_once = settings.get("c_cc")?.element(VMIN)?.unsigned()?;
            Ok(settings.u("c_lflag")? & ICANON == 0 && at_once > 1)
        };
        many().unwrap_or(false)
    }

    /// A terminal takes more into its hands than it has passed on.
    fn to_terminal(&self) -> Result<Moved, KernelError> {
        let buffers = self.buffers()?;
        let stack = Stack::of(self.task)?;
        let file = process::descriptor(self.task, self.args[0])?;
        match tty_write::passed_on(&stack, &file, &buffers)? {
            _ if stack.may_be_in_a_fault() => Ok(Moved::default()),
            None => Ok(Moved::default()),
            Some(0) => Ok(Moved::Nothing),
            Some(done) => self.rest(&buffers, done, false),
        }
    }

    /// By its `iov_iter`. `enough`: with what it has it may return.
    fn in_part(&self, buffers: &Vector, enough: bool) -> Result<Moved, KernelError> {
        let stack = Stack::of(self.task)?;
        let unknown = |why: &str| {
            Ok(Moved::Unknown(format!(
                "of its {} bytes those that were moved before are moved twice, and {why}",
                buffers.total()
            )))
        };
        if stack.may_be_in_a_fault() {
            return unknown("it waited for a page of its memory, between two counts");
        }
        let layout = IterLayout::of(self.task.kernel())?;
        match come_to(&stack, layout, buffers) {
            None => unknown("how many these are is not to be found on its kernel stack"),
            Some(0) => Ok(Moved::Nothing),
            Some(all) if all == buffers.total() => unknown("all of them were taken in hand"),
            Some(done) => self.rest(buffers, done, enough),
        }
    }

    /// The rest of a call that has moved so many bytes, and not all.
    fn rest(&self, buffers: &Vector, done: u64, enough: bool) -> Result<Moved, KernelError> {
        let mut args = self.args;
        let rest = buffers.behind(done);
        let mut memory = CallMemory::default();
        let message = self.args[1];
        match self.number {
            READV | WRITEV | PREADV2 | PWRITEV2 => {
                memory.bytes = Blob(rest.bytes());
                memory.argument = Some(1);
                args[2] = rest.len();
            }
            SENDMSG => {
                let mut header = Vec::new();
                // Its control messages went with the first byte.
                for (at, word) in [
                    (NAME, self.word(message.wrapping_add(NAME))?),
                    (NAME_LEN, self.word(message.wrapping_add(NAME_LEN))?),
                    (IOV, FLAGS + 8),
                    (IOV_LEN, rest.len()),
                    (CONTROL, 0),
                    (CONTROL_LEN, 0),
                    (FLAGS, 0),
                ] {
                    debug_assert_eq!(at, header.len() as u64);
                    header.extend(word.to_le_bytes());
                }
                memory.pointers.push(u32::try_from(IOV).unwrap_or(0));
                header.extend(rest.bytes());
                memory.bytes = Blob(header);
                memory.argument = Some(1);
            }
            // The kernel writes the rest of this structure when it returns.
            RECVMSG => memory = self.lend_buffers(message, &rest)?,
            _ => {
                args[1] = args[1].wrapping_add(done);
                args[2] = rest.total();
            }
        }
        let mut said = None;
        if enough {
            // As a call that a signal interrupts: it returns with what is there.
            let short =
                "it returns with less than its socket's low-water mark, as if a signal had come";
            said = Some(short.to_owned());
            match self.number {
                RECVFROM => args[3] |= MSG_DONTWAIT,
                RECVMSG => args[2] |= MSG_DONTWAIT,
                _ => {
                    let value = done.cast_signed();
                    return Ok(Moved::Part(Box::new(Part {
                        resume: SyscallResume::Return { value },
                        said,
                        beside: None,
                    })));
                }
            }
        }
        if self.number == RECVMSG && self.word(message.wrapping_add(CONTROL_LEN))? != 0 {
            let control = "control messages that had come with its first part are lost";
            said = Some(match said {
                Some(other) => format!("{other}; {control}"),
                None => control.into(),
            });
        }
        Ok(part(args, done, memory, said, None))
    }

    /// A `struct user_msghdr` of the caller's has other buffers during the call.
    pub fn lend_buffers(&self, message: u64, rest: &Vector) -> Result<CallMemory, KernelError> {
        let mut memory = CallMemory {
            bytes: Blob(rest.bytes()),
            ..CallMemory::default()
        };
        for (member, during, points) in [(IOV, 0, true), (IOV_LEN, rest.len(), false)] {
            let address = message.wrapping_add(member);
            memory.lent.push(LentWord {
                address,
                during,
                points,
                after: Some(self.word(address)?),
            });
        }
        Ok(memory)
    }
}

pub(super) fn part(
    args: [u64; 6],
    moved: u64,
    memory: CallMemory,
    said: Option<String>,
    beside: Option<Beside>,
) -> Moved {
    let memory = (memory != CallMemory::default()).then(|| Box::new(memory));
    let resume = SyscallResume::Rest {
        args,
        timespec: None,
        moved,
        memory,
    };
    Moved::Part(Box::new(Part {
        resume,
        said,
        beside,
    }))
}
