//! Asynchronous I/O contexts made again.
//!
//! A context's identity is the address of its ring, and the kernel follows when
//! the ring is moved (`aio_ring_mremap`). What it keeps for itself is where the
//! next event goes; so as many requests that do nothing are made as bring it
//! there. Then the ring says of itself what it said, and no event is lost.

use super::error::Context;
use super::{RestoreError, Syscalls, calls};
use crate::dataset::{AioContext, IO_EVENT, MappingKind, Process};

/// Bytes before the first event: `struct aio_ring`.
const HEADER: u64 = 32;
/// Requests that are submitted in one call.
const BATCH: u64 = 512;
/// `struct iocb`: the opcode is at 16, the descriptor at 20.
const IOCB: u64 = 64;

/// Contexts that cannot be made again.
///
/// # Errors
/// The first, with its reason.
pub fn check(process: &Process) -> Result<(), RestoreError> {
    let pid = process.pid;
    let rings = process
        .mm
        .vmas
        .iter()
        .filter(|v| v.kind == MappingKind::AioRing);
    for ring in rings {
        let unsupported = |why: &str| RestoreError::Unsupported {
            pid,
            what: format!("its asynchronous I/O context at {:#x}", ring.start),
            why: why.into(),
        };
        let mut contexts = process.mm.aio.iter();
        let context = contexts.find(|c| (c.id, c.len) == (ring.start, ring.len()));
        let context = context.ok_or_else(|| unsupported("the dump does not say what was in it"))?;
        if let Some(why) = &context.unknown {
            return Err(unsupported(why));
        }
        let waiting = (u64::from(context.tail) + u64::from(context.entries)
            - u64::from(context.head.min(context.entries)))
            % u64::from(context.entries.max(1));
        let size = HEADER + u64::from(context.entries) * u64::from(IO_EVENT);
        if context.head >= context.entries
            || context.tail >= context.entries
            || size > context.len
            || context.events.0.len() as u64 != waiting * u64::from(IO_EVENT)
        {
            return Err(unsupported("head, tail and events contradict each other"));
        }
    }
    let lonely = |c: &&AioContext| !process.mm.vmas.iter().any(|v| v.start == c.id);
    match process.mm.aio.iter().find(lonely) {
        None => Ok(()),
        Some(context) => Err(RestoreError::Unsupported {
            pid,
            what: format!("its asynchronous I/O context at {:#x}", context.id),
            why: "its ring is not mapped".into(),
        }),
    }
}

/// Makes the contexts, with the events that nobody had taken.
///
/// # Errors
/// The call that was refused, or a ring that is not what it was.
pub fn make(process: &Process, sys: &mut dyn Syscalls) -> Result<(), RestoreError> {
    for context in &process.mm.aio {
        one(process.pid, context, sys)?;
    }
    Ok(())
}

/// Submits again what was under way. From here on the process's files may
/// change.
///
/// # Errors
/// The call that was refused.
pub fn submit(process: &Process, sys: &mut dyn Syscalls) -> Result<(), RestoreError> {
    let pid = process.pid;
    for context in &process.mm.aio {
        for part in context.under_way.chunks(BATCH as usize) {
            let pointers: Vec<u8> = part.iter().flat_map(|p| p.to_ne_bytes()).collect();
            let mut done = 0;
            while done < part.len() {
                let what = || format!("io_submit of {} requests again", part.len());
                let at = calls::put(sys, &pointers[done * 8..]).during(pid, what)?;
                let count = (part.len() - done) as u64;
                let taken = calls::plain(sys, libc::SYS_io_submit, [context.id, count, at])
                    .during(pid, what)?;
                if taken == 0 {
                    return Err(differs(pid, "requests taken by io_submit", count, taken));
                }
                done += usize::try_from(taken).unwrap_or(part.len());
            }
        }
    }
    Ok(())
}

fn one(pid: i32, context: &AioContext, sys: &mut dyn Syscalls) -> Result<(), RestoreError> {
    let set_up = || {
        format!(
            "io_setup for {} requests (see /proc/sys/fs/aio-max-nr)",
            context.max_requests
        )
    };
    // Where it was nothing may come to lie meanwhile.
    let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = calls::map(sys, context.id, context.len, 0, reserve, -1, 0);
    reserved.during(pid, || format!("mmap at {:#x}", context.id))?;
    let at = calls::put(sys, &[0; 8]).during(pid, set_up)?;
    let asked = u64::from(context.max_requests);
    calls::plain(sys, libc::SYS_io_setup, [asked, at]).during(pid, set_up)?;
    let mut id = [0; 8];
    sys.read(at, &mut id).during(pid, set_up)?;
    let made = u64::from_ne_bytes(id);
    let header = Header::read(pid, made, sys)?;
    if header.entries != context.entries {
        // More CPUs make it larger, where few requests were asked for.
        let (then, now) = (context.entries.into(), header.entries.into());
        return Err(differs(pid, "the number of events of a ring", then, now));
    }
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let flags = u64::from(flags.cast_unsigned());
    let len = context.len;
    calls::plain(sys, libc::SYS_mremap, [made, len, len, flags, context.id])
        .during(pid, || format!("mremap of a ring to {:#x}", context.id))?;
    advance(pid, context, sys)?;
    let size = u64::from(IO_EVENT);
    for (i, event) in context.events.0.chunks(IO_EVENT as usize).enumerate() {
        let index = (u64::from(context.head) + i as u64) % u64::from(context.entries);
        sys.write(context.id + HEADER + index * size, event)
            .during(pid, || "write an event".into())?;
    }
    let header = Header::read(pid, context.id, sys)?;
    for (what, then, now) in [
        ("the head of a ring", context.head, header.head),
        ("the tail of a ring", context.tail, header.tail),
    ] {
        if then != now {
            return Err(differs(pid, what, then.into(), now.into()));
        }
    }
    Ok(())
}

/// Has the kernel count up to the context's tail, and take what lies before its
/// head.
fn advance(pid: i32, context: &AioContext, sys: &mut dyn Syscalls) -> Result<(), RestoreError> {
    let waiting = context.events.0.len() as u64 / u64::from(IO_EVENT);
    let take = u64::from(context.head);
    if take + waiting == 0 {
        return Ok(());
    }
    let step = |what: &'static str| move || format!("{what} of a ring's events");
    let name = calls::put(sys, b"aio\0").during(pid, step("memfd_create"))?;
    let fd =
        calls::make_fd(sys, libc::SYS_memfd_create, [name, 0]).during(pid, step("memfd_create"))?;
    // Nothing is read from an empty file: IOCB_CMD_PREAD is 0.
    let mut iocb = [0; IOCB as usize];
    iocb[20..24].copy_from_slice(&fd.to_ne_bytes());
    let mut submitted = 0;
    let mut taken = 0;
    while submitted < take + waiting {
        // What is to be taken first, then what stays.
        let left = if submitted < take {
            take
        } else {
            take + waiting
        } - submitted;
        let count = left.min(BATCH);
        let (start, _) = sys.scratch();
        let pointers: Vec<u8> = (0..count).flat_map(|_| start.to_ne_bytes()).collect();
        let bytes = [&iocb[..], &pointers[..]].concat();
        let at = calls::put(sys, &bytes).during(pid, step("io_submit"))?;
        let submit = [context.id, count, at + IOCB];
        let done = calls::plain(sys, libc::SYS_io_submit, submit).during(pid, step("io_submit"))?;
        if done == 0 {
            return Err(differs(pid, "requests taken by io_submit", count, done));
        }
        submitted += done;
        while taken < take.min(submitted) {
            let want = (take.min(submitted) - taken).min(BATCH);
            let got = calls::plain(
                sys,
                libc::SYS_io_getevents,
                [context.id, want, want, start, 0],
            )
            .during(pid, step("io_getevents"))?;
            if got == 0 {
                return Err(differs(pid, "events given by io_getevents", want, got));
            }
            taken += got;
        }
    }
    calls::close(sys, fd).during(pid, step("close"))
}

/// The first words of a ring.
struct Header {
    entries: u32,
    head: u32,
    tail: u32,
}

impl Header {
    fn read(pid: i32, at: u64, sys: &mut dyn Syscalls) -> Result<Self, RestoreError> {
        let mut bytes = [0; 16];
        sys.read(at, &mut bytes)
            .during(pid, || format!("read the ring at {at:#x}"))?;
        let [_, _, _, _, a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Ok(Self {
            entries: u32::from_ne_bytes([a, b, c, d]),
            head: u32::from_ne_bytes([e, f, g, h]),
            tail: u32::from_ne_bytes([i, j, k, l]),
        })
    }
}

fn differs(pid: i32, what: &str, wanted: u64, got: u64) -> RestoreError {
    RestoreError::Differs {
        pid,
        what: what.into(),
        wanted: wanted.to_string(),
        got: got.to_string(),
    }
}
