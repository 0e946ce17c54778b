//! POSIX message queues: made once, with what is in them, and opened again for
//! each open file.

use super::Workshop;
use crate::dataset::{FileKind, MessageQueue, ObjectId};
use crate::restore::error::Context;
use crate::restore::objects::{Holder, Objects};
use crate::restore::stub::Family;
use crate::restore::{Errno, RestoreError, Syscalls, calls};

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

impl<'d> Workshop<'d> {
    /// A descriptor of the stub for a queue, which is made the first time.
    pub(super) fn queue_in(
        &mut self,
        family: &mut Family<'_>,
        stub: usize,
        id: ObjectId,
        objects: &Objects,
    ) -> Result<i32, RestoreError> {
        if let Some(holder) = self.queues.get(&id).copied() {
            return objects.lend(family, holder, stub);
        }
        let pid = family.process(stub)?.pid;
        let queue = self.queue(pid, id)?;
        let sys = family.leader(stub)?;
        let what = || format!("make the POSIX message queue /{}", queue.name);
        let made = match create(sys, queue) {
            Err(Errno(libc::EEXIST)) if remove_remains(sys, queue) => create(sys, queue),
            other => other,
        };
        let fd = made.map_err(|errno| match errno.0 {
            libc::EEXIST => RestoreError::Refused {
                pid,
                what: format!("the POSIX message queue /{}", queue.name),
                why: "there is one of that name on this host".into(),
                hint: "`ls /dev/mqueue` shows what there is (mount -t mqueue none /dev/mqueue)",
            },
            _ => RestoreError::Call {
                pid,
                what: what(),
                errno,
            },
        })?;
        self.sysv.remember_queue(&queue.name, queue.mode);
        let fd = calls::raise(sys, fd, objects.base).during(pid, what)?;
        fill(sys, fd, queue).during(pid, || format!("fill the queue /{}", queue.name))?;
        if queue.removed {
            with_name(sys, queue, |sys, at| {
                calls::plain(sys, libc::SYS_mq_unlink, [at])
            })
            .during(pid, || format!("mq_unlink of /{}", queue.name))?;
            self.sysv.forget_queue(&queue.name);
        }
        self.queues.insert(id, Holder { stub, fd });
        Ok(fd)
    }

    fn queue(&self, pid: i32, id: ObjectId) -> Result<&'d MessageQueue, RestoreError> {
        let mut queues = self.dataset.message_queues.iter();
        queues
            .find(|queue| queue.id == id)
            .ok_or_else(|| RestoreError::Malformed {
                pid,
                what: format!("the message queue {id}"),
                why: "it is not in the dataset".into(),
            })
    }

    /// Asks again to be told of messages, for whoever had asked.
    ///
    /// # Errors
    /// mq_notify refused.
    pub fn ask_for_notices(&self, family: &mut Family<'_>) -> Result<(), RestoreError> {
        for queue in &self.dataset.message_queues {
            let Some(notice) = &queue.notify else {
                continue;
            };
            let Some(at) = family
                .stubs
                .iter()
                .position(|s| s.process.pid == notice.pid)
            else {
                continue;
            };
            let process = family.process(at)?;
            let is_it = |id: ObjectId| {
                let file = self.by_id.get(&id);
                file.is_some_and(
                    |f| matches!(f.kind, FileKind::MessageQueue { queue: of } if of == queue.id),
                )
            };
            let Some(fd) = process.fds.iter().find(|fd| is_it(fd.file)) else {
                continue;
            };
            // `struct sigevent`: 64 bytes.
            let mut event = notice.value.0.clone();
            event.resize(8, 0);
            event.extend(notice.signal.to_ne_bytes());
            event.extend(notice.how.to_ne_bytes());
            event.resize(64, 0);
            let sys = family.leader(at)?;
            calls::put(sys, &event)
                .and_then(|at| calls::plain(sys, libc::SYS_mq_notify, [arg(fd.fd), at]))
                .during(notice.pid, || format!("mq_notify of /{}", queue.name))?;
        }
        Ok(())
    }
}

/// Makes a call with the queue's name, and room for its attributes behind it.
fn with_name(
    sys: &mut dyn Syscalls,
    queue: &MessageQueue,
    call: impl FnOnce(&mut dyn Syscalls, u64) -> Result<u64, Errno>,
) -> Result<u64, Errno> {
    // flags, maxmsg, msgsize, and what only the kernel says.
    let mut bytes: Vec<u8> = [0, queue.max_messages, queue.max_size, 0, 0, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    bytes.extend(queue.name.as_bytes());
    bytes.push(0);
    let at = calls::put(sys, &bytes)?;
    call(sys, at + 64)
}

fn create(sys: &mut dyn Syscalls, queue: &MessageQueue) -> Result<i32, Errno> {
    let flags = arg(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK);
    let made = with_name(sys, queue, |sys, at| {
        calls::plain(sys, libc::SYS_mq_open, [at, flags, 0, at - 64])
    })?;
    i32::try_from(made).map_err(|_| Errno(libc::EBADF))
}

/// A queue of that name to which nobody has a right is what a restore leaves that is killed before
/// its processes run. True: it is gone.
fn remove_remains(sys: &mut dyn Syscalls, queue: &MessageQueue) -> bool {
    /// Of `st_mode` in the x86-64 kernel's `struct stat`, 144 bytes.
    const MODE: usize = 24;
    let flags = arg(libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC);
    let mut looked = || -> Result<u32, Errno> {
        let fd = with_name(sys, queue, |sys, at| {
            calls::plain(sys, libc::SYS_mq_open, [at, flags, 0, 0])
        })?;
        let mut stat = vec![0; 144];
        let at = calls::put(sys, &stat)?;
        let known = calls::plain(sys, libc::SYS_fstat, [fd, at]);
        let known = known.and_then(|_| sys.read(at, &mut stat));
        calls::plain(sys, libc::SYS_close, [fd])?;
        known?;
        let mode = stat.get(MODE..).and_then(|b| b.first_chunk::<4>());
        Ok(mode.map_or(u32::MAX, |four| u32::from_ne_bytes(*four)))
    };
    let nobodys = queue.mode & 0o777 != 0 && looked().is_ok_and(|mode| mode & 0o777 == 0);
    nobodys
        && with_name(sys, queue, |sys, at| {
            calls::plain(sys, libc::SYS_mq_unlink, [at])
        })
        .is_ok()
}

fn fill(sys: &mut dyn Syscalls, fd: i32, queue: &MessageQueue) -> Result<(), Errno> {
    calls::plain(
        sys,
        libc::SYS_fchown,
        [arg(fd), queue.uid.into(), queue.gid.into()],
    )?;
    if queue.removed {
        // The others get theirs when the processes run.
        calls::plain(sys, libc::SYS_fchmod, [arg(fd), queue.mode.into()])?;
    }
    for message in &queue.messages {
        let priority = message.kind.max(0).cast_unsigned();
        let at = calls::put(sys, &message.data.0)?;
        let len = message.data.0.len() as u64;
        calls::plain(sys, libc::SYS_mq_timedsend, [arg(fd), at, len, priority, 0])?;
    }
    Ok(())
}
