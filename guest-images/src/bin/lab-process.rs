//! The ordinary program of the lab's host: four threads that pass items along
//! a pipe, a queue under a mutex and a condition variable, and an eventfd,
//! driven by a timerfd; beside it a signal handler, a signalfd, an appended
//! log and a counter in a mapped file.
//!
//! ```text
//!  main ──condvar──▶ producer ──pipe──▶ worker ──mutex+condvar──▶ consumer
//!   ▲ epoll: timerfd, eventfd, signalfd                         │ log, map
//!   └───────────────────────────── eventfd ─────────────────────┘
//! ```
//!
//! Usage: `lab-process DIR`: prints to stdout, appends to `DIR/items.log` and
//! maps `DIR/counter.map`. For each tick of the timer one line:
//!
//! ```text
//! P nonce=… n=… produced=… worked=… consumed=… done=… sum=… heap=ok order=ok map=… usr1=… usr2=… crc=…
//! ```
//!
//! and for each batch that the consumer took, one line in the log:
//! `A nonce=… first=… last=… xor=… crc=…`. Every item is there exactly once.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vmrestore_guest_images::line::sealed;
use vmrestore_guest_images::pattern::{Pattern, mix};

/// Items made for each tick.
const BATCH: u64 = 8;
/// Nanoseconds between ticks.
const TICK_NS: libc::c_long = 100_000_000;
/// Bytes of heap that every line covers.
const HEAP_BYTES: usize = 4 << 20;

/// Signals taken by the handler.
static USR1: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_usr1(_signal: libc::c_int) {
    USR1.fetch_add(1, Ordering::SeqCst);
}

fn main() {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| ".".into());
    if let Err(error) = run(Path::new(&dir)) {
        eprintln!("lab-process: {error}");
        std::process::exit(1);
    }
}

/// A value under glibc's mutex with its condition variable, as C programs
/// have it (Rust's own mutex would be a bare futex).
struct Monitor<T> {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    cond: UnsafeCell<libc::pthread_cond_t>,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached only between pthread_mutex_lock and _unlock.
unsafe impl<T: Send> Sync for Monitor<T> {}
// SAFETY: as above; the mutex is never moved while locked (it lives in an Arc).
unsafe impl<T: Send> Send for Monitor<T> {}

impl<T> Monitor<T> {
    fn new(value: T) -> Self {
        Self {
            mutex: UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER),
            cond: UnsafeCell::new(libc::PTHREAD_COND_INITIALIZER),
            value: UnsafeCell::new(value),
        }
    }

    /// Changes the value and wakes one waiter.
    fn change(&self, change: impl FnOnce(&mut T)) {
        // SAFETY: an initialised mutex and condition variable at a stable
        // address; the value is touched under the mutex.
        unsafe {
            libc::pthread_mutex_lock(self.mutex.get());
            change(&mut *self.value.get());
            libc::pthread_cond_signal(self.cond.get());
            libc::pthread_mutex_unlock(self.mutex.get());
        }
    }

    /// Waits until `take` yields something.
    fn wait<R>(&self, mut take: impl FnMut(&mut T) -> Option<R>) -> R {
        // SAFETY: as in `change`.
        unsafe {
            libc::pthread_mutex_lock(self.mutex.get());
            loop {
                if let Some(taken) = take(&mut *self.value.get()) {
                    libc::pthread_mutex_unlock(self.mutex.get());
                    return taken;
                }
                libc::pthread_cond_wait(self.cond.get(), self.mutex.get());
            }
        }
    }
}

/// What the threads have done so far; each is written by one thread only.
#[derive(Default)]
struct Progress {
    produced: AtomicU64,
    worked: AtomicU64,
    /// Items that were consumed, and the sum over them: of one moment.
    consumed: Mutex<(u64, u64)>,
    out_of_order: AtomicU64,
}

fn tally(progress: &Progress) -> MutexGuard<'_, (u64, u64)> {
    progress
        .consumed
        .lock()
        .unwrap_or_else(|poison| poison.into_inner())
}

fn run(dir: &Path) -> std::io::Result<()> {
    let nonce = draw_nonce();
    let progress = Arc::new(Progress::default());
    let ticks: Arc<Monitor<u64>> = Arc::new(Monitor::new(0));
    let queue: Arc<Monitor<VecDeque<(u64, u64)>>> = Arc::new(Monitor::new(VecDeque::new()));
    let (pipe_read, pipe_write) = pipe()?;
    let done = Arc::new(owned("eventfd", |_| {
        // SAFETY: no pointers involved.
        unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }
    })?);
    let signals = take_signals()?;
    let timer = start_timer()?;
    let epoll = watch(&[&timer, &done, &signals])?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("items.log"))?;
    let map = map_counter(&dir.join("counter.map"), nonce)?;

    spawn_producer(&progress, &ticks, pipe_write)?;
    spawn_worker(nonce, &progress, &queue, pipe_read)?;
    spawn_consumer(nonce, &progress, &queue, &done, log, map)?;

    let heap = Pattern::new(nonce, HEAP_BYTES);
    let mut out = std::io::stdout();
    out.write_all(sealed(&format!("BOOT nonce={nonce:016x}")).as_bytes())?;
    let (mut n, mut completed, mut usr2) = (0u64, 0u64, 0u64);
    loop {
        for ready in wait_epoll(&epoll)? {
            if ready == done.as_raw_fd() {
                completed += read_u64(&done)?.unwrap_or(0);
            } else if ready == signals.as_raw_fd() {
                usr2 += read_signals(&signals);
            } else if ready == timer.as_raw_fd() {
                // The timer may have expired more than once (a slow machine, a
                // pause): each expiry is one tick.
                let expired = read_u64(&timer)?.unwrap_or(0);
                for _ in 0..expired {
                    n += 1;
                    let (_, bad) = heap.verify();
                    let line = report(nonce, n, &progress, completed, bad, usr2, map);
                    out.write_all(line.as_bytes())?;
                    ticks.change(|t| *t += 1);
                    if n.is_multiple_of(10) {
                        // SAFETY: signals to ourselves, both are handled.
                        unsafe {
                            libc::kill(libc::getpid(), libc::SIGUSR1);
                            libc::kill(libc::getpid(), libc::SIGUSR2);
                        }
                        // Before the next one: two of a kind would merge.
                        usr2 += read_signals(&signals);
                    }
                }
            }
        }
    }
}

/// One line about everything, for the judge.
fn report(
    nonce: u64,
    n: u64,
    progress: &Progress,
    done: u64,
    heap_bad: u64,
    usr2: u64,
    map: &'static AtomicU64,
) -> String {
    // Downstream first: each number can only be behind the one before it.
    let mapped = map.load(Ordering::SeqCst);
    let (consumed, sum) = *tally(progress);
    let worked = progress.worked.load(Ordering::SeqCst);
    let produced = progress.produced.load(Ordering::SeqCst);
    let heap = if heap_bad == 0 { "ok" } else { "BAD" };
    let order = match progress.out_of_order.load(Ordering::SeqCst) {
        0 => "ok".to_owned(),
        bad => format!("BAD:{bad}"),
    };
    sealed(&format!(
        "P nonce={nonce:016x} n={n} produced={produced} worked={worked} consumed={consumed} \
         done={done} sum={sum:016x} heap={heap} order={order} map={mapped} usr1={} usr2={usr2}",
        USR1.load(Ordering::SeqCst),
    ))
}

/// Waits for ticks; writes a batch of item numbers to the pipe for each.
fn spawn_producer(
    progress: &Arc<Progress>,
    ticks: &Arc<Monitor<u64>>,
    pipe: OwnedFd,
) -> std::io::Result<()> {
    let (progress, ticks) = (Arc::clone(progress), Arc::clone(ticks));
    let mut pipe = File::from(pipe);
    spawn("producer", move || {
        let mut next = 1u64;
        loop {
            ticks.wait(|t| t.checked_sub(1).map(|left| *t = left));
            for _ in 0..BATCH {
                pipe.write_all(&next.to_le_bytes())?;
                progress.produced.store(next, Ordering::SeqCst);
                next += 1;
            }
        }
    })
}

/// Reads items from the pipe, works on them, queues the results.
fn spawn_worker(
    nonce: u64,
    progress: &Arc<Progress>,
    queue: &Arc<Monitor<VecDeque<(u64, u64)>>>,
    pipe: OwnedFd,
) -> std::io::Result<()> {
    let (progress, queue) = (Arc::clone(progress), Arc::clone(queue));
    let mut pipe = File::from(pipe);
    spawn("worker", move || {
        let mut item = [0u8; 8];
        loop {
            pipe.read_exact(&mut item)?;
            let id = u64::from_le_bytes(item);
            queue.change(|q| q.push_back((id, mix(nonce, id))));
            progress.worked.fetch_add(1, Ordering::SeqCst);
        }
    })
}

/// Takes results off the queue: in order, each once; logs, counts, reports.
fn spawn_consumer(
    nonce: u64,
    progress: &Arc<Progress>,
    queue: &Arc<Monitor<VecDeque<(u64, u64)>>>,
    done: &Arc<OwnedFd>,
    mut log: File,
    map: &'static AtomicU64,
) -> std::io::Result<()> {
    let (progress, queue) = (Arc::clone(progress), Arc::clone(queue));
    let mut done = File::from(done.try_clone()?);
    spawn("consumer", move || {
        let (mut expected, mut sum, mut first, mut batch_sum) = (1u64, 0u64, 1u64, 0u64);
        loop {
            let (id, result) = queue.wait(VecDeque::pop_front);
            if id != expected || result != mix(nonce, id) {
                progress.out_of_order.fetch_add(1, Ordering::SeqCst);
            }
            expected = id.wrapping_add(1);
            sum = sum.wrapping_add(result);
            batch_sum ^= result;
            if id.is_multiple_of(BATCH) {
                let line = sealed(&format!(
                    "A nonce={nonce:016x} first={first} last={id} xor={batch_sum:016x}"
                ));
                log.write_all(line.as_bytes())?;
                (first, batch_sum) = (id + 1, 0);
            }
            {
                let mut tally = tally(&progress);
                *tally = (tally.0 + 1, sum);
            }
            map.fetch_add(1, Ordering::SeqCst);
            done.write_all(&1u64.to_ne_bytes())?;
        }
    })
}

/// A named thread; an error ends the whole program loudly.
fn spawn(
    name: &str,
    body: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> std::io::Result<()> {
    let label = name.to_owned();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            if let Err(error) = body() {
                eprintln!("lab-process: {label}: {error}");
                std::process::exit(1);
            }
        })
        .map(drop)
}

fn draw_nonce() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer's own pointer and length.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    u64::from_le_bytes(bytes)
}

/// Wraps the descriptor that `make` returns, or the error it left.
fn owned(what: &str, make: impl FnOnce(()) -> RawFd) -> std::io::Result<OwnedFd> {
    let fd = make(());
    if fd < 0 {
        let error = std::io::Error::last_os_error();
        return Err(std::io::Error::new(
            error.kind(),
            format!("{what}: {error}"),
        ));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok((owned("pipe", |()| ends[0])?, owned("pipe", |()| ends[1])?))
}

/// A periodic timer on the monotonic clock.
fn start_timer() -> std::io::Result<OwnedFd> {
    let timer = owned("timerfd", |()| {
        // SAFETY: no pointers involved.
        unsafe {
            libc::timerfd_create(
                libc::CLOCK_MONOTONIC,
                libc::TFD_CLOEXEC | libc::TFD_NONBLOCK,
            )
        }
    })?;
    let period = libc::timespec {
        tv_sec: 0,
        tv_nsec: TICK_NS,
    };
    let spec = libc::itimerspec {
        it_interval: period,
        it_value: period,
    };
    // SAFETY: an open timerfd and a valid itimerspec.
    if unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &spec, std::ptr::null_mut()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(timer)
}

/// SIGUSR1 gets a handler; SIGUSR2 is blocked (before any thread starts) and
/// comes through a signalfd.
fn take_signals() -> std::io::Result<OwnedFd> {
    // SAFETY: sigaction and sigset_t are plain data, filled before use; the
    // handler only touches an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_usr1 as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGUSR2);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        owned("signalfd", |()| {
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        })
    }
}

fn watch(fds: &[&dyn AsRawFd]) -> std::io::Result<OwnedFd> {
    let epoll = owned("epoll", |()| {
        // SAFETY: no pointers involved.
        unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }
    })?;
    for fd in fds {
        let fd = fd.as_raw_fd();
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: fd as u64,
        };
        // SAFETY: two open descriptors and a valid event.
        if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(epoll)
}

/// Waits for ever; the descriptors that are readable.
fn wait_epoll(epoll: &OwnedFd) -> std::io::Result<Vec<RawFd>> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
    // SAFETY: room for the number of events given.
    let count = unsafe {
        libc::epoll_wait(
            epoll.as_raw_fd(),
            events.as_mut_ptr(),
            events.len() as i32,
            -1,
        )
    };
    if count < 0 {
        let error = std::io::Error::last_os_error();
        // A signal's handler ran.
        if error.kind() == std::io::ErrorKind::Interrupted {
            return Ok(Vec::new());
        }
        return Err(error);
    }
    Ok(events[..count as usize]
        .iter()
        .map(|event| event.u64 as RawFd)
        .collect())
}

/// Eight bytes of an eventfd or timerfd; `None` if there is nothing to read.
fn read_u64(fd: &OwnedFd) -> std::io::Result<Option<u64>> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer's own pointer and length.
    let got = unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), 8) };
    if got == 8 {
        return Ok(Some(u64::from_ne_bytes(bytes)));
    }
    let error = std::io::Error::last_os_error();
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}

/// How many signals waited in the signalfd.
fn read_signals(fd: &OwnedFd) -> u64 {
    // SAFETY: signalfd_siginfo is plain data, read by its full size.
    unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        let mut count = 0;
        while libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) == size as isize {
            count += 1;
        }
        count
    }
}

/// A shared mapping of one page of the file: word 0 the counter, word 1 the
/// nonce.
fn map_counter(path: &Path, nonce: u64) -> std::io::Result<&'static AtomicU64> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(4096)?;
    // SAFETY: a fresh shared mapping of a file of that length, never unmapped;
    // atomics may alias it.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let words = at.cast::<AtomicU64>();
        (*words.add(1)).store(nonce, Ordering::SeqCst);
        Ok(&*words)
    }
}
