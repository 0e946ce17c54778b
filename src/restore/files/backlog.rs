//! What waits at sockets and has no descriptor: connections that nobody had accepted, datagrams
//! that nobody had read. They come once more, the oldest first: connections from the sockets that
//! had made them, or from ones that are closed again; datagrams as packets.

use super::tcp::{Fate, canonical, finish_options};
use super::{Workshop, inet, ip_packet, unix, unix_queue};
use crate::dataset::{
    Fidelity, FileKind, InetSocket, OpenFile, TcpPeer, TcpWaiting, UnixListener, UnixWaiting,
};
use crate::restore::error::Context;
use crate::restore::objects::{Holder, Objects};
use crate::restore::stub::Family;
use crate::restore::{RestoreError, calls};
use crate::sys::{pidfd, socket};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How long a connection to a listener of this host may take.
const PATIENCE_MS: i32 = 5000;

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

impl<'d> Workshop<'d> {
    /// Fills backlogs and queues. A dry run leaves them empty.
    ///
    /// # Errors
    /// What was refused.
    pub fn fill_backlogs(
        &mut self,
        family: &mut Family<'_>,
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        if self.dry_run {
            return Ok(());
        }
        for file in &self.dataset.files {
            // Of a file that is only in a message nobody has.
            let Some(holder) = objects.files.get(&file.id).copied() else {
                continue;
            };
            let pid = family.process(holder.stub)?.pid;
            match &file.kind {
                FileKind::InetSocket(listener)
                    if !listener.waiting.is_empty() || !listener.unread.is_empty() =>
                {
                    let tid = family.leader(holder.stub)?.tid;
                    let own = pidfd::take(tid, holder.fd)
                        .during(pid, || "pidfd_getfd of a socket".into())?;
                    for waiting in &listener.waiting {
                        let at = (listener, own.as_fd());
                        self.tcp_waiting(at, waiting, pid, family, objects)?;
                    }
                    self.datagrams(listener, pid, own.as_fd());
                }
                FileKind::UnixSocket(listener) => {
                    for waiting in &listener.waiting {
                        self.unix_waiting(listener, waiting, holder, family, objects)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn own_socket(
        &self,
        file: &OpenFile,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<Option<OwnedFd>, RestoreError> {
        let Some(holder) = objects.files.get(&file.id).copied() else {
            return Ok(None);
        };
        let pid = family.process(holder.stub)?.pid;
        let own = pidfd::take(family.leader(holder.stub)?.tid, holder.fd);
        own.during(pid, || "pidfd_getfd of a socket".into())
            .map(Some)
    }

    /// A TCP connection that waits to be accepted.
    fn tcp_waiting(
        &mut self,
        (listener, at): (&InetSocket, BorrowedFd<'_>),
        waiting: &TcpWaiting,
        pid: i32,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<(), RestoreError> {
        let made = match waiting.connection.peer {
            // It sees it closed, as the dataset says.
            TcpPeer::Elsewhere => return Ok(()),
            TcpPeer::Gone => connect_and_go(at, listener, waiting),
            TcpPeer::Restored => {
                let client = self.dataset.files.iter().find(|file| {
                    let socket = inet::of_file(file);
                    socket.is_some_and(|s| {
                        let ends = s.remote.map(|remote| canonical((s.local, remote)));
                        ends == Some(canonical((waiting.from, waiting.to)))
                    })
                });
                let Some(file) = client else {
                    return Ok(());
                };
                match self.own_socket(file, family, objects)? {
                    Some(own) => self.connect_again(file, waiting, own.as_fd()),
                    None => return Ok(()),
                }
            }
        };
        if let Err(error) = made {
            self.notes.push(Fidelity::lost(
                format!("pid {pid}"),
                "connections waiting to be accepted",
                format!("that of {}: {error}", waiting.from),
            ));
        }
        Ok(())
    }

    /// The other end, which is restored too, connects and sends what it had written.
    fn connect_again(
        &mut self,
        file: &'d OpenFile,
        waiting: &TcpWaiting,
        own: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let Some(socket) = inet::of_file(file) else {
            return Ok(());
        };
        let Some(connection) = socket.connection.as_deref() else {
            return Ok(());
        };
        socket::connect_within(own, &inet::sockaddr(waiting.to), PATIENCE_MS)?;
        socket::send_all(own, &waiting.connection.received.0)?;
        // What had not reached the other end yet.
        let known = waiting.connection.rcv_nxt.wrapping_sub(connection.snd_una);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let rest = connection.written.0.get(known..).unwrap_or_default();
        socket::send_all(own, rest)?;
        let unfinished = self.unfinished.iter();
        let of = unfinished
            .filter(|of| of.fate == Fate::Waits)
            .find(|of| of.connection.socket == connection.socket);
        if let Some(of) = of {
            finish_options(own, of, &mut self.notes).map_err(|(_, error)| error)?;
        }
        if connection.state.has_ended() {
            socket::shut_down(own, libc::SHUT_WR)?;
        }
        Ok(())
    }

    /// Datagrams, as packets from whoever had sent them.
    fn datagrams(&mut self, to: &InetSocket, pid: i32, own: BorrowedFd<'_>) {
        let mut lost = Vec::new();
        for datagram in &to.unread {
            let (from, data) = (datagram.from, &datagram.data.0);
            if let Err(error) = ip_packet::deliver_datagram(own, from, datagram.to, data) {
                lost.push(error.to_string());
            }
        }
        let delivered = to.unread.len() - lost.len();
        let first = to
            .unread
            .iter()
            .map(|d| d.data.0.len())
            .find(|len| *len > 0);
        // A firewall of this host does not say that it stops them.
        if delivered > 0 && first.is_some() && socket::readable(own).is_ok_and(|len| len == 0) {
            lost = vec!["they did not arrive (a firewall on this host?)".into(); delivered];
        }
        if let Some(why) = lost.first() {
            self.notes.push(Fidelity::lost(
                format!("pid {pid}"),
                "received and unread",
                format!("{} datagrams at {}: {why}", lost.len(), to.local),
            ));
        }
    }

    /// A UNIX connection that waits to be accepted.
    fn unix_waiting(
        &mut self,
        listener: &UnixListener,
        waiting: &'d UnixWaiting,
        at: Holder,
        family: &mut Family<'_>,
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        let pid = family.process(at.stub)?.pid;
        let client =
            self.dataset.files.iter().find(
                |file| matches!(&file.kind, FileKind::UnixSocket(s) if s.socket == waiting.peer),
            );
        let holder = client.and_then(|file| objects.files.get(&file.id).copied());
        // The path is seen from where the listener is.
        let fd = match holder {
            Some(holder) => objects.lend(family, holder, at.stub)?,
            None => {
                let kind = arg(listener.socket_type | libc::SOCK_CLOEXEC);
                let sys = family.leader(at.stub)?;
                calls::make_fd(sys, libc::SYS_socket, [arg(libc::AF_UNIX), kind, 0])
                    .and_then(|fd| calls::raise(sys, fd, objects.base))
                    .during(pid, || "socket".into())?
            }
        };
        let address = unix::sockaddr(listener);
        let sys = family.leader(at.stub)?;
        // One backlog is as long as it was: this does not wait.
        let connected = calls::put(sys, &address).and_then(|to| {
            calls::plain(sys, libc::SYS_connect, [arg(fd), to, address.len() as u64])
        });
        connected.during(pid, || "connect to its own UNIX listener".into())?;
        self.send_messages(
            (listener.socket_type, &waiting.unread),
            Holder { stub: at.stub, fd },
            family,
            objects,
        )?;
        if holder.is_none() {
            calls::close(family.leader(at.stub)?, fd).during(pid, || "close".into())?;
            self.notes.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                "connections waiting to be accepted",
                "one has an end that is not restored: it can be accepted, and has ended",
            ));
        }
        Ok(())
    }

    fn send_messages(
        &mut self,
        (kind, messages): (i32, &'d [crate::dataset::UnixMessage]),
        from: Holder,
        family: &mut Family<'_>,
        objects: &mut Objects,
    ) -> Result<(), RestoreError> {
        for message in messages {
            unix_queue::send_message(self, (kind, message), from, family, objects)?;
        }
        Ok(())
    }
}

/// The other end has gone: another stands in for it, says what it had said, and goes.
fn connect_and_go(
    beside: BorrowedFd<'_>,
    listener: &InetSocket,
    waiting: &TcpWaiting,
) -> io::Result<()> {
    let kind = (libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let client = socket::new_beside(beside, listener.family, kind.0, kind.1)?;
    let own = client.as_fd();
    socket::set_number(own, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    // Its port may be somebody's by now: then it comes from another one.
    if socket::bind(own, &inet::sockaddr(waiting.from)).is_err() {
        let any = std::net::SocketAddr::new(waiting.from.ip(), 0);
        socket::bind(own, &inet::sockaddr(any))?;
    }
    socket::connect_within(own, &inet::sockaddr(waiting.to), PATIENCE_MS)?;
    socket::send_all(own, &waiting.connection.received.0)
}
