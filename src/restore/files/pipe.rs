//! Pipes, with what was written and not read.

use super::{OPEN, Place, Workshop};
use crate::dataset::{Fidelity, FileKind, ObjectId, OpenFile, PipeEnd};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, calls};

/// Both ends of a pipe that was made, at temporary numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Which stub has them.
    pub stub: usize,
    read: i32,
    write: i32,
}

/// Bytes written at a time: a pipe that is full would block.
const PART: usize = 4096;

impl<'d> Workshop<'d> {
    /// One end of a pipe; the first to come makes the pipe.
    pub(super) fn pipe(
        &mut self,
        file: &OpenFile,
        id: ObjectId,
        end: PipeEnd,
        named: bool,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        let has = |wanted: PipeEnd| {
            self.dataset.files.iter().any(|f| match f.kind {
                FileKind::Pipe { pipe, end, .. } => {
                    pipe == id && (end == wanted || end == PipeEnd::Both)
                }
                _ => false,
            })
        };
        let (readers, writers) = (has(PipeEnd::Read), has(PipeEnd::Write));
        if !named && !readers {
            self.notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("the reader of {}", file.path),
                "it died with the host: what is written goes to /dev/null",
            ));
            return calls::open(place.sys, "/dev/null", libc::O_WRONLY | libc::O_CLOEXEC)
                .during(pid, || "open /dev/null".into());
        }
        if !named && !writers && !self.pipes.contains_key(&id) {
            self.notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("the writer of {}", file.path),
                "it died with the host: behind what was written comes the end",
            ));
        }
        let ends = match self.pipes.get(&id) {
            Some(ends) => *ends,
            None => {
                let ends = if named {
                    // Held open both ways, so that no open of it waits for the other.
                    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
                    let fd = calls::open(place.sys, &file.path, flags)
                        .and_then(|fd| calls::raise(place.sys, fd, place.base))
                        .during(pid, || format!("open {}", file.path))?;
                    [fd, fd]
                } else {
                    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
                    let ends = calls::two_fds(
                        place.sys,
                        libc::SYS_pipe2,
                        &[],
                        &[flags.cast_unsigned().into()],
                    )
                    .during(pid, || "pipe2".into())?;
                    let mut raised = [0; 2];
                    for (to, from) in raised.iter_mut().zip(ends) {
                        *to = calls::raise(place.sys, from, place.base)
                            .during(pid, || "fcntl".into())?;
                    }
                    raised
                };
                self.refill(id, ends, place)?;
                let ends = Ends {
                    stub: place.stub,
                    read: ends[0],
                    write: ends[1],
                };
                self.pipes.insert(id, ends);
                ends
            }
        };
        if named {
            let flags = file.flags.cast_signed() & OPEN | libc::O_NONBLOCK | libc::O_CLOEXEC;
            return calls::open(place.sys, &file.path, flags)
                .during(pid, || format!("open {}", file.path));
        }
        // An open file of its own: two of them on one end have each their flags.
        let (held, access) = match end {
            PipeEnd::Read => (ends.read, libc::O_RDONLY),
            PipeEnd::Write => (ends.write, libc::O_WRONLY),
            PipeEnd::Both => (ends.read, libc::O_RDWR),
        };
        let path = format!("/proc/self/fd/{held}");
        let flags = access | libc::O_NONBLOCK | libc::O_CLOEXEC;
        match calls::open(place.sys, &path, flags) {
            // Without /proc (a chroot) they share one open file.
            Err(Errno(libc::ENOENT)) if end != PipeEnd::Both => calls::fcntl(
                place.sys,
                held,
                libc::F_DUPFD_CLOEXEC,
                i64::from(place.base).cast_unsigned(),
            )
            .and_then(|fd| i32::try_from(fd).map_err(|_| Errno(libc::EBADF)))
            .during(pid, || "fcntl(F_DUPFD_CLOEXEC)".into()),
            other => other.during(pid, || format!("open {path}")),
        }
    }

    /// Gives a new pipe its capacity and its content.
    fn refill(
        &mut self,
        id: ObjectId,
        [read, write]: [i32; 2],
        place: &mut Place<'_>,
    ) -> Result<(), RestoreError> {
        let pid = place.pid;
        let Some(pipe) = self.dataset.pipes.iter().find(|p| p.id == id) else {
            self.notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("content of pipe {id}"),
                "it is not in the dataset",
            ));
            return Ok(());
        };
        if pipe.capacity != 0 {
            calls::fcntl(place.sys, read, libc::F_SETPIPE_SZ, pipe.capacity)
                .during(pid, || format!("fcntl(F_SETPIPE_SZ, {})", pipe.capacity))?;
        }
        let fd = i64::from(write).cast_unsigned();
        for part in pipe.content.0.chunks(PART) {
            calls::put(place.sys, part)
                .and_then(|at| {
                    calls::plain(place.sys, libc::SYS_write, [fd, at, part.len() as u64])
                })
                .during(pid, || format!("refill a pipe of {} bytes", pipe.capacity))?;
        }
        Ok(())
    }
}
