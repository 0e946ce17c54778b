//! What UNIX sockets had received and nobody had read is sent to them once
//! more, with the open files that were under way in it.

use super::{Place, Workshop, socket_options};
use crate::dataset::{Fidelity, FileKind, ObjectId, UnixListener, UnixMessage, UnixState};
use crate::restore::error::Context;
use crate::restore::objects::{Holder, Objects};
use crate::restore::stub::Family;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use crate::sys::pidfd;
use std::os::fd::AsFd;

/// Bytes of a `struct msghdr`, of a `struct iovec`, of a `struct cmsghdr`.
const MESSAGE: u64 = 56;
const VECTOR: u64 = 16;
const CONTROL: u64 = 16;
/// A send buffer in which any queue finds room. Bytes.
const ROOM: u32 = 256 << 20;
const SOCK_STREAM: i32 = libc::SOCK_STREAM;
/// Pieces in which a stream is sent.
const PIECE: usize = 32 << 10;

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

impl<'d> Workshop<'d> {
    /// Fills the queues of all UNIX sockets, and gives the sockets their
    /// options. Behind it, nothing is sent by anybody before the processes run.
    ///
    /// # Errors
    /// What was refused.
    pub fn fill_sockets(
        &mut self,
        family: &mut Family<'_>,
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        let sockets: Vec<&'d UnixListener> = self
            .dataset
            .files
            .iter()
            .filter_map(|file| match &file.kind {
                FileKind::UnixSocket(socket) => Some(socket),
                _ => None,
            })
            .collect();
        self.make_parcels(&sockets, family, objects)?;
        for socket in &sockets {
            if !socket.unread.is_empty() {
                self.fill(socket, family, objects)?;
            }
        }
        // Hung up only now: what they had sent comes before the end.
        for holder in std::mem::take(&mut self.hung_up) {
            let pid = family.process(holder.stub)?.pid;
            calls::close(family.leader(holder.stub)?, holder.fd).during(pid, || "close".into())?;
        }
        for socket in sockets {
            if let Some(holder) = self.holder(socket.socket, objects) {
                let tid = family.leader(holder.stub)?.tid;
                let pid = family.process(holder.stub)?.pid;
                let own = pidfd::take(tid, holder.fd).during(pid, || "pidfd_getfd".into())?;
                let what = format!("the UNIX socket {}", socket.socket);
                let (notes, of) = (&mut self.notes, (pid, what.as_str()));
                socket_options::set_all(own.as_fd(), &socket.options, of, notes);
                self.set_options(socket, holder, family)?;
            }
        }
        Ok(())
    }

    /// Makes the files that are nowhere but in messages.
    fn make_parcels(
        &mut self,
        sockets: &[&'d UnixListener],
        family: &mut Family<'_>,
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        for socket in sockets {
            let files = socket.unread.iter().flat_map(|message| &message.files);
            for id in files {
                if objects.files.contains_key(id) {
                    continue;
                }
                let stub = self.holder(socket.socket, objects).map_or(0, |h| h.stub);
                let pid = family.process(stub)?.pid;
                let file = self.file(pid, *id)?;
                self.make(file, stub, family, objects)?;
            }
        }
        Ok(())
    }

    /// Who holds the socket with this `struct sock`.
    fn holder(&self, socket: ObjectId, objects: &Objects) -> Option<Holder> {
        let made = self.sockets.get(&socket).copied();
        let all = self.dataset.files.iter();
        made.or_else(|| {
            all.filter(|f| matches!(&f.kind, FileKind::UnixSocket(s) if s.socket == socket))
                .find_map(|f| objects.files.get(&f.id).copied())
        })
    }

    /// Sends a socket what it had in its queue.
    fn fill(
        &mut self,
        socket: &'d UnixListener,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<(), RestoreError> {
        // In a message to a socket that was itself in a message nobody has.
        let Some(target) = self.holder(socket.socket, objects) else {
            return Ok(());
        };
        let pid = family.process(target.stub)?.pid;
        let peer = match socket.state {
            UnixState::Connected { peer } => self.holder(peer, objects),
            _ => None,
        };
        let (sender, address) = match peer {
            Some(peer) => (peer, Vec::new()),
            None if self.dry_run => return Ok(()),
            None if !socket.address.0.is_empty() => {
                let sys = family.leader(target.stub)?;
                let kind = arg(socket.socket_type | libc::SOCK_CLOEXEC);
                let fd = calls::make_fd(sys, libc::SYS_socket, [arg(libc::AF_UNIX), kind, 0])
                    .and_then(|fd| calls::raise(sys, fd, objects.base))
                    .during(pid, || "socket".into())?;
                let stub = target.stub;
                (Holder { stub, fd }, super::unix::sockaddr(socket))
            }
            None => {
                self.notes.push(Fidelity::lost(
                    format!("pid {pid}"),
                    format!("received and unread by socket {}", socket.socket),
                    format!("{} messages: nobody can send them", socket.unread.len()),
                ));
                return Ok(());
            }
        };
        if !address.is_empty() || socket.pass_credentials {
            self.notes.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                format!("received and unread by socket {}", socket.socket),
                "it seems to come from another sender",
            ));
        }
        for message in &socket.unread {
            let what = (socket.socket_type, message);
            send_with_files(what, sender, &address, family, objects)?;
        }
        if !address.is_empty() {
            calls::close(family.leader(sender.stub)?, sender.fd).during(pid, || "close".into())?;
        }
        Ok(())
    }

    /// Shutdown, the size of its send buffer, SO_PASSCRED.
    fn set_options(
        &self,
        socket: &UnixListener,
        holder: Holder,
        family: &mut Family<'_>,
    ) -> Result<(), RestoreError> {
        let pid = family.process(holder.stub)?.pid;
        let sys = family.leader(holder.stub)?;
        let room = room(sys, holder.fd).during(pid, || "getsockopt(SO_SNDBUF)".into())?;
        // The kernel doubles what it is told.
        if socket.send_buffer != 0 && socket.send_buffer != room {
            set_room(sys, holder.fd, socket.send_buffer / 2)
                .during(pid, || "setsockopt(SO_SNDBUFFORCE)".into())?;
        }
        if socket.pass_credentials {
            set_option(sys, holder.fd, libc::SO_PASSCRED, 1)
                .during(pid, || "setsockopt(SO_PASSCRED)".into())?;
        }
        let how = match socket.shutdown {
            1 => libc::SHUT_RD,
            2 => libc::SHUT_WR,
            3 => libc::SHUT_RDWR,
            _ => return Ok(()),
        };
        match calls::plain(sys, libc::SYS_shutdown, [arg(holder.fd), arg(how)]) {
            // Its other side has gone: it is shut down by that.
            Err(Errno(libc::ENOTCONN)) => Ok(()),
            other => other.during(pid, || "shutdown".into()).map(drop),
        }
    }
}

/// Makes the files that are in a message, and sends it.
pub(super) fn send_message<'d>(
    workshop: &mut Workshop<'d>,
    (kind, message): (i32, &'d UnixMessage),
    sender: Holder,
    family: &mut Family<'_>,
    objects: &mut Objects,
) -> Result<(), RestoreError> {
    let pid = family.process(sender.stub)?.pid;
    for id in &message.files {
        if !objects.files.contains_key(id) {
            let file = workshop.file(pid, *id)?;
            workshop.make(file, sender.stub, family, objects)?;
        }
    }
    send_with_files((kind, message), sender, &[], family, objects)
}

/// Sends a message with its files, which are made.
fn send_with_files(
    (kind, message): (i32, &UnixMessage),
    sender: Holder,
    address: &[u8],
    family: &mut Family<'_>,
    objects: &Objects,
) -> Result<(), RestoreError> {
    let pid = family.process(sender.stub)?.pid;
    let mut files = Vec::new();
    for id in &message.files {
        let holder = objects.files.get(id).copied();
        let holder = holder.ok_or_else(|| RestoreError::Malformed {
            pid,
            what: format!("the file {id} in a message"),
            why: "it was not made".into(),
        })?;
        files.push(objects.lend(family, holder, sender.stub)?);
    }
    let sys = family.leader(sender.stub)?;
    // Where that is not allowed, the default's room has to do.
    let _ = set_room(sys, sender.fd, ROOM);
    send(sys, sender.fd, kind, message, &files, address).during(pid, || {
        format!("send {} bytes that were not read", message.data.0.len())
    })
}

fn set_option(sys: &mut dyn Syscalls, fd: i32, option: i32, value: u32) -> Result<(), Errno> {
    let at = calls::put(sys, &value.to_ne_bytes())?;
    let call = [arg(fd), arg(libc::SOL_SOCKET), arg(option), at, 4];
    calls::plain(sys, libc::SYS_setsockopt, call).map(drop)
}

fn room(sys: &mut dyn Syscalls, fd: i32) -> Result<u32, Errno> {
    // The value, then its length.
    let at = calls::put(sys, &[0, 0, 0, 0, 4, 0, 0, 0])?;
    let call = [
        arg(fd),
        arg(libc::SOL_SOCKET),
        arg(libc::SO_SNDBUF),
        at,
        at + 4,
    ];
    calls::plain(sys, libc::SYS_getsockopt, call)?;
    let mut value = [0; 4];
    sys.read(at, &mut value)?;
    Ok(u32::from_ne_bytes(value))
}

fn set_room(sys: &mut dyn Syscalls, fd: i32, bytes: u32) -> Result<(), Errno> {
    set_option(sys, fd, libc::SO_SNDBUFFORCE, bytes)
}

/// Sends a message; a stream's in pieces, with the files in the first.
fn send(
    sys: &mut dyn Syscalls,
    fd: i32,
    kind: i32,
    message: &UnixMessage,
    files: &[i32],
    address: &[u8],
) -> Result<(), Errno> {
    let data = &message.data.0;
    if kind != SOCK_STREAM || data.len() <= PIECE {
        return send_one(sys, fd, data, files, address);
    }
    for (i, piece) in data.chunks(PIECE).enumerate() {
        send_one(sys, fd, piece, if i == 0 { files } else { &[] }, address)?;
    }
    Ok(())
}

fn send_one(
    sys: &mut dyn Syscalls,
    fd: i32,
    data: &[u8],
    files: &[i32],
    address: &[u8],
) -> Result<(), Errno> {
    let (scratch, room) = sys.scratch();
    let control_len = if files.is_empty() {
        0
    } else {
        CONTROL + 4 * files.len() as u64
    };
    let needed = MESSAGE + VECTOR + control_len + 8 + address.len() as u64 + data.len() as u64;
    let own = usize::try_from(needed).map_or(true, |needed| needed > room);
    // A packet may be larger than the scratch memory.
    let at = if own {
        let prot = arg(libc::PROT_READ | libc::PROT_WRITE);
        let flags = arg(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        sys.syscall(libc::SYS_mmap, [0, needed, prot, flags, u64::MAX, 0])?
    } else {
        scratch
    };
    let vector = at + MESSAGE;
    let control = vector + VECTOR;
    let name = control + control_len.next_multiple_of(8);
    let content = name + address.len() as u64;
    let or_null = |at: u64, len: u64| if len == 0 { 0 } else { at };
    let name_len = address.len() as u64;
    let words = [
        or_null(name, name_len),
        name_len,
        vector,
        1,
        or_null(control, control_len),
        control_len,
        0,
        content,
        data.len() as u64,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    if !files.is_empty() {
        bytes.extend(control_len.to_ne_bytes());
        bytes.extend(libc::SOL_SOCKET.to_ne_bytes());
        bytes.extend(libc::SCM_RIGHTS.to_ne_bytes());
        bytes.extend(files.iter().flat_map(|fd| fd.to_ne_bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend(address);
    bytes.extend(data);
    sys.write(at, &bytes)?;
    let flags = arg(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    let sent = calls::plain(sys, libc::SYS_sendmsg, [arg(fd), at, flags]);
    if own {
        calls::unmap(sys, at, needed.next_multiple_of(4096))?;
    }
    // Part of it would be worse than none.
    match sent? {
        all if all == data.len() as u64 => Ok(()),
        _ => Err(Errno(libc::EMSGSIZE)),
    }
}

/// A socket whose peer does not come back: the other half, which hangs up when
/// the queues are full again.
pub(super) fn half_of_a_dead_peer(
    workshop: &mut Workshop<'_>,
    peer: ObjectId,
    theirs: i32,
    place: &mut Place<'_>,
) -> Result<(), RestoreError> {
    let fd = calls::raise(place.sys, theirs, place.base).during(place.pid, || "fcntl".into())?;
    let holder = Holder {
        stub: place.stub,
        fd,
    };
    workshop.sockets.insert(peer, holder);
    workshop.hung_up.push(holder);
    Ok(())
}
