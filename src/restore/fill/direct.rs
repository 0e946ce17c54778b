//! Pages that stand in a file just as they are, read by the stub's own threads straight to where they
//! belong: one copy less than by way of this process's memory.
//!
//! Each thread runs a loop of a few instructions ([`inject::READ_LOOP`]) that takes the next read off
//! a table in the scratch memory until none is left.
//!
//! [`inject::READ_LOOP`]: crate::restore::inject::READ_LOOP

use super::pieces::Piece;
use super::{PAGE, Progress, Sink, move_batch};
use crate::dataset::{PageSource, PlainPages};
use crate::restore::error::Context;
use crate::restore::stub::{Stub, add_helper, end_helper};
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use crate::sys::interrupt::Guard;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

/// Pages in a row from which on it is worth it.
const WORTH_IT: u64 = 16;

/// What is read between two looks at Ctrl-C. Bytes.
const ROUND: u64 = 256 << 20;

/// For which a thread is worth making. Bytes.
const PER_THREAD: u64 = 8 << 20;

/// Bytes of a read in the table: address, length, offset, and the descriptor, in whose place comes
/// what the call gave. The table begins with a counter in as much.
const ENTRY: usize = 32;

/// What is read so.
pub fn takes(piece: &Piece<'_>, pages: &dyn PageSource) -> bool {
    plain(piece, pages).is_some()
}

fn plain<'p>(piece: &Piece<'_>, pages: &'p dyn PageSource) -> Option<PlainPages<'p>> {
    if piece.count < WORTH_IT || !piece.zero_already {
        return None;
    }
    let plain = pages.plain(piece.run, piece.first)?;
    (plain.count >= piece.count).then_some(plain)
}

/// Reads what [`takes`] says of these pieces of private memory. `false`: it cannot be done here, and
/// nothing was.
///
/// # Errors
/// A page that cannot be read or written; Ctrl-C.
pub fn fill<'a>(
    stub: &mut Stub<'_>,
    pieces: impl Iterator<Item = Piece<'a>>,
    pages: &dyn PageSource,
    guard: &Guard,
    progress: Option<&Progress>,
) -> Result<bool, RestoreError> {
    let mut pieces = pieces
        .filter_map(|piece| plain(&piece, pages).map(|plain| (piece, plain)))
        .peekable();
    if pieces.peek().is_none() {
        return Ok(false);
    }
    let pid = stub.process.pid;
    let mut files = Files::default();
    let most = (stub.leader()?.scratch().1 / ENTRY).saturating_sub(1);
    while pieces.peek().is_some() {
        if guard.interrupted() {
            return Err(RestoreError::Interrupted);
        }
        let (mut round, mut table, mut bytes) = (Vec::new(), vec![0; ENTRY], 0);
        while bytes < ROUND && round.len() < most {
            let Some((piece, plain)) = pieces.next() else {
                break;
            };
            let fd = match files.in_stub(stub.leader()?, plain.file) {
                Ok(fd) => fd,
                Err(_) if files.is_empty() => return Ok(false),
                Err(e) => return Err(e).during(pid, || "open the dump in it".into()),
            };
            let len = piece.count * PAGE as u64;
            let at = piece.run.start + piece.first * PAGE as u64;
            for word in [at, len, plain.offset, u64::from(fd.cast_unsigned())] {
                table.extend(word.to_ne_bytes());
            }
            bytes += len;
            round.push(piece);
        }
        add_helpers(stub, bytes)?;
        let answers = match read_all(stub, &table, round.len()) {
            Err(_) if guard.interrupted() => return Err(RestoreError::Interrupted),
            other => other.during(pid, || "read the dump into its memory".into())?,
        };
        for (piece, answer) in round.iter().zip(answers) {
            // By the way that tells why.
            if answer != piece.count * PAGE as u64 {
                let mut buffer = vec![0; piece.count as usize * PAGE];
                let piece = std::slice::from_ref(piece);
                move_batch(pid, piece, &mut buffer, &Sink::Process(stub.pid), pages)?;
            }
        }
        if let Some(progress) = progress {
            progress.done.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    files.close(stub.leader()?);
    stub.helpers.drain(..).for_each(end_helper);
    Ok(true)
}

/// As many threads as are worth it for so many bytes, and can be had.
fn add_helpers(stub: &mut Stub<'_>, bytes: u64) -> Result<(), RestoreError> {
    let cpus = cpus();
    let worth_it = usize::try_from(bytes / PER_THREAD).unwrap_or(usize::MAX);
    while stub.threads.len() + stub.helpers.len() < cpus.min(worth_it) {
        let Ok(helper) = add_helper(stub.leader()?) else {
            break;
        };
        stub.helpers.push(helper);
    }
    Ok(())
}

/// Lets the threads do all of a table's reads, and gives the calls' answers.
fn read_all(stub: &mut Stub<'_>, table: &[u8], reads: usize) -> Result<Vec<u64>, Errno> {
    let Some((leader, others)) = stub.threads.split_first_mut() else {
        return Ok(Vec::new());
    };
    let others = others.iter_mut().chain(&mut stub.helpers);
    let mut others: Vec<_> = others.take(cpus() - 1).collect();
    let (at, _) = leader.scratch();
    leader.write(at, table)?;
    for thread in &mut others {
        thread.start_reads(at, reads as u64)?;
    }
    leader.start_reads(at, reads as u64)?;
    leader.finish_reads()?;
    for thread in others {
        thread.finish_reads()?;
    }
    let mut done = vec![0; table.len()];
    leader.read(at, &mut done)?;
    let entries = done.chunks_exact(ENTRY).skip(1);
    let answers = entries.map(|entry| match entry.last_chunk() {
        Some(word) => u64::from_ne_bytes(*word),
        None => 0,
    });
    Ok(answers.collect())
}

/// At least one.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(16))
}

/// Files of this process that the stub has open too.
#[derive(Default)]
struct Files {
    /// Descriptors here and there.
    open: Vec<(i32, i32)>,
}

impl Files {
    fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn in_stub(&mut self, sys: &mut dyn Syscalls, file: &File) -> Result<i32, Errno> {
        let here = file.as_raw_fd();
        if let Some((_, there)) = self.open.iter().find(|(fd, _)| *fd == here) {
            return Ok(*there);
        }
        let path = format!("{}/fd/{here}", std::process::id());
        let there = calls::open_in_proc(sys, &path, libc::O_RDONLY | libc::O_CLOEXEC)?;
        self.open.push((here, there));
        Ok(there)
    }

    fn close(self, sys: &mut dyn Syscalls) {
        for (_, there) in self.open {
            let _ = calls::close(sys, there);
        }
    }
}
