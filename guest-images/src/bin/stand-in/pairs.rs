//! Socketpairs that always hold something unread: a stream of bytes watched
//! by its edges, packets with their borders, and a parcel with an open file in
//! it that nobody else has.

use std::io::{Error, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmrestore_guest_images::pattern::mix;

/// Bytes of one piece of the stream, and how many are always unread.
const PIECE: usize = 64;
const UNREAD: usize = 4;
/// Packets that are always unread.
const PACKETS: u64 = 5;
/// What is in the parcel's eventfd.
const COUNT: u64 = 77;

fn word(seed: u64, index: u64) -> [u8; 8] {
    mix(seed, index).to_le_bytes()
}

/// The stream: a piece is sent when the one before has been taken, and each
/// is one edge.
pub struct Stream {
    seed: u64,
    from: UnixStream,
    pub to: UnixStream,
    sent: AtomicU64,
    taken: AtomicU64,
    wrong: AtomicU64,
    spurious: AtomicU64,
}

impl Stream {
    /// With its unread pieces.
    pub fn new(seed: u64) -> std::io::Result<Self> {
        let (from, to) = UnixStream::pair()?;
        to.set_nonblocking(true)?;
        let stream = Self {
            seed,
            from,
            to,
            sent: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            spurious: AtomicU64::new(0),
        };
        for _ in 0..UNREAD {
            stream.put()?;
        }
        Ok(stream)
    }

    fn put(&self) -> std::io::Result<()> {
        let number = self.sent.fetch_add(1, Ordering::SeqCst);
        (&self.from).write_all(&word(self.seed, number).repeat(PIECE / 8))
    }

    /// Sends a piece if the last one has been taken.
    pub fn send(&self) {
        let taken = self.taken.load(Ordering::SeqCst);
        if self.sent.load(Ordering::SeqCst) == taken + UNREAD as u64 {
            let _ = self.put();
        }
    }

    fn unread(&self) -> usize {
        let mut count = 0i32;
        // SAFETY: FIONREAD writes one int.
        unsafe { libc::ioctl(self.to.as_raw_fd(), libc::FIONREAD, &mut count) };
        usize::try_from(count).unwrap_or(0)
    }

    /// An edge: there is one piece more than always. The `first` may be that
    /// of the pieces that were there before anybody watched.
    pub fn edge(&self, first: bool) {
        if self.unread() != (UNREAD + 1) * PIECE {
            self.spurious.fetch_add(u64::from(!first), Ordering::SeqCst);
            return;
        }
        let mut piece = [0; PIECE];
        let number = self.taken.load(Ordering::SeqCst);
        let read = (&self.to).read_exact(&mut piece);
        if read.is_err() || piece.chunks(8).any(|w| w != word(self.seed, number)) {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
        self.taken.fetch_add(1, Ordering::SeqCst);
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let load = |n: &AtomicU64| n.load(Ordering::SeqCst);
        let (wrong, spurious) = (load(&self.wrong), load(&self.spurious));
        match (wrong, spurious) {
            (0, 0) => write!(f, "ok")?,
            _ => write!(f, "BAD{wrong}+{spurious}")?,
        }
        write!(f, ":{}:{}", load(&self.taken), load(&self.sent))
    }
}

/// Packets of many lengths, in a queue that is never empty.
pub struct Packets {
    seed: u64,
    from: UnixStream,
    to: UnixStream,
    sent: u64,
    taken: u64,
    wrong: u64,
}

fn pair(kind: i32) -> std::io::Result<(UnixStream, UnixStream)> {
    let mut fds = [0; 2];
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: an array of two; the descriptors are new and owned here.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) != 0 {
            return Err(Error::last_os_error());
        }
        Ok((
            UnixStream::from(OwnedFd::from_raw_fd(fds[0])),
            UnixStream::from(OwnedFd::from_raw_fd(fds[1])),
        ))
    }
}

impl Packets {
    /// With its unread packets.
    pub fn new(seed: u64) -> std::io::Result<Self> {
        let (from, to) = pair(libc::SOCK_SEQPACKET)?;
        let mut packets = Self {
            seed,
            from,
            to,
            sent: 0,
            taken: 0,
            wrong: 0,
        };
        while packets.sent < PACKETS {
            packets.put()?;
        }
        Ok(packets)
    }

    fn content(&self, number: u64) -> Vec<u8> {
        let words = 1 + (mix(self.seed, number) % 300) as usize;
        word(self.seed, number).repeat(words)
    }

    fn put(&mut self) -> std::io::Result<()> {
        let packet = self.content(self.sent);
        self.sent += 1;
        self.from.write_all(&packet)
    }

    /// Takes the oldest and sends another.
    pub fn turn(&mut self) {
        let mut buffer = [0; 4096];
        let want = self.content(self.taken);
        match self.to.read(&mut buffer) {
            Ok(len) if buffer[..len] == want => {}
            _ => self.wrong += 1,
        }
        self.taken += 1;
        if self.put().is_err() {
            self.wrong += 1;
        }
    }
}

impl std::fmt::Display for Packets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.wrong {
            0 => write!(f, "ok:{}", self.taken),
            wrong => write!(f, "BAD{wrong}:{}", self.taken),
        }
    }
}

/// An eventfd that is nowhere but in a message nobody has read.
pub struct Parcel {
    from: UnixStream,
    to: UnixStream,
    opened: u64,
    wrong: u64,
}

impl Parcel {
    /// On its way.
    pub fn new() -> std::io::Result<Self> {
        let (from, to) = pair(libc::SOCK_DGRAM)?;
        let parcel = Self {
            from,
            to,
            opened: 0,
            wrong: 0,
        };
        parcel.post()?;
        Ok(parcel)
    }

    fn post(&self) -> std::io::Result<()> {
        let inside = EventFd::new(EFD_NONBLOCK)?;
        inside.write(COUNT)?;
        self.from
            .send_with_fd(&b"parcel"[..], inside.as_raw_fd())
            .map(drop)
            .map_err(|e| Error::from_raw_os_error(e.errno()))
    }

    /// Opens it, looks, and posts another.
    pub fn open(&mut self) {
        let mut text = [0; 16];
        let good = match self.to.recv_with_fd(&mut text) {
            Ok((6, Some(file))) if text.starts_with(b"parcel") => {
                let mut count = [0; 8];
                // SAFETY: a buffer and its length.
                let got = unsafe { libc::read(file.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
                got == 8 && u64::from_ne_bytes(count) == COUNT
            }
            _ => false,
        };
        self.opened += 1;
        if !good || self.post().is_err() {
            self.wrong += 1;
        }
    }
}

impl std::fmt::Display for Parcel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.wrong {
            0 => write!(f, "ok:{}", self.opened),
            wrong => write!(f, "BAD{wrong}:{}", self.opened),
        }
    }
}
