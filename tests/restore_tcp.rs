//! A living process with a TCP connection whose other end is this test: the process is stopped,
//! looked at and killed, and brought back, while the other end goes on writing. Every byte is
//! looked at on both sides.
//!
//! Needs root and a C compiler.

#[path = "common/live.rs"]
mod live;
#[path = "common/living.rs"]
mod living;

use living::{Killed, Living, root_or_say_so};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmrestore::dataset::{FidelityLevel, FileKind, InetSocket, TcpPeer};
use vmrestore::restore::{Options, RestoreError, TcpPolicy, prepare};
use vmrestore::sys::socket;

const MUCH: u64 = 1 << 20;

/// The other end.
struct Other {
    stream: TcpStream,
    sent: Arc<AtomicU64>,
    got: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    talker: Option<JoinHandle<Result<(), String>>>,
}

/// As `byte_of` of tests/programs/stream.c.
fn seed_byte(seed: u64, at: u64) -> u8 {
    let word = at
        .wrapping_add(seed * 7919)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word >> 40) as u8
}

impl Other {
    fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).expect("nonblocking");
        let mut own = stream.try_clone().expect("a clone");
        let [sent, got] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (out, input, end) = (sent.clone(), got.clone(), stop.clone());
        let talker = std::thread::spawn(move || {
            let mut bytes = vec![0; 16384];
            while !end.load(Ordering::Relaxed) {
                let at = out.load(Ordering::Relaxed);
                for (byte, i) in bytes.iter_mut().zip(at..) {
                    *byte = seed_byte(2, i);
                }
                match own.write(&bytes) {
                    Ok(n) => drop(out.fetch_add(n as u64, Ordering::Relaxed)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(format!("write: {e}")),
                }
                match own.read(&mut bytes) {
                    Ok(0) => return Err("the end".into()),
                    Ok(n) => {
                        let at = input.fetch_add(n as u64, Ordering::Relaxed);
                        for (byte, i) in bytes[..n].iter().zip(at..) {
                            if *byte != seed_byte(1, i) {
                                return Err(format!("byte {i} is another"));
                            }
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(format!("read: {e}")),
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            Ok(())
        });
        Self {
            stream,
            sent,
            got,
            stop,
            talker: Some(talker),
        }
    }

    fn counts(&self) -> [u64; 2] {
        [&self.sent, &self.got].map(|n| n.load(Ordering::Relaxed))
    }

    /// Waits until so much more has gone both ways.
    fn await_more(&self, more: u64) {
        let (begin, before) = (Instant::now(), self.counts());
        while self
            .counts()
            .iter()
            .zip(before)
            .any(|(now, then)| *now < then + more)
        {
            let talker = self.talker.as_ref().expect("a talker");
            assert!(!talker.is_finished(), "it has ended at {:?}", self.counts());
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{before:?}, now {:?}",
                self.counts()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// It hears nothing for a while: nobody can tell it that its peer has gone.
    fn deafen(&self) {
        // BPF_RET | BPF_K, 0.
        socket::attach_filter(self.stream.as_fd(), &[6, 0, 0, 0, 0, 0, 0, 0]).expect("a filter");
    }

    fn hear(&self) {
        socket::detach_filter(self.stream.as_fd()).expect("no filter");
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let talker = self.talker.take().expect("a talker");
        talker.join().expect("joined").expect("all bytes are right");
    }
}

fn start(dir: &Path, port: u16) -> Living {
    fs::create_dir_all(dir).expect("a directory");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/stream.c");
    let program = dir.join("stream");
    let built = Command::new("cc")
        .args(["-O1", "-o"])
        .args([&program, &source])
        .status();
    assert!(built.expect("a C compiler").success());
    let child = Command::new(&program)
        .args(["connect", "127.0.0.1", &port.to_string()])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test program");
    let dir = dir.to_owned();
    Living { dir, child }
}

fn connection(taken: &mut live::Taken) -> &mut InetSocket {
    let files = taken.dataset.files.iter_mut();
    let mut sockets = files.filter_map(|file| match &mut file.kind {
        FileKind::InetSocket(socket) => Some(socket),
        _ => None,
    });
    sockets.next().expect("its connection")
}

#[test]
fn a_connection_goes_on_and_a_restore_that_fails_leaves_it_alone() {
    if !root_or_say_so() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("vmrestore-tcp-{}", std::process::id()));
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut living = start(&dir, listener.local_addr().expect("an address").port());
    let other = Other::new(listener.accept().expect("accepted").0);
    drop(listener);
    other.await_more(MUCH);
    let pid = living.pid();
    let mut taken = living.take();
    other.deafen();
    live::tcp::take_all(&mut taken.dataset);
    let socket = connection(&mut taken);
    let local = socket.local;
    let queues = socket.connection.as_mut().expect("taken");
    // As far as its own end knows, this test is another machine.
    queues.peer = TcpPeer::Elsewhere;
    // What it had written may all have been heard while it was being taken; what was said to it
    // waits.
    assert!(!queues.received.0.is_empty());
    living.kill();

    // An address that this host has not got.
    connection(&mut taken)
        .local
        .set_ip("192.0.2.1".parse().expect("an address"));
    let require = Options {
        tcp: TcpPolicy::Require,
        ..Options::default()
    };
    match prepare(&taken.dataset, &taken.memory, &require) {
        Err(RestoreError::Refused { why, .. }) => assert!(why.contains("192.0.2.1"), "{why}"),
        other => panic!("not refused: {:?}", other.map(|_| ())),
    }
    let keep = Options::default();
    let prepared = prepare(&taken.dataset, &taken.memory, &keep).expect("prepared");
    let said = prepared.processes()[0].fidelity.clone();
    assert!(
        said.iter()
            .any(|f| f.level == FidelityLevel::Lost && f.how.contains("192.0.2.1")),
        "{said:?}"
    );
    drop(prepared);
    connection(&mut taken).local = local;

    // What was prepared and given up, closed or kept, has told nobody.
    for tcp in [TcpPolicy::Close, TcpPolicy::Keep] {
        let options = Options {
            tcp,
            ..Options::default()
        };
        let prepared = prepare(&taken.dataset, &taken.memory, &options).expect("prepared");
        let said = prepared.processes()[0].fidelity.clone();
        let closed = said.iter().any(|f| f.how.contains("--tcp close"));
        assert_eq!(closed, tcp == TcpPolicy::Close, "{said:?}");
        if tcp == TcpPolicy::Keep {
            other.hear();
        }
        std::thread::sleep(Duration::from_secs(1));
        drop(prepared);
        other.deafen();
    }
    let restored = prepare(&taken.dataset, &taken.memory, &require)
        .expect("prepared")
        .resume()
        .expect("resumed");
    let _killed = Killed(pid);
    // It may have inherited pipes of whoever runs this test.
    let said = &restored[0].fidelity;
    let mut of_tcp = said.iter().filter(|f| f.what.contains("TCP"));
    assert!(
        of_tcp
            .next()
            .is_some_and(|f| f.level == FidelityLevel::Exact && f.how.contains("goes on"))
            && of_tcp.next().is_none(),
        "{said:?}"
    );
    other.hear();
    other.await_more(2 * MUCH);
    let log = fs::read_to_string(dir.join("client")).expect("its log");
    assert!(!log.contains("BAD") && !log.contains("END"), "{log}");
    other.end();
}
