//! What VMMs hold and a counter does not: seccomp filters that differ from
//! thread to thread, watches that were told and watches that were not,
//! socketpairs with unread data and open files in them, timers with unread
//! ticks. A live process, looked at, killed, and brought back from what was
//! seen; it judges itself (tests/programs/holdings.c).
//!
//! Needs root and a C compiler.
#![allow(unsafe_code)]

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use live::Taken;
use living::{Killed, Living, assert_unbroken, root_or_say_so};
use std::collections::BTreeMap;
use std::fs;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use vmrestore::dataset::{
    Blob, EpollWatch, FileKind, ObjectId, OpenFile, UnixListener, UnixMessage, UnixState,
};
use vmrestore::restore::{Options, RestoreError, prepare};

/// PIDs are the machine's, and tests want theirs: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The socketpairs of holdings.c by the order of their descriptors.
const PAIRS: [&str; 6] = ["stream", "packets", "parcel", "widow", "shut", "fired"];

#[test]
fn all_that_it_holds_comes_back_and_comes_once() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("holdings", "holdings");
    let pid = living.pid();
    let mut taken = living.take();
    complete(&mut taken, pid);
    set_timers(
        &mut taken,
        &fs::read(living.dir.join("timers")).expect("timers"),
    );
    living.kill();
    let before = living.ticks().len();

    let restored = prepare(&taken.dataset, &taken.memory, &Options::default())
        .expect("prepared")
        .resume()
        .expect("resumed");
    let _killed = Killed(restored[0].pid);
    assert_eq!(restored[0].fidelity, []);
    assert_unbroken(&living.await_ticks(before + 20), pid);
    fs::write(living.dir.join("go"), "").expect("go");
    let begin = Instant::now();
    while !living.log().contains("went") {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{}",
            living.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let all = living.ticks().len();
    assert_unbroken(&living.await_ticks(all + 20), pid);
    // What the kernel says of each thread's filters.
    let mut filters = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("tasks") {
        let path = task.expect("a task").path();
        let name = fs::read_to_string(path.join("comm")).expect("comm");
        let status = fs::read_to_string(path.join("status")).expect("status");
        let value = |field: &str| -> u32 {
            let line = status.lines().find_map(|l| l.strip_prefix(field));
            line.expect(field).trim().parse().expect("a number")
        };
        let state = (value("Seccomp_filters:"), value("NoNewPrivs:"));
        filters.insert(name.trim().to_owned(), state);
    }
    let expected = [("holdings", (0, 0)), ("one", (1, 1)), ("two", (2, 1))];
    assert_eq!(filters, expected.map(|(n, s)| (n.to_owned(), s)).into());
}

#[test]
fn without_its_filters_a_thread_is_refused_before_anything_starts() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("unfiltered", "holdings");
    let mut taken = living.take();
    complete(&mut taken, living.pid());
    living.kill();
    let filtered = taken.dataset.processes[0]
        .threads
        .iter_mut()
        .find(|t| t.comm == "two")
        .expect("two");
    filtered.seccomp.filters.clear();
    filtered.seccomp.refused = Some("no copy was kept".into());
    let error = prepare(&taken.dataset, &taken.memory, &Options::default()).expect_err("refused");
    assert!(matches!(error, RestoreError::Refused { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("(two)") && text.contains("no copy was kept"),
        "{text}"
    );
    assert!(error.hint().contains("--force"), "{}", error.hint());
    assert!(!fs::exists(format!("/proc/{}", living.pid())).expect("procfs"));
    // Forced, it is brought back without, and says so.
    let force = Options {
        force: true,
        ..Options::default()
    };
    let prepared = prepare(&taken.dataset, &taken.memory, &force).expect("prepared");
    let fidelity = &prepared.processes()[0].fidelity;
    assert!(
        fidelity.iter().any(|f| f.what == "seccomp filters"),
        "{fidelity:?}"
    );
}

#[test]
fn an_io_uring_is_refused_by_name_before_anything_starts() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    if !root_or_say_so() {
        return;
    }
    let mut living = Living::start("ring", "holdings");
    let mut taken = living.take();
    complete(&mut taken, living.pid());
    living.kill();
    let fd = taken.dataset.processes[0].fds[5].clone();
    let file = taken.dataset.files.iter_mut().find(|f| f.id == fd.file);
    file.expect("a file").kind = FileKind::Unsupported {
        operations: "io_uring_fops".into(),
        private_data: ObjectId(1),
        why: "an io_uring with 3 requests in flight".into(),
    };
    let error = prepare(&taken.dataset, &taken.memory, &Options::default()).expect_err("refused");
    let text = error.to_string();
    assert!(matches!(error, RestoreError::Refused { .. }), "{error}");
    assert!(
        text.contains(&format!("descriptor {}", fd.fd)) && text.contains("3 requests"),
        "{text}"
    );
    assert!(error.hint().contains("aio=threads"), "{}", error.hint());
}

/// Adds what procfs does not tell: which edges were told, who is connected
/// with whom, and what nobody has read. The last is taken *out* of the stopped
/// process, which has no further use for it.
fn complete(taken: &mut Taken, pid: i32) {
    let fds: BTreeMap<ObjectId, i32> = taken.dataset.processes[0]
        .fds
        .iter()
        .map(|fd| (fd.file, fd.fd))
        .collect();
    let mut parcels: Vec<OpenFile> = Vec::new();
    // The one closed by its program is not there: `widow` has one end.
    let mut sockets: Vec<(i32, &mut UnixListener)> = taken
        .dataset
        .files
        .iter_mut()
        .filter_map(|file| match &mut file.kind {
            FileKind::UnixSocket(socket) => Some((fds[&file.id], socket)),
            _ => None,
        })
        .collect();
    sockets.sort_by_key(|(fd, _)| *fd);
    assert_eq!(sockets.len(), 2 * PAIRS.len() - 1);
    let ids: Vec<ObjectId> = sockets.iter().map(|(_, s)| s.socket).collect();
    for (at, (fd, socket)) in sockets.into_iter().enumerate() {
        // stream 0 1, packets 2 3, parcel 4 5, widow 6, shut 7 8, fired 9 10.
        let peer = match at {
            6 => ObjectId(1),
            _ if at < 6 => ids[at ^ 1],
            _ => ids[((at + 1) ^ 1) - 1],
        };
        socket.state = UnixState::Connected { peer };
        socket.shutdown = match at {
            6 => 3,
            7 => 2,
            8 => 1,
            _ => 0,
        };
        let held = held_by(pid, fd);
        socket.send_buffer = send_buffer(&held);
        while let Some((data, files)) = receive(&held) {
            let files = files.iter().map(|file| {
                let id = ObjectId(1 << 42 | file.as_raw_fd() as u64);
                parcels.push(OpenFile {
                    flags: libc::O_NONBLOCK as u32 | 2,
                    kind: FileKind::EventFd {
                        context: id,
                        count: count_of(file),
                        flags: 0,
                    },
                    ..open_file(id)
                });
                id
            });
            socket.unread.push(UnixMessage {
                data: Blob(data),
                files: files.collect(),
            });
        }
    }
    assert_eq!(parcels.len(), 1);
    taken.dataset.files.extend(parcels);
    for file in &mut taken.dataset.files {
        let FileKind::Epoll { watches } = &mut file.kind else {
            continue;
        };
        for watch in watches {
            // In `lazy` 1 was told; all that `busy` knows was told, too.
            let EpollWatch { data, pending, .. } = watch;
            *pending = *data != 1;
        }
    }
}

/// Sets the timers as a dump has them, by the moments that the program has
/// noted: descriptor, first expiry, interval, ticks taken.
fn set_timers(taken: &mut Taken, notes: &[u8]) {
    let now = taken.dataset.host.monotonic_ns;
    let mut set = 0;
    for fd in &taken.dataset.processes[0].fds {
        let file = taken.dataset.files.iter_mut().find(|f| f.id == fd.file);
        let FileKind::TimerFd {
            remaining_ns,
            ticks,
            settime_flags,
            ..
        } = &mut file.expect("a file").kind
        else {
            continue;
        };
        let at = fd.fd as usize * 32;
        let word = |i: usize| {
            let bytes = &notes[at + i * 8..at + i * 8 + 8];
            i64::from_ne_bytes(bytes.try_into().expect("8"))
        };
        let [number, origin, interval, taken] = [0, 1, 2, 3].map(word);
        assert_eq!(number, i64::from(fd.fd));
        let late = now - (origin + taken * interval);
        *settime_flags = 1;
        (*ticks, *remaining_ns) = match late {
            0.. => (
                1 + (late / interval) as u64,
                Some(interval - late % interval),
            ),
            _ => (0, Some(-late)),
        };
        set += 1;
    }
    assert_eq!(set, 2);
}

fn open_file(id: ObjectId) -> OpenFile {
    OpenFile {
        id,
        path: "anon_inode:[eventfd]".into(),
        of_host: false,
        deleted: false,
        flags: 0,
        position: 0,
        inode: None,
        owner: None,
        locks: Vec::new(),
        kind: FileKind::Directory,
    }
}

/// A copy of a descriptor of a stopped process.
fn held_by(pid: i32, fd: i32) -> OwnedFd {
    // SAFETY: system calls whose arguments are numbers; the new descriptors
    // are owned by what is made of them.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        assert!(pidfd >= 0, "{}", Error::last_os_error());
        let pidfd = OwnedFd::from_raw_fd(pidfd);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) as i32;
        assert!(copy >= 0, "{}", Error::last_os_error());
        OwnedFd::from_raw_fd(copy)
    }
}

fn send_buffer(socket: &OwnedFd) -> u32 {
    let (mut value, mut len) = (0u32, 4);
    // SAFETY: the kernel writes one int.
    unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw mut value).cast(),
            &raw mut len,
        );
    }
    value
}

fn count_of(event: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    // SAFETY: a buffer and its length.
    let got = unsafe { libc::read(event.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
    assert_eq!(got, 8);
    u64::from_ne_bytes(count)
}

/// One message, or what a stream has; `None`: nothing, or the end.
fn receive(socket: &OwnedFd) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut data = vec![0u8; 1 << 20];
    let mut control = [0u64; 8];
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: msghdr is plain data; zeros are a value of it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: all of the message's buffers are of this function.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let got = usize::try_from(got).ok().filter(|n| *n > 0)?;
    data.truncate(got);
    let mut files = Vec::new();
    if message.msg_controllen > 0 {
        // struct cmsghdr: length, level, type; one descriptor.
        assert_eq!(control[0], 20);
        let fd = control[2] as u32 as i32;
        // SAFETY: the kernel has just made it for us.
        files.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Some((data, files))
}
