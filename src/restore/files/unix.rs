//! UNIX sockets: listeners are bound again, pairs inside the dataset are made
//! as pairs, and a peer that died with the host has hung up.

use super::{Place, Workshop, unix_queue};
use crate::dataset::{Fidelity, FileKind, ObjectId, Rights, UnixListener, UnixState};
use crate::restore::error::Context;
use crate::restore::objects::Holder;
use crate::restore::{Errno, RestoreError, Syscalls, calls};
use crate::sys::{pidfd, socket};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

/// Pieces in which a stream is sent. Bytes.
const PIECE: usize = 32 << 10;

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

/// A socket whose other side has gone: the end of the file, or EPIPE.
pub(super) fn closed(kind: i32, place: &mut Place<'_>) -> Result<i32, RestoreError> {
    let [ours, theirs] = pair(kind, place)?;
    calls::close(place.sys, theirs).during(place.pid, || "close".into())?;
    Ok(ours)
}

/// The same, with something to read before the end.
pub(super) fn closed_behind(data: &[u8], place: &mut Place<'_>) -> Result<i32, RestoreError> {
    let [ours, theirs] = pair(libc::SOCK_STREAM, place)?;
    if !data.is_empty() {
        let room = i32::try_from(data.len().saturating_mul(2)).unwrap_or(i32::MAX);
        let own = pidfd::take(place.tid, theirs).during(place.pid, || "pidfd_getfd".into())?;
        socket::set_number(own.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room)
            .and_then(|()| {
                data.chunks(PIECE)
                    .try_for_each(|p| socket::send_all(own.as_fd(), p))
            })
            .during(place.pid, || {
                format!("send {} bytes that it had not read", data.len())
            })?;
    }
    calls::close(place.sys, theirs).during(place.pid, || "close".into())?;
    Ok(ours)
}

/// A socket on which nothing ever comes.
pub(super) fn quiet(place: &mut Place<'_>) -> Result<i32, RestoreError> {
    let kind = arg(libc::SOCK_DGRAM | libc::SOCK_CLOEXEC);
    calls::make_fd(place.sys, libc::SYS_socket, [arg(libc::AF_UNIX), kind, 0])
        .during(place.pid, || "socket".into())
}

fn pair(kind: i32, place: &mut Place<'_>) -> Result<[i32; 2], RestoreError> {
    let before = [arg(libc::AF_UNIX), arg(kind | libc::SOCK_CLOEXEC), 0];
    calls::two_fds(place.sys, libc::SYS_socketpair, &before, &[])
        .during(place.pid, || "socketpair".into())
}

impl Workshop<'_> {
    /// Makes a UNIX socket.
    pub(super) fn unix(
        &mut self,
        socket: &UnixListener,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        if let Some(made) = self.sockets.get(&socket.socket) {
            let base = arg(place.base);
            return calls::fcntl(place.sys, made.fd, libc::F_DUPFD_CLOEXEC, base)
                .and_then(|fd| i32::try_from(fd).map_err(|_| Errno(libc::EBADF)))
                .during(pid, || "fcntl(F_DUPFD_CLOEXEC)".into());
        }
        match socket.state {
            UnixState::Connected { peer } => self.connected(socket, peer, place),
            UnixState::Unconnected => {
                let fd = self.socket(socket, place)?;
                if !socket.address.0.is_empty() {
                    self.bind(socket, fd, place)?;
                }
                Ok(fd)
            }
            UnixState::Listening { backlog } => {
                let fd = self.socket(socket, place)?;
                self.bind(socket, fd, place)?;
                if !self.dry_run {
                    calls::plain(place.sys, libc::SYS_listen, [arg(fd), backlog.into()])
                        .during(pid, || format!("listen at {}", describe(socket)))?;
                }
                Ok(fd)
            }
        }
    }

    /// One half of a connection; the other waits for whoever has it.
    fn connected(
        &mut self,
        socket: &UnixListener,
        peer: ObjectId,
        place: &mut Place<'_>,
    ) -> Result<i32, RestoreError> {
        let pid = place.pid;
        let other = self.dataset.files.iter().find_map(|f| match &f.kind {
            FileKind::UnixSocket(other) if other.socket == peer => Some(other),
            _ => None,
        });
        let mutual = |other: &UnixListener| match other.state {
            UnixState::Connected { peer } => peer == socket.socket,
            _ => false,
        };
        match other {
            Some(other) if mutual(other) => {
                let [ours, theirs] = pair(socket.socket_type, place)?;
                let theirs =
                    calls::raise(place.sys, theirs, place.base).during(pid, || "fcntl".into())?;
                let holder = Holder {
                    stub: place.stub,
                    fd: theirs,
                };
                self.sockets.insert(peer, holder);
                let names = [&socket.address, &other.address];
                if names.iter().any(|name| !name.0.is_empty()) {
                    self.notes.push(Fidelity::reconstructed(
                        format!("pid {pid}"),
                        format!("connected UNIX socket {}", socket.socket),
                        "connected to its peer again, by no name",
                    ));
                }
                Ok(ours)
            }
            // A datagram socket that sends to one of many.
            Some(_) => {
                let fd = self.socket(socket, place)?;
                if !socket.address.0.is_empty() {
                    self.bind(socket, fd, place)?;
                }
                self.notes.push(Fidelity::lost(
                    format!("pid {pid}"),
                    format!("connection of UNIX socket {}", socket.socket),
                    "it was one of several of a datagram socket: it has to connect again",
                ));
                Ok(fd)
            }
            // It waits to be accepted: it is connected to when the listener stands.
            None if self.waits(peer) => {
                let fd = self.socket(socket, place)?;
                if !socket.address.0.is_empty() {
                    self.bind(socket, fd, place)?;
                }
                Ok(fd)
            }
            // It died with the host, as the dataset says: it hangs up.
            None => {
                let [ours, theirs] = pair(socket.socket_type, place)?;
                unix_queue::half_of_a_dead_peer(self, peer, theirs, place)?;
                Ok(ours)
            }
        }
    }

    /// Whether that socket is in some listener's backlog.
    fn waits(&self, socket: ObjectId) -> bool {
        let files = self.dataset.files.iter();
        let mut waiting = files.flat_map(|file| match &file.kind {
            FileKind::UnixSocket(listener) => listener.waiting.as_slice(),
            _ => &[],
        });
        waiting.any(|waiting| waiting.socket == socket)
    }

    fn socket(&self, socket: &UnixListener, place: &mut Place<'_>) -> Result<i32, RestoreError> {
        let kind = arg(socket.socket_type | libc::SOCK_CLOEXEC);
        calls::make_fd(place.sys, libc::SYS_socket, [arg(libc::AF_UNIX), kind, 0])
            .during(place.pid, || "socket".into())
    }

    /// Binds a socket to the address that it had. A dry run leaves the file
    /// system alone.
    fn bind(
        &mut self,
        socket: &UnixListener,
        fd: i32,
        place: &mut Place<'_>,
    ) -> Result<(), RestoreError> {
        let pid = place.pid;
        let path = host_path(socket, place);
        let rights = match &path {
            Some(path) => make_way(path, socket.socket_type, self.dry_run)
                .during(pid, || format!("take over {}", path.display()))?,
            None => None,
        };
        if self.dry_run {
            return Ok(());
        }
        if let Some(dir) = path.as_deref().and_then(Path::parent)
            && !dir.exists()
        {
            std::fs::create_dir_all(dir).during(pid, || format!("make {}", dir.display()))?;
            let how = match socket.file.and_then(|file| file.directory) {
                Some(rights) => {
                    give(dir, rights).during(pid, || format!("set owner of {}", dir.display()))?;
                    "it had gone with the host; made again, with its owner and its rights"
                }
                None => {
                    "it had gone with the host; made again for root, as the socket in it needs it"
                }
            };
            self.notes.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                format!("directory {}", dir.display()),
                how,
            ));
        }
        let address = sockaddr(socket);
        let len = address.len() as u64;
        below_its_root(place, path.is_some(), &mut |sys| {
            let at = calls::put(sys, &address)?;
            calls::plain(sys, libc::SYS_bind, [arg(fd), at, len])
        })
        .during(pid, || format!("bind to {}", describe(socket)))?;
        if let Some(path) = path {
            self.made_paths.push(path.clone());
            // As the dead host had it, else as the stale one here.
            if let Some(rights) = socket.file.map(|file| file.rights).or(rights) {
                give(&path, rights).during(pid, || format!("set owner of {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// `struct sockaddr_un` of a bound socket: the family, then the path.
pub(super) fn sockaddr(socket: &UnixListener) -> Vec<u8> {
    let mut address = u16::try_from(libc::AF_UNIX)
        .unwrap_or(1)
        .to_ne_bytes()
        .to_vec();
    address.extend(&socket.address.0);
    if socket.address.0.first() != Some(&0) {
        address.push(0);
    }
    address
}

/// Where a socket's file is, seen from here. `None`: an abstract name.
fn host_path(socket: &UnixListener, place: &Place<'_>) -> Option<PathBuf> {
    let name = &socket.address.0;
    if name.first().is_none_or(|b| *b == 0) {
        return None;
    }
    let name = OsStr::from_bytes(name);
    let from = match Path::new(name).is_absolute() {
        true => &place.fs.root,
        false => &place.fs.cwd,
    };
    let seen_at = match place.fs.seen_at.as_str() {
        "" => Path::new("/"),
        seen_at => Path::new(seen_at),
    };
    let relative = |path: &Path| {
        path.strip_prefix("/")
            .map_or(path.to_owned(), Path::to_owned)
    };
    let from = seen_at.join(relative(Path::new(from)));
    Some(from.join(relative(Path::new(name))))
}

/// Makes a call whose path is the process's own: below its root directory, which
/// it gets only when all of its files are there. `any`: there is such a path.
fn below_its_root(
    place: &mut Place<'_>,
    any: bool,
    call: &mut dyn FnMut(&mut dyn Syscalls) -> Result<u64, Errno>,
) -> Result<u64, Errno> {
    if !any || place.fs.root == "/" {
        return call(place.sys);
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let outside = calls::open(place.sys, "/", flags)?;
    let here = calls::open(place.sys, ".", flags)?;
    calls::with_path(place.sys, libc::SYS_chroot, &place.fs.root)?;
    let result = call(place.sys);
    // Out of it again.
    calls::plain(place.sys, libc::SYS_fchdir, [arg(outside)])?;
    calls::with_path(place.sys, libc::SYS_chroot, ".")?;
    calls::plain(place.sys, libc::SYS_fchdir, [arg(here)])?;
    calls::close(place.sys, outside)?;
    calls::close(place.sys, here)?;
    result
}

/// Gives a file its owner and its permissions.
fn give(path: &Path, rights: Rights) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(rights.uid), Some(rights.gid))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(rights.mode & 0o7777))
}

/// Removes a socket at which nobody listens any more; says what rights it had.
fn make_way(path: &Path, kind: i32, dry_run: bool) -> io::Result<Option<Rights>> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if !meta.file_type().is_socket() {
        return Err(io::Error::other("something that is no socket is there"));
    }
    let answered = if kind == libc::SOCK_DGRAM {
        UnixDatagram::unbound()?.connect(path)
    } else {
        UnixStream::connect(path).map(drop)
    };
    match answered {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        // Of another type: somebody has it all the same.
        Ok(()) | Err(_) => {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
    }
    if !dry_run {
        std::fs::remove_file(path)?;
    }
    Ok(Some(Rights {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
    }))
}

fn describe(socket: &UnixListener) -> String {
    if socket.address.0.is_empty() {
        return socket.socket.to_string();
    }
    String::from_utf8_lossy(&socket.address.0).replace('\0', "@")
}
