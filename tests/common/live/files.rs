//! Open files of a live process, by procfs.

use super::{Taker, field, link, numbers, set, tcp};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use vmrestore::dataset::*;

impl Taker {
    pub fn fds(&mut self) -> Vec<Fd> {
        let pid = self.pid;
        let mut fds: Vec<Fd> = Vec::new();
        for fd in numbers(&format!("/proc/{pid}/fd")) {
            let path = link(&format!("/proc/{pid}/fd/{fd}"));
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).expect("fdinfo");
            let flags = field(&info, "flags").expect("flags");
            let flags = u32::from_str_radix(&flags, 8).expect("octal");
            let same = self.known.iter().find(|(other, number, at, _)| {
                const KCMP_FILE: i32 = 0;
                let (a, b) = (fd as u64, *number as u64);
                // SAFETY: a system call whose arguments are numbers or buffers of its own.
                *at == path
                    && unsafe { libc::syscall(libc::SYS_kcmp, pid, *other, KCMP_FILE, a, b) == 0 }
            });
            let id = match same {
                Some((.., file)) => *file,
                None => {
                    let id = ObjectId(1 << 41 | (pid as u64) << 16 | fd as u64);
                    let kind = self.kind(fd, &path, &info);
                    let position = field(&info, "pos").expect("pos").parse().expect("a number");
                    let locks = info
                        .lines()
                        .filter_map(|l| l.strip_prefix("lock:"))
                        .map(lock)
                        .collect();
                    let file = OpenFile {
                        flags: flags & !(libc::O_CLOEXEC as u32),
                        position,
                        locks,
                        kind,
                        ..open_file(id, &path)
                    };
                    self.files.insert(id.0, file);
                    id
                }
            };
            self.known.push((pid, fd, path, id));
            fds.push(Fd {
                fd,
                file: id,
                cloexec: flags & libc::O_CLOEXEC as u32 != 0,
            });
        }
        // Watches name files: their descriptors are known only now.
        for file in self.files.values_mut() {
            if let FileKind::Epoll { watches } = &mut file.kind {
                for watch in watches.iter_mut().filter(|w| w.file == ObjectId(0)) {
                    let fd = fds.iter().find(|f| f.fd == watch.fd).expect("watched");
                    watch.file = fd.file;
                }
            }
        }
        fds
    }

    fn kind(&mut self, fd: i32, path: &str, info: &str) -> FileKind {
        let value = |name: &str| field(info, name).unwrap_or_else(|| panic!("{name}: {info}"));
        let bracketed = || -> u64 {
            let inside = path.split_once('[').expect("[").1;
            inside.trim_end_matches(']').parse().expect("a number")
        };
        let pair = |text: String| -> i64 {
            let inside = text.trim_matches(['(', ')']).to_string();
            let (s, ns) = inside.split_once(", ").expect("two");
            s.parse::<i64>().expect("s") * 1_000_000_000 + ns.parse::<i64>().expect("ns")
        };
        match path {
            "anon_inode:[eventfd]" => FileKind::EventFd {
                context: ObjectId((self.pid as u64) << 16 | fd as u64),
                count: u64::from_str_radix(&value("eventfd-count"), 16).expect("hex"),
                flags: field(info, "eventfd-semaphore").map_or(0, |f| f.parse().expect("0 or 1")),
            },
            "anon_inode:[timerfd]" => FileKind::TimerFd {
                clock: value("clockid").parse().expect("a clock"),
                remaining_ns: Some(pair(value("it_value"))),
                interval_ns: pair(value("it_interval")) as u64,
                ticks: value("ticks").parse().expect("ticks"),
                settime_flags: 0,
            },
            "anon_inode:[signalfd]" => FileKind::SignalFd {
                mask: u64::from_str_radix(&value("sigmask"), 16).expect("hex"),
            },
            "anon_inode:[eventpoll]" => FileKind::Epoll {
                watches: info.lines().filter_map(watch).collect(),
            },
            p if p.starts_with("pipe:") => {
                let id = ObjectId(bracketed());
                let write = value("flags").ends_with('1');
                if !self.pipes.iter().any(|p| p.id == id) {
                    let mut content = Vec::new();
                    // Any end leads to the pipe.
                    File::options()
                        .read(true)
                        .custom_flags(libc::O_NONBLOCK)
                        .open(format!("/proc/{}/fd/{fd}", self.pid))
                        .and_then(|mut f| f.read_to_end(&mut content))
                        .map_or_else(|e| assert_eq!(e.raw_os_error(), Some(libc::EAGAIN)), drop);
                    let end = vmrestore::sys::pidfd::take(self.pid, fd).expect("an end");
                    // SAFETY: fcntl with a number.
                    let capacity = unsafe { libc::fcntl(end.as_raw_fd(), libc::F_GETPIPE_SZ) };
                    self.pipes.push(Pipe {
                        id,
                        capacity: u64::try_from(capacity).expect("a size"),
                        content: Blob(content),
                        packets: Vec::new(),
                        closed_set: true,
                    });
                }
                FileKind::Pipe {
                    pipe: id,
                    end: if write { PipeEnd::Write } else { PipeEnd::Read },
                    named: false,
                }
            }
            "/dev/ptmx" => {
                let master = vmrestore::sys::pidfd::take(self.pid, fd).expect("the master");
                // What a master is asked is what its slave has.
                let ask = |request: u64, len: usize| {
                    let mut bytes = vec![0u8; len];
                    // SAFETY: both write a structure that is as long.
                    let asked =
                        unsafe { libc::ioctl(master.as_raw_fd(), request, bytes.as_mut_ptr()) };
                    assert_eq!(asked, 0);
                    Some(Blob(bytes))
                };
                FileKind::Tty {
                    // As its driver has it.
                    major: 128,
                    minor: 0,
                    termios: ask(0x802c_542a, 44),
                    pty_index: Some(value("tty-index").parse().expect("a number")),
                    window: ask(0x5413, 8),
                    inside: None,
                }
            }
            p if p.starts_with("socket:") => {
                match inet(self.pid, bracketed()).or_else(|| tcp::over(self.pid, fd, bracketed())) {
                    Some(socket) => FileKind::InetSocket(socket),
                    None => FileKind::UnixSocket(unix(self.pid, bracketed())),
                }
            }
            p if p.ends_with(" (deleted)") => {
                let open = format!("/proc/{}/fd/{fd}", self.pid);
                let meta = fs::metadata(&open).expect(p);
                let memory = self.memory_file(meta.ino(), p, Path::new(&open));
                let file = vmrestore::sys::pidfd::take(self.pid, fd).expect("the file");
                // SAFETY: fcntl without an argument.
                let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
                if let Some(memory) = self.shared.get_mut(&memory.0) {
                    memory.seals = u32::try_from(seals).unwrap_or(0);
                }
                FileKind::Memfd { memory }
            }
            "/dev/net/tun" => FileKind::Tun {
                interface: value("iff"),
                // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, and what the test set.
                flags: 0x5002,
                vnet_header_len: 12,
                offloads: 3,
                sndbuf: i32::MAX,
                persist: false,
                detached: false,
                link: None,
            },
            p if p.starts_with("/dev/pts/") => FileKind::Tty {
                major: 136,
                minor: p[9..].parse().expect("a number"),
                termios: None,
                pty_index: p[9..].parse().ok(),
                window: None,
                inside: None,
            },
            // Of whoever has a controlling terminal: it is that.
            "/dev/tty" => set::terminal_of(self.pid),
            p if p.starts_with("/dev/") => {
                let device = fs::metadata(self.root.join(&p[1..])).expect(p).rdev();
                FileKind::CharDevice {
                    major: libc::major(device),
                    minor: libc::minor(device),
                }
            }
            p if p.starts_with('/') => {
                let meta = fs::metadata(format!("/proc/{}/fd/{fd}", self.pid)).expect(p);
                let kind = meta.file_type();
                assert!(kind.is_file() || kind.is_dir(), "the test cannot take {p}");
                match kind.is_dir() {
                    true => FileKind::Directory,
                    false => FileKind::Regular,
                }
            }
            other => panic!("the test cannot take {other}"),
        }
    }
}

pub fn open_file(id: ObjectId, path: &str) -> OpenFile {
    OpenFile {
        id,
        path: path.into(),
        of_host: false,
        deleted: false,
        flags: 0,
        position: 0,
        inode: None,
        owner: None,
        locks: Vec::new(),
        kind: FileKind::Regular,
    }
}

/// `1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 3 6`
fn lock(line: &str) -> FileLock {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let end = words[7].parse().unwrap_or(i64::MAX as u64);
    let (write, start) = (words[3] == "WRITE", words[6].parse().expect("a number"));
    match words[1] {
        "OFDLCK" => FileLock::Ofd { write, start, end },
        "FLOCK" => FileLock::Flock { write },
        "POSIX" => FileLock::Posix {
            pid: words[4].parse().expect("a PID"),
            write,
            start,
            end,
        },
        other => panic!("the test cannot take the lock {other}"),
    }
}

/// `tfd:        5 events:       19 data:                1  pos:0 ino:… sdev:…`
fn watch(line: &str) -> Option<EpollWatch> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    if words.first() != Some(&"tfd:") {
        return None;
    }
    Some(EpollWatch {
        fd: words[1].parse().expect("a number"),
        file: ObjectId(0),
        events: u32::from_str_radix(words[3], 16).expect("hex"),
        data: u64::from_str_radix(words[5], 16).expect("hex"),
        // Procfs does not say: the test knows.
        pending: true,
    })
}

/// A line of /proc/net/tcp and its like: `sl local rem st tx:rx tr:when retr uid timeout inode`.
fn inet(pid: i32, inode: u64) -> Option<InetSocket> {
    let tables = [
        ("tcp", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP),
        ("tcp6", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
        ("udp", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ("udp6", libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    ];
    tables
        .into_iter()
        .find_map(|(name, family, socket_type, protocol)| {
            let table = fs::read_to_string(format!("/proc/{pid}/net/{name}")).expect(name);
            let line = table
                .lines()
                .find(|l| l.split_ascii_whitespace().nth(9) == Some(&inode.to_string()))?;
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let remote = socket_address(words[2]);
            Some(InetSocket {
                remote: (remote.port() != 0).then_some(remote),
                backlog: (words[3] == "0A").then_some(7),
                reuse_address: true,
                ..inet_socket((family, socket_type, protocol), socket_address(words[1]))
            })
        })
}

/// A socket bound to an address, and nothing else.
pub fn inet_socket(kind: (i32, i32, i32), local: std::net::SocketAddr) -> InetSocket {
    let (family, socket_type, protocol) = kind;
    InetSocket {
        family,
        socket_type,
        protocol,
        local,
        remote: None,
        backlog: None,
        reuse_address: false,
        reuse_port: false,
        v6only: false,
        any_port: false,
        keepalive: false,
        broadcast: false,
        receive_buffer: None,
        send_buffer: None,
        interface: None,
        groups: Vec::new(),
        options: Vec::new(),
        connection: None,
        waiting: Vec::new(),
        unread: Vec::new(),
    }
}

/// `0100007F:1F90`: words of 32 bits as this machine has them, then the port.
fn socket_address(text: &str) -> std::net::SocketAddr {
    let (address, port) = text.split_once(':').expect("two");
    let port = u16::from_str_radix(port, 16).expect("hex");
    let bytes: Vec<u8> = (0..address.len())
        .step_by(8)
        .flat_map(|at| {
            let word = u32::from_str_radix(&address[at..at + 8], 16).expect("hex");
            word.to_ne_bytes()
        })
        .collect();
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => (four, port).into(),
        Err(_) => (<[u8; 16]>::try_from(bytes.as_slice()).expect("16"), port).into(),
    }
}

/// A line of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`.
fn unix(pid: i32, inode: u64) -> UnixListener {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).expect("/proc/net/unix");
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words[6] == inode.to_string() {
            return UnixListener {
                socket: ObjectId(inode),
                socket_type: i32::from_str_radix(words[4], 16).expect("hex"),
                address: Blob(words.get(7).map_or(Vec::new(), |p| p.as_bytes().to_vec())),
                state: if words[3] == "00010000" {
                    UnixState::Listening { backlog: 5 }
                } else if words[5] == "03" {
                    // Whoever it is, it is not taken too.
                    UnixState::Connected { peer: ObjectId(1) }
                } else {
                    UnixState::Unconnected
                },
                file: None,
                unread: Vec::new(),
                shutdown: 0,
                send_buffer: 0,
                pass_credentials: false,
                waiting: Vec::new(),
                options: Vec::new(),
            };
        }
    }
    panic!("socket {inode} is no UNIX socket")
}
