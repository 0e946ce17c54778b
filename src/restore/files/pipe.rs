//! Pipes, with what was written and not read.

use super::{OPEN, Place, Workshop};
use crate::dataset::{Fidelity, FileKind, ObjectId, OpenFile, Pipe, PipeEnd};
use crate::restore::error::Context;
use crate::restore::{Errno, RestoreError, calls};

/// Both ends of a pipe that was made, at temporary numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Which stub has them.
    pub stub: usize,
    read: i32,
    write: i32,
    /// The open files that pipe2 made have places already.
    read_placed: bool,
    write_placed: bool,
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
        // A VMM that logs into a pipe must not die of it.
        let bears_it = self.dataset.vms.is_empty();
        if !named && !readers && bears_it && !self.pipes.contains_key(&id) {
            self.notes.push(Fidelity::lost(
                format!("pid {pid}"),
                format!("the reader of {}", file.path),
                "it is not restored: who writes gets SIGPIPE and EPIPE, as by its death",
            ));
        } else if !named && !readers && !bears_it {
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
                "it is not restored: behind what was written comes the end, as by its death",
            ));
        }
        let ends = match self.pipes.get(&id) {
            Some(ends) => *ends,
            None => {
                let ends = if named {
                    // Held open both ways, so that no open of it waits for the other.
                    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
                    let fd = calls::open_file(place.sys, file, flags)
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
                    read_placed: false,
                    write_placed: false,
                };
                self.pipes.insert(id, ends);
                ends
            }
        };
        if named {
            let flags = file.flags.cast_signed() & OPEN | libc::O_NONBLOCK | libc::O_CLOEXEC;
            return calls::open_file(place.sys, file, flags)
                .during(pid, || format!("open {}", file.path));
        }
        let (held, access, placed) = match end {
            PipeEnd::Read => (ends.read, libc::O_RDONLY, ends.read_placed),
            PipeEnd::Write => (ends.write, libc::O_WRONLY, ends.write_placed),
            PipeEnd::Both => (ends.read, libc::O_RDWR, true),
        };
        if !placed {
            // As pipe2 made it: one that was opened says O_LARGEFILE of itself.
            if let Some(known) = self.pipes.get_mut(&id) {
                known.read_placed |= end == PipeEnd::Read;
                known.write_placed |= end == PipeEnd::Write;
            }
            return calls::duplicate(place.sys, held, place.base)
                .during(pid, || "fcntl(F_DUPFD_CLOEXEC)".into());
        }
        // An open file of its own: two of them on one end have each their flags.
        let path = format!("self/fd/{held}");
        let flags = access | libc::O_NONBLOCK | libc::O_CLOEXEC;
        match calls::open_in_proc(place.sys, &path, flags) {
            // Without /proc (a chroot) they share one open file.
            Err(Errno(libc::ENOENT)) if end != PipeEnd::Both => {
                calls::duplicate(place.sys, held, place.base)
                    .during(pid, || "fcntl(F_DUPFD_CLOEXEC)".into())
            }
            other => other.during(pid, || format!("open /proc/{path}")),
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
        for (part, packet) in parts(pipe) {
            let mode = if packet { libc::O_DIRECT } else { 0 } | libc::O_NONBLOCK;
            calls::fcntl(
                place.sys,
                write,
                libc::F_SETFL,
                i64::from(mode).cast_unsigned(),
            )
            .and_then(|_| calls::put(place.sys, part))
            .and_then(|at| calls::plain(place.sys, libc::SYS_write, [fd, at, part.len() as u64]))
            .during(pid, || format!("refill a pipe of {} bytes", pipe.capacity))?;
        }
        // The flags of the open file itself come later.
        let mode = i64::from(libc::O_NONBLOCK).cast_unsigned();
        calls::fcntl(place.sys, write, libc::F_SETFL, mode)
            .during(pid, || "fcntl(F_SETFL)".into())
            .map(drop)
    }
}

/// The content in the pieces in which it is written; whether each is a packet.
fn parts(pipe: &Pipe) -> Vec<(&[u8], bool)> {
    let content = pipe.content.0.as_slice();
    let mut parts = Vec::new();
    let mut at = 0;
    let stream = |parts: &mut Vec<_>, from: usize, to: usize| {
        let part: &[u8] = content.get(from..to).unwrap_or_default();
        parts.extend(part.chunks(PART).map(|piece| (piece, false)));
    };
    for &(start, len) in &pipe.packets {
        let start = usize::try_from(start).unwrap_or(usize::MAX).max(at);
        let end = start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        let Some(packet) = content.get(start..end) else {
            break;
        };
        stream(&mut parts, at, start);
        // The kernel, too, makes packets of a page of a larger one.
        parts.extend(packet.chunks(PART).map(|piece| (piece, true)));
        at = end;
    }
    stream(&mut parts, at, content.len());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Blob;

    #[test]
    fn packets_stand_between_pieces_of_a_stream() {
        let mut pipe = Pipe {
            id: ObjectId(1),
            capacity: 4096,
            content: Blob(b"abcdefgh".to_vec()),
            packets: vec![(2, 1), (3, 2), (7, 900)],
            closed_set: true,
        };
        let text = |pipe: &Pipe| -> Vec<(Vec<u8>, bool)> {
            parts(pipe)
                .iter()
                .map(|(part, packet)| (part.to_vec(), *packet))
                .collect()
        };
        let wanted: [(&[u8], bool); 4] =
            [(b"ab", false), (b"c", true), (b"de", true), (b"fgh", false)];
        assert_eq!(
            text(&pipe),
            wanted.map(|(part, packet)| (part.to_vec(), packet))
        );
        pipe.packets.clear();
        assert_eq!(text(&pipe), [(b"abcdefgh".to_vec(), false)]);
    }
}
