//! UNIX sockets: listeners are bound again, pairs inside the dataset are made
//! as pairs, and a peer that died with the host has hung up.

use super::{Place, Workshop};
use crate::dataset::{Fidelity, FileKind, UnixListener, UnixState};
use crate::restore::error::Context;
use crate::restore::objects::Holder;
use crate::restore::{Errno, RestoreError, calls};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

fn arg(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

/// Permissions and owner of a socket's file.
struct Rights {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// A socket whose other side has gone: the end of the file, or EPIPE.
pub(super) fn closed(kind: i32, place: &mut Place<'_>) -> Result<i32, RestoreError> {
    let [ours, theirs] = pair(kind, place)?;
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
            UnixState::Connected { peer } => {
                let here = self
                    .dataset
                    .files
                    .iter()
                    .any(|f| matches!(&f.kind, FileKind::UnixSocket(s) if s.socket == peer));
                if here {
                    let [ours, theirs] = pair(socket.socket_type, place)?;
                    let theirs = calls::raise(place.sys, theirs, place.base)
                        .during(pid, || "fcntl".into())?;
                    let holder = Holder {
                        stub: place.stub,
                        fd: theirs,
                    };
                    self.sockets.insert(peer, holder);
                    self.notes.push(Fidelity::reconstructed(
                        format!("pid {pid}"),
                        format!("connected UNIX socket {}", socket.socket),
                        "connected to its peer again; what was under way in it is not there",
                    ));
                    Ok(ours)
                } else {
                    // It died with the host, as the dataset says: it has hung up.
                    closed(socket.socket_type, place)
                }
            }
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
            self.notes.push(Fidelity::reconstructed(
                format!("pid {pid}"),
                format!("directory {}", dir.display()),
                "it had gone with the host; made again for root, as the socket in it needs it",
            ));
        }
        // struct sockaddr_un: the family, then the path.
        let mut address = u16::try_from(libc::AF_UNIX)
            .unwrap_or(1)
            .to_ne_bytes()
            .to_vec();
        address.extend(&socket.address.0);
        if socket.address.0.first() != Some(&0) {
            address.push(0);
        }
        let len = address.len() as u64;
        calls::put(place.sys, &address)
            .and_then(|at| calls::plain(place.sys, libc::SYS_bind, [arg(fd), at, len]))
            .during(pid, || format!("bind to {}", describe(socket)))?;
        if let Some(path) = path {
            if let Some(rights) = rights {
                // As the stale socket had them; a failure leaves it to root.
                let mode = std::fs::Permissions::from_mode(rights.mode & 0o7777);
                let _ = std::fs::set_permissions(&path, mode);
                let _ = std::os::unix::fs::lchown(&path, Some(rights.uid), Some(rights.gid));
            }
            self.made_paths.push(path);
        }
        Ok(())
    }
}

/// Where a socket's file is, seen from here. `None`: an abstract name.
fn host_path(socket: &UnixListener, place: &Place<'_>) -> Option<PathBuf> {
    let name = &socket.address.0;
    if name.first().is_none_or(|b| *b == 0) {
        return None;
    }
    let path = Path::new(&place.fs.cwd).join(OsStr::from_bytes(name));
    let below = path
        .strip_prefix("/")
        .map(Path::to_path_buf)
        .unwrap_or(path);
    Some(Path::new("/").join(&place.fs.root).join(below))
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
