//! The guest's network, and what it says of itself there.
//!
//! | option of the kernel's command line | does |
//! |---|---|
//! | `lab.net=ADDRESS/BITS[,ADDRESS/BITS…]` | the addresses of eth0, eth1, … |
//! | `lab.peer=ADDRESS:PORT` | keeps a TCP connection: sends a number, awaits it back, makes a new connection when that fails |
//! | `lab.flood=ADDRESS:PORT` | sends numbered datagrams of 1000 bytes for ever, two in a millisecond at most |
//!
//! UDP port 7 answers each datagram with one line:
//!
//! ```text
//! N nonce=… q=<first word asked> n=<answers> peer=<answers>:<failures> tcp=<accepted>:<closed> flood=<sent> rng=<reads> crc=…
//! ```
//!
//! TCP port 7 takes connections and writes a line to each, ten in a second, until it fails.

use std::ffi::CString;
use std::io::{BufRead, BufReader, Write};
use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::line::sealed;

/// Port of both servers.
const PORT: u16 = 7;
/// How long a peer may keep an answer back.
const PATIENCE: Duration = Duration::from_secs(2);

static ANSWERS: AtomicU64 = AtomicU64::new(0);
static PEER_ANSWERS: AtomicU64 = AtomicU64::new(0);
static PEER_FAILURES: AtomicU64 = AtomicU64::new(0);
static ACCEPTED: AtomicU64 = AtomicU64::new(0);
static CLOSED: AtomicU64 = AtomicU64::new(0);
static FLOOD: AtomicU64 = AtomicU64::new(0);
/// Reads of the hardware's random numbers that gave some.
pub static RNG_READS: AtomicU64 = AtomicU64::new(0);

/// Brings the interfaces up and starts the servers, as the options say.
pub fn start(nonce: u64, option: impl Fn(&str) -> Option<String>) {
    up("lo", Ipv4Addr::LOCALHOST, 8);
    let Some(addresses) = option("lab.net=") else {
        return;
    };
    for (index, address) in addresses.split(',').enumerate() {
        let interface = format!("eth{index}");
        let Some((address, bits)) = address.split_once('/') else {
            continue;
        };
        if let (Ok(address), Ok(bits)) = (address.parse(), bits.parse()) {
            await_interface(&interface);
            up(&interface, address, bits);
        }
    }
    std::thread::spawn(move || answer_datagrams(nonce));
    std::thread::spawn(move || accept(nonce));
    if let Some(peer) = option("lab.peer=").and_then(|p| p.parse().ok()) {
        std::thread::spawn(move || talk(peer));
    }
    if let Some(peer) = option("lab.flood=").and_then(|p| p.parse().ok()) {
        std::thread::spawn(move || flood(peer));
    }
}

fn await_interface(name: &str) {
    for _ in 0..40 {
        if Path::new("/sys/class/net").join(name).exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Gives an interface its address and mask, and sets it up.
fn up(interface: &str, address: Ipv4Addr, bits: u32) {
    let Ok(name) = CString::new(interface) else {
        return;
    };
    let mask = u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
    // SAFETY: a socket, and ioctls with a struct ifreq each, which is plain data.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        for (request, address) in [
            (libc::SIOCSIFADDR, address),
            (libc::SIOCSIFNETMASK, Ipv4Addr::from(mask)),
        ] {
            let mut ifreq: libc::ifreq = std::mem::zeroed();
            for (to, from) in ifreq.ifr_name.iter_mut().zip(name.as_bytes()) {
                *to = *from as libc::c_char;
            }
            let at: libc::sockaddr_in = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.octets()),
                },
                sin_zero: [0; 8],
            };
            std::ptr::copy_nonoverlapping(
                (&raw const at).cast::<u8>(),
                (&raw mut ifreq.ifr_ifru).cast::<u8>(),
                size_of::<libc::sockaddr_in>(),
            );
            libc::ioctl(fd, request, &ifreq);
        }
        let mut ifreq: libc::ifreq = std::mem::zeroed();
        for (to, from) in ifreq.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = *from as libc::c_char;
        }
        ifreq.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(fd, libc::SIOCSIFFLAGS, &ifreq);
        libc::close(fd);
    }
}

fn answer_datagrams(nonce: u64) {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)) else {
        return;
    };
    let mut buffer = [0; 2048];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let asked = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default()).into_owned();
        let asked = asked.split_whitespace().next().unwrap_or("-");
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let answer = sealed(&format!(
            "N nonce={nonce:016x} q={asked} n={} peer={}:{} tcp={}:{} flood={} rng={}",
            ANSWERS.fetch_add(1, Ordering::Relaxed) + 1,
            of(&PEER_ANSWERS),
            of(&PEER_FAILURES),
            of(&ACCEPTED),
            of(&CLOSED),
            of(&FLOOD),
            of(&RNG_READS),
        ));
        let _ = socket.send_to(answer.as_bytes(), from);
    }
}

fn accept(nonce: u64) {
    let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)) else {
        return;
    };
    for mut stream in listener.incoming().flatten() {
        ACCEPTED.fetch_add(1, Ordering::Relaxed);
        std::thread::spawn(move || {
            for n in 1u64.. {
                let line = sealed(&format!("C nonce={nonce:016x} n={n}"));
                if stream.write_all(line.as_bytes()).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            CLOSED.fetch_add(1, Ordering::Relaxed);
        });
    }
}

fn talk(peer: SocketAddr) {
    loop {
        let mut number = 0u64;
        let _ = (|| -> std::io::Result<()> {
            let mut stream = TcpStream::connect_timeout(&peer, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answers = BufReader::new(stream.try_clone()?);
            loop {
                number += 1;
                stream.write_all(format!("{number}\n").as_bytes())?;
                let mut answer = String::new();
                answers.read_line(&mut answer)?;
                if answer.trim() != number.to_string() {
                    return Ok(());
                }
                PEER_ANSWERS.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        })();
        PEER_FAILURES.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn flood(peer: SocketAddr) {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else {
        return;
    };
    let mut datagram = [0x5a; 1000];
    for n in 1u64.. {
        if let Some(head) = datagram.get_mut(..8) {
            head.copy_from_slice(&n.to_le_bytes());
        }
        if socket.send_to(&datagram, peer).is_ok() {
            FLOOD.fetch_add(1, Ordering::Relaxed);
        }
        if n % 2 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
