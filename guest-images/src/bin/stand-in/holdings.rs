//! All that a VMM holds beside its guest, in use, and a line about it ten
//! times a second:
//!
//! ```text
//! H nonce=… n=… ticks=ok:…:…:…:… events=ok:… lazy=ok:… stream=ok:… packets=ok:…
//!   parcel=ok:… once=ok:… quiet=1 signals=…:… guards=ok:… t=… crc=…
//! ```
//!
//! A field that begins with `BAD` says that something came twice, changed or
//! not at all; what only *stays away* is seen by numbers that stand still.

use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmrestore_guest_images::line::sealed;
use vmrestore_guest_images::pattern::mix;

use crate::guards::{Guard, Probe};
use crate::machine::Result;
use crate::pairs::{Packets, Parcel, Stream};
use crate::tokens::Tokens;
use crate::watch::{EDGE, Epoll, LEVEL, ONCE, Timer, now};

/// Eventfds in the busy instance, and in the one that is looked at twice a second.
const EVENTS: usize = 58;
const LAZY: usize = 8;
/// Intervals of the timers. The first gives the lines their beat, the last is
/// in no epoll instance and read now and then. Nanoseconds.
const INTERVALS: [u64; 4] = [100_000_000, 170_000_000, 230_000_000, 410_000_000];

/// `data` of the watches; below are eventfds.
const TIMERS: u64 = 1000;
const STREAM: u64 = 1001;
const ONESHOT: u64 = 1002;
const QUIET: u64 = 1003;

/// The writing end of the signals' socketpair, for the handler.
static SIGNALS: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(_: i32) {
    // SAFETY: write is safe in a handler; the descriptor is never closed.
    unsafe { libc::write(SIGNALS.load(Ordering::Relaxed), b"s".as_ptr().cast(), 1) };
}

/// What threads share.
pub struct Shared {
    pub events: Tokens,
    pub lazy: Tokens,
    pub lazy_epoll: Epoll,
    stream: Stream,
    signals: [AtomicU64; 2],
    pub probe: Probe,
    nonce: u64,
}

impl Shared {
    /// Makes it.
    pub fn new() -> Result<Arc<Self>> {
        let mut nonce = [0; 8];
        // SAFETY: a buffer and its length.
        unsafe { libc::getrandom(nonce.as_mut_ptr().cast(), 8, 0) };
        let nonce = u64::from_le_bytes(nonce);
        let lazy = Tokens::new(LAZY)?;
        let lazy_epoll = Epoll::new()?;
        for (data, fd) in (0u64..).zip(&lazy.fds) {
            lazy_epoll.add(fd, EDGE, data)?;
        }
        Ok(Arc::new(Self {
            events: Tokens::new(EVENTS)?,
            lazy,
            lazy_epoll,
            stream: Stream::new(nonce)?,
            signals: Default::default(),
            probe: Probe::default(),
            nonce,
        }))
    }

    /// Starts all threads but the caller's.
    pub fn start(self: &Arc<Self>, out: File) -> Result<()> {
        let (taken, given) = UnixStream::pair()?;
        SIGNALS.store(given.into_raw_fd(), Ordering::Relaxed);
        // SAFETY: the handler does nothing but write.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
        }
        let shared = Arc::clone(self);
        spawn("signals", move || shared.count_signals(&taken))?;
        let shared = Arc::clone(self);
        spawn("noise", move || shared.make_noise())?;
        let shared = Arc::clone(self);
        spawn("holder", move || {
            if let Err(error) = shared.hold(out) {
                eprintln!("stand-in: {error}");
                std::process::exit(1);
            }
        })
    }

    fn count_signals(&self, from: &UnixStream) {
        let mut byte = [0];
        while matches!(std::io::Read::read(&mut &*from, &mut byte), Ok(1)) {
            self.signals[1].fetch_add(1, Ordering::SeqCst);
        }
    }

    fn make_noise(&self) {
        for turn in 0u64.. {
            for i in 0..4 {
                self.events.send(mix(self.nonce, turn * 8 + i));
            }
            self.lazy.send(mix(self.nonce, turn * 8 + 5));
            self.stream.send();
            self.probe.look(Guard::None);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Looks at the events that had time to gather, and at its own guard.
    pub fn look_lazily(&self) {
        for index in self.lazy_epoll.wait(0) {
            self.lazy.take(index as usize);
        }
        self.probe.look(Guard::None);
    }

    fn hold(&self, mut out: File) -> Result<()> {
        Guard::Vcpu.enter();
        let busy = Epoll::new()?;
        for (data, fd) in (0u64..).zip(&self.events.fds) {
            busy.add(fd, EDGE, data)?;
        }
        let mut timers = Vec::new();
        for interval in INTERVALS {
            timers.push(Timer::every(interval)?);
        }
        // An instance within the other.
        let beats = Epoll::new()?;
        for (data, (timer, how)) in (0u64..).zip(timers.iter().zip([LEVEL, LEVEL, EDGE])) {
            beats.add(timer, how, data)?;
        }
        busy.add(&beats, LEVEL, TIMERS)?;
        busy.add(&self.stream.to, EDGE, STREAM)?;
        let (once, quiet) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        once.write(1)?;
        quiet.write(1)?;
        busy.add(&once, ONCE, ONESHOT)?;
        busy.add(&quiet, EDGE, QUIET)?;
        let mut first_edge = true;
        let (mut packets, mut parcel) = (Packets::new(self.nonce)?, Parcel::new()?);
        let (mut armed, mut fired, mut fired_at, mut quiets) = (1u64, 0u64, 0, 0);
        let nonce = self.nonce;
        out.write_all(sealed(&format!("BOOT nonce={nonce:016x}")).as_bytes())?;
        let mut n = 0u64;
        loop {
            for data in busy.wait(-1) {
                match data {
                    STREAM => {
                        self.stream.edge(first_edge);
                        first_edge = false;
                    }
                    ONESHOT => (fired, fired_at) = (fired + 1, n),
                    QUIET => quiets += 1,
                    TIMERS => {
                        let before = timers[0].ticks;
                        for index in beats.wait(0) {
                            timers[index as usize].take();
                        }
                        if timers[0].ticks == before {
                            continue;
                        }
                        n += 1;
                        self.probe.look(Guard::Vcpu);
                        packets.turn();
                        if n.is_multiple_of(10) {
                            timers[3].take();
                        }
                        if n.is_multiple_of(50) {
                            parcel.open();
                        }
                        if n.is_multiple_of(20) {
                            self.signal()?;
                        }
                        if fired == armed && n > fired_at + 15 {
                            armed += 1;
                            busy.rearm(&once, ONCE, ONESHOT)?;
                        }
                        let wrong: u64 = timers.iter().map(|timer| timer.wrong).sum();
                        let ticks: Vec<String> =
                            timers.iter().map(|t| t.ticks.to_string()).collect();
                        let line = format!(
                            "H nonce={nonce:016x} n={n} ticks={}:{} events={} lazy={} stream={} \
                             packets={packets} parcel={parcel} once={}:{fired}:{armed} \
                             quiet={quiets} signals={}:{} guards={} t={}",
                            good_if(wrong == 0, wrong),
                            ticks.join(":"),
                            self.events,
                            self.lazy,
                            self.stream,
                            good_if(fired == armed || fired + 1 == armed, fired),
                            self.signals[1].load(Ordering::SeqCst),
                            self.signals[0].load(Ordering::SeqCst),
                            self.probe,
                            now() / 1_000_000
                        );
                        out.write_all(sealed(&line).as_bytes())?;
                    }
                    index => self.events.take(index as usize),
                }
            }
        }
    }

    /// Sends a signal to the first thread.
    fn signal(&self) -> Result<()> {
        self.signals[0].fetch_add(1, Ordering::SeqCst);
        let pid = std::process::id() as i32;
        // SAFETY: a signal to a thread of our own.
        match unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error().into()),
        }
    }
}

fn good_if(good: bool, count: u64) -> String {
    if good {
        "ok".into()
    } else {
        format!("BAD{count}")
    }
}

/// A thread with a name.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run)?;
    Ok(())
}

/// Keeps a descriptor open to the end.
pub fn keep(fd: &EventFd) -> std::io::Result<()> {
    // SAFETY: a copy that nobody closes.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) } {
        -1 => Err(Error::last_os_error()),
        _ => Ok(()),
    }
}
