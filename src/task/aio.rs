//! Asynchronous I/O (`io_setup`): contexts, their rings, and requests that were
//! under way.
//!
//! A request lives in an `aio_kiocb`, which nothing but the layer that works on
//! it refers to (only requests that can be cancelled are on a list). But each
//! knows its context and the address of the caller's `struct iocb`, the slab
//! cache knows where they can be, and the context's accounts say how many there
//! are. Only when these agree is the context brought back: the requests are
//! submitted again, which is right for reads, and for writes, whose data is
//! where it was.

use super::extract::Extraction;
use super::slab::Cache;
use crate::dataset::{AioContext, Blob, Fd, IO_EVENT, Process, SyscallResume};
use crate::kernel::{AddressSpace, Kernel, KernelError, Object};

/// Most contexts of a process: each takes of `fs.aio-max-nr`, 65536 unless raised.
const MAX_CONTEXTS: u64 = 1 << 16;
/// Longest ring: two million events.
const MAX_RING: u64 = 64 << 20;
/// Bytes before the first event: `struct aio_ring`.
const HEADER: u64 = 32;
const MAGIC: u64 = 0xa10a_10a1;
/// `struct iocb`.
const IOCB: usize = 64;
const IO_SUBMIT: u64 = 209;
const PAGE: u64 = 4096;

/// A request that the dead kernel had.
struct Request {
    /// The caller's `struct iocb`.
    iocb: u64,
    /// io_submit still holds it (`ki_refcnt` is 2).
    in_submit: bool,
    /// What the caller's `iocb` must say.
    data: u64,
    file: u64,
}

/// Reads the contexts of `mm`; whose threads are `process`'s, which are told
/// how to go on from an io_submit that was under way.
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    mm: &Object<'_>,
    space: &AddressSpace<'_>,
    process: &mut Process,
) {
    let contexts = contexts(x.kernel, mm);
    let subject = format!("pid {}", process.pid);
    let contexts = match contexts {
        Ok(contexts) => contexts,
        Err(error) => {
            // Its rings are in the address space, and cannot be mapped then.
            let why = format!("its table cannot be read: {error}");
            x.lost(&subject, "asynchronous I/O", why);
            return;
        }
    };
    for context in contexts {
        let result = one(x.kernel, &context, space, process);
        let context = result.unwrap_or_else(|why| {
            x.lost(&subject, "asynchronous I/O", why.clone());
            AioContext {
                id: context.u("user_id").unwrap_or(0),
                len: context.u("mmap_size").unwrap_or(0),
                max_requests: 0,
                entries: 0,
                head: 0,
                tail: 0,
                events: Blob(Vec::new()),
                under_way: Vec::new(),
                unknown: Some(why),
            }
        });
        let count = context.under_way.len();
        if count > 0 {
            x.reconstructed(
                &subject,
                "asynchronous I/O",
                format!("{count} requests that were under way are submitted again"),
            );
        }
        process.mm.aio.push(context);
    }
}

/// The living `struct kioctx`s.
fn contexts<'k>(kernel: &'k Kernel, mm: &Object<'_>) -> Result<Vec<Object<'k>>, KernelError> {
    if !mm.has("ioctx_table") {
        return Ok(Vec::new());
    }
    let Some(table) = mm.follow_opt("ioctx_table")? else {
        return Ok(Vec::new());
    };
    let count = table.u("nr")?;
    if count > MAX_CONTEXTS {
        return Err(KernelError::Damaged {
            what: "kioctx_table",
            addr: table.addr(),
            detail: format!("it has {count} entries"),
        });
    }
    let first = table.get("table")?.addr();
    let mut out: Vec<Object<'k>> = Vec::new();
    for index in 0..count {
        let at = kernel.read_u64(first.wrapping_add(index * 8))?;
        if at == 0 || out.iter().any(|c| c.addr() == at) {
            continue;
        }
        let context = kernel.object("kioctx", at)?;
        if context.u("dead.counter")? == 0 {
            out.push(context);
        }
    }
    Ok(out)
}

fn one(
    kernel: &Kernel,
    context: &Object<'_>,
    space: &AddressSpace<'_>,
    process: &mut Process,
) -> Result<AioContext, String> {
    let unreadable = |what: &'static str| move |e: KernelError| format!("{what}: {e}");
    let read = |path: &str| context.u(path).map_err(unreadable("struct kioctx"));
    let (entries, max_requests) = (read("nr_events")?, read("max_reqs")?);
    let (id, len) = (read("user_id")?, read("mmap_size")?);
    let room = (len.saturating_sub(HEADER)) / u64::from(IO_EVENT);
    if entries < 2 || entries > room || len % PAGE != 0 || len > MAX_RING || id % PAGE != 0 {
        return Err(format!(
            "its context at {id:#x} claims {entries} events in {len} bytes"
        ));
    }
    let ring = Ring { kernel, context };
    let header = ring.read(0, HEADER).map_err(unreadable("the ring"))?;
    let word = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|b| b.first_chunk::<4>());
        bytes.map_or(0, |b| u64::from(u32::from_le_bytes(*b)))
    };
    // The kernel's own tail leads for an instant.
    let (head, tail) = (word(8), read("tail")?);
    if word(16) != MAGIC || word(4) != entries || head >= entries || tail >= entries {
        return Err(format!(
            "the ring at {id:#x} has magic {:#x}, {} events of {entries}, head {head}, tail {tail}",
            word(16),
            word(4)
        ));
    }
    let mut events = Vec::new();
    let mut at = head;
    while at != tail {
        let place = HEADER + at * u64::from(IO_EVENT);
        events.extend(
            ring.read(place, u64::from(IO_EVENT))
                .map_err(unreadable("an event"))?,
        );
        at = (at + 1) % entries;
    }
    let expected = under_way(kernel, context, entries).map_err(unreadable("its accounts"))?;
    let requests = find(kernel, context, expected)?;
    let under_way = settle(context.addr(), id, requests, &events, space, process)?;
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(AioContext {
        id,
        len,
        max_requests: small(max_requests),
        entries: small(entries),
        head: small(head),
        tail: small(tail),
        events: Blob(events),
        under_way,
        unknown: None,
    })
}

/// How many requests were under way: what is neither free nor in the ring.
/// Linux fs/aio.c, `ioctx_alloc`, `__get_reqs_available`, `refill_reqs_available`.
fn under_way(kernel: &Kernel, context: &Object<'_>, entries: u64) -> Result<u64, KernelError> {
    let mut free = context.u("reqs_available.counter")?;
    let cpus = context.ptr("cpu")?;
    for cpu in kernel.cpus()? {
        let local = kernel.object("kioctx_cpu", kernel.per_cpu(cpus, cpu)?)?;
        free = free.saturating_add(local.u("reqs_available")?);
    }
    let completed = context.u("completed_events")?;
    let known = free.saturating_add(completed);
    (entries - 1)
        .checked_sub(known)
        .ok_or_else(|| KernelError::Damaged {
            what: "struct kioctx",
            addr: context.addr(),
            detail: format!("{free} free and {completed} completed of {entries}"),
        })
}

/// The requests of the context.
fn find(kernel: &Kernel, context: &Object<'_>, expected: u64) -> Result<Vec<Request>, String> {
    if expected == 0 {
        return Ok(Vec::new());
    }
    let unreadable = |e: KernelError| format!("its {expected} requests under way: {e}");
    let cache = Cache::of(kernel, "kiocb_cachep").map_err(unreadable)?;
    let here = |places: &[u64]| -> Vec<Request> {
        places
            .iter()
            .filter_map(|at| request(kernel, *at, context.addr()).ok().flatten())
            .collect()
    };
    let listed = here(&cache.listed().map_err(unreadable)?);
    let enough = |found: &[Request]| found.len() as u64 == expected;
    if enough(&listed) {
        return Ok(listed);
    }
    let found = match cache.everywhere().map_err(unreadable)? {
        Some(all) => here(&all),
        None => listed,
    };
    if enough(&found) {
        return Ok(found);
    }
    Err(format!(
        "{expected} requests were under way, and {} of them can be found",
        found.len()
    ))
}

/// What lies at a place for an `aio_kiocb`, if that is a living one of the
/// context. A free one has no references left.
fn request(kernel: &Kernel, at: u64, context: u64) -> Result<Option<Request>, KernelError> {
    let kiocb = kernel.object("aio_kiocb", at)?;
    if kiocb.ptr("ki_ctx")? != context {
        return Ok(None);
    }
    let references = kiocb.u("ki_refcnt.refs.counter")?;
    if !(1..=2).contains(&references) {
        return Ok(None);
    }
    Ok(Some(Request {
        iocb: kiocb.u("ki_res.obj")?,
        in_submit: references == 2,
        data: kiocb.u("ki_res.data")?,
        file: kiocb.ptr("ki_filp")?,
    }))
}

/// Holds the requests against what the process has in its memory, and decides
/// what becomes of an io_submit that was under way.
fn settle(
    context: u64,
    id: u64,
    mut requests: Vec<Request>,
    events: &[u8],
    space: &AddressSpace<'_>,
    process: &mut Process,
) -> Result<Vec<u64>, String> {
    let done: Vec<u64> = events
        .chunks_exact(IO_EVENT as usize)
        .filter_map(|event| event.get(8..16)?.first_chunk::<8>())
        .map(|obj| u64::from_le_bytes(*obj))
        .collect();
    let mut submitting = Vec::new();
    for thread in &mut process.threads {
        let Some(call) = thread.syscall.as_ref() else {
            continue;
        };
        if call.number != IO_SUBMIT || call.args[0] != id || thread.resume != SyscallResume::Reissue
        {
            continue;
        }
        let array = pointers(space, call.args[2], call.args[1])
            .map_err(|e| format!("what thread {} was submitting: {e}", thread.tid))?;
        // What it had not come to has no request, and what it had just begun
        // may not have its address yet.
        let taken = array.iter().rposition(|iocb| {
            done.contains(iocb) || requests.iter().any(|request| request.iocb == *iocb)
        });
        let count = taken.map_or(0, |last| last + 1);
        if count > 0 {
            let value = i64::try_from(count).unwrap_or(i64::MAX);
            thread.resume = SyscallResume::Return { value };
        }
        submitting.extend(array);
    }
    requests.retain(|request| !request.in_submit || submitting.contains(&request.iocb));
    let mut out = Vec::new();
    for request in &requests {
        if done.contains(&request.iocb) || out.contains(&request.iocb) {
            return Err(format!(
                "two requests of the context at {context:#x} are of one iocb, {:#x}",
                request.iocb
            ));
        }
        matches(request, space, &process.fds)?;
        out.push(request.iocb);
    }
    Ok(out)
}

/// The caller's `struct iocb` must still be what was submitted.
fn matches(request: &Request, space: &AddressSpace<'_>, fds: &[Fd]) -> Result<(), String> {
    let mut iocb = [0u8; IOCB];
    space.read(request.iocb, &mut iocb).map_err(|e| {
        format!(
            "the iocb at {:#x} of a request under way: {e}",
            request.iocb
        )
    })?;
    let changed = |what: &str| {
        Err(format!(
            "the iocb at {:#x} of a request under way has another {what} than the request",
            request.iocb
        ))
    };
    let [d0, d1, d2, d3, d4, d5, d6, d7, ..] = iocb;
    if u64::from_le_bytes([d0, d1, d2, d3, d4, d5, d6, d7]) != request.data {
        return changed("aio_data");
    }
    // PREAD, PWRITE, FSYNC, FDSYNC, PREADV, PWRITEV.
    if !matches!(u16::from_le_bytes([iocb[16], iocb[17]]), 0..=3 | 7 | 8) {
        return changed("aio_lio_opcode");
    }
    let fd = i32::from_le_bytes([iocb[20], iocb[21], iocb[22], iocb[23]]);
    if !fds.iter().any(|f| f.fd == fd && f.file.0 == request.file) {
        return changed("aio_fildes");
    }
    Ok(())
}

/// An array of pointers of the process.
fn pointers(space: &AddressSpace<'_>, at: u64, count: u64) -> Result<Vec<u64>, KernelError> {
    let count = usize::try_from(count.min(1 << 16)).unwrap_or(0);
    let mut bytes = vec![0; count * 8];
    space.read(at, &mut bytes)?;
    Ok(super::page_cache::words(&bytes))
}

/// The ring, by the kernel's own pages of it.
struct Ring<'a, 'k> {
    kernel: &'a Kernel,
    context: &'a Object<'k>,
}

impl Ring<'_, '_> {
    /// `len` bytes from `offset` on, which may lie on two pages.
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, KernelError> {
        // Folios since Linux commit 75cf91b86d9a ("fs/aio: Convert
        // aio_setup_ring... to folios") (in v6.10); each is one page.
        let array = match self.context.has("ring_folios") {
            true => self.context.ptr("ring_folios")?,
            false => self.context.ptr("ring_pages")?,
        };
        let mut out = Vec::new();
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let page = self.kernel.read_u64(array.wrapping_add(at / PAGE * 8))?;
            let frame = self.kernel.page_to_pfn(page)?;
            let va = self.kernel.phys_to_virt(frame.wrapping_mul(PAGE));
            let part = (end - at).min(PAGE - at % PAGE);
            let mut bytes = vec![0; usize::try_from(part).unwrap_or(0)];
            self.kernel.read(va.wrapping_add(at % PAGE), &mut bytes)?;
            out.extend(bytes);
            at += part;
        }
        Ok(out)
    }
}
