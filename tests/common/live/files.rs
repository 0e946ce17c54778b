//! Open files of a live process, by procfs.

use super::{Taker, field, link, numbers};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
            let same = fds.iter().find(|other| {
                const KCMP_FILE: i32 = 0;
                let (a, b) = (fd as u64, other.fd as u64);
                // SAFETY: a system call whose arguments are numbers or buffers of its own.
                unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, a, b) == 0 }
            });
            let id = match same {
                Some(other) => other.file,
                None => {
                    let id = ObjectId(1 << 41 | fd as u64);
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
            fds.push(Fd {
                fd,
                file: id,
                cloexec: flags & libc::O_CLOEXEC as u32 != 0,
            });
        }
        // Watches name files: their descriptors are known only now.
        for file in self.files.values_mut() {
            if let FileKind::Epoll { watches } = &mut file.kind {
                for watch in watches {
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
                context: ObjectId(fd as u64),
                count: u64::from_str_radix(&value("eventfd-count"), 16).expect("hex"),
                flags: 0,
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
                    self.pipes.push(Pipe {
                        id,
                        capacity: 65536,
                        content: Blob(content),
                        closed_set: true,
                    });
                }
                FileKind::Pipe {
                    pipe: id,
                    end: if write { PipeEnd::Write } else { PipeEnd::Read },
                    named: false,
                }
            }
            p if p.starts_with("socket:") => match tcp(bracketed()) {
                Some(socket) => FileKind::InetSocket(socket),
                None => FileKind::UnixSocket(unix(bracketed())),
            },
            p if p.starts_with("/memfd:") => {
                let meta = fs::metadata(format!("/proc/{}/fd/{fd}", self.pid)).expect("memfd");
                FileKind::Memfd {
                    memory: ObjectId(meta.ino()),
                }
            }
            "/dev/net/tun" => FileKind::Tun {
                interface: value("iff"),
                // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, and what the test set.
                flags: 0x5002,
                vnet_header_len: 12,
                offloads: 3,
                sndbuf: i32::MAX,
                persist: false,
            },
            p if p.starts_with("/dev/") => {
                let device = fs::metadata(p).expect(p).rdev();
                FileKind::CharDevice {
                    major: libc::major(device),
                    minor: libc::minor(device),
                }
            }
            p if p.starts_with('/') => FileKind::Regular,
            other => panic!("the test cannot take {other}"),
        }
    }
}

pub fn open_file(id: ObjectId, path: &str) -> OpenFile {
    OpenFile {
        id,
        path: path.into(),
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
    })
}

/// A line of /proc/net/tcp: `sl local rem st tx:rx tr:when retr uid timeout inode`.
fn tcp(inode: u64) -> Option<InetSocket> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let line = table
        .lines()
        .find(|l| l.split_ascii_whitespace().nth(9) == Some(&inode.to_string()))?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    assert_eq!(words[3], "0A", "the test can take listeners alone");
    let (address, port) = words[1].split_once(':').expect("two");
    let address = u32::from_str_radix(address, 16).expect("hex").to_ne_bytes();
    let port = u16::from_str_radix(port, 16).expect("hex");
    Some(InetSocket {
        family: libc::AF_INET,
        socket_type: libc::SOCK_STREAM,
        protocol: libc::IPPROTO_TCP,
        local: (address, port).into(),
        remote: None,
        backlog: Some(7),
        reuse_address: true,
        reuse_port: false,
        v6only: false,
    })
}

/// A line of /proc/net/unix: `Num RefCount Protocol Flags Type St Inode Path`.
fn unix(inode: u64) -> UnixListener {
    let table = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if words[6] == inode.to_string() {
            return UnixListener {
                socket: ObjectId(inode),
                socket_type: i32::from_str_radix(words[4], 16).expect("hex"),
                address: Blob(words.get(7).map_or(Vec::new(), |p| p.as_bytes().to_vec())),
                state: if words[3] == "00010000" {
                    UnixState::Listening { backlog: 5 }
                } else {
                    UnixState::Unconnected
                },
            };
        }
    }
    panic!("socket {inode} is no UNIX socket")
}
